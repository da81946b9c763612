"""What all widgets share: the live widget beside its static twin, plotly figures and key presses in the browser.

A widget's output is one bundle of mime types. A notebook with a kernel shows the live widget; a page without
one (GitHub, a stored notebook, paper) shows the static twin from the same output, with a sentence that says so.
With `static=True`, with the environment variable CSRLHF_STATIC, or without a kernel, there is no live part.

Running a cell again closes the widgets of its last run, with their comms, observers and tasks.
Builds on ipywidgets, anywidget and figures/static.
"""

from __future__ import annotations

import html
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import plotly.offline
import traitlets

from csrlhf_kit.figures.static import CONFIG, mime_bundle
from csrlhf_kit.figures.style import dark_css

STATIC = "CSRLHF_STATIC"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
TWIN = "Static twin: nothing can be dragged or clicked here; open the notebook with a kernel (make lab) for that."
LIVE = {**CONFIG, "typesetMath": False}
"""plotly's settings for a live figure; text between dollar signs is not taken for a formula."""
CARD = (
    "color: var(--jp-content-font-color1, #24292f); background: var(--jp-layout-color1, #ffffff); "
    "border: 1px solid var(--jp-border-color1, #8c959f); border-radius: 4px; padding: 8px 12px; "
    "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.4; font-size: 14px;"
)
"""CSS of a box with text, in the colours of Jupyter's theme, so that it can be read in the dark theme too."""


def widgets_can_run(static: bool | None = None) -> bool:
    """Whether live widgets can be shown: in a Jupyter kernel outside Colab. `static`, if given, decides instead."""
    if static is not None:
        return not static
    if os.environ.get(STATIC, "") not in ("", "0") or "google.colab" in sys.modules:
        return False
    return getattr(_shell(), "kernel", None) is not None


def escaped(text: object) -> str:
    """`text` as HTML that shows every character of it, also in plotly's hover labels, which interpret tags."""
    return html.escape(str(text), quote=True)


def card(text: str, *, accent: str = "", mark: str = "") -> str:
    """An HTML box with `text`, escaped; above it `mark`, in bold and escaped; `accent` is the colour of its edge."""
    edge = f"border-left: 6px solid {accent};" if accent else ""
    head = f'<div style="font-weight: 700; margin-bottom: 2px">{escaped(mark)}</div>' if mark else ""
    return f'<div style="{CARD} {edge}">{head}{escaped(text)}</div>'


Values = Mapping[str, Mapping[str, Any]]
"""A trace's name (plotly's `meta`) -> the properties that the sliders change: x, y, text ..."""


class Keys(anywidget.AnyWidget):
    """A box on the page. While it has the keyboard focus, pressing a key in `wanted` calls the callbacks.

    Jupyter's own shortcuts are off during that time: otherwise, pressing "d" twice would delete the cell.
    """

    _esm = """
    function render({ model, el }) {
      const box = document.createElement("div");
      box.className = "csrlhf-keys";
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.dataset.lmSuppressShortcuts = "true";
      const show = () => {
        box.textContent = model.get("hint");
        box.setAttribute("aria-label", model.get("hint"));
      };
      const press = (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        if (!model.get("wanted").includes(key)) return;
        event.preventDefault();
        event.stopPropagation();
        if (!event.repeat) model.send({ key });
      };
      box.addEventListener("keydown", press);
      model.on("change:hint", show);
      show();
      el.appendChild(box);
      return () => {
        box.removeEventListener("keydown", press);
        model.off("change:hint", show);
      };
    }
    export default { render };
    """
    _css = """
    .csrlhf-keys { color: var(--jp-content-font-color1, #24292f); background: var(--jp-layout-color2, #f0f0f0);
      border: 2px dashed var(--jp-border-color1, #8c959f); border-radius: 4px; padding: 6px 10px; cursor: pointer; }
    .csrlhf-keys:focus { outline: none; border: 2px solid #56B4E9; }
    """
    wanted = traitlets.List(traitlets.Unicode()).tag(sync=True)
    hint = traitlets.Unicode("").tag(sync=True)

    def on_press(self, callback: Callable[[str], None]) -> None:
        """Call `callback(key)` whenever the browser reports a key in `wanted`."""

        def receive(_: Any, content: Any, __: Any) -> None:
            key = content.get("key") if isinstance(content, dict) else None
            if key in self.wanted:
                callback(key)

        self.on_msg(receive)


class LiveFigure(anywidget.AnyWidget):
    """A plotly figure in the browser: `redraw` changes its traces, `on_click` registers a callback for its points.

    plotly's own FigureWidget sends plotly.js (5 MB) with every figure, and anywidget reports an error if a widget is
    not ready after two seconds, as happens on a busy laptop. This widget is ready at once: the page asks the kernel
    for the installed plotly.js a single time, and all figures on the page use it.
    """

    _esm = """
    function plotly(model) {
      if (window.Plotly) return Promise.resolve(window.Plotly);
      window.csrlhfPlotly ??= new Promise((resolve, reject) => {
        const fail = (why) => { delete window.csrlhfPlotly; reject(new Error(why)); };
        const timer = setTimeout(() => fail("the kernel sent no plotly.js"), 120000);
        const take = (message, buffers) => {
          if (message.kind !== "plotly.js") return;
          model.off("msg:custom", take);
          clearTimeout(timer);
          const script = document.createElement("script");
          script.src = URL.createObjectURL(new Blob([buffers[0]], { type: "text/javascript" }));
          script.onload = () => resolve(window.Plotly);
          script.onerror = () => fail("plotly.js does not load");
          document.head.appendChild(script);
        };
        model.on("msg:custom", take);
        model.send({ kind: "plotly.js" });
      });
      return window.csrlhfPlotly;
    }
    function render({ model, el }) {
      const box = document.createElement("div");
      box.setAttribute("role", "img");
      el.appendChild(box);
      let gone = false;
      let started = false;
      const fit = new ResizeObserver(() => { if (started) window.Plotly.Plots.resize(box); });
      fit.observe(el);
      const draw = () => plotly(model).then((Plotly) => {
        if (gone) return;
        const { data, layout, config } = structuredClone(model.get("drawing"));
        box.setAttribute("aria-label", layout.title?.text ?? "figure");
        Plotly.react(box, data, layout, config);
        if (started) return;
        started = true;
        box.on("plotly_click", (event) => {
          const point = event.points[0];
          model.send({ kind: "click", trace: point.data.meta, point: point.pointNumber });
        });
      });
      model.on("change:drawing", draw);
      draw().catch((error) => { box.textContent = `No figure: ${error.message}`; });
      return () => {
        gone = true;
        fit.disconnect();
        model.off("change:drawing", draw);
        if (started) window.Plotly.purge(box);
      };
    }
    export default { render };
    """
    _css = dark_css()
    drawing = traitlets.Dict().tag(sync=True)

    def __init__(self, figure: go.Figure, **options: Any) -> None:
        super().__init__(drawing={**figure.to_plotly_json(), "config": LIVE}, **options)
        self._clicked: list[Callable[[str, int], None]] = []
        self.on_msg(self._receive)

    def on_click(self, callback: Callable[[str, int], None]) -> None:
        """Call `callback(meta, number)` for each click on a point: its trace's `meta`, its place in the trace."""
        self._clicked.append(callback)

    def redraw(self, values: Values) -> int:
        """Put `values` into the traces with these names; returns the number of traces that changed.

        Only traces change, never the layout: threshold lines are traces too. With fixed axes one sees what moves, and
        little has to be sent to the browser.
        """
        data = [{**trace, **values.get(trace.get("meta"), {})} for trace in self.drawing["data"]]
        changes = sum(new != old for new, old in zip(data, self.drawing["data"], strict=True))
        if changes:
            self.drawing = {**self.drawing, "data": data}
        return changes

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "plotly.js":
            self.send({"kind": kind}, buffers=[plotly.offline.get_plotlyjs().encode()])
        elif kind == "click" and isinstance(content.get("trace"), str) and type(content.get("point")) is int:
            for callback in self._clicked:
                callback(content["trace"], content["point"])


class View:
    """What a widget function returns. As the last expression of a cell it is shown; `close()` ends it.

    root: the live widget; None if only the static twin is to be shown. twin: makes the twin's mime bundle.
    """

    def __init__(self, root: ipywidgets.Widget | None, twin: Callable[[], Mapping[str, Any]]) -> None:
        self.root = root
        self.twin = twin
        self.at_close: list[Callable[[], None]] = []
        """Functions that `close` calls, once, to end tasks and close files."""
        self.closed = False
        if root is not None:
            _close_earlier(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle = dict(self.twin())
        if self.root is not None and not self.closed:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.root.model_id}
            bundle[WIDGET_VIEW] = view
        return bundle

    def close(self) -> None:
        """End the widget's tasks and observers, and remove it from the browser; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for callback in self.at_close:
            callback()
        for widget in descendants(self.root) if self.root is not None else ():
            widget.unobserve_all()
            widget.close()


def descendants(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """A widget and all widgets inside it, including each one's layout and style, which are widgets too."""
    inside = [part for child in getattr(widget, "children", ()) for part in descendants(child)]
    own = [getattr(widget, name, None) for name in ("layout", "style")]
    return [widget, *inside, *(part for part in own if isinstance(part, ipywidgets.Widget))]


def folded(title: str, inside: ipywidgets.Widget) -> ipywidgets.Accordion:
    """`inside` behind a line with `title`, closed at first."""
    return ipywidgets.Accordion(children=[inside], titles=(title,), selected_index=None)


def log_slider(
    value: float, low: float, high: float, *, step: float, **look: Any
) -> ipywidgets.FloatLogSlider:
    """A slider on a log scale from about `low` to about `high`, with `value` exactly on one of its steps.

    step: in powers of ten. The browser rounds to steps that are counted from the smallest value, so a `value`
    between two steps would jump.
    """
    start = math.log10(value)
    down, up = (
        math.ceil(max(0.0, gap) / step) for gap in (start - math.log10(low), math.log10(high) - start)
    )
    return ipywidgets.FloatLogSlider(
        value=value, min=start - down * step, max=start + up * step, step=step, **look
    )


def filled(figure: go.Figure, values: Values) -> go.Figure:
    """Put `values` into the traces of `figure` with these names (`meta`), in place; returns `figure`."""
    for trace in figure.data:
        if trace.meta in values:
            trace.update(values[trace.meta], overwrite=True)
    return figure


def figure_twin(draw: Callable[..., go.Figure], *arguments: Any) -> dict[str, Any]:
    """The static twin of a widget that is a figure, drawn by `draw(*arguments)`, with the sentence `TWIN`."""
    return mime_bundle(draw(*arguments), TWIN)


def text_twin(title: str, lines: list[str]) -> dict[str, Any]:
    """The static twin of a widget that consists of text: a title and lines, as plain text and as escaped HTML."""
    body = "".join(f"<p>{escaped(line)}</p>" for line in lines)
    return {
        "text/plain": "\n".join([title, *lines, TWIN]),
        "text/html": '<div class="mathjax_ignore tex2jax_ignore">'  # text between $ is no formula
        f"<p><b>{escaped(title)}</b></p>{body}<p><i>{escaped(TWIN)}</i></p></div>",
    }


# --- closing the widgets of a cell's earlier runs ---

_open: dict[str, tuple[object, list[View]]] = {}


def _close_earlier(view: View) -> None:
    """Close the views that earlier runs of the running cell have opened, and remember `view`."""
    cell, run = _running_cell()
    if cell is None:
        return
    last, views = _open.get(cell, (run, []))
    if last != run:
        for old in views:
            old.close()
        views = []
    _open[cell] = (run, [*views, view])


def _running_cell() -> tuple[str | None, object]:
    """(the running cell's id, the number of its execution); (None, None) outside a notebook."""
    shell = _shell()
    header = getattr(shell, "parent_header", None) or {}
    cell = (header.get("metadata") or {}).get("cellId")
    return cell, getattr(shell, "execution_count", None)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None
