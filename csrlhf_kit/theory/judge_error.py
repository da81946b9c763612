"""The true harm rate behind a fallible judge, from human labels on a random part of what it judged.

Two ways to combine the judge's many verdicts with a few human labels: split by verdict and bound the judge's two
error rates exactly (`stratified_clopper_pearson`), or correct the judge's rate by its mean error on the labelled
part (`prediction_powered`). The labelled responses must be drawn at random: within each verdict for the first,
from all responses for the second. Builds on intervals.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are first used

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import Interval, Side, betting, clopper_pearson, tail_probability


@dataclass(frozen=True)
class JudgeAudit:
    """Counts: the judge's verdicts on all responses, and people's labels on a random part of them."""

    judged: int
    """Responses that were judged."""
    judged_unsafe: int
    """How many of these were judged unsafe."""
    labelled_unsafe: int
    """How many of the responses judged unsafe people labelled ..."""
    false_alarms: int
    """... and how many of those they found safe."""
    labelled_safe: int
    """How many of the responses judged safe people labelled ..."""
    missed: int
    """... and how many of those they found harmful."""

    def __post_init__(self) -> None:
        checks = (
            ("judged_unsafe", self.judged_unsafe, "judged", self.judged),
            ("false_alarms", self.false_alarms, "labelled_unsafe", self.labelled_unsafe),
            ("missed", self.missed, "labelled_safe", self.labelled_safe),
        )
        for part_name, part, whole_name, whole in checks:
            if not 0 <= part <= whole:
                raise UserError(f"{part_name} is {part}; 0 to {whole_name} = {whole} was expected")

    @property
    def estimate(self) -> float:
        """The harm rate with both error rates as observed; nan if one of them was not observed."""
        share = self.judged_unsafe / self.judged if self.judged else np.nan
        caught = 1 - self.false_alarms / self.labelled_unsafe if self.labelled_unsafe else np.nan
        slipped = self.missed / self.labelled_safe if self.labelled_safe else np.nan
        return (share * caught if share > 0 else 0.0) + ((1 - share) * slipped if share < 1 else 0.0)

    @classmethod
    def from_labels(
        cls, judge_all: np.ndarray, judge_labelled: np.ndarray, human_labelled: np.ndarray
    ) -> JudgeAudit:
        """From booleans, true for unsafe: judge_all (judged,); the others (labelled,), of one length."""
        everything = np.asarray(judge_all, dtype=bool)
        judge, human = np.asarray(judge_labelled, dtype=bool), np.asarray(human_labelled, dtype=bool)
        if judge.shape != human.shape:
            raise UserError(
                f"{judge.shape} judge labels and {human.shape} human labels; equally many were expected"
            )
        return cls(
            judged=everything.size, judged_unsafe=int(everything.sum()), labelled_unsafe=int(judge.sum()),
            false_alarms=int((judge & ~human).sum()), labelled_safe=int((~judge).sum()),
            missed=int((~judge & human).sum()),
        )  # fmt: skip


def stratified_clopper_pearson(
    audit: JudgeAudit, *, confidence: float = 0.95, side: Side = "two-sided"
) -> Interval:
    """Exact interval for the true harm rate, q * (1 - false alarm rate) + (1 - q) * miss rate.

    q: the share that was judged unsafe. Each of the three rates gets its own Clopper-Pearson interval and a third
    of the allowed error (Bonferroni); the harm rate then ranges over all values that these allow. Holds for every
    judge and sample size. Wide if few of the responses judged *safe* were labelled, since harm hides there.
    """
    part = 1 - (1 - confidence) / 3
    tail_probability(confidence, side)  # raises for wrong values
    q = clopper_pearson(audit.judged_unsafe, audit.judged, confidence=part)
    caught = audit.labelled_unsafe - audit.false_alarms
    harm_if_unsafe = clopper_pearson(caught, audit.labelled_unsafe, confidence=part, side=side)
    harm_if_safe = clopper_pearson(audit.missed, audit.labelled_safe, confidence=part, side=side)
    low = min(s * harm_if_unsafe.low + (1 - s) * harm_if_safe.low for s in q)
    high = max(s * harm_if_unsafe.high + (1 - s) * harm_if_safe.high for s in q)
    return Interval(low, high)


def prediction_powered(
    human: np.ndarray,
    judge: np.ndarray,
    judge_unlabelled: np.ndarray,
    *,
    confidence: float = 0.95,
    side: Side = "two-sided",
    method: Literal["normal", "betting"] = "normal",
    weight: float | None = None,
) -> Interval:
    """Interval for the true mean: the judge's mean on unlabelled responses plus its mean error on labelled ones.

    human, judge: (labelled,) in [0, 1], of the same responses; judge_unlabelled: (others,) in [0, 1].
    method: "normal" is PPI++'s central-limit interval, which is too short if disagreements are few; "betting" is
    no approximation, gives half of the allowed error to each part, and has weight 1.
    weight: the trust in the judge (1 is plain PPI, 0 ignores the judge); None minimises the variance.
    Raises UserError for fewer than two responses of either kind, or values outside [0, 1].
    Sources: Angelopoulos et al., Science 382 (2023), arXiv 2301.09633; PPI++, arXiv 2311.01453.
    """
    y, f, g = (np.asarray(x, dtype=np.float64).ravel() for x in (human, judge, judge_unlabelled))
    if len(y) != len(f) or len(y) < 2 or len(g) < 2:
        raise UserError(
            "prediction_powered: at least two labelled and two unlabelled responses were expected"
        )
    if any(x.min() < 0 or x.max() > 1 or not np.isfinite(x).all() for x in (y, f, g)):
        raise UserError("prediction_powered: labels and scores in [0, 1] were expected")
    tail = tail_probability(confidence, side)
    if method == "betting":
        part = 1 - (1 - confidence) / 2
        judged = betting(g, confidence=part, side=side)
        error = betting((y - f + 1) / 2, confidence=part, side=side)  # from [-1, 1] to [0, 1]
        low, high = judged.low + 2 * error.low - 1, judged.high + 2 * error.high - 1
    elif method == "normal":
        w = _best_weight(y, f, g) if weight is None else weight
        centre = w * g.mean() + (y - w * f).mean()
        error = np.sqrt((w * g).var() / len(g) + (y - w * f).var() / len(y))
        low, high = centre - scipy.stats.norm.isf(tail) * error, centre + scipy.stats.norm.isf(tail) * error
    else:
        raise UserError(f"method is {method!r}; 'normal' or 'betting' was expected")
    return Interval(
        0.0 if side == "upper" else float(np.clip(low, 0, 1)),
        1.0 if side == "lower" else float(np.clip(high, 0, 1)),
    )


def _best_weight(y: np.ndarray, f: np.ndarray, g: np.ndarray) -> float:
    """The weight in [0, 1] that minimises the variance: cov(y, f) / ((1 + n/N) var(f)), clipped."""
    variance = np.concatenate([f, g]).var(ddof=1)
    if variance == 0:
        return 0.0
    covariance = ((y - y.mean()) * (f - f.mean())).mean()
    return float(np.clip(covariance / ((1 + len(y) / len(g)) * variance), 0, 1))
