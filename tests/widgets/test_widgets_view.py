"""The frame of the widgets: escaping, the static twin, closing, and redrawing only what differs."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import ipywidgets
import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from ipywidgets.widgets.widget import _instances as alive

from course.tools import normalised
from csrlhf_kit.widgets import annotate, arena, explore_penalty, explore_tradeoff, inspect_cost, view, watch
from csrlhf_kit.widgets.labels import Pair
from csrlhf_kit.widgets.view import Keys, LiveFigure, View, card, escaped, log_slider, text_twin

HOSTILE = "<script>alert('x')</script> **bold** [a](http://example.com) <b>&amp;</b>"


def test_hostile_text_is_shown_letter_by_letter():
    shown = card(HOSTILE, mark=HOSTILE)
    assert "<script" not in shown and "<b>" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") == 2
    assert "&amp;amp;" in escaped(HOSTILE), "an entity in the text is text, too"
    assert "<script" not in text_twin(HOSTILE, [HOSTILE])["text/html"]


@pytest.mark.parametrize(
    ("variable", "asked", "runs"),
    [("", None, True), ("1", None, False), ("1", False, True), ("", True, False)],
)
def test_where_widgets_run(monkeypatch, variable, asked, runs):
    monkeypatch.setenv(view.STATIC, variable)
    monkeypatch.setattr(view, "_shell", lambda: SimpleNamespace(kernel=object()))
    assert view.widgets_can_run(asked) is runs


def test_no_widget_without_a_kernel(monkeypatch):
    monkeypatch.delenv(view.STATIC, raising=False)
    monkeypatch.setattr(view, "_shell", lambda: None)
    assert not view.widgets_can_run()


@pytest.mark.parametrize("make", [explore_penalty, explore_tradeoff])
def test_a_static_place_gets_a_twin_that_says_so(make, monkeypatch):
    monkeypatch.setenv(view.STATIC, "1")
    bundle = make()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert view.TWIN in bundle["text/plain"] and "Static twin" in bundle["image/svg+xml"]
    assert make()._repr_mimebundle_() == bundle, "nbval compares it: the same every time"


def talk(messages):
    yield "hello"


MAKERS = {
    "explore_penalty": explore_penalty,
    "explore_tradeoff": explore_tradeoff,
    "inspect_cost": lambda static: inspect_cost({"one": lambda p, r: [0.5] * len(p)}, static=static),
    "annotate": lambda static: annotate([Pair("p", "a", "b")], folder="labels", static=static),
    "arena": lambda static: arena({"a": talk, "b": talk}, folder="arena", static=static),
    "watch": lambda static: watch(".", static=static),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_live_output_carries_its_twin_and_closing_leaves_nothing(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, threads = set(alive), threading.active_count()
    shown = make(static=False)
    bundle = shown._repr_mimebundle_()
    assert bundle[view.WIDGET_VIEW]["model_id"] == shown.root.model_id
    assert {"image/svg+xml", "text/html"} & set(bundle) and len(set(alive) - before) > 5
    shown.close()
    shown.close()
    assert set(alive) == before and threading.active_count() == threads
    assert view.WIDGET_VIEW not in shown._repr_mimebundle_()


def test_a_cell_that_runs_again_closes_what_it_showed(monkeypatch):
    cell = SimpleNamespace(parent_header={"metadata": {"cellId": "a"}}, execution_count=1)
    monkeypatch.setattr(view, "_shell", lambda: cell)
    monkeypatch.setattr(view, "_open", {})
    twin = lambda: {}  # noqa: E731
    first, second = (View(ipywidgets.HTML(), twin) for _ in range(2))
    assert not first.closed and not second.closed, "two widgets of one cell live together"
    cell.parent_header = {"metadata": {"cellId": "b"}}
    other = View(ipywidgets.HTML(), twin)
    cell.parent_header, cell.execution_count = {"metadata": {"cellId": "a"}}, 7
    third = View(ipywidgets.HTML(), twin)
    assert first.closed and second.closed and not other.closed and not third.closed


def test_closing_ends_observers_and_tasks():
    slider, calls, ended = ipywidgets.IntSlider(), [], []
    slider.observe(calls.append, "value")
    shown = View(ipywidgets.VBox([ipywidgets.HBox([slider])]), dict)
    shown.at_close.append(lambda: ended.append(1))
    slider.value = 3
    shown.close()
    slider.value = 4
    assert len(calls) == 1 and ended == [1]


def test_redraw_touches_what_differs_and_nothing_else():
    figure = go.Figure([go.Scatter(x=[1], y=[2], meta="a"), go.Scatter(x=[3], y=[4], meta="b")])
    live, sent = LiveFigure(figure), []
    live.observe(sent.append, "drawing")
    assert live.redraw({"a": {"x": [1], "y": [2]}, "b": {"x": [3]}, "none": {"x": [9]}}) == 0 and not sent
    assert live.redraw({"a": {"x": [1], "y": [5]}}) == 1 and len(sent) == 1
    assert [list(trace["y"]) for trace in live.drawing["data"]] == [[5], [4]]
    live.close()


def test_the_page_gets_plotly_from_this_machine_and_clicks_are_passed_on(monkeypatch):
    live, sent, clicks = LiveFigure(go.Figure(go.Scatter(y=[1], meta="a"))), [], []
    monkeypatch.setattr(live, "send", lambda content, buffers: sent.append((content, buffers)))
    live.on_click(lambda trace, point: clicks.append((trace, point)))
    for message in ({"kind": "click", "trace": "a", "point": 3}, {"kind": "click", "trace": None, "point": 0},
                    {"kind": "click", "trace": "a", "point": "0"}, "x", {"kind": "plotly.js"}):  # fmt: skip
        live._handle_custom_msg(message, [])
    assert clicks == [("a", 3)]
    assert sent[0][0] == {"kind": "plotly.js"} and b"plotly.js v" in sent[0][1][0][:300]
    live.close()


@pytest.mark.parametrize("value", [0.1, 0.33, 1.5, 97.0])
def test_a_slider_starts_on_one_of_its_steps(value):
    slider = log_slider(value, 0.1, 100, step=0.04)
    steps = (np.log10(value) - slider.min) / slider.step
    assert slider.value == value and steps == pytest.approx(round(steps), abs=1e-9)
    assert 10**slider.min <= 0.1 + 1e-9 and 10**slider.max >= 100 - 1e-9
    slider.close()


def test_keys_pass_on_the_keys_that_were_asked_for():
    keys, pressed = Keys(wanted=["1", "ArrowLeft"], hint="press"), []
    keys.on_press(pressed.append)
    for message in ({"key": "1"}, {"key": "9"}, {"key": ["1"]}, {}, "1", {"key": "ArrowLeft"}):
        keys._handle_custom_msg(message, [])
    assert pressed == ["1", "ArrowLeft"]
    keys.close()


def test_no_widget_state_is_ever_stored():
    output = nbformat.v4.new_output(
        "execute_result", {view.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "twin"}
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("w", outputs=[output])])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    stored = normalised(notebook)
    assert "widgets" not in stored.metadata
    assert set(stored.cells[0].outputs[0].data) == {"text/plain"}
