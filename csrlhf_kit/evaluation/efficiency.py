"""Time to safety: after how many PPO steps and episodes the harm rate is under a limit, and stays there.

This makes "5x more efficient" precise. In each step the cost model calls some of the batch's answers harmful;
over a window of the latest episodes their share has an upper Clopper-Pearson bound. A run is safe from the first
step at which this bound, and every later one, is at most the limit. A run without such a step is censored: it
needs *more* than all of its steps. Harm is judged by the cost model on the training prompts, as during training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import clopper_pearson

TIMES = ("time/rollout", "time/score", "time/update")


class TimeToSafety(NamedTuple):
    """When a run became safe and stayed so."""

    reached: bool
    """False: never within its steps; the three numbers that follow are then lower bounds."""
    step: int
    """The first step of the final safe stretch; if there is none, the number of steps."""
    episodes: int
    """Episodes sampled up to and including that step."""
    seconds: float
    """Time spent up to and including that step."""
    last_bound: float
    """Upper bound of the harm rate over the last window of the run."""


def harm_bounds(
    harmful: Sequence[int], episodes: Sequence[int], *, window: int, confidence: float = 0.95
) -> np.ndarray:
    """Upper bounds (steps,) of the harm rate at each step, over the latest `window` or more episodes.

    harmful, episodes: counts (steps,) of harmful and of all episodes. Early windows hold what there is so far.
    Each one-sided bound holds with `confidence` for a policy that does not change within the window.
    """
    harm, count = np.cumsum([0, *harmful]), np.cumsum([0, *episodes])
    bounds = []
    for step in range(1, len(count)):
        start = int(np.searchsorted(count, count[step] - window, side="right")) - 1
        start = max(start, 0)
        successes, trials = int(harm[step] - harm[start]), int(count[step] - count[start])
        bounds.append(clopper_pearson(successes, trials, confidence=confidence, side="upper").high)
    return np.array(bounds)


def time_to_safety(
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    limit: float,
    window: int = 256,
    confidence: float = 0.95,
) -> TimeToSafety:
    """When a run's harm rate fell to `limit` or below and stayed there.

    rows: the rows of `metrics.jsonl`, in order. batch_size: episodes per step. limit: largest harm rate that
    counts as safe. window: episodes per bound. confidence: confidence of each upper bound.
    Raises UserError if there is no row, a row lacks `objective/harmful`, or the window is so short that even
    without any harm its bound would exceed the limit.
    """
    if not rows or any("objective/harmful" not in row for row in rows):
        raise UserError(
            "efficiency: expected PPO's metrics, at least one row, with objective/harmful in each"
        )
    least = clopper_pearson(0, window, confidence=confidence, side="upper").high
    if least > limit:
        raise UserError(
            f"window is {window}: without any harm it bounds the rate by {least:.4f} only, expected a longer "
            f"window for a limit of {limit:g}"
        )
    harmful = [round(row["objective/harmful"] * batch_size) for row in rows]
    bounds = harm_bounds(harmful, [batch_size] * len(rows), window=window, confidence=confidence)
    unsafe = np.flatnonzero(bounds > limit)
    first = int(unsafe[-1]) + 1 if len(unsafe) else 0
    reached = first < len(rows)
    steps = min(first + 1, len(rows))
    seconds = sum(row.get(name, 0.0) for row in rows[:steps] for name in TIMES)
    return TimeToSafety(reached, steps, steps * batch_size, float(seconds), float(bounds[-1]))


def speed_up(slow: Sequence[TimeToSafety], fast: Sequence[TimeToSafety]) -> dict[str, Any]:
    """The ratio of episodes that `slow` and `fast` needed, over all pairs of their runs (seeds).

    Returns {"ratio", "low", "high", "pairs", "censored"}: the median, smallest and largest ratio. If a slow run
    never became safe, its ratio is a lower bound and `censored` is "at least"; if a fast one never did, "at
    most"; both: "unknown"; neither: "no". Raises UserError if one side has no run.
    """
    if not slow or not fast:
        raise UserError("efficiency: found no run of one side, expected at least one of each")
    ratios = [a.episodes / b.episodes for a in slow for b in fast]
    missing = (not all(a.reached for a in slow), not all(b.reached for b in fast))
    censored = {(False, False): "no", (True, False): "at least", (False, True): "at most"}
    return {
        "ratio": float(np.median(ratios)),
        "low": min(ratios),
        "high": max(ratios),
        "pairs": len(ratios),
        "censored": censored.get(missing, "unknown"),
    }
