"""Figures over seeds: the interval of one, and of the difference of two methods. This is the kit's one rule.

Train again and ask other prompts, and a figure changes for two reasons: the seed and the prompts. Both belong into its
interval, and there is one way to do it, whatever the row of a table:

- *one method* (`rate_over_seeds`, `mean_over_seeds`): Student's t over the seeds' own figures; for a rate never less
  than the exact interval over all prompts, since three seeds may agree by chance.
- *two methods* (`difference`): Welch's t over the seeds. Seed 3 of one method shares little with seed 3 of another
  (over the recorded sweeps the correlation is about 0), so that pairing the seeds would only lose half of the degrees
  of freedom. The prompts are the same for both, so where the answer to each is recorded the prompts are paired.
- *one seed each*: the prompts alone, paired (`mcnemar`, or `difference`). This says which of two *policies* is better,
  and nothing of the methods that trained them.

`benchmarks/interval_rule.py` measures coverage, false alarms and power. Sources: Welch, Biometrika 34 (1947);
Satterthwaite, Biometrics Bulletin 2 (1946); Röver, Knapp and Friede, BMC Med. Res. Methodol. 15 (2015), for the least
spread; Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 29 (2011), for clusters of two kinds; Newcombe, Stat. Med. 17
(1998), for two rates without seeds; McNemar, Psychometrika 12 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy  # its parts are loaded when they are first used

from csrlhf_kit.theory.intervals import Estimate

_TAIL = 0.025  # 95% intervals


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval over the seeds; one seed has no interval."""
    mean, seeds = float(np.mean(values)), len(values)
    runs = tuple(float(value) for value in values)
    margin = math.inf
    if seeds > 1:
        margin = float(scipy.stats.t.isf(_TAIL, seeds - 1) * np.std(values, ddof=1) / math.sqrt(seeds))
    return Estimate(mean, mean - margin, mean + margin, seeds, runs=runs)


def rate_over_seeds(entries: Sequence[Mapping[str, float]]) -> Estimate:
    """A rate over seeds, from {"rate", "n"} of each.

    The interval is the union of Student's t interval over the seeds' rates and of Clopper-Pearson's over all prompts
    (as if the seeds were one policy), within [0, 1].
    """
    pooled = Estimate.pooled(entries)
    if len(entries) < 2:
        return pooled
    spread = mean_over_seeds([entry["rate"] for entry in entries])
    low, high = min(pooled.low, max(spread.low, 0.0)), max(pooled.high, min(spread.high, 1.0))
    return pooled._replace(low=low, high=high, runs=spread.runs)


def difference(first: Estimate, second: Estimate, factor: float = 1.0) -> Estimate:
    """first - factor * second, with its 95% interval.

    Prompt by prompt where both have the outcomes on the same prompts, at least two; else Welch's over the seeds' own figures. A
    figure without seeds (a count, or a value computed exactly) brings its own interval, and squared errors add up.
    """
    value = first.value - factor * second.value
    seeds = min((e.seeds for e in (first, second) if e.seeds is not None), default=None)
    if (a := first.outcomes) and (b := second.outcomes) and a.prompts == b.prompts and a.values.shape[1] > 1:
        parts = _crossed(a.values, factor * b.values)
    elif len(first.runs) > 1 and len(second.runs) > 1:
        parts = [_of_seeds(first), _of_seeds(second, factor)]
    else:
        down = math.hypot(first.value - first.low, factor * (second.high - second.value))
        up = math.hypot(first.high - first.value, factor * (second.value - second.low))
        return Estimate(value, value - down, value + up, seeds)
    variance = sum(part for part, _ in parts)
    margin = 0.0
    if variance > 0:
        freedom = variance**2 / sum(part**2 / df for part, df in parts)
        margin = float(scipy.stats.t.isf(_TAIL, freedom)) * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin, seeds)


def _of_seeds(figure: Estimate, factor: float = 1.0) -> tuple[float, int]:
    """The variance of a mean over seeds, and its degrees of freedom.

    For a rate it is at least that of the prompts alone, with one more event and one more non-event.
    """
    seeds = len(figure.runs)
    found = float(np.var(figure.runs, ddof=1)) / seeds, seeds - 1
    if figure.n:
        rate = (figure.value * figure.n + 1) / (figure.n + 2)
        found = max(found, (rate * (1 - rate) / figure.n, figure.n - 1))
    return factor**2 * found[0], found[1]


def _crossed(first: np.ndarray, second: np.ndarray) -> list[tuple[float, int]]:
    """Variances, with their degrees of freedom, whose sum is that of the difference of two tables' means.

    first, second: (seeds, prompts), over the same prompts. The seeds' part and the prompts' part both hold the noise
    of single answers, so it is taken off once. Seeds that agree better than this noise allows tell nothing: then the
    prompts' part stands alone. It is at least what a single prompt that is answered differently gives.
    """
    prompts = first.shape[1]
    parts, noise = [], 0.0
    for table in (first, second):
        seeds = len(table)
        if seeds > 1:
            parts.append((float(np.var(table.mean(1), ddof=1)) / seeds, seeds - 1))
            rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
            noise += float((rest**2).sum()) / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)
    gaps = first.mean(0) - second.mean(0)  # (prompts,)
    paired = max(float(np.var(gaps, ddof=1)) / prompts, 1 / prompts**2 / min(len(first), len(second)))
    if sum(part for part, _ in parts) <= noise:
        return [(paired, prompts - 1)]
    return [*parts, (max(paired - noise, 0.0), prompts - 1)]


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p-value of "equally often", from the numbers of prompts on which one of two policies alone did harm."""
    trials = only_first + only_second
    return float(scipy.stats.binomtest(only_first, trials).pvalue) if trials else 1.0
