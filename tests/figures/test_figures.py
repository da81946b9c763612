"""The figures say what the results say, look alike everywhere, and their static twins are exact copies."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import plotly.graph_objects as go
import pytest
from example_results import example_results
from plotly.subplots import make_subplots

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures import results as figures
from csrlhf_kit.figures import style
from csrlhf_kit.figures.static import PLOTLY, mime_bundle, static_svg, summary

RESULTS = example_results()
BINS = {name: model["calibration"] for name, model in RESULTS["cost_models"].items()}
FIGURES = {
    "tradeoff": figures.tradeoff(RESULTS["policies"]),
    "training_curves": figures.training_curves(RESULTS["curves"]),
    "cost_model_strata": figures.cost_model_strata(RESULTS["cost_models"]),
    "harm_by_family": figures.harm_by_group(RESULTS["policies"]),
    "calibration": figures.calibration(BINS),
}
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_every_method_has_its_own_look():
    methods = [name for name in style.STYLES if name not in BINS]
    drawn = [(style.STYLES[name].colour, style.STYLES[name].symbol) for name in methods]
    assert len(set(drawn)) == len(drawn)
    the_five = [style.STYLES[n] for n in ("sft", "ppo", "lagrangian", "linear_penalty", "fixed_penalty")]
    for first, second in itertools.combinations(the_five, 2):
        assert first.colour != second.colour
        assert first.symbol != second.symbol
        assert first.dash != second.dash


def test_an_unknown_method_gets_a_stable_look():
    assert style.style("my_new_method") == style.style("my_new_method")
    assert style.style("my_new_method").label == "my new method"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_that_wcag_asks_for():
    for colour in (style.INK, style.MUTED):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5
    for look in style.STYLES.values():  # marks on white: visible, and never by colour alone
        assert 1.05 / (luminance(look.colour) + 0.05) >= 2.0


def test_rounding_keeps_significant_digits_and_turns_nan_into_a_gap():
    assert style.rounded(123456.789) == 123460.0
    assert style.rounded(0.000123456789) == 0.00012346
    assert style.rounded(0.5, 100) == 50.0
    assert style.rounded(math.nan) is None
    assert style.rounded(None) is None


@pytest.mark.parametrize("name", FIGURES)
def test_axes_and_titles_are_labelled(name):
    figure = FIGURES[name]
    assert figure.layout.title.text
    for axis in figure.select_xaxes():
        assert axis.title.text
    titled = [axis for axis in figure.select_yaxes() if axis.title.text or axis.ticktext]
    shared = [axis for axis in figure.select_yaxes() if axis.matches]
    assert len(titled) + len(shared) == len(list(figure.select_yaxes()))


@pytest.mark.parametrize("name", FIGURES)
def test_json_is_plain_and_free_of_identifiers(name):
    text = FIGURES[name].to_json()
    assert '"uid"' not in text
    assert "bdata" not in text  # numpy arrays would be stored as base64
    numbers = [v for trace in FIGURES[name].data for axis in "xy" for v in trace[axis] if v is not None]
    assert numbers and all(value == style.rounded(value) for value in numbers)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same_when_drawn_again(name):
    again = {
        "tradeoff": lambda r: figures.tradeoff(r["policies"]),
        "training_curves": lambda r: figures.training_curves(r["curves"]),
        "cost_model_strata": lambda r: figures.cost_model_strata(r["cost_models"]),
        "harm_by_family": lambda r: figures.harm_by_group(r["policies"]),
        "calibration": lambda r: figures.calibration(
            {k: m["calibration"] for k, m in r["cost_models"].items()}
        ),
    }[name](example_results())
    assert again.to_json() == FIGURES[name].to_json()
    assert static_svg(again) == static_svg(FIGURES[name])


def test_static_twins_agree_across_processes_and_nothing_reaches_stderr(tmp_path):
    """Another process, another hash seed, and a first run of matplotlib with nowhere to keep its caches."""
    code = (
        "from example_results import example_results\n"
        "from csrlhf_kit.figures import results as figures, static\n"
        "print(static.static_svg(figures.tradeoff(example_results()['policies'])), end='')"
    )
    tests = Path(__file__).parents[1]
    (tmp_path / "file").touch()
    environment = {
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        "MPLCONFIGDIR": str(tmp_path / "file" / "no_folder"),
    }
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout == static_svg(FIGURES["tradeoff"])
    assert other.stderr == "", "a notebook's first figure would not pass nbval"


@pytest.mark.parametrize("name", FIGURES)
def test_static_twin_is_small_valid_and_says_what_the_figure_says(name):
    figure, svg = FIGURES[name], static_svg(FIGURES[name])
    assert len(svg) < 60_000
    written = " ".join(texts(svg))
    for axis in [*figure.select_xaxes(), *figure.select_yaxes()]:
        assert (axis.title.text or "") in written
    for trace in figure.data:
        if trace.showlegend:
            assert trace.name in written
    assert not re.search(r"\d{4}-\d{2}-\d{2}|matplotlib|DejaVu", svg)


def test_tradeoff_shows_the_intervals_in_percent():
    policy = RESULTS["policies"]["fixed_penalty"]
    [trace] = [t for t in FIGURES["tradeoff"].data if t.legendgroup == "fixed_penalty" and t.showlegend]
    harm = policy["harmful_nominal"]
    assert trace.x[0] == pytest.approx(100 * harm["rate"], rel=1e-4)
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(100 * harm["high"], rel=1e-3)
    assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(100 * harm["low"], rel=1e-2)
    assert trace.y[0] == policy["helpfulness"]


def test_training_curves_leave_out_what_no_row_has_and_keep_gaps():
    rows = [
        {"step": 0, "objective/kl": 0.0},
        {"step": 1, "objective/kl": None},
        {"step": 2, "objective/kl": 2.0},
    ]
    figure = figures.training_curves({"ppo": rows})
    assert [axis.title.text for axis in figure.select_yaxes()] == ["KL to the reference, nats"]
    assert list(figure.data[0].y) == [0.0, None, 2.0]
    assert static_svg(figure).count("<path") > 3


def test_training_curves_draw_each_threshold_once():
    dotted = [s for s in FIGURES["training_curves"].layout.shapes if s.line.dash == "dot"]
    assert [shape.y0 for shape in dotted] == [-2.0]


def test_groups_are_sorted_with_the_worst_on_top():
    policies = {
        "ppo": {"by_family": {"mild": {"rate": 0.1, "low": 0.05, "high": 0.2, "n": 50}}},
        "sft": {
            "by_family": {
                "mild": {"rate": 0.2, "low": 0.1, "high": 0.3, "n": 50},
                "bad_one": {"rate": 0.9, "low": 0.8, "high": 0.95, "n": 50},
            }
        },
    }
    assert figures.harm_by_group(policies).layout.yaxis.ticktext == ("bad one", "mild")


def test_groups_without_a_request_are_left_out():
    empty, full = (
        {"rate": 0.0, "low": 0.0, "high": 1.0, "n": 0},
        {"rate": 0.1, "low": 0.0, "high": 0.2, "n": 9},
    )
    policies = {"ppo": {"by_category": {"drug_abuse,weapons": full, "nothing": empty}}}
    assert figures.harm_by_group(policies, "by_category").layout.yaxis.ticktext == ("drug abuse, weapons",)


def test_overall_auroc_carries_its_interval():
    models = {"semantic": {"auroc": 0.9, "auroc_tricky": 0.8, "intervals": {"auroc": [0.85, 0.95]}}}
    [trace] = figures.cost_model_strata(models).data
    assert trace.x == (90.0, 80.0)
    assert trace.error_x.array == (5.0, 0.0)
    assert trace.error_x.arrayminus == (5.0, 0.0)


def test_long_titles_and_captions_wrap():
    figure = style.titled(go.Figure(go.Scatter(x=[0, 1], y=[0, 1])), "word " * 40, caption="more " * 60)
    assert figure.layout.title.text.count("<br>") >= 2
    assert figure.layout.title.subtitle.text.count("<br>") >= 2
    rows = texts(static_svg(figure))
    assert sum(row.startswith("word") for row in rows) == figure.layout.title.text.count("<br>") + 1


# The static twin, feature by feature: every figure of the course uses these and no other.


def marks(svg: str) -> list[tuple[float, float]]:
    """Places of all `<use>` marks in pixels from the page's upper left corner."""
    return [(float(use.get("x")), float(use.get("y"))) for use in ET.fromstring(svg).iter(f"{SVG}use")]


def test_points_lie_where_the_axes_put_them():
    figure = go.Figure(go.Scatter(x=[0, 5, 10], y=[1, 10, 100], mode="markers", marker={"color": "#0072B2"}))
    figure.update_layout(
        template=style.TEMPLATE, width=600, height=400, margin={"l": 100, "r": 50, "t": 60, "b": 40}
    )
    figure.update_xaxes(range=[0, 10], tickvals=[])
    figure.update_yaxes(type="log", range=[0, 2], tickvals=[])
    assert marks(static_svg(figure)) == [(100.0, 360.0), (325.0, 210.0), (550.0, 60.0)]


def test_subplots_keep_their_places():
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    for row in (1, 2):
        figure.add_trace(go.Scatter(x=[1], y=[1], mode="markers"), row=row, col=1)
    figure.update_layout(
        template=style.TEMPLATE, width=400, height=300, margin={"l": 50, "r": 50, "t": 50, "b": 50}
    )
    figure.update_xaxes(range=[0, 2], tickvals=[])
    figure.update_yaxes(range=[0, 2], tickvals=[])
    assert marks(static_svg(figure)) == [(200.0, 90.0), (200.0, 210.0)]


def test_bars_fills_and_notes_are_drawn():
    figure = make_subplots(rows=1, cols=2)
    for name in ("a", "b"):
        bar = go.Bar(x=["one", "two"], y=[1, 2], name=name, error_y={"type": "data", "array": [0.1, 0.1]})
        figure.add_trace(bar, row=1, col=1)
    figure.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"width": 0}, name="low"), row=1, col=2
    )
    band = go.Scatter(
        x=[0, 1], y=[1, 2], mode="lines", fill="tonexty", fillcolor="rgba(0,114,178,0.2)", name="up"
    )
    figure.add_trace(band, row=1, col=2)
    figure.add_annotation(x=0.5, y=1, text="see <b>here</b> &amp; there", row=1, col=2)
    style.titled(figure, "All kinds of marks")
    svg = static_svg(figure)
    written = texts(svg)
    assert {"one", "two", "see here & there"} <= set(written)
    assert "fill-opacity: 0.2" in svg
    assert svg == static_svg(figure)


def test_tick_labels_turn_as_in_the_interactive_figure():
    figure = go.Figure(go.Scatter(x=[0, 1], y=[1, 2]))
    figure.update_xaxes(tickvals=[0, 1], ticktext=["rumour", "radio"], tickangle=-60)
    turned = re.findall(r"rotate\((-?\d+) [^>]*>(\w+)<", static_svg(figure))
    assert turned == [("-60", "rumour"), ("-60", "radio")]


def test_what_the_twin_cannot_draw_is_an_error_not_a_gap():
    with pytest.raises(UserError, match="'violin'"):
        static_svg(go.Figure(go.Violin(y=[1, 2, 3])))
    with pytest.raises(UserError, match="'heatmap'"):
        static_svg(go.Figure(go.Heatmap(z=[[1, 2]])))
    with pytest.raises(UserError, match="'rect'"):
        static_svg(go.Figure(go.Scatter(x=[0], y=[0])).add_vrect(x0=0, x1=1))
    with pytest.raises(UserError, match="'circle'"):
        figure = go.Figure(go.Scatter(x=[0], y=[0]))
        static_svg(figure.add_shape(type="circle", x0=0, y0=0, x1=1, y1=1))
    with pytest.raises(UserError, match="'~s'"):
        static_svg(go.Figure(go.Scatter(x=[0, 1], y=[0, 1]), {"xaxis": {"tickformat": "~s"}}))


def test_text_in_a_figure_cannot_become_markup():
    figure = style.titled(go.Figure(go.Scatter(x=[0], y=[0], name="<script>alert(1)</script>")), "a < b & c")
    figure.update_layout(showlegend=True)
    svg = static_svg(figure)
    ET.fromstring(svg)
    assert "<script" not in svg


def test_bundle_has_three_deterministic_forms():
    figure = FIGURES["tradeoff"]
    before = json.loads(figure.to_json())
    bundle = mime_bundle(figure, "Look at the corner.")
    assert set(bundle) == {PLOTLY, "image/svg+xml", "text/plain"}
    assert json.loads(json.dumps(bundle)) == json.loads(
        json.dumps(mime_bundle(figure, "Look at the corner."))
    )
    assert "Look at the corner." in bundle["image/svg+xml"]
    assert bundle["text/plain"].endswith("fixed penalty]")
    assert json.loads(figure.to_json()) == before, "showing a figure must not change it"
    assert len(json.dumps(bundle)) < 60_000
    assert "Look" not in summary(figure)
