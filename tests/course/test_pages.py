"""What every page of the course has: links, the map, what to remember, empty predictions, checks that are folded away."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from course import tools
from course.links import links, refresh_links
from course.pipeline import BOXES, LIT, alt_text, diagram, image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STORED = sorted(NOTEBOOKS.glob("*.ipynb"))
TARGET = re.compile(r"\]\(([^)\s]+)\)")
MOST_ASSERTS = 30  # in code that students read, over all notebooks

each_page = pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)


def texts(path: Path) -> list[str]:
    """What a reader reads, without the code of the solutions."""
    cells = (cell.source for cell in tools.read(path).cells if cell.cell_type == "markdown")
    return [re.sub(r"```.*?```", "", source, flags=re.DOTALL) for source in cells]


@each_page
def test_a_page_leads_to_its_neighbours_at_its_top_and_its_end(path):
    page = texts(path)
    assert page[0].splitlines()[2] == page[-1].splitlines()[-1] == links(path)
    place = STORED.index(path)
    targets = TARGET.findall(links(path))
    beside = [other.name for other in STORED[max(0, place - 1) : place + 2] if other != path]
    assert [target for target in targets if target in beside] == beside
    assert len(targets) == len(beside) + 2


@each_page
def test_a_page_links_only_to_what_is_there(path):
    for text in texts(path):
        for target in TARGET.findall(text):
            if "://" not in target and not target.startswith("#"):
                assert (path.parent / target.split("#")[0]).exists(), target


@each_page
def test_every_paper_is_a_link_and_was_read(path):
    for text in texts(path):
        assert re.findall(r"(?<!\[)arXiv[: ]\d{4}\.\d{5}", text) == []
        for number, address in re.findall(r"\[arXiv (\S+)\]\(([^)\s]+)\)", text):
            assert address == f"https://arxiv.org/abs/{number}"
        assert "second hand" not in text


@each_page
def test_a_page_shows_the_map_and_ends_with_three_things_to_remember(path):
    page = texts(path)
    assert image(path.name[:2]) in page[0]
    assert len(re.search(r"## Remember\n\n((?:- .+\n)+)", page[-1])[1].splitlines()) == 3


@each_page
def test_predictions_start_empty(path):
    sources = "\n".join(cell.source for cell in tools.code_cells(tools.read(path)))
    assert set(re.findall(r'predictions\.record\("[^"]+", "([a-z]?)"', sources)) == {""}


def test_the_drawings_are_what_the_code_draws_and_light_the_part_of_their_notebook():
    folder = NOTEBOOKS / "course" / "map"
    assert {file.name for file in folder.iterdir()} == {f"{number}.svg" for number in LIT}
    assert set(LIT) == {path.name[:2] for path in STORED}
    for number, lit in LIT.items():
        drawn = (folder / f"{number}.svg").read_text(encoding="utf-8")
        assert drawn == diagram(number), "run `python -m course.pipeline` in notebooks/"
        assert drawn.count('fill="#0072B2"') == len(lit) > 0
        assert all(BOXES[name].lines[0] in alt_text(number) for name in lit) or len(lit) == len(BOXES)


def test_checks_are_folded_away():
    seen = 0
    for path in STORED:
        for cell in tools.code_cells(nbformat.read(path, as_version=4)):
            assert bool(cell.metadata.get("jupyter", {}).get("source_hidden")) == tools.is_hidden(cell)
            if not tools.is_hidden(cell):
                seen += sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
    assert seen <= MOST_ASSERTS


def test_storing_keeps_a_cell_folded_and_writes_the_links_once(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# 00 · Why?\n\nBecause."),
        nbformat.v4.new_code_cell("assert True", metadata={"tags": [tools.HIDDEN], "collapsed": True}),
        nbformat.v4.new_markdown_cell("## Limits"),
    ]
    path, notebook = tmp_path / "00_start_here.ipynb", nbformat.v4.new_notebook(cells=cells)
    refresh_links(notebook, path)
    assert "[" not in notebook.cells[0].source  # no course in this folder
    for name in ("00_start_here", "01_next"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    for _ in range(2):
        refresh_links(notebook, path)
    line = "[All notebooks](00_start_here.ipynb#The-map) · [Symbols and words](../docs/glossary.md) · [01 →](01_next.ipynb)"
    assert notebook.cells[0].source == f"# 00 · Why?\n\n{line}\n\nBecause."
    assert notebook.cells[-1].source == f"## Limits\n\n{line}"
    assert tools.normalised(notebook).cells[1].metadata == {
        "tags": [tools.HIDDEN],
        "jupyter": {"source_hidden": True},
    }


def test_hidden_cells_add_no_distance_between_a_number_and_its_code():
    hidden = [nbformat.v4.new_code_cell("1", metadata={"tags": [tools.HIDDEN]}) for _ in range(4)]
    text, code = nbformat.v4.new_markdown_cell("it is 0.25"), nbformat.v4.new_code_cell("0.25")
    assert tools.unbacked_numbers(nbformat.v4.new_notebook(cells=[text, *hidden, code])) == []
    visible = [nbformat.v4.new_code_cell("1") for _ in range(4)]
    assert tools.unbacked_numbers(nbformat.v4.new_notebook(cells=[text, *visible, code])) == ["cell 0: 0.25"]
