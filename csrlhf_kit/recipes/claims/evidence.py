"""What the claims are judged by: the recorded evidence, how seeds are pooled, and the rules for verdicts.

Evidence is what finished runs have recorded under `data/` (read by `evaluation.results`): results of `csrlhf run`,
the sweeps' cells, red-team tables, rounds, the arena. A claim without evidence is *not yet measured*. A number that
depends on training needs three seeds for a verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from csrlhf_kit.evaluation.results import PolicyRow, policy_rows, read_json
from csrlhf_kit.theory.intervals import Estimate

REPRODUCED, REFUTED, DEPENDS, OPEN = "reproduced", "refuted", "depends", "not yet measured"
SEEDS_NEEDED = 3  # needed for a verdict about trained models


class Finding(NamedTuple):
    """What the evidence says about one claim."""

    verdict: str
    ours: str
    estimates: dict[str, Estimate]


# --- pooling -----------------------------------------------------------------------------------------


def exact(value: float) -> Estimate:
    """A value without sampling error: computed, not measured."""
    return Estimate.of(value)


def pooled_rate(entries: Sequence[Mapping[str, float]]) -> Estimate:
    """A rate pooled over seeds, from {"rate", "n"} of each.

    The interval is the union of Clopper-Pearson's over all prompts (as if the seeds were one policy) and Student's
    t interval over the seeds' rates, so that it includes both errors.
    """
    pooled = Estimate.pooled(entries)
    if len(entries) < 2:
        return pooled
    spread = mean_over_seeds([e["rate"] for e in entries])
    low, high = min(pooled.low, max(spread.low, 0.0)), max(pooled.high, min(spread.high, 1.0))
    return pooled._replace(low=low, high=high)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval over the seeds; one seed has no interval."""
    mean, seeds = float(np.mean(values)), len(values)
    if seeds < 2:
        return Estimate(mean, -math.inf, math.inf, seeds)
    margin = float(stats.t.isf(0.025, seeds - 1) * np.std(values, ddof=1) / math.sqrt(seeds))
    return Estimate(mean, mean - margin, mean + margin, seeds)


def complement(rate: Estimate) -> Estimate:
    """1 − a rate."""
    return rate._replace(value=1.0 - rate.value, low=1.0 - rate.high, high=1.0 - rate.low)


def fewest(*seeds: int | None) -> int | None:
    """The smallest number of seeds; None (nothing trained) does not count."""
    known = [s for s in seeds if s is not None]
    return min(known) if known else None


def difference(first: Estimate, second: Estimate) -> Estimate:
    """first − second, assumed independent: squared errors add up (Newcombe 1998, method 10)."""
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up, fewest(first.seeds, second.seeds))


def ratio(first: Estimate, second: Estimate) -> Estimate:
    """first / second of two positive values; the interval is the widest that the two intervals allow."""

    def over(a: float, b: float) -> float:
        return a / b if b > 0 else math.inf

    seeds = fewest(first.seeds, second.seeds)
    low, high = over(max(first.low, 0.0), second.high), over(first.high, max(second.low, 0.0))
    return Estimate(over(first.value, second.value), low, high, seeds)


def shown(estimate: Estimate, scale: float = 100.0, unit: str = "%", digits: int = 1) -> str:
    """A value with its interval as text; scale: factor of all three numbers."""
    value, low, high = (scale * x for x in estimate[:3])
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        return f"{value:.{digits}f}{unit}"
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


# --- rules -------------------------------------------------------------------------------------------


def at_least(ours: Estimate, bound: float) -> str:
    """Reproduced if the whole interval is at or above the bound, refuted if it is below; else it depends."""
    return REPRODUCED if ours.low >= bound else REFUTED if ours.high < bound else DEPENDS


def at_most(ours: Estimate, bound: float) -> str:
    """Reproduced if the whole interval is at or below the bound, refuted if it is above; else it depends."""
    return REPRODUCED if ours.high <= bound else REFUTED if ours.low > bound else DEPENDS


def exceeds(first: Estimate, second: Estimate) -> str:
    """Reproduced if the interval of first − second is above 0, refuted if it is below; else it depends."""
    gap = difference(first, second)
    return REPRODUCED if gap.low > 0 else REFUTED if gap.high < 0 else DEPENDS


def covers(ours: Estimate, theirs: float) -> str:
    """Reproduced if our interval contains their number, else refuted."""
    return REPRODUCED if ours.low <= theirs <= ours.high else REFUTED


def all_of(verdicts: Iterable[str]) -> str:
    """One verdict for several parts: reproduced or refuted if every part is; otherwise it depends."""
    parts = set(verdicts)
    if not parts or OPEN in parts:
        return OPEN
    return parts.pop() if len(parts) == 1 else DEPENDS


def settled(verdict: str, seeds: int | None) -> str:
    """The verdict, or "it depends" if it is about trained models with fewer than three seeds."""
    too_few = seeds is not None and seeds < SEEDS_NEEDED
    return DEPENDS if too_few and verdict in (REPRODUCED, REFUTED) else verdict


# --- what was recorded -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """Everything that the claims are judged by."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """results.json files of `csrlhf run`, the shipped one first."""
    sweep: list[PolicyRow] = field(default_factory=list)
    """Cells of all sweeps against the semantic cost model."""
    red_team: list[dict[str, Any]] = field(default_factory=list)
    """What `csrlhf red-team` wrote."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """rounds.json files, one per seed."""
    arena: dict[str, Any] | None = None
    """What `csrlhf arena` wrote."""
    scorers: list[dict[str, Any]] = field(default_factory=list)
    """metrics.json of cost models trained on their own."""
    ablation: list[PolicyRow] = field(default_factory=list)
    """Cells of sweeps against Safe RLHF's cost model."""
    files: list[str] = field(default_factory=list)
    """The files that were read, relative to the data folder."""

    @classmethod
    def read(cls, data: Path) -> Evidence:
        """Read everything in `recorded/` and `runs/` of the data folder.

        Raises UserError for a file that is no JSON.
        """
        found: dict[str, list[Any]] = {}
        files = []
        names = {
            "results": ("recorded/results.json", "recorded/*/results.json", "runs/**/results.json"),
            "sweep": ("runs/**/sweep.json",),
            "red_team": ("runs/red_team/**/*.json",),
            "rounds": ("runs/**/rounds.json",),
            "arena": ("runs/arena.json",),
            "scorers": ("runs/**/metrics.json",),
        }
        for kind, patterns in names.items():
            found[kind] = []
            for path in (p for pattern in patterns for p in sorted(data.glob(pattern))):
                found[kind].append(read_json(path))
                files.append(str(path.relative_to(data)))
        sweeps, arena = found.pop("sweep"), found.pop("arena")
        judged_by: dict[str, list[PolicyRow]] = {"semantic": [], "bradley_terry": []}
        for told in sweeps:
            judged_by[told.get("cost_model", "semantic")] += policy_rows(told)
        return cls(
            **found, sweep=judged_by["semantic"], ablation=judged_by["bradley_terry"],
            arena=arena[0] if arena else None, files=files,
        )  # fmt: skip

    def main(self, method: str) -> list[PolicyRow]:
        """A method's policies in `csrlhf run` and the sweeps' cells with the same settings, one per seed."""
        if not self.results:
            return []
        config = self.results[0]["config"]
        cells = [
            row
            for told in self.results
            if all(told["config"][name] == config[name] for name in ("threshold", "penalty"))
            for row in policy_rows(told)
            if row.method == method
        ]
        with_penalty = method in ("fixed_penalty", "linear_penalty")
        same = {"penalty": config["penalty"]} if with_penalty else {}
        cells += [c for c in self.cells(method, same) if c.threshold == config["threshold"]]
        by_seed: dict[int, PolicyRow] = {}
        for cell in cells:
            by_seed.setdefault(cell.seed, cell)
        return [by_seed[seed] for seed in sorted(by_seed)]

    def cells(self, method: str, settings: Mapping[str, Any]) -> list[PolicyRow]:
        """The sweeps' cells of a method with exactly these settings, one per seed."""
        by_seed: dict[int, PolicyRow] = {}
        for cell in self.sweep:
            if cell.method == method and cell.settings == dict(settings):
                by_seed.setdefault(cell.seed, cell)
        return [by_seed[seed] for seed in sorted(by_seed)]

    def rounds_by_settings(self) -> list[list[dict[str, Any]]]:
        """Runs of `csrlhf rounds`, grouped by their settings without the seed; the defaults come first."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for told in self.rounds:
            asked = {name: value for name, value in told["config"].items() if name != "seed"}
            groups.setdefault(json.dumps(asked, sort_keys=True), []).append(told)
        return list(groups.values())

    def swept(self, method: str, name: str) -> dict[float, list[PolicyRow]]:
        """The method's cells that change only the setting `name`: value -> cells."""
        found: dict[float, list[PolicyRow]] = {}
        for cell in self.sweep:
            if cell.method == method and set(cell.settings) == {name}:
                found.setdefault(float(cell.settings[name]), []).append(cell)
        return dict(sorted(found.items()))

    def costs(self, model: str, name: str) -> Estimate | None:
        """A cost model's metric in `csrlhf run`, over its seeds; None if it was not measured."""
        rows = [r["cost_models"][model] for r in self.results if model in r.get("cost_models", {})]
        values = [row[name] for row in rows if row.get(name) is not None]
        if not values:
            return None
        if len(values) > 1:
            return mean_over_seeds(values)
        bounds = rows[0].get("intervals", {}).get(name, (-math.inf, math.inf))
        return Estimate(values[0], *bounds, 1, rows[0].get("n"))


def by_settings(cells: Iterable[PolicyRow]) -> list[list[PolicyRow]]:
    """Cells grouped by method and settings; the cells of a group differ by seed."""
    groups: dict[str, list[PolicyRow]] = {}
    for cell in cells:
        groups.setdefault(f"{cell.method} {sorted(cell.settings.items())}", []).append(cell)
    return list(groups.values())


def rate_of(cells: Sequence[PolicyRow], name: str) -> Estimate | None:
    """A rate of these policies, pooled over seeds; None if there are none."""
    return pooled_rate([c.policy[name] for c in cells]) if cells else None


def mean_of(cells: Sequence[PolicyRow], name: str) -> Estimate | None:
    """A mean of these policies over seeds; None if there are none."""
    return mean_over_seeds([c.policy[name] for c in cells]) if cells else None


Numbers = Mapping[str, float]
"""A paper's own numbers, by the names that the claim's measure reads."""
Measure = Callable[[Evidence, Numbers], Finding | None]
"""(evidence, the paper's own numbers) -> our finding; None if there is no evidence."""


def finding(verdict: str, ours: str, **estimates: Estimate) -> Finding:
    """A finding; its verdict becomes "it depends" if the estimates have too few seeds."""
    seeds = fewest(*(e.seeds for e in estimates.values()))
    return Finding(settled(verdict, seeds), ours, estimates)


def compared(
    read: Callable[[Evidence, str], Estimate | None], first: str, second: str, *, less: bool = False
) -> Measure:
    """A measure: `read` gives more (or less) for `first` than for `second`, by the interval of the difference."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        a, b = read(e, first), read(e, second)
        if a is None or b is None:
            return None
        text = f"{first} {shown(a)}, {second} {shown(b)}"
        return finding(exceeds(b, a) if less else exceeds(a, b), text, **{first: a, second: b})

    return measure


def held_to(
    name: str,
    read: Callable[[Evidence], Estimate | None],
    *,
    rule: Callable[[Estimate, float], str] = at_least,
    words: str = "",
) -> Measure:
    """A measure: `rule` on what `read` gives and the paper's number `name`; `words` follow in the text."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        found = read(e)
        return (
            None
            if found is None
            else finding(rule(found, paper[name]), shown(found) + words, **{name: found})
        )

    return measure
