"""A simple figure for exercises: named curves and marks, with the learner's own curve on top.

It is for figures that only one cell of a notebook needs; all others are in `csrlhf_kit.figures`, on which it builds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from csrlhf_kit.figures.style import INK, MUTED, rounded, rounded_all, style, titled

_GIVEN = (("#57606a", "dash"), ("#D55E00", "dashdot"), ("#009E73", "longdash"), ("#CC79A7", "dot"))
_YOURS = ("#0072B2", "solid")
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
    """`curves` (name -> x, y) in muted colours, `yours` in strong blue, `marks` as points.

    across, down: height and place of a dotted horizontal and vertical line. If `yours` is None, the legend says that
    the learner's curve will appear. height: in pixels.
    """
    figure = go.Figure()
    for (name, (x, y)), (colour, dash) in zip(curves.items(), _GIVEN, strict=False):
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(go.Scatter(x=rounded_all(x), y=_tidied(y), mode="lines", line=line, name=name))
    for place, (name, (x, y)) in enumerate((marks or {}).items()):
        look = {"color": (INK, *(colour for colour, _ in _GIVEN[1:]))[place], "size": 7}
        look["symbol"] = ("diamond", "square", "cross", "x")[place]
        figure.add_trace(go.Scatter(x=rounded_all(x), y=_tidied(y), mode="markers", marker=look, name=name))
    x, y = yours or ([], [])
    figure.add_trace(
        go.Scatter(
            x=rounded_all(x),
            y=_tidied(y),
            mode="lines+markers" if len(x) < 30 else "lines",
            line={"color": _YOURS[0], "dash": _YOURS[1], "width": 3},
            marker={"size": 7},
            name="yours" if len(x) else "yours (will appear here)",
            showlegend=True,
        )
    )
    if len(x) == 0 and not caption:
        caption = "Your curve appears here as soon as the function above returns something."
    dotted = {"color": MUTED, "dash": "dot", "width": 1.5}
    if across is not None:
        figure.add_hline(y=rounded(across), line=dotted)
    if down is not None:
        figure.add_vline(x=rounded(down), line=dotted)
    figure.update_xaxes(title_text=x_title)
    if log_x:  # sizes double, so the ticks do
        places = [place for trace in figure.data for place in trace.x]
        ticks = [2**k for k in range(-20, 21) if 0.99 * min(places) <= 2**k <= 1.01 * max(places)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title_text=y_title)
    return titled(figure, title, caption=caption, height=height)


def plain_chart(title: str, x_title: str, y_title: str, curves: Mapping[str, Curve], **options) -> go.Figure:
    """`chart` without a learner's curve: the last of `curves` is drawn in strong blue."""
    *given, last = curves.items()
    figure = chart(title, x_title, y_title, dict(given), yours=last[1], **options)
    figure.data[-1].name = last[0]
    return figure


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


def by_method(figure: go.Figure) -> go.Figure:
    """Give curves and marks that name a penalty the colour that it has in every figure of the kit, in place."""
    for trace in figure.data:
        for word, method in (("linear", "linear_penalty"), ("rectified", "fixed_penalty")):
            if word in trace.name:
                trace.line.color = trace.marker.color = style(method).colour
    return figure
