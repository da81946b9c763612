"""How often the rule for figures over seeds is right: false alarms, power and coverage, beside other rules.

    python benchmarks/interval_rule.py            # about 8 minutes on one core
    python benchmarks/interval_rule.py --repeats 200

Two methods are trained with some seeds each, and every policy answers the same prompts. A policy does harm on 10% of
them, give or take 3 points from seed to seed; the second method's rate is higher by `gap`. In the world "prompts
differ" half of the prompts never bring a method to harm and the other half do so twice as often, and half of those
are not the same for both methods. In "seeds shared" the two methods' rates of one seed have a correlation of 0.5.

Writes benchmarks/results/interval_rule.csv. `share`, of `repeats` draws: for a `difference`, how often the methods
are told apart (the false alarms where the gap is 0, else the power); for a `rate`, how often the interval holds the
true one. `error` is its Monte Carlo standard error.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from csrlhf_kit.files import write_atomic
from csrlhf_kit.theory.intervals import Estimate, Outcomes
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds, rate_over_seeds

RESULTS = Path(__file__).parent / "results"
RATE, PROMPTS, SEEDS = 0.1, 500, (3, 5, 10, 15)


class World(NamedTuple):
    """What varies when two methods are trained and asked."""

    spread: float = 0.03
    """Standard deviation of a method's true rate from seed to seed."""
    shared: float = 0.0
    """Correlation of the two methods' rates at one seed."""
    differ: bool = False
    """Whether prompts differ in difficulty, in part from method to method."""


WORLDS = {
    "prompts alike": World(),
    "prompts differ": World(differ=True),
    "seeds shared": World(shared=0.5),
    "seeds alike": World(spread=0.0),
}


def drawn(rng: np.random.Generator, world: World, seeds: int, gap: float = 0.0) -> np.ndarray:
    """Harm of two methods, (methods, seeds, prompts), each 0 or 1; the second method's rate is higher by `gap`."""
    own, common = rng.standard_normal((2, seeds)), rng.standard_normal(seeds)
    moved = math.sqrt(1 - world.shared) * own + math.sqrt(world.shared) * common
    rates = np.clip(np.array([[RATE], [RATE + gap]]) + world.spread * moved, 0.002, 0.499)  # (methods, seeds)
    weights = np.ones((2, PROMPTS))
    if world.differ:
        hard = 2.0 * rng.integers(0, 2, size=(3, PROMPTS))  # for both, for the first, for the second
        weights = np.where(rng.random(PROMPTS) < 0.5, hard[0], hard[1:])
    return rng.random((2, seeds, PROMPTS)) < rates[:, :, None] * weights[:, None, :]


def rates_of(harm: np.ndarray) -> Estimate:
    """One method's harm (seeds, prompts) as the kit sees it where only the rates were recorded."""
    return rate_over_seeds([{"rate": rate, "n": harm.shape[1]} for rate in harm.mean(1)])


def outcomes_of(harm: np.ndarray) -> Estimate:
    """The same, where each answer was recorded."""
    return rates_of(harm)._replace(outcomes=Outcomes("simulated", harm.astype(float)))


def pooled(harm: np.ndarray) -> Estimate:
    """The same, as if all seeds were one policy."""
    return Estimate.pooled([{"rate": harm.mean(), "n": harm.size}])


def excludes_zero(gap: Estimate) -> bool:
    return gap.low > 0 or gap.high < 0


def before(first: np.ndarray, second: np.ndarray) -> bool:
    """The rule of the ledger until it was measured: each side's interval first, then squared errors added."""
    sides = [rates_of(harm)._replace(runs=()) for harm in (first, second)]
    return excludes_zero(difference(*sides))


def recorded(first: np.ndarray, second: np.ndarray) -> bool:
    return excludes_zero(difference(outcomes_of(first), outcomes_of(second)))


def twice(first: np.ndarray, second: np.ndarray) -> bool:
    """Look after two thirds of the seeds, and add the last third only if these leave it undecided."""
    early = 2 * len(first) // 3
    return recorded(first[:early], second[:early]) or recorded(first, second)


RULES: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "kit, answers recorded": recorded,
    "kit, two looks": twice,
    "kit, rates recorded": lambda a, b: excludes_zero(difference(rates_of(a), rates_of(b))),
    "Welch": lambda a, b: bool(stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False).pvalue < 0.05),
    "paired seeds": lambda a, b: bool(stats.ttest_rel(a.mean(1), b.mean(1)).pvalue < 0.05),
    "before": before,
    "prompts only": lambda a, b: excludes_zero(difference(*(pooled(harm) for harm in (a, b)))),
}
ONE_RATE: dict[str, Callable[[np.ndarray], Estimate]] = {
    "kit": rates_of,
    "t over seeds": lambda a: mean_over_seeds(a.mean(1)),
    "prompts only": pooled,
}


def row(study: str, world: str, seeds: int, gap: float, rule: str, hits: list[bool]) -> dict[str, Any]:
    share = float(np.mean(hits))
    error = math.sqrt(max(share * (1 - share), 1e-4) / len(hits))
    told = {"study": study, "world": world, "seeds": seeds, "gap": gap, "rule": rule}
    return told | {"share": round(share, 4), "error": round(error, 4), "repeats": len(hits)}


def study(
    repeats: int, rules: dict[str, Any] = RULES, seeds: tuple[int, ...] = SEEDS
) -> Iterator[dict[str, Any]]:
    """Every row of the table: two methods in each world, without and with a gap of 8 points; then one rate alone."""
    for place, (name, world) in enumerate(WORLDS.items()):
        for count in seeds:
            for gap in (0.0, 0.08):
                rng = np.random.default_rng([place, count, round(100 * gap)])
                pairs = [drawn(rng, world, count, gap) for _ in range(repeats // 2 if gap else repeats)]
                for rule, told_apart in rules.items():
                    yield row("difference", name, count, gap, rule, [told_apart(*pair) for pair in pairs])
                if gap == 0.0 and not world.differ:  # the interval of one rate is about these prompts
                    for rule, interval in ONE_RATE.items():
                        spans = [interval(first) for first, _ in pairs]
                        yield row("rate", name, count, gap, rule, [e.low <= RATE <= e.high for e in spans])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2000, help="draws of each case; half of it with a gap")
    repeats = parser.parse_args().repeats
    rows = []
    for found in study(repeats):
        rows.append(found)
        print(
            "{study:11}{world:15}{seeds:3} seeds, gap {gap:4.2f}  {rule:22}{share:7.1%}".format(**found),
            flush=True,
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(RESULTS / "interval_rule.csv", text.getvalue())


if __name__ == "__main__":
    main()
