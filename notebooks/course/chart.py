"""A simple figure for exercises: named curves and marks, with the learner's own curve on top.

It is for figures that only one cell of a notebook needs; all others are in `csrlhf_kit.figures`, on which it builds.
A curve's name chooses its colour, as everywhere in the kit: that of the method or of the batch size that it names;
names that differ in a number only get shades of one blue, in their order; what is left takes colours that none of
the head-to-head's methods wears.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from csrlhf_kit.figures.style import (
    DOTTED,
    INK,
    MUTED,
    method_of,
    ramp,
    rounded,
    rounded_all,
    shade,
    style,
    titled,
)

OTHERS = (MUTED, "#009E73", "#8a6d00", "#56B4E9")
YOURS = "#0072B2"
_DASHES = ("dash", "dashdot", "longdash", "dot")
_SYMBOLS = ("diamond", "square", "cross", "x")
_BATCH = re.compile(r"(?:\bB = |batches of )(\d+)")
_NUMBER = re.compile(r"[−-]?\d+(?:\.\d+)?")
Curve = tuple[Sequence[float], Sequence[float]]


def chart(
    title: str,
    x_title: str,
    y_title: str,
    curves: Mapping[str, Curve],
    *,
    yours: Curve | None = None,
    marks: Mapping[str, Curve] | None = None,
    across: float | None = None,
    down: float | None = None,
    caption: str = "",
    log_x: bool = False,
    height: int = 380,
) -> go.Figure:
    """`curves` (name -> x, y) thin and dashed, `yours` strong and blue, `marks` as points; see above for colours.

    across, down: height and place of a dotted horizontal and vertical line. If `yours` is None, the legend says that
    the learner's curve will appear. height: in pixels.
    """
    figure = go.Figure()
    for (name, (x, y)), colour, dash in zip(curves.items(), colours(list(curves)), _DASHES, strict=False):
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(go.Scatter(x=rounded_all(x), y=_tidied(y), mode="lines", line=line, name=name))
    for place, (name, (x, y)) in enumerate((marks or {}).items()):
        method = method_of(name)
        symbol = style(method).symbol if method else _SYMBOLS[place]
        look = {"color": named(name) or (INK, *OTHERS[1:])[place], "size": 7, "symbol": symbol}
        figure.add_trace(go.Scatter(x=rounded_all(x), y=_tidied(y), mode="markers", marker=look, name=name))
    x, y = yours or ([], [])
    figure.add_trace(
        go.Scatter(
            x=rounded_all(x),
            y=_tidied(y),
            mode="lines+markers" if len(x) < 30 else "lines",
            line={"color": YOURS, "width": 3},
            marker={"size": 7},
            name="yours" if len(x) else "yours (will appear here)",
            showlegend=True,
        )
    )
    if len(x) == 0 and not caption:
        caption = "Your curve appears here as soon as the function above returns something."
    if across is not None:
        figure.add_hline(y=rounded(across), line=DOTTED)
    if down is not None:
        figure.add_vline(x=rounded(down), line=DOTTED)
    figure.update_xaxes(title_text=x_title)
    if log_x:  # sizes double, so the ticks do
        places = [place for trace in figure.data for place in trace.x]
        ticks = [2**k for k in range(-20, 21) if 0.99 * min(places) <= 2**k <= 1.01 * max(places)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title_text=y_title)
    return titled(figure, title, caption=caption, height=height)


def plain_chart(title: str, x_title: str, y_title: str, curves: Mapping[str, Curve], **options) -> go.Figure:
    """`chart` without a learner's curve: the last of `curves` is the strong one."""
    *given, last = curves.items()
    figure = chart(title, x_title, y_title, dict(given), yours=last[1], **options)
    figure.data[-1].name = last[0]
    for trace, colour in zip(
        [*figure.data[: len(given)], figure.data[-1]], colours(list(curves), YOURS), strict=True
    ):
        trace.line.color = colour
    return figure


def named(label: str) -> str | None:
    """The colour of the method or the batch size that `label` names, if it names one."""
    if method := method_of(label):
        return style(method).colour
    batch = _BATCH.search(label)
    return shade(int(batch[1])) if batch else None


def colours(labels: Sequence[str], last: str | None = None) -> list[str]:
    """A colour for each of `labels`; `last`: that of the last one, if neither its name nor its order chooses."""
    if len(labels) > 1 and len({_NUMBER.sub("#", label) for label in labels}) == 1 and not named(labels[0]):
        return ramp(len(labels))
    others = iter(OTHERS)
    found = [named(label) or next(others) for label in labels[: -1 if last else None]]
    return [*found, named(labels[-1]) or last] if last else found


def numbers(found: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """`found` as an array of finite numbers of this shape; None for anything else."""
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        return None
    return values if values.shape == shape and np.isfinite(values).all() else None


def _tidied(values: Sequence[float]) -> list[float | None]:
    """Rounded values; those within 1e-9 of 0, which differ between machines, become 0."""
    return rounded_all(0.0 if value is not None and abs(value) < 1e-9 else value for value in values)
