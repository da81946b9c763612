"""The progress of a run, read from its folder, and its figure: the part of `watch` without a screen.

Builds on runs.py, files.py, theory/intervals.py and figures/style.py; the run may train in another process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit import files
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import DOTTED, GRID, MUTED, rounded, rounded_all, style, titled
from csrlhf_kit.runs import Run, stop_request
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.widgets.view import escaped, filled

WINDOW = 5  # steps whose episodes are pooled for one estimate of harm
WATCHED_METRICS = {  # trace -> its metric in metrics.jsonl
    "cost": "objective/cost",
    "window cost": "constraint/window_cost",
    "multiplier": "constraint/multiplier",
    "reward": "objective/reward",
    "kl": "objective/kl",
}
TITLES = (
    f"harmful by the cost model, last {WINDOW} steps, %",
    "mean learned cost, and its threshold",
    "effective λ",
    "mean learned reward",
    "KL to the reference, nats",
    "seconds per step",
)


@dataclass(frozen=True)
class Progress:
    """What a run's folder said when it was read."""

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    """The complete rows of metrics.jsonl."""
    total: int | None
    """Number of steps in the run's settings; None if unknown."""
    batch: int | None
    """Episodes per step; None if unknown."""
    stop_request: str
    """The pending request: `run`, `pause` or `stop`."""
    samples: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The sample answers of the newest step that has any: {step, prompt, text, cost}."""

    @property
    def step(self) -> int:
        return int(self.rows[-1].get("step", len(self.rows))) if self.rows else 0

    @property
    def finished(self) -> bool:
        return self.total is not None and self.step >= self.total

    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the median pace of the last ten steps; None if unknown."""
        recent = [seconds(row) for row in self.rows[-10:]]
        known = [value for value in recent if value is not None]
        if self.total is None or not known:
            return None
        return float(np.median(known)) * max(0, self.total - self.step)


def seconds(row: Mapping[str, Any]) -> float | None:
    """Wall-clock seconds of one step, from its metrics row; None if they are not recorded."""
    parts = [row.get(f"time/{part}") for part in ("rollout", "score", "update")]
    return None if None in parts else float(sum(parts))


def find_run(folder: str | Path) -> Path:
    """The folder of one training run: `folder`, or the policy in a folder of `csrlhf run` that was written to last."""
    folder = Path(folder)
    if (folder / "metrics.jsonl").is_file() or not (folder / "policies").is_dir():
        return folder
    running = list(folder.glob("policies/*/metrics.jsonl"))
    return max(running, key=lambda path: path.stat().st_mtime).parent if running else folder


def read_progress(folder: str | Path) -> Progress:
    """Read the folder of a run; before its first step there are no rows.

    Raises UserError if the folder or its config cannot be read.
    """
    folder = find_run(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; that of a run was expected")
    path = folder / "config.json"
    config = files.read_json(path) if path.is_file() else {}
    rows = Run(folder).history()
    step = rows[-1].get("step", 0) if rows else 0
    said = [row for row in files.read(folder / "samples.jsonl") if row.get("step", 0) <= step]
    # A resumed run repeats steps after its checkpoint, and logs the same samples again.
    said = list({json.dumps(row, sort_keys=True): row for row in said}.values())
    newest = max((row.get("step", 0) for row in said), default=0)
    settings = config.get("ppo", config)
    return Progress(
        folder=folder, rows=rows, total=settings.get("steps"), batch=settings.get("batch_size"),
        stop_request=stop_request(folder), samples=[row for row in said if row.get("step", 0) == newest],
    )  # fmt: skip


def harm(progress: Progress) -> list[tuple[float, float, float]]:
    """(rate, low, high) of harm after each step, by the learned cost model, over the last `WINDOW` steps' episodes.

    The intervals are Clopper-Pearson's, 95%. The policy changes during these steps, so they are no certificate.
    """
    batch = progress.batch or 1
    counts = [round(float(row.get("objective/harmful") or 0) * batch) for row in progress.rows]
    points = []
    for end in range(1, len(counts) + 1):
        start = max(0, end - WINDOW)
        events, trials = sum(counts[start:end]), (end - start) * batch
        points.append((events / trials, *clopper_pearson(events, trials)))
    return points


def watch_values(progress: Progress, other: Progress | None = None) -> dict[str, dict[str, Any]]:
    """The values of `watch_figure`'s traces, by name; those of `other` are named "other ..."."""
    steps = [row.get("step", place) for place, row in enumerate(progress.rows, start=1)]
    points = harm(progress)
    drawn: dict[str, tuple[Any, Any]] = {
        "harm": (steps, rounded_all((rate for rate, _, _ in points), 100)),
        "harm low": (steps, rounded_all((low for _, low, _ in points), 100)),
        "harm high": (steps, rounded_all((high for _, _, high in points), 100)),
        "seconds": (steps, rounded_all(seconds(row) for row in progress.rows)),
    }
    for name, key in WATCHED_METRICS.items():
        drawn[name] = steps, rounded_all(row.get(key) for row in progress.rows)
    limit = progress.rows[-1].get("constraint/threshold") if progress.rows else None
    known = limit is not None
    drawn["threshold"] = [steps[0], steps[-1]] if known else [], [rounded(limit)] * 2 if known else []
    values = {name: {"x": list(x), "y": list(y)} for name, (x, y) in drawn.items()}
    beside = watch_values(other) if other else {}
    return values | {f"other {name}": trace for name, trace in beside.items()}


def watch_figure(progress: Progress, other: Progress | None = None) -> go.Figure:
    """Six panels over the steps: harm with its interval, cost and threshold, λ, reward, KL, seconds per step.

    other: a second run, drawn dashed beside the first.
    """
    figure = make_subplots(
        rows=2, cols=3, horizontal_spacing=0.08, vertical_spacing=0.22, subplot_titles=TITLES
    )
    strong = {"color": style(progress.folder.name).colour, "width": 2}
    faint = {"color": MUTED, "width": 1}
    none, band = {"width": 0, "color": GRID}, {"fill": "tonexty", "fillcolor": "rgba(127,127,127,0.25)"}
    for meta, name, row, column, line, more in (
        ("harm low", "", 1, 1, none, {}), ("harm high", "95% interval", 1, 1, none, band),
        ("harm", escaped(progress.folder.name), 1, 1, strong, {}), ("cost", "each batch alone", 1, 2, faint, {}),
        ("window cost", "", 1, 2, strong, {}), ("threshold", "threshold", 1, 2, DOTTED, {}),
        ("multiplier", "", 1, 3, strong, {}), ("reward", "", 2, 1, strong, {}), ("kl", "", 2, 2, strong, {}),
        ("seconds", "", 2, 3, strong, {}),
    ):  # fmt: skip
        look = {"mode": "lines", "name": name or meta, "showlegend": bool(name)}
        figure.add_trace(go.Scatter(meta=meta, line=line, **look, **more), row=row, col=column)
        if other and line is strong:
            look["name"] = f"{escaped(other.folder.name)}, to compare"
            dashed = {"color": style(other.folder.name).colour, "width": 2, "dash": "dash"}
            figure.add_trace(go.Scatter(meta=f"other {meta}", line=dashed, **look), row=row, col=column)
    figure.update_xaxes(title_text="step")
    figure.update_annotations(font_size=13)
    filled(figure, watch_values(progress, other))
    return titled(figure, "Is it getting safer, at what price, and how fast?", height=600)


def watch_story(progress: Progress) -> str:
    """Step, time left and pending request in one line of plain text."""
    total = "?" if progress.total is None else progress.total
    parts = [f"{progress.folder.name}: step {progress.step} of {total}"]
    left = progress.seconds_left()
    if progress.finished:
        parts.append("finished")
    elif left is not None:
        parts.append(f"about {duration(left)} left at the pace of the last steps")
    if not progress.rows:
        parts.append("waiting for the first step")
    elif not progress.finished and progress.stop_request == "pause":
        parts.append("asked to pause after its next checkpoint")
    elif not progress.finished and progress.stop_request == "stop":
        parts.append("asked to stop after its next checkpoint; resume it with --resume")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as text, such as "1 h 5 min" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
