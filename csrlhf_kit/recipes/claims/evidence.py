"""What the claims are judged by: the recorded evidence, and the rules for verdicts.

Evidence is what finished runs have recorded under `data/` (read by `evaluation.results`): results of `csrlhf run`,
the sweeps' cells, red-team tables, rounds, the arena. Intervals and differences are those of `theory.over_seeds`. A
claim without evidence is *not yet measured*. A number that depends on training needs three seeds for a verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from csrlhf_kit.evaluation.outcomes import read_outcomes
from csrlhf_kit.evaluation.results import PolicyRow, policy_rows
from csrlhf_kit.files import read_json
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds, rate_over_seeds

AGREES, DIFFERS, UNDECIDED, OPEN = "agrees", "differs", "undecided", "not yet measured"
PROVED, REFUTED, ASIDE = (
    "proved",
    "refuted",
    "context",
)  # of exact theory and code; of what is outside the tally
SEEDS_NEEDED = 3  # needed for a verdict about trained models
NEGLIGIBLE = 0.02  # a difference of rates, or of helpfulness, below which two methods count as equal


class Finding(NamedTuple):
    """What the evidence says about one claim."""

    verdict: str
    ours: str
    estimates: dict[str, Estimate]


def complement(rate: Estimate | None) -> Estimate | None:
    """1 − a rate."""
    return rate and Estimate(1.0 - rate.value, 1.0 - rate.high, 1.0 - rate.low, rate.seeds, rate.n)


def shown(estimate: Estimate, scale: float = 100.0, unit: str = "%", digits: int = 1) -> str:
    """A value with its interval as text; scale: factor of all three numbers."""
    value, low, high = (scale * x for x in estimate[:3])
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        return f"{value:.{digits}f}{unit}"
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


# --- rules -------------------------------------------------------------------------------------------


def at_least(ours: Estimate, bound: float) -> str:
    """Agrees if the whole interval is at or above the bound, differs if it is below; else undecided."""
    return AGREES if ours.low >= bound else DIFFERS if ours.high < bound else UNDECIDED


def at_most(ours: Estimate, bound: float) -> str:
    """Agrees if the whole interval is at or below the bound, differs if it is above; else undecided."""
    return AGREES if ours.high <= bound else DIFFERS if ours.low > bound else UNDECIDED


def exceeds(first: Estimate, second: Estimate) -> str:
    """Agrees if the interval of first − second is above 0; differs if it is below `NEGLIGIBLE`; else undecided."""
    gap = difference(first, second)
    return AGREES if gap.low > 0 else DIFFERS if gap.high < NEGLIGIBLE else UNDECIDED


def less(first: Estimate, second: Estimate) -> str:
    """`exceeds` the other way round."""
    return exceeds(second, first)


def no_more(first: Estimate, second: Estimate) -> str:
    """Agrees if the first is not more than the second by `NEGLIGIBLE`, differs if it is more; else undecided."""
    return {AGREES: DIFFERS, DIFFERS: AGREES}.get(exceeds(first, second), UNDECIDED)


def all_of(verdicts: Iterable[str]) -> str:
    """One verdict for a claim of several parts: it differs if one part does, and agrees if all do."""
    parts = set(verdicts)
    return next((word for word in (OPEN, DIFFERS, UNDECIDED, AGREES) if word in parts), OPEN)


def settled(verdict: str, seeds: int | None) -> str:
    """The verdict, or "undecided" if it is about trained models with fewer than three seeds."""
    too_few = seeds is not None and seeds < SEEDS_NEEDED
    return UNDECIDED if too_few and verdict in (AGREES, DIFFERS) else verdict


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
    converged: list[list[PolicyRow]] = field(default_factory=list)
    """Cells of `runs/converged`, trained until their curves are flat, by their settings; empty until each has three
    seeds, so that nothing compares a policy of many steps with one of few."""
    judges: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """A cost model's metrics on the test labels, by its name, one per seed: of those that converged policies were
    trained against; the others are of `csrlhf run`."""
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
                place = path.relative_to(data)
                if place.parts[1] == "tuning":  # it chooses settings, and judges nothing
                    continue
                lasting = kind == "sweep" and place.parts[1] == "converged"
                found.setdefault("converged" if lasting else kind, []).append(read_json(path))
                files.append(str(place))
        sweeps, arena, converged = found.pop("sweep"), found.pop("arena"), found.pop("converged", [])
        lasting = by_settings(row for told in converged for row in policy_rows(told))
        judged_by: dict[str, list[PolicyRow]] = {"semantic": [], "bradley_terry": []}
        for told in sweeps:
            judged_by[told.get("cost_model", "semantic")] += policy_rows(told)
        own = [*converged, *(told for told in sweeps if told.get("cost_model") == "bradley_terry")]
        return cls(
            **found, sweep=judged_by["semantic"], ablation=judged_by["bradley_terry"], files=files,
            arena=arena[0] if arena else None, judges=_judges(found["results"]) | _judges(own),
            converged=lasting if min(map(len, lasting), default=0) >= SEEDS_NEEDED else [],
        )  # fmt: skip

    def main(self, method: str) -> list[PolicyRow]:
        """A method's converged policies, with the fewest settings of their own, one per seed."""
        lasting = [cells for cells in self.converged if cells[0].method == method]
        return min(lasting, key=lambda cells: len(cells[0].settings), default=[])

    def tuned(self, method: str) -> list[PolicyRow]:
        """A method's converged policies at settings that were searched for; dual ascent's may be a controller's."""
        kinds = (method, "pid_lagrangian") if method == "lagrangian" else (method,)
        found = [cells for cells in self.converged if cells[0].method in kinds]
        return next((cells for cells in found if cells != self.main(method)), [])

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
        values = {c.settings[name] for c in self.sweep if c.method == method and set(c.settings) == {name}}
        return {float(value): self.cells(method, {name: value}) for value in sorted(values)}

    def costs(self, model: str, name: str) -> Estimate | None:
        """A cost model's metric over its seeds; None if it was not measured."""
        rows = self.judges.get(model, [])
        values = [row[name] for row in rows if row.get(name) is not None]
        if not values:
            return None
        if len(values) > 1:
            return mean_over_seeds(values)
        bounds = rows[0].get("intervals", {}).get(name, (-math.inf, math.inf))
        return Estimate(values[0], *bounds, 1, rows[0].get("n"))


def _judges(records: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The cost models' metrics in these records, by the models' names."""
    found: dict[str, list[dict[str, Any]]] = {}
    for told in records:
        for name, row in told.get("cost_models", {}).items():
            found.setdefault(name, []).append(row)
    return found


def by_settings(cells: Iterable[PolicyRow]) -> list[list[PolicyRow]]:
    """Cells grouped by method and settings; the cells of a group differ by seed, of two with one seed the first counts."""
    groups: dict[str, dict[int, PolicyRow]] = {}
    for cell in cells:
        name = f"{cell.method} {sorted(cell.settings.items())}"
        groups.setdefault(name, {}).setdefault(cell.seed, cell)
    return [list(group.values()) for group in groups.values()]


def rate_of(cells: Sequence[PolicyRow], name: str) -> Estimate | None:
    """A rate of these policies over their seeds, with each answer where it was recorded; None if there are none."""
    rows = [cell.policy for cell in cells]
    found = rate_over_seeds([row[name] for row in rows]) if rows else None
    return found and found._replace(outcomes=read_outcomes(rows, name))


def mean_of(cells: Sequence[PolicyRow], name: str) -> Estimate | None:
    """A mean of these policies over their seeds, as `rate_of`."""
    rows = [cell.policy for cell in cells]
    found = mean_over_seeds([row[name] for row in rows]) if rows else None
    return found and found._replace(outcomes=read_outcomes(rows, name))


Numbers = Mapping[str, float]
"""A paper's own numbers, by the names that the claim's measure reads."""
Measure = Callable[[Evidence, Numbers], Finding | None]
"""(evidence, the paper's own numbers) -> our finding; None if there is no evidence."""


def finding(verdict: str, ours: str, **estimates: Estimate) -> Finding:
    """A finding; its verdict becomes "undecided" if the estimates have too few seeds."""
    seeds = min((e.seeds for e in estimates.values() if e.seeds is not None), default=None)
    return Finding(settled(verdict, seeds), ours, estimates)


def compared(
    read: Callable[[Evidence, str], Estimate | None],
    first: str,
    second: str,
    rule: Callable[[Estimate, Estimate], str] = exceeds,
) -> Measure:
    """A measure: `rule` on what `read` gives for `first` and for `second`."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        a, b = read(e, first), read(e, second)
        if a is None or b is None:
            return None
        text = (
            f"{first} {shown(a)}, {second} {shown(b)}; difference {shown(difference(a, b), unit=' points')}"
        )
        return finding(rule(a, b), text, **{first: a, second: b})

    return measure


def held_to(name: str, read: Callable[[Evidence], Estimate | None], words: str = "") -> Measure:
    """A measure: what `read` gives is at least the paper's number `name`; `words` follow in the text."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        found = read(e)
        if found is None:
            return None
        return finding(at_least(found, paper[name]), shown(found) + words, **{name: found})

    return measure
