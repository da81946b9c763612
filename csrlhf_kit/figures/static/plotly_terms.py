"""plotly's terms translated to matplotlib's: colours, dashes, markers, number formats, ticks, and inline HTML."""

from __future__ import annotations

import html
import math
import re
from typing import Any

from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import INK

_DASHES: dict[str, Any] = {
    "solid": "-",
    "dot": (0, (1, 2)),
    "dash": (0, (4, 2)),
    "longdash": (0, (8, 3)),
    "dashdot": (0, (5, 2, 1, 2)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "cross": "P",
    "x": "X",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "star": "*",
    "pentagon": "p",
    "hexagon": "h",
    "bowtie": "d",
    "hourglass": "8",
}


def set_ticks(
    axis: Any, settings: dict, names: list[str], limits: tuple, length: float, hidden: bool
) -> None:
    """Set ticks and labels: the given ones, the categories, decades on a log axis, else round numbers."""
    axis.set_minor_locator(NullLocator())
    letter_width = 40 if axis.axis_name == "x" else 28
    low, high = sorted(limits)
    spec = settings.get("tickformat", "")
    places, words = settings.get("tickvals"), settings.get("ticktext")
    if places is None and names:
        places, words = list(range(len(names))), names
    if places is None and settings.get("type") == "log":
        places = decades(low, high)
    if places is not None:
        places = [float(place) for place in places]
        texts = dict(zip(places, words, strict=True)) if words is not None else {}
        axis.set_major_locator(FixedLocator(places))
    else:
        texts = {}
        axis.set_major_locator(
            MaxNLocator(nbins=max(2, min(8, int(length // letter_width))), steps=[1, 2, 5, 10])
        )

    def write(value: float, _: Any) -> str:
        if hidden:
            return ""
        return plain(texts[value]) if value in texts else formatted(value, spec)

    axis.set_major_formatter(FuncFormatter(write))


def decades(low: float, high: float) -> list[float]:
    steps = (1,) if high / low > 30 else (1, 2, 5)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def formatted(value: float, spec: str) -> str:
    """`value` in plotly's d3 format `spec`, for the formats that d3 and Python share; UserError for others."""
    if spec in ("", "g", "~g"):
        text = f"{value:.6g}"
    elif spec == "d":
        text = f"{round(value)}"
    else:
        try:
            text = format(value, spec)
        except ValueError:
            raise UserError(f"a figure's static twin cannot write numbers in the format {spec!r}") from None
    return text.replace("-", "\N{MINUS SIGN}")


def merge(base: dict, over: dict) -> dict:
    """`base` updated with `over`, recursively, as plotly merges a template."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def first_given(*values: Any) -> Any:
    """The first of `values` that is not None."""
    return next((value for value in values if value is not None), None)


def floats(values: Any) -> list[float]:
    """Numbers as floats; None becomes NaN."""
    return [math.nan if value is None else float(value) for value in values]


def listed(values: Any, count: int | None = None) -> list:
    """`values` as a list; with `count`, a single value or None is repeated so often."""
    if count is not None and (values is None or isinstance(values, str | int | float)):
        return [values] * count
    return list(values) if values is not None else []


def plain(text: Any) -> str:
    """plotly's inline HTML as plain text."""
    words = re.sub(r"<br\s*/?>", "\n", str(text if text is not None else ""))
    words = re.sub(r"<sub>(.*?)</sub>", r"_\1", words)
    return html.unescape(re.sub(r"</?\w[^>]*>", "", words))


def rgba(colour: str, opacity: float) -> tuple[float, float, float, float]:
    """A plotly colour and opacity as matplotlib's (red, green, blue, alpha)."""
    match = re.fullmatch(r"rgba?\(([^)]*)\)", colour)
    if match:
        parts = [float(part) for part in match[1].split(",")]
        red, green, blue = (part / 255 for part in parts[:3])
        return red, green, blue, (parts[3] if len(parts) > 3 else 1.0) * opacity
    red, green, blue, alpha = to_rgba(colour)
    return red, green, blue, alpha * opacity


def faint(colour: str) -> str:
    """plotly's default fill colour for a line of this colour."""
    red, green, blue, _ = rgba(colour, 1.0)
    return f"rgba({round(255 * red)},{round(255 * green)},{round(255 * blue)},0.5)"


def line_look(line: dict, colour: Any, opacity: float) -> dict[str, Any]:
    """A line's colour, width and dashes as matplotlib's arguments."""
    return {
        "color": rgba(first_given(line.get("color"), colour), opacity),
        "linewidth": line.get("width", 2),
        "linestyle": _DASHES[line.get("dash") or "solid"],
    }


def marker_look(colour: str, size: float, symbol: str, edge: dict, opacity: float) -> dict[str, Any]:
    """A marker's shape, size, face and edge as matplotlib's arguments."""
    shape, _, opened = symbol.partition("-open")
    hollow = symbol.endswith("-open") or bool(opened)
    face = rgba(colour, opacity)
    width = first_given(edge.get("width"), 1.5 if hollow else 0)
    return {
        "marker": _MARKERS[shape],
        "markersize": size,
        "markerfacecolor": "none" if hollow else face,
        "markeredgecolor": face if hollow else rgba(first_given(edge.get("color"), colour), opacity),
        "markeredgewidth": width,
    }


def legend_handle(trace: dict) -> Any:
    """The legend's handle for a trace."""
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    colour = first_given(line.get("color"), marker.get("color"), trace["_colour"])
    if not isinstance(colour, str):
        colour = INK
    opacity = first_given(trace.get("opacity"), 1.0)
    if trace.get("type") == "bar":
        return Patch(facecolor=rgba(colour, opacity))
    mode = trace.get("mode", "lines")
    if ("lines" not in mode and "markers" not in mode) or (trace.get("fill") and not line.get("width", 2)):
        return Patch(facecolor=rgba(first_given(trace.get("fillcolor"), faint(colour)), opacity))
    look = line_look(line, colour, opacity) if "lines" in mode else {"linestyle": "none"}
    if "markers" in mode:
        symbol = marker.get("symbol")
        shape = symbol if isinstance(symbol, str) else "circle"
        look |= marker_look(
            first_given(marker.get("color"), colour), 8, shape, marker.get("line") or {}, opacity
        )
    return Line2D([], [], **look)


def error_ends(trace: dict, letter: str, values: list[float]) -> list[float]:
    """The far ends of a trace's error bars, for the range of the axis."""
    bars = trace.get(f"error_{letter}")
    if not bars or bars.get("array") is None:
        return []
    plus = [value or 0.0 for value in bars["array"]]
    minus = [value or 0.0 for value in first_given(bars.get("arrayminus"), plus)]
    return [v + p for v, p in zip(values, plus, strict=True)] + [
        v - m for v, m in zip(values, minus, strict=True)
    ]


def fitting_columns(labels: list[str], size: float, room: float) -> int:
    """The largest number of columns in which a legend's labels fit into `room` pixels."""
    widths = [50 + 0.6 * size * len(label) for label in labels]
    for columns in range(len(labels), 1, -1):
        if sum(max(widths[start::columns]) for start in range(columns)) <= room:
            return columns
    return 1
