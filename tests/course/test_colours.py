"""One colour per method, in every stored figure; a page's dark theme; the colours of the course's own charts."""

from __future__ import annotations

from pathlib import Path

import pytest

from course import tools
from course.chart import OTHERS, YOURS, chart, plain_chart
from csrlhf_kit.figures.style import DARK, STYLES, dark_css, method_of, ramp, shade, style

STORED = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
HEAD_TO_HEAD = ("ppo", "lagrangian", "linear_penalty", "bradley_terry", "keyword")
ONE = ([0, 1], [0, 1])


def drawn(path: Path) -> list[tuple[str, set[str]]]:
    """(name, colours) of each named series in the notebook's stored figures."""
    found = []
    for cell in tools.code_cells(tools.read(path)):
        for output in cell.outputs:
            for trace in output.get("data", {}).get(tools.PLOTLY, {}).get("data", []):
                looks = [trace.get("line") or {}, trace.get("marker") or {}, trace.get("error_x") or {}]
                colours = {look["color"] for look in looks if isinstance(look.get("color"), str)}
                if trace.get("name"):
                    found.append((trace["name"], colours))
    return found


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_method_wears_its_own_colour_in_every_stored_figure(path):
    for name, colours in drawn(path):
        method = method_of(name)
        if method:
            assert colours <= {style(method).colour}, name


def test_a_batch_size_has_one_colour():
    sizes = {8: set(), 64: set()}
    for path in STORED:
        for name, colours in drawn(path):
            for size in sizes:
                if name.endswith((f"batches of {size}", f"B = {size}")):
                    sizes[size] |= colours
    assert sizes == {size: {shade(size)} for size in sizes}
    assert (
        shade(8) == ramp(2)[0] and shade(512) == ramp(2)[1] and len({shade(2**k) for k in range(3, 10)}) == 7
    )


def test_every_label_names_its_method():
    for name, look in STYLES.items():
        assert method_of(look.label) == name or look.label == "SFT"
        assert method_of(f"trained: {look.label}, seed 3") == name
    for label, method in {
        "harmful helped, rectified": "fixed_penalty",
        "linear, λ = 20": "linear_penalty",
        "PID Lagrangian": "pid_lagrangian",
        "Lagrangian, η = 1": "lagrangian",
        "ranking + sign, the other answer": "bradley_terry",
        "recorded by PPO": None,
        "keywords": None,
        "nonlinear": None,
    }.items():
        assert method_of(label) == method, label


def test_names_choose_colours_order_shades_and_the_rest_wear_no_methods_colour():
    figure = plain_chart("t", "x", "y", dict.fromkeys(("what it should be", "Lagrangian", "ours"), ONE))
    assert [trace.line.color for trace in figure.data] == [OTHERS[0], style("lagrangian").colour, YOURS]
    figure = plain_chart("t", "x", "y", dict.fromkeys(("rate 0.04", "rate 0.2", "rate 0.8"), ONE))
    assert [trace.line.color for trace in figure.data] == ramp(3)
    figure = plain_chart(
        "t", "x", "y", {"average over batches of 8": ONE, "rectified": ONE}, marks={"B = 8": ONE}
    )
    assert figure.data[0].line.color == figure.data[1].marker.color == shade(8)
    assert figure.data[2].line.color == style("fixed_penalty").colour
    assert chart("t", "x", "y", {"2 λ*": ONE}, yours=ONE).data[-1].line.color == YOURS
    assert not {style(method).colour for method in HEAD_TO_HEAD} & {*OTHERS, YOURS}


def test_the_dark_theme_swaps_every_ink_for_one_that_can_be_read():
    rules = dark_css()
    for light, dark in DARK.items():
        rgb = ", ".join(str(int(light[place : place + 2], 16)) for place in (1, 3, 5))
        for kind in ("fill", "stroke"):
            assert f'[style*="{kind}: rgb({rgb})"]:not(.hovertext *) {{{kind}: {dark} !important}}' in rules


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_notebook_brings_the_dark_rules_once_before_its_first_figure(path):
    outputs = [output for cell in tools.code_cells(tools.read(path)) for output in cell.outputs]
    styles = [
        place for place, one in enumerate(outputs) if dark_css() in one.get("data", {}).get("text/html", "")
    ]
    figures = [place for place, one in enumerate(outputs) if tools.PLOTLY in one.get("data", {})]
    assert len(styles) == 1 and styles[0] < figures[0]
