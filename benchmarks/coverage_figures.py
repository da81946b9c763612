"""Does each interval keep its promise, and at what width? Drawn from the tables of `benchmarks/coverage.py`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import DOTTED, GRID, INK, TEMPLATE, rounded, rounded_all, titled

COLUMNS = ("method", "coverage", "error", "mean_width")
LABELS = {
    "n": "samples n",
    "wilson": "Wilson",
    "clopper_pearson": "Clopper-Pearson",
    "hoeffding": "Hoeffding",
    "empirical_bernstein": "empirical Bernstein",
    "stratified_clopper_pearson": "stratified Clopper-Pearson",
    "prediction_powered normal": "prediction-powered, normal",
    "prediction_powered betting": "prediction-powered, betting",
    "yes/no 0.02": "yes/no, 2% yes",
    "yes/no 0.5": "yes/no, 50% yes",
}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


def read_coverage(path: str | Path) -> list[dict[str, str]]:
    """The rows of one table of coverage, as text.

    Raises UserError where the file is missing, empty or lacks one of `COLUMNS`.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a table of coverage") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise UserError(
            f"{path}: column `{missing[0]}` or every row is missing, expected {', '.join(COLUMNS)}"
        )
    return rows


def interval_coverage(
    rows: Sequence[Mapping[str, Any]],
    *,
    group: str = "n",
    panel: str | None = "truth",
    confidence: float = 0.95,
    lowest: float = 0.9,
) -> go.Figure:
    """Simulated coverage above, with two standard errors, and mean width below, of each method.

    rows: {group, panel, method, coverage, error, mean_width}, as `read_coverage` has them. Values of `group`
    stand side by side, those of `panel` (None: one panel) are columns of the figure. Coverage below `lowest`
    is drawn as an open mark at the lower edge, with its number beside it.
    """
    names = dict.fromkeys(row["method"] for row in rows)
    groups = list(dict.fromkeys(str(row[group]) for row in rows))
    panels = list(dict.fromkeys(str(row[panel]) for row in rows)) if panel else [""]
    said = {name: LABELS.get(name, name.replace("_", " ")) for name in (*names, *groups, *panels, group)}
    figure = make_subplots(
        rows=2,
        cols=len(panels),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.07,
        horizontal_spacing=0.02,
        column_titles=[said[name] for name in panels] if panel else None,
    )
    palette, step = TEMPLATE.layout.colorway, 0.76 / max(1, len(names))
    for place, name in enumerate(names):
        colour, symbol = palette[place % len(palette)], _SYMBOLS[place % len(_SYMBOLS)]
        offset = (place - (len(names) - 1) / 2) * step
        for column, here in enumerate(panels, start=1):
            mine = [row for row in rows if row["method"] == name and (not panel or str(row[panel]) == here)]
            x = rounded_all(groups.index(str(row[group])) + offset for row in mine)
            coverage = [float(row["coverage"]) for row in mine]
            low = [value < lowest for value in coverage]
            look = {"name": said[name], "legendgroup": name, "showlegend": column == 1}
            above = go.Scatter(
                x=x,
                y=rounded_all((max(value, lowest) for value in coverage), 100),
                error_y={
                    "type": "data",
                    "array": [
                        0 if o else rounded(float(r["error"]), 200) for o, r in zip(low, mine, strict=True)
                    ],
                    "color": colour,
                    "thickness": 1.5,
                    "width": 2,
                },
                mode="markers+text",
                marker={
                    "color": colour,
                    "symbol": [f"{symbol}-open" if o else symbol for o in low] if any(low) else symbol,
                    "size": 7,
                },
                text=[f"{value:.0%}" if o else "" for o, value in zip(low, coverage, strict=True)],
                textposition="top center",
                textfont={"color": INK, "size": 11},
                customdata=rounded_all(coverage, 100),
                hovertemplate="%{customdata}% covered",
                **look,
            )
            below = go.Scatter(
                x=x,
                y=rounded_all((float(row["mean_width"]) for row in mine), 100),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7},
                hovertemplate="%{y} percentage points wide",
                **{**look, "showlegend": False},
            )
            figure.add_trace(above, row=1, col=column)
            figure.add_trace(below, row=2, col=column)
    for column in range(1, len(panels) + 1):
        figure.add_hline(y=rounded(confidence, 100), line=DOTTED, row=1, col=column)
        for edge in range(1, len(groups)):
            for row in (1, 2):
                figure.add_vline(x=edge - 0.5, line={"color": GRID, "width": 1}, row=row, col=column)
    figure.update_xaxes(
        tickvals=list(range(len(groups))),
        ticktext=[said[name] for name in groups],
        range=[-0.5, len(groups) - 0.5],
        showgrid=False,
    )
    figure.update_xaxes(title_text=said[group], row=2)
    figure.update_yaxes(range=[rounded(100 * lowest - 0.6), 100.6], row=1)
    figure.update_yaxes(title_text="intervals that cover, %", row=1, col=1)
    widths = [100 * float(row["mean_width"]) for row in rows]
    low, high = 0.75 * min(widths), 1.3 * max(widths)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
    limits = [rounded(math.log10(low)), rounded(math.log10(high))]
    figure.update_yaxes(type="log", tickvals=ticks, range=limits, row=2)
    figure.update_yaxes(title_text="mean width, percentage points", row=2, col=1)
    figure.update_annotations(font_size=13)
    return titled(
        figure,
        "Above the dotted line a promise is kept; the best keeper is the narrowest one there",
        caption=f"Nominal confidence {confidence:.0%}; bars are two standard errors of the simulation.",
        height=600,
    )
