"""Confidence intervals for a rate, or for the mean of any variable in [0, 1].

From the weakest guarantee to the strongest: `wilson` is approximate; `clopper_pearson` is exact for yes/no
outcomes; `hoeffding`, `empirical_bernstein` and `betting` hold at every sample size for any variable in [0, 1];
`ConfidenceSequence` holds for all sample sizes at once, so that you may look after each batch and stop when you like.
All take `confidence` in (0, 1) and `side`: "two-sided", or one-sided as a safety claim needs it ("upper"). All
raise UserError for other values and for samples outside [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used

from csrlhf_kit.errors import UserError

Side = Literal["two-sided", "lower", "upper"]
_TRUNCATION = 0.5  # the largest share of their capital that a gambler bets
_BISECTIONS = 60  # 2^-60 of the unit interval: the last bits of a float64


class Interval(NamedTuple):
    """A confidence interval; a one-sided one has `low` = 0 or `high` = 1."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


class Outcomes(NamedTuple):
    """What the policies of several seeds did with the same prompts."""

    prompts: str
    """A fingerprint of the prompts: only policies that answered the same ones are compared prompt by prompt."""
    values: np.ndarray
    """(seeds, prompts), in [0, 1]."""


class Estimate(NamedTuple):
    """A figure with its 95% interval; an unknown end is infinite. What is recorded of one is read by `of`."""

    value: float
    low: float
    high: float
    seeds: int | None = None
    """Seeds behind it; None where nothing was trained."""
    n: int | None = None
    """Prompts or requests behind it, all seeds together."""
    runs: tuple[float, ...] = ()
    """Each seed's own figure, where a comparison needs them (`theory.over_seeds`)."""
    outcomes: Outcomes | None = None
    """Each seed's answer to each prompt, where they were recorded."""

    @classmethod
    def of(cls, entry: Mapping[str, Any] | float, seeds: int | None = None, name: str = "rate") -> Estimate:
        """From a record's {`name`, "low", "high", and "n" where it is known}; a bare number is its own interval."""
        if not isinstance(entry, Mapping):
            return cls(float(entry), float(entry), float(entry), seeds)
        return cls(float(entry[name]), float(entry["low"]), float(entry["high"]), seeds, entry.get("n"))

    @classmethod
    def pooled(cls, entries: Iterable[Mapping[str, Any]]) -> Estimate:
        """All events of {"rate", "n"} entries over all their trials, with its Clopper-Pearson interval."""
        counts = [(round(e["rate"] * e["n"]), e["n"]) for e in entries]
        events, n = sum(k for k, _ in counts), sum(m for _, m in counts)
        return cls(events / n if n else float("nan"), *clopper_pearson(events, n), len(counts), n)


def clopper_pearson(
    successes: int, trials: int, *, confidence: float = 0.95, side: Side = "two-sided"
) -> Interval:
    """Exact interval for a rate, by inverting the tail tests of the binomial distribution.

    Its coverage is at least `confidence` for every rate and number of trials; with no trials it is [0, 1].
    Source: Clopper and Pearson, Biometrika 26 (1934). Raises UserError for impossible counts.
    """
    k, n = _counts(successes, trials)
    tail = tail_probability(confidence, side)
    low = float(scipy.stats.beta.ppf(tail, k, n - k + 1)) if k > 0 and side != "upper" else 0.0
    high = float(scipy.stats.beta.isf(tail, k + 1, n - k)) if k < n and side != "lower" else 1.0
    return Interval(low, high)


def wilson(successes: int, trials: int, *, confidence: float = 0.95, side: Side = "two-sided") -> Interval:
    """Score interval for a rate: short, and correct on average over rates, but *not* a guarantee.

    Its coverage is below nominal at some rates near 0, where safety claims are made, so certificates never use
    it. Source: Wilson, JASA 22 (1927). Raises UserError for impossible counts.
    """
    k, n = _counts(successes, trials)
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(scipy.stats.norm.isf(tail_probability(confidence, side)))
    rate, shrink = k / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    margin = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / shrink
    return _clip(centre - margin, centre + margin, side)


def hoeffding(values: np.ndarray, *, confidence: float = 0.95, side: Side = "two-sided") -> Interval:
    """mean ± sqrt(log(1/tail) / 2n): assumes only independence and the range, and is wide for it.

    values: (samples,) in [0, 1]. Source: Hoeffding, JASA 58 (1963).
    """
    x = unit_values(values)
    margin = np.sqrt(-np.log(tail_probability(confidence, side)) / (2 * len(x)))
    return _clip(x.mean() - margin, x.mean() + margin, side)


def empirical_bernstein(
    values: np.ndarray, *, confidence: float = 0.95, side: Side = "two-sided"
) -> Interval:
    """mean ± sqrt(2 V L / n) + 7 L / 3(n - 1), L = log(2/tail): shrinks with the observed variance V.

    values: (samples,) in [0, 1]; one sample gives [0, 1]. Source: Maurer and Pontil, COLT 2009, theorem 4.
    """
    x = unit_values(values)
    if len(x) < 2:
        return Interval(0.0, 1.0)
    log_term = np.log(2 / tail_probability(confidence, side))
    margin = np.sqrt(2 * x.var(ddof=1) * log_term / len(x)) + 7 * log_term / (3 * (len(x) - 1))
    return _clip(x.mean() - margin, x.mean() + margin, side)


def betting(values: np.ndarray, *, confidence: float = 0.95, side: Side = "two-sided") -> Interval:
    """Hedged-capital interval for a fixed sample size: the means against which no gambler got rich.

    For each candidate mean m, one gambler bets that the truth is larger, another that it is smaller. If m were
    true, their capital would be a martingale and reach 1/tail with probability at most `tail` (Ville's
    inequality), so an m that made either of them rich is ruled out. Bets use only earlier values, so the interval
    depends (slightly) on the order of `values` (samples,): never sort them.
    Source: Waudby-Smith and Ramdas, JRSS-B 2024 (arXiv 2010.09686), section 4 and remark 3.
    """
    x = unit_values(values)
    tail = tail_probability(confidence, side)
    return _betting_interval(x, _bets(x, tail, horizon=len(x)), tail, side)


class ConfidenceSequence:
    """A betting interval that holds for all sample sizes at once, so you may look at it after every batch.

    >>> sequence = ConfidenceSequence(confidence=0.95, side="upper")
    >>> sequence.update([0, 0, 1, 0]).high > sequence.update([0] * 100).high
    True

    If you look at an ordinary 95% interval after each of many batches, it is wrong at least once with a
    probability far above 5%. Source: as `betting`, with bets for an open horizon (their equation 26).
    """

    def __init__(self, *, confidence: float = 0.95, side: Side = "two-sided") -> None:
        self.tail = tail_probability(confidence, side)
        self.side = side
        self.values = np.empty(0)

    def update(self, values: np.ndarray) -> Interval:
        """Add a batch of values in [0, 1] and return the interval for the mean so far."""
        self.values = np.concatenate([self.values, unit_values(values)])
        return self.interval()

    def interval(self) -> Interval:
        """The interval now; [0, 1] before the first value. It never widens as values arrive."""
        if len(self.values) == 0:
            return Interval(0.0, 1.0)
        bets = _bets(self.values, self.tail, horizon=None)
        return _betting_interval(self.values, bets, self.tail, self.side)


def _bets(x: np.ndarray, tail: float, *, horizon: int | None) -> np.ndarray:
    """Predictable plug-in bets (samples,): bet t uses values 1 … t - 1 and two pseudo-observations."""
    t = np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    spread = t * np.log1p(t) if horizon is None else float(horizon)
    return np.sqrt(-2 * np.log(tail) / (spread * before))


def _betting_interval(x: np.ndarray, bets: np.ndarray, tail: float, side: Side) -> Interval:
    low = 0.0 if side == "upper" else _ruled_out(x, bets, tail)
    high = 1.0 if side == "lower" else 1 - _ruled_out(1 - x, bets, tail)
    if low > high:  # with a probability below `tail`, the two gamblers together rule out every mean
        low = high = (low + high) / 2
    return Interval(low, high)


def _ruled_out(x: np.ndarray, bets: np.ndarray, tail: float) -> float:
    """The largest mean that the gambler on "the truth is larger" rules out.

    Their capital falls with m, since each factor 1 + min(bet, _TRUNCATION/m)·(x - m) does, so bisection finds
    it to the last bits; a grid would not.
    """
    low, high = 0.0, 1.0  # every mean ≤ low is ruled out, or low is still the trivial bound 0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        capital = np.cumsum(np.log1p(np.minimum(bets, _TRUNCATION / middle) * (x - middle)))
        if capital.max() >= -np.log(tail):
            low = middle
        else:
            high = middle
    return low


def tail_probability(confidence: float, side: Side) -> float:
    """The error allowed in each tail: 1 - confidence, halved where there are two."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; a number strictly between 0 and 1 was expected")
    if side not in ("two-sided", "lower", "upper"):
        raise UserError(f"side is {side!r}; 'two-sided', 'lower' or 'upper' was expected")
    return (1 - confidence) / (2 if side == "two-sided" else 1)


def unit_values(values: np.ndarray) -> np.ndarray:
    """`values` as float64 (samples,). Raises UserError unless there is at least one and all are in [0, 1]."""
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) == 0:
        raise UserError("no values were given; at least one number in [0, 1] was expected")
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise UserError(f"values lie in [{x.min()}, {x.max()}]; numbers in [0, 1] were expected")
    return x


def _counts(successes: int, trials: int) -> tuple[int, int]:
    if int(successes) != successes or int(trials) != trials or not 0 <= successes <= trials:
        raise UserError(
            f"{successes} successes in {trials} trials; whole numbers 0 ≤ successes ≤ trials were expected"
        )
    return int(successes), int(trials)


def _clip(low: float, high: float, side: Side) -> Interval:
    return Interval(
        0.0 if side == "upper" else float(max(low, 0.0)), 1.0 if side == "lower" else float(min(high, 1.0))
    )
