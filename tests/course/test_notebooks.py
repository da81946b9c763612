"""Stored notebooks keep the rules, and nbval notices one changed digit in any form of an output."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course import tools
from course.tools import PLOTLY, WIDGET_VIEW, compared_share, is_compared, problems, store
from csrlhf_kit.errors import UserError

STORED = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

NBVAL = "-m pytest --nbval --nbval-current-env -p no:cacheprovider"

FIGURE = """\
import plotly.graph_objects as go
from csrlhf_kit.figures.style import titled
from csrlhf_kit.figures.static import show
show(titled(go.Figure(go.Scatter(x=[1, 2], y=[3.25, 4.5], name="a")), "Two points"), "One line.")"""


def test_the_course_starts_somewhere():
    assert any(path.name.startswith("00_") for path in STORED)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_notebooks_keep_the_rules(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_kit_is_imported_before_what_it_keeps_quiet(path):
    """On a processor with AVX512-BF16 bitsandbytes, which peft imports too, warns on stderr unless the kit was first."""
    code = "\n".join(cell.source for cell in tools.code_cells(nbformat.read(path, as_version=4)))
    first = re.search(r"^\s*(?:from|import) (?:course|csrlhf_kit)\b", code, re.MULTILINE)
    loud = re.search(r"^\s*(?:from|import) (?:bitsandbytes|peft)\b", code, re.MULTILINE)
    assert first and (loud is None or first.start() < loud.start())


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A small notebook, executed and stored."""
    path = tmp_path_factory.mktemp("notebooks") / "small.ipynb"
    cells = [
        new_markdown_cell("# A small notebook"),
        new_code_cell("print('harmful', 1 / 8)\nprint('n', 560)"),
        new_code_cell("{'rate': 0.375}"),
        new_code_cell(FIGURE),
        new_code_cell(FIGURE.splitlines()[-1].replace("Two points", "Again")),
        new_code_cell("import time\ntime.time()", metadata={"tags": ["nbval-ignore-output"]}),
        new_code_cell("import ipywidgets\nipywidgets.IntSlider(value=7)"),
    ]
    store(new_notebook(cells=cells, metadata={"widgets": {"left": "over"}}), path)
    status = tools.main(["execute", str(path)])
    return status, path


def test_executing_stores_outputs_without_noise(executed):
    status, path = executed
    assert status == 0
    notebook = nbformat.read(path, as_version=4)
    cells = tools.code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5, 6]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert cells[0].outputs[0].text == "harmful 0.125\nn 560\n"
    assert set(cells[2].outputs[-1].data) == {PLOTLY, "image/svg+xml", "text/plain"}
    assert WIDGET_VIEW not in cells[5].outputs[0].data
    assert "IntSlider(value=7)" in cells[5].outputs[0].data["text/plain"]
    assert compared_share(notebook) == 5 / 6
    assert problems(path) == []


def test_strict_nbval_notices_one_digit_in_every_form(executed, tmp_path):
    """One pytest run over the stored notebook and a copy with one digit changed in each kind of output."""
    _, path = executed
    shutil.copy(path, tmp_path / "stored.ipynb")
    notebook = nbformat.read(path, as_version=4)
    printed, result, interactive, twin, ignored, _ = tools.code_cells(notebook)

    def swap(holder, key, old, new):
        assert old in holder[key]
        holder[key] = holder[key].replace(old, new, 1)

    swap(printed.outputs[0], "text", "0.125", "0.126")
    swap(result.outputs[0].data, "text/plain", "0.375", "0.376")
    interactive.outputs[-1].data[PLOTLY]["data"][0]["y"] = [3.26, 4.5]
    swap(twin.outputs[0].data, "image/svg+xml", ">3.4<", ">3.5<")
    swap(ignored.outputs[0].data, "text/plain", "1", "2")
    store(notebook, tmp_path / "tampered.ipynb")
    # Under CI pytest repeats each failure's message in its summary, which would count twice below.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    run = subprocess.run(
        [sys.executable, *NBVAL.split(), "-rA", "--color=no", f"--rootdir={tmp_path}", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert run.returncode == 1, run.stdout + run.stderr
    verdicts = re.findall(r"^(PASSED|FAILED) (\w+)\.ipynb::Cell (\d)", run.stdout, re.MULTILINE)
    assert {int(cell) for verdict, name, cell in verdicts if (verdict, name) == ("PASSED", "stored")} == set(
        range(6)
    )
    assert {int(cell) for verdict, name, cell in verdicts if verdict == "FAILED"} == {0, 1, 2, 3}
    assert {name for verdict, name, _ in verdicts if verdict == "FAILED"} == {"tampered"}
    assert run.stdout.count("Cell outputs differ") == 4


def test_a_failing_cell_is_named_and_nothing_is_stored(tmp_path):
    path = tmp_path / "bad.ipynb"
    store(new_notebook(cells=[new_code_cell("x = 1"), new_code_cell("x / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"bad\.ipynb: code cell 2 failed: ZeroDivisionError"):
        tools.execute(path)
    assert path.read_bytes() == before


def cell(source="1", count=1, outputs=None, tags=()):
    made = new_code_cell(source, metadata={"tags": list(tags)} if tags else {})
    made.execution_count = count
    made.outputs = [new_output("stream", name="stdout", text="1\n")] if outputs is None else outputs
    return made


def data(**mime):
    return [new_output("display_data", data={key.replace("__", "/"): value for key, value in mime.items()})]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([cell(count=None)], "execution count None, expected 1"),
        ([cell(), cell(count=3)], "execution count 3, expected 2"),
        ([cell(" ")], "is empty"),
        ([cell("1\n" * 26)], "has 26 lines"),
        ([cell(outputs=[new_output("stream", name="stderr", text="a warning\n")])], "stderr: a warning"),
        ([cell(outputs=[new_output("error", ename="KeyError", evalue="", traceback=[])])], "error: KeyError"),
        ([cell(outputs=data(text__plain="'/home/ann/x.json'"))], "path of one machine: /home/ann"),
        ([cell("open('C:\\\\Users\\\\ann')")], "path of one machine"),
        ([cell(), new_markdown_cell("see /tmp/x")], "path of one machine: /tmp/x"),
        ([cell(outputs=data(text__plain="<object at 0x7f5f360f7d30>"))], "memory address"),
        ([cell(outputs=data(**{PLOTLY.replace("/", "__"): {}, "text__plain": "x"}))], "static twin"),
        ([cell(), cell(count=2, outputs=[])], "only 50% of its code cells"),
        ([cell(outputs=data(image__png="aaaa"))], "only 0% of its code cells"),
        ([new_markdown_cell("words")], "no code cell"),
        ([cell(outputs=data(text__plain="PPO:   0%|          | 0/10 [00:00<?, ?step/s]"))], "progress bar"),
        (
            [new_markdown_cell("it falls to 12.5%"), cell("12.6 / 100")],
            "no code near it computes or names, cell 0",
        ),
        ([cell(outputs=[new_output("stream", name="stdout", text="x" * 300_000)])], "300,000 are allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_is_checked(tmp_path, cells, words):
    path = tmp_path / "n.ipynb"
    store(new_notebook(cells=cells), path)
    found = problems(path)
    assert len(found) == 1, found
    assert words in found[0] and found[0].startswith("n.ipynb: ")


def test_numbers_in_prose_are_backed_by_code_or_outputs_nearby():
    backed = [
        new_markdown_cell("Of 40, $12.5\\%$ fell to 0.30, as arXiv 2510.03520 and Exercise 3.1 say; `9.9`"),
        cell("rate = 12.5; other = 0.3"),
    ]
    assert tools.unbacked_numbers(new_notebook(cells=backed)) == []
    far = [new_markdown_cell("it is 0.25"), *(cell("1") for _ in range(3)), cell("0.25")]
    assert tools.unbacked_numbers(new_notebook(cells=far)) == ["cell 0: 0.25"]
    assert tools.unbacked_numbers(new_notebook(cells=far[:3] + far[4:])) == []


def test_the_share_that_is_really_compared_is_counted(capsys):
    """The number that the course is judged by; shown by `pytest -s` and in a failure."""
    shares = {path.stem: compared_share(nbformat.read(path, as_version=4)) for path in STORED}
    with capsys.disabled():
        counts = [len(tools.code_cells(nbformat.read(path, as_version=4))) for path in STORED]
        total = sum(share * count for share, count in zip(shares.values(), counts, strict=True)) / sum(counts)
        print(
            f"\ncode cells whose output nbval compares: {total:.0%} of {sum(counts)} in {len(STORED)} notebooks"
        )
        for (name, share), count in zip(shares.items(), counts, strict=True):
            print(f"  {name:40} {share:4.0%} of {count}")
    assert min(shares.values()) >= tools.MIN_COMPARED


def test_every_notebook_states_question_outcome_time_and_memory():
    for path in STORED:
        first = nbformat.read(path, as_version=4).cells[0].source
        title = first.splitlines()[0]
        assert re.fullmatch(r"# \d\d · .+\?", title), title
        assert "**Afterwards you can" in first and "**Time:**" in first and "**Memory:**" in first


def test_the_syllabus_lists_every_notebook_with_its_question_and_number_of_cells():
    syllabus = (Path(__file__).parents[2] / "docs" / "teaching.md").read_text(encoding="utf-8")
    for path in STORED:
        notebook = nbformat.read(path, as_version=4)
        number, question = re.fullmatch(r"# (\d\d) · (.+)", notebook.cells[0].source.splitlines()[0]).groups()
        row = next((row for row in syllabus.splitlines() if row.startswith(f"| {number} | {question} |")), "")
        assert f"| {len(notebook.cells)} |" in row, (
            f"docs/teaching.md has no row for {path.name}, or another count"
        )


def test_every_notebook_has_30_to_80_cells():
    for path in STORED:
        assert 30 <= len(nbformat.read(path, as_version=4).cells) <= 80, path.name


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A notebook with an exercise, and the file of its solutions."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "solutions").mkdir()
    (folder / "solutions" / "nb97.py").write_text(
        "import math\n\nimport numpy as np\n\nEXERCISES = {'97.1': 'area'}\n\n\n"
        "def area(radius):\n    return math.pi * radius**2\n\n\n"
        "def area__forgets_pi(radius):\n    return radius**2\n"
    )
    cells = [
        new_markdown_cell("# 97"),
        new_code_cell("print(1)"),
        new_markdown_cell("", metadata={"tags": ["solution-97.1"]}),
    ]
    store(new_notebook(cells=cells), folder / "97_small.ipynb")
    assert tools.main(["execute", str(folder / "97_small.ipynb")]) == 0
    return folder / "97_small.ipynb"


def test_solution_cells_are_generated_from_the_tested_code(course):
    notebook = nbformat.read(course, as_version=4)
    assert notebook.cells[2].source == (
        "<details><summary><b>Solution of exercise 97.1</b></summary>\n\n"
        "```python\nimport math\n\n\ndef area(radius):\n    return math.pi * radius**2\n```\n\n</details>"
    )
    assert problems(course) == []
    notebook.cells[2].source = notebook.cells[2].source.replace("**2", "**3")
    store(notebook, course.with_name("97_drifted.ipynb"))
    assert "is not the one in solutions/" in problems(course.with_name("97_drifted.ipynb"))[0]
    del notebook.cells[2]
    store(notebook, course.with_name("97_without.ipynb"))
    assert "shows no solution of exercise 97.1" in problems(course.with_name("97_without.ipynb"))[0]


def test_the_student_edition_has_neither_solutions_nor_outputs(course, tmp_path, capsys):
    assert tools.main(["student", str(course), "--out", str(tmp_path)]) == 0
    edition = nbformat.read(tmp_path / course.name, as_version=4)
    nbformat.validate(edition)
    assert [cell.cell_type for cell in edition.cells] == ["markdown", "code"]
    assert edition.cells[1].outputs == [] and edition.cells[1].execution_count is None
    assert "math.pi" not in (tmp_path / course.name).read_text()
    assert nbformat.read(course, as_version=4).cells[1].outputs


def test_solutions_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "solutions").mkdir()
    cells = [new_markdown_cell("", metadata={"tags": ["solution-96.1"]}), cell()]
    store(new_notebook(cells=cells), tmp_path / "96_x.ipynb")
    with pytest.raises(UserError, match="no such file of solutions"):
        tools.execute(tmp_path / "96_x.ipynb")
    file = tmp_path / "solutions" / "nb96.py"
    for text, words in (
        ("x = 1\n", "EXERCISES is missing or empty"),
        ("EXERCISES = {'96.1': 'f'}\n", "'f' that is not there"),
        ("EXERCISES = {'96.2': 'f'}\n\n\ndef f():\n    return 1\n", "no solution of exercise 96.1"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            tools.execute(tmp_path / "96_x.ipynb")


def test_widget_state_is_reported(tmp_path):
    path = tmp_path / "n.ipynb"
    store(new_notebook(cells=[cell()], metadata={"widgets": {}}), path)
    assert ["metadata.widgets" in problem for problem in problems(path)] == [True]


def test_what_passes_passes(tmp_path):
    path = tmp_path / "n.ipynb"
    error = new_output("error", ename="UserError", evalue="line 3", traceback=[])
    cells = [cell("a = 3 / 4 / 5  # see https://example.org/home/x"), cell(count=2, outputs=[error])]
    cells[1].metadata["tags"] = ["raises-exception"]
    store(new_notebook(cells=cells), path)
    assert problems(path) == []


def test_comment_markers_count_as_tags():
    assert is_compared(cell())
    assert not is_compared(cell("# NBVAL_IGNORE_OUTPUT\n1"))
    assert not is_compared(cell(tags=["nbval-skip"]))


def test_bad_input_gets_one_sentence(tmp_path, capsys):
    assert tools.main(["check", str(tmp_path / "none.ipynb")]) == 2
    assert "no such notebook" in capsys.readouterr().err
    (tmp_path / "text.ipynb").write_text("hello")
    assert tools.main(["check", str(tmp_path / "text.ipynb")]) == 2
    (tmp_path / "list.ipynb").write_text(json.dumps([1]))
    assert tools.main(["check", str(tmp_path / "list.ipynb")]) == 2
    assert capsys.readouterr().err.count("is not a notebook") == 2


def test_the_students_copies_find_the_course_beside_themselves(course, tmp_path):
    assert tools.main(["student", str(course), "--out", str(tmp_path)]) == 0
    code = "import course; from course import Predictions, exercises; print(course.__file__)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parents[1] == tmp_path and not (tmp_path / "solutions").exists()
