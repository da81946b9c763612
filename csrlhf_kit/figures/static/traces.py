"""Draw one trace of a plotly figure on its axes: scatter or bar, with error bars and text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from csrlhf_kit.figures.static.plotly_terms import (
    faint,
    first_given,
    floats,
    line_look,
    listed,
    marker_look,
    plain,
    rgba,
)
from csrlhf_kit.figures.style import INK

if TYPE_CHECKING:
    from csrlhf_kit.figures.static.canvas import Canvas


def draw_scatter(canvas: Canvas, ax: Axes, trace: dict, pair: tuple[str, str]) -> None:
    """Lines, markers, fills, error bars and text of one scatter trace; `pair` names its axes."""
    x, y = canvas.numbers(trace.get("x"), pair[0]), canvas.numbers(trace.get("y"), pair[1])
    mode = trace.get("mode", "lines+markers" if len(x) < 20 else "lines")
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    colour = first_given(line.get("color"), marker.get("color"), trace["_colour"])
    opacity = first_given(trace.get("opacity"), 1.0)
    if trace.get("fill"):
        fill = rgba(first_given(trace.get("fillcolor"), faint(colour)), opacity)
        below = canvas.previous[pair][1] if trace["fill"] == "tonexty" else [0.0] * len(x)
        ax.fill_between(x, y, below, facecolor=fill, edgecolor="none", zorder=1.5)
    canvas.previous[pair] = (x, y)
    if "lines" in mode and line.get("width", 2):
        path = Line2D([], [], **line_look(line, colour, opacity))
        path.set_data(x, y)
        path.set_zorder(2)
        ax.add_line(path)
    for letter in "xy":
        _error_bars(ax, trace, letter, x, y, colour, opacity)
    if "markers" in mode:
        _markers(ax, marker, colour, opacity, x, y, canvas.traces.index(trace))
    if "text" in mode:
        where = trace.get("textposition", "middle center").split()
        vertical, horizontal = [*where, "center"][:2]
        for px, py, words in zip(x, y, listed(trace.get("text"), len(x)), strict=True):
            ax.annotate(
                plain(words),
                (px, py),
                xytext=(
                    {"left": -7, "right": 7}.get(horizontal, 0),
                    {"top": 7, "bottom": -7}.get(vertical, 0),
                ),
                textcoords="offset points",
                ha={"left": "right", "right": "left"}.get(horizontal, "center"),
                va={"top": "bottom", "bottom": "top"}.get(vertical, "center"),
                fontsize=(trace.get("textfont") or {}).get("size", 12),
                color=(trace.get("textfont") or {}).get("color", INK),
            )


def _markers(ax: Axes, marker: dict, colour: Any, opacity: float, x: list, y: list, place: int) -> None:
    count, most = len(x), marker.get("maxdisplayed", 0)
    every = math.ceil(count / most) if most and count > most else 1
    looks = [listed(marker.get(key), count) for key in ("color", "size", "symbol")]
    looks = [
        (first_given(c, colour), first_given(s, 6), first_given(m, "circle"))
        for c, s, m in zip(*looks, strict=True)
    ]
    opacity = opacity * first_given(marker.get("opacity"), 1.0)
    edge = marker.get("line") or {}
    for look in dict.fromkeys(looks):
        chosen = [i for i in range(2 * place % every, count, every) if looks[i] == look]
        dots = Line2D([], [], linestyle="none", **marker_look(*look, edge, opacity))
        dots.set_data([x[i] for i in chosen], [y[i] for i in chosen])
        dots.set_zorder(3)
        ax.add_line(dots)


def _error_bars(ax: Axes, trace: dict, letter: str, x: list, y: list, colour: Any, opacity: float) -> None:
    bars = trace.get(f"error_{letter}")
    if not bars or bars.get("visible") is False:
        return
    plus = floats(bars["array"])
    minus = plus if bars.get("symmetric", "arrayminus" not in bars) else floats(bars["arrayminus"])
    ax.errorbar(
        x, y, **{f"{letter}err": [minus, plus]}, fmt="none",
        ecolor=rgba(first_given(bars.get("color"), colour if isinstance(colour, str) else INK), opacity),
        elinewidth=bars.get("thickness", 2), capsize=bars.get("width", 4),
        capthick=bars.get("thickness", 2), zorder=2.5,
    )  # fmt: skip


def draw_bar(canvas: Canvas, ax: Axes, trace: dict, pair: tuple[str, str]) -> None:
    """Draw bars, vertical or horizontal, where `Canvas` has placed them."""
    marker = trace.get("marker") or {}
    lengths = floats(trace[trace["_value"]])
    colours = [
        rgba(first_given(c, trace["_colour"]), first_given(trace.get("opacity"), 1.0))
        for c in listed(marker.get("color"), len(lengths))
    ]
    upright = trace["_value"] == "y"
    draw = ax.bar if upright else ax.barh
    thick = {
        ("width" if upright else "height"): trace["_thick"],
        ("bottom" if upright else "left"): trace["_base"],
    }
    draw(trace["_place"], lengths, color=colours, zorder=2, **thick)
    ends = [base + length for base, length in zip(trace["_base"], lengths, strict=True)]
    x, y = (trace["_place"], ends) if upright else (ends, trace["_place"])
    _error_bars(ax, trace, trace["_value"], x, y, INK, 1.0)
    words = listed(trace.get("text"), len(ends))
    for px, py, word in zip(x, y, words, strict=True):
        if word is not None:
            place = {"xytext": (0, 4) if upright else (4, 0), "textcoords": "offset points"}
            align = {"ha": "center", "va": "bottom"} if upright else {"ha": "left", "va": "center"}
            ax.annotate(plain(word), (px, py), fontsize=11, color=INK, **place, **align)


DRAW = {"scatter": draw_scatter, "bar": draw_bar}
