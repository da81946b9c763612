"""One look for every figure: a method's colour, marker and dash, axes, titles, intervals, and numbers' digits.

A method has the same colour, marker and dash in every figure (the colours are Okabe and Ito's, which colour-blind
readers can tell apart); `method_of` finds it in a series' label. Axes have units, intervals are error bars, and the
title says what to look at. There are no random identifiers and no dates, and numbers are rounded to `DIGITS`
significant digits, so that a figure's JSON is the same on every run.
"""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from csrlhf_kit.theory.intervals import Estimate

DIGITS = 5  # significant digits in a figure: finer than a pixel, coarser than rounding errors
WIDTH = 860  # pixels; fits a notebook column and half a laptop's screen

INK, MUTED, GRID = "#24292f", "#57606a", "#d8dee4"
DARK = {INK: "#e6edf3", MUTED: "#9aa5b1", GRID: "#343c46"}  # the same three on a dark page
HARMLESS, HARMFUL = "#009E73", "#b42318"  # verdicts on single answers
DOTTED = {"color": INK, "dash": "dot", "width": 1.5}  # thresholds and other marks to compare a curve with


class Style(NamedTuple):
    """Colour, marker and dash of one method in all figures."""

    label: str
    colour: str
    symbol: str
    dash: str


STYLES: dict[str, Style] = {
    "sft": Style("SFT", "#6e7781", "x", "dot"),
    "ppo": Style("PPO, unconstrained", "#E69F00", "triangle-up", "dash"),
    "lagrangian": Style("Lagrangian", "#D55E00", "square", "dashdot"),
    "linear_penalty": Style("linear penalty", "#CC79A7", "diamond", "longdash"),
    "fixed_penalty": Style("fixed penalty", "#0072B2", "circle", "solid"),
    "adaptive_penalty": Style("adaptive penalty", "#0072B2", "bowtie", "dot"),
    "rectified_sample": Style("per-sample hinge", "#56B4E9", "triangle-down", "dash"),
    "rectified_prompt": Style("per-prompt hinge", "#56B4E9", "triangle-left", "longdash"),
    "reward_shaping": Style("reward shaping", "#CC79A7", "hourglass", "dash"),
    "pid_lagrangian": Style("PID Lagrangian", "#009E73", "cross", "dashdot"),
    "augmented_lagrangian": Style("augmented Lagrangian", "#8a6d00", "star", "dot"),
    "p3o": Style("P3O", "#009E73", "hexagon", "longdash"),
    "crpo": Style("CRPO", "#56B4E9", "pentagon", "dot"),
    "dpo_safer": Style("DPO on safer", "#6e7781", "square", "dash"),
    "dpo_better": Style("DPO on better", "#E69F00", "square", "dot"),
    "safedpo": Style("SafeDPO", "#6e7781", "diamond", "dashdot"),
    "sacpo": Style("SACPO", "#D55E00", "diamond", "longdash"),
    "mocan": Style("MoCAN", "#009E73", "diamond", "dash"),
    "best_of_n": Style("best of N", "#8a6d00", "triangle-left", "dash"),
    "semantic": Style("semantic", "#0072B2", "circle", "solid"),
    "bradley_terry": Style("ranking + sign", "#D55E00", "square", "dashdot"),
    "keyword": Style("keyword", "#E69F00", "triangle-up", "dash"),
}
# What a label says for a method; the longest first, so that a "PID Lagrangian" is no Lagrangian.
_SAID = {"rectified": "fixed_penalty", "linear": "linear_penalty", "unconstrained": "ppo"}
_SAID |= {look.label: name for name, look in STYLES.items()}
_SPARE = [
    (colour, symbol, dash)
    for symbol, dash in (("bowtie", "dot"), ("hourglass", "dash"), ("triangle-right", "longdash"))
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
]

_AXIS = {
    "gridcolor": GRID,
    "linecolor": MUTED,
    "showline": True,
    "ticks": "outside",
    "tickcolor": MUTED,
    "ticklen": 4,
    "zeroline": False,
    "title": {"font": {"size": 13}, "standoff": 8},
    "tickfont": {"size": 12},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"},
        "colorway": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6e7781"],
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "font": {"size": 12},
        },
        "hovermode": "closest",
    }
)


def style(name: str) -> Style:
    """The style of `name`; for an unknown name, one that depends on the name alone."""
    known = STYLES.get(name)
    if known is None:
        known = Style(name.replace("_", " "), *_SPARE[zlib.crc32(name.encode()) % len(_SPARE)])
    return known


def method_of(label: str) -> str | None:
    """The method (a key of `STYLES`) that a series' label names; None if it names none."""
    said = [word for word in _SAID if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", label)]
    return _SAID[max(said, key=len)] if said else None


def ramp(count: int) -> list[str]:
    """`count` colours from pale to dark blue, for ordered values; all can be seen on white and on black."""
    return [_between(share) for share in (np.linspace(0, 1, count) if count > 1 else [1.0])]


def shade(size: int) -> str:
    """The colour of a batch size in every figure: on the scale of `ramp`, by its logarithm."""
    low, high = np.log(8), np.log(512)  # the smallest and the largest that the course draws
    return _between(float(np.clip((np.log(size) - low) / (high - low), 0, 1)))


def _between(share: float) -> str:
    pale, dark = np.array([126, 184, 224]), np.array([0, 84, 147])
    return "#{:02x}{:02x}{:02x}".format(*np.round(pale + share * (dark - pale)).astype(int))


def dark_css() -> str:
    """CSS for drawn plotly figures on a dark page of JupyterLab or VS Code: no ground, and the inks of `DARK`."""
    rules = [".main-svg, .modebar-group {background: none !important}", ".bg {fill: none !important}"]
    for light, dark in DARK.items():
        rgb = ", ".join(str(int(light[i : i + 2], 16)) for i in (1, 3, 5))
        for kind in ("fill", "stroke"):
            rules.append(f'[style*="{kind}: rgb({rgb})"]:not(.hovertext *) {{{kind}: {dark} !important}}')
    page = ':is([data-jp-theme-light="false"], .vscode-dark)'
    return "\n".join([f"{page} .js-plotly-plot {{", *rules, "}"])


def rounded(value: float | None, scale: float = 1.0) -> float | None:
    """`value * scale` with `DIGITS` significant digits; None and NaN become None, a gap."""
    if value is None or value != value:
        return None
    return float(f"{float(value) * scale:.{DIGITS}g}")


def rounded_all(values: Iterable[float | None], scale: float = 1.0) -> list[float | None]:
    """`rounded` for each of `values`, as a plain list (numpy arrays would be stored as base64)."""
    return [rounded(value, scale) for value in values]


def titled(
    figure: go.Figure, title: str, *, caption: str = "", height: int = 440, **layout: Any
) -> go.Figure:
    """Give `figure` the kit's template, a title that says what to see, and a caption under it, in place.

    Both are wrapped to the figure's width, which neither plotly nor matplotlib does, and the top margin grows with
    them. Further `layout` keys go to `update_layout`.
    """
    title_lines = textwrap.wrap(title, 92)
    caption_lines = textwrap.wrap(caption, 122)
    block: dict[str, Any] = {
        "text": "<br>".join(title_lines),
        "font": {"size": 16, "weight": 700},
        "pad": {"t": 12, "l": 12},
    }
    if caption_lines:
        block["subtitle"] = {"text": "<br>".join(caption_lines), "font": {"size": 12, "color": MUTED}}
    margin = {"l": 72, "r": 24, "t": 46 + 20 * len(title_lines) + 16 * len(caption_lines), "b": 96}
    margin.update(layout.pop("margin", {}))
    figure.update_layout(template=TEMPLATE, title=block, height=height, margin=margin, **layout)
    return figure


def error_bars(points: Sequence[Estimate], scale: float = 1.0) -> dict[str, Any]:
    """plotly's asymmetric error bars for estimates, or (value, low, high) triples, in units of value * scale."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded_all((point[2] - point[0] for point in points), scale),
        "arrayminus": rounded_all((point[0] - point[1] for point in points), scale),
        "thickness": 1.5,
        "width": 3,
    }
