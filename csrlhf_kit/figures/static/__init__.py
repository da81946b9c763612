"""A plotly figure's static twin: the same figure as a small, deterministic SVG, drawn without a browser.

GitHub, nbviewer and paper run no JavaScript and show no interactive figure. `static_svg` draws a figure's own JSON
with matplotlib, so that both show the same numbers. It draws what the kit's figures use (scatter, bar; error bars,
fills, log axes, subplots, lines, annotations), and raises UserError for anything else.

`show` puts both into one output of a notebook: JupyterLab displays the interactive one, GitHub the SVG.
Builds on canvas.py, traces.py and plotly_terms.py.
"""

# ruff: noqa: E402  matplotlib is imported after its logger is told to be quiet

from __future__ import annotations

import functools
import html
import io
import logging
import re
import textwrap
from typing import Any

import plotly.graph_objects as go

# On its first run matplotlib writes to stderr about its caches, which would appear in a notebook's output.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from csrlhf_kit.figures.static.canvas import Canvas
from csrlhf_kit.figures.static.plotly_terms import merge, plain
from csrlhf_kit.figures.static.traces import DRAW
from csrlhf_kit.figures.style import MUTED, WIDTH, dark_css

PLOTLY = "application/vnd.plotly.v1+json"
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": [
        "sendChartToCloud",  # nothing leaves the reader's machine
        "select2d",
        "lasso2d",
        "zoomIn2d",
        "zoomOut2d",
        "autoScale2d",
    ],
}
_RC = {
    # Laid out with matplotlib's own font, so that every machine gets the same SVG.
    "font.family": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "csrlhf-kit",
    "path.simplify": True,
    "axes.unicode_minus": True,
    "mathtext.default": "regular",
    "text.parse_math": False,
}


def show(figure: go.Figure, caption: str = "") -> None:
    """Display `figure` in a notebook as one output in three forms: interactive, SVG, and a line of text.

    All three are deterministic, so nbval can compare them. The first figure of a session brings the page the rules
    that make interactive figures follow a dark theme. caption: a sentence under the title.
    Raises UserError as `static_svg`.
    """
    from IPython.display import display

    bundle = mime_bundle(figure, caption)
    _bring_dark_rules()
    display(bundle, raw=True)


@functools.cache
def _bring_dark_rules() -> None:
    """Once per session: a page keeps what it was given."""
    from IPython.display import display

    display({"text/html": f"<style>{dark_css()}</style>", "text/plain": ""}, raw=True)


def mime_bundle(figure: go.Figure, caption: str = "") -> dict[str, Any]:
    """Mime type -> the form of `figure` that `show` displays. Raises UserError as `static_svg`."""
    figure = go.Figure(figure)
    if caption:
        _add_caption(figure, caption)
    document = figure.to_plotly_json()
    document["config"] = CONFIG
    return {PLOTLY: document, "image/svg+xml": static_svg(figure), "text/plain": summary(figure)}


def summary(figure: go.Figure) -> str:
    """One line of text in place of the figure: its title, caption and the names of its traces."""
    title = figure.layout.title
    names = dict.fromkeys(trace.name for trace in figure.data if trace.name)
    parts = [plain(title.text), plain(title.subtitle.text), f"[{', '.join(names)}]" if names else ""]
    return "Figure: " + " ".join(part.replace("\n", " ") for part in parts if part)


def _add_caption(figure: go.Figure, caption: str) -> None:
    lines = textwrap.wrap(caption, 122)
    earlier = figure.layout.title.subtitle.text
    figure.layout.title.subtitle = {
        "text": "<br>".join([*([earlier] if earlier else []), *map(html.escape, lines)]),
        "font": {"size": 12, "color": MUTED},
    }
    figure.layout.margin.t = (figure.layout.margin.t or 66) + 16 * len(lines)


def static_svg(figure: go.Figure) -> str:
    """Draw `figure` as SVG text, as wide as the figure says, else `style.WIDTH` pixels.

    Equal figures give equal text: fixed identifiers, no date, coordinates to a tenth of a pixel, and text in the
    reader's sans-serif font. The background is white, also on dark pages.

    Raises UserError if the figure has a trace, a shape or a number format that this module does not draw.
    """
    document = figure.to_plotly_json()
    layout = merge(document["layout"].get("template", {}).get("layout", {}), document["layout"])
    page_width = layout.get("width") or WIDTH
    page_height = layout.get("height") or 450
    with matplotlib.rc_context(_RC):
        page = Figure(figsize=(page_width / 72, page_height / 72), dpi=72)  # a pixel is a point
        FigureCanvasSVG(page)
        page.patch.set_facecolor("white")
        canvas = Canvas(page, page_width, page_height, layout, document["data"], DRAW)
        for trace in canvas.traces:
            canvas.draw(trace)
        for shape in layout.get("shapes", ()):
            canvas.draw_shape(shape)
        for note in layout.get("annotations", ()):
            canvas.draw_annotation(note)
        canvas.draw_legend()
        canvas.draw_title()
        file = io.StringIO()
        page.savefig(file, format="svg", metadata={"Date": None})
    return _clean(file.getvalue(), page_width, page_height, summary(figure))


def _clean(svg: str, width: int, height: int, description: str) -> str:
    """matplotlib's SVG without metadata, page-wide style, unused identifiers and superfluous digits."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r' (?:d|x|y|x1|y1|x2|y2)="[^"]*"', lambda place: _round(place[0], 1), body)
    body = re.sub(r"<[^>]+>", lambda tag: _round(tag[0], 2), body)
    body = re.sub(r' transform="rotate\(-0 [^)]*\)"| font-family: \'DejaVu Sans\';', "", body)
    body = re.sub(r'\s*\n"', '"', re.sub(r"\n\s+", "\n", body))
    body = re.sub(r"<g(?: [^>]*)?/>\n", "", body)  # what is outside its axes leaves an empty group
    open_groups: list[bool] = []  # whether each open <g> has an attribute

    def without_empty_groups(tag: re.Match[str]) -> str:
        if tag[0] == "</g>\n":
            return tag[0] if open_groups.pop() else ""
        open_groups.append(tag[0] != "<g>\n")
        return tag[0] if open_groups[-1] else ""

    body = re.sub(r"<g(?: [^>]*)?>\n|</g>\n", without_empty_groups, body.strip().removesuffix("</svg>"))
    root = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" '
        'style="stroke-linejoin:round;stroke-linecap:butt;max-width:100%;height:auto">'
    )
    return f"{root}\n<title>{html.escape(description)}</title>\n{body.strip()}\n</svg>\n"


def _round(text: str, digits: int) -> str:
    def shorter(number: re.Match[str]) -> str:
        written = f"{float(number[0]):.{digits}f}".rstrip("0").rstrip(".")
        return "0" if written in ("-0", "") else written

    return re.sub(rf"-?\d+\.\d{{{digits + 1},}}", shorter, text)
