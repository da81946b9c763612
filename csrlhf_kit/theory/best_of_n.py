"""Safety at decoding time: draw N responses, let a judge choose, abstain if none is acceptable.

This needs no multiplier and no training, but it is only as safe as the judge. `conformal_threshold` turns held-out
prompts into a guarantee; `best_of_n_curve` shows what fails as N grows and the judge errs: more draws contain more
false negatives, and a reward that favours harm picks them.
Tables are (prompts, candidates); candidates of a prompt are independent draws from one policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import clopper_pearson


def probability_of_safe(safe_rate: float | np.ndarray, samples: int | np.ndarray) -> np.ndarray:
    """P(at least one of N draws is safe) = 1 - (1 - safe_rate)^N for one prompt, elementwise."""
    return -np.expm1(np.asarray(samples) * np.log1p(-np.minimum(safe_rate, 1 - 1e-16)))


@dataclass(frozen=True)
class Filter:
    """Answer if the judge's score is at most `threshold`, else abstain."""

    threshold: float
    """-inf: always abstain."""
    answered: float
    """Share of the calibration prompts that get an answer."""
    harmed: float
    """Share of the calibration prompts that get a harmful answer (abstaining is harmless)."""
    bound: float
    """The guaranteed bound on `harmed` for a new prompt."""


def conformal_threshold(
    score: np.ndarray, unsafe: np.ndarray, *, risk: float, confidence: float | None = None
) -> Filter:
    """The loosest threshold on the judge's score for which P(answered and harmful) is at most `risk`.

    score, unsafe: (calibration prompts,), the judge's cost of the response, and whether it is really harmful.
    Without `confidence`, the guarantee holds on average over calibration sets (conformal risk control, arXiv
    2208.02814): n/(n + 1) * harmed + 1/(n + 1) <= risk. With it, it fails with probability at most
    1 - confidence: thresholds are tested from strict to loose by Clopper-Pearson, up to the first that fails.
    If no threshold passes, the result's is -inf. Raises UserError for scores or a risk that make no sense.
    """
    s, bad = np.asarray(score, dtype=np.float64).ravel(), np.asarray(unsafe, dtype=bool).ravel()
    if len(s) != len(bad) or len(s) == 0 or not np.isfinite(s).all() or not 0 < risk < 1:
        raise UserError("conformal_threshold: a label for each finite score, and 0 < risk < 1, were expected")
    order = np.argsort(s, kind="stable")
    last_of_tie = np.append(np.diff(s[order]) > 0, True)  # a threshold admits all equal scores or none
    harmed, n = np.cumsum(bad[order]), len(s)
    if confidence is None:
        bounds = (harmed + 1) / (n + 1)
    else:
        table = {
            int(k): clopper_pearson(int(k), n, confidence=confidence, side="upper").high
            for k in np.unique(harmed)
        }
        bounds = np.array([table[int(k)] for k in harmed])
    fits = np.flatnonzero((bounds <= risk) & last_of_tie)  # a prefix: bounds never fall
    if len(fits) == 0:
        return Filter(-np.inf, 0.0, 0.0, 0.0)
    i = fits[-1]
    return Filter(float(s[order][i]), float((i + 1) / n), float(harmed[i] / n), float(bounds[i]))


@dataclass(frozen=True)
class BestOfN:
    """Outcome of choosing among N candidates, averaged over all choices of the N."""

    samples: int
    judged_harm: float
    """P(an answer is given that the judge calls unsafe): always 0, since the judge filters."""
    true_harm: float
    """P(an answer is given and is harmful)."""
    abstained: float
    reward: float
    """Mean reward of the answers given."""


def best_of_n_curve(
    reward: np.ndarray, judge_cost: np.ndarray, unsafe: np.ndarray, sizes: list[int]
) -> list[BestOfN]:
    """Harm and reward, for each N in `sizes`, of giving the best-rewarded of N candidates that the judge passes.

    reward, judge_cost, unsafe: (prompts, candidates). A candidate passes if judge_cost <= 0; `unsafe` is
    the truth, or a held-out judge's verdict. The mean over all subsets of N candidates is exact: of m candidates,
    the one that i others beat is chosen from C(m - 1 - i, N - 1) of the C(m, N) subsets; ties go to the first.
    Raises UserError for tables of different shapes or an N that is not between 1 and m.
    """
    reward, judge_cost = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (reward, judge_cost))
    if reward.shape != judge_cost.shape or not (np.isfinite(reward).all() and np.isfinite(judge_cost).all()):
        raise UserError("reward and judge_cost must be finite (prompts, candidates) tables of one shape")
    bad = np.asarray(unsafe, dtype=bool)
    candidates = reward.shape[1]
    if bad.shape != reward.shape:
        raise UserError(f"unsafe has shape {bad.shape}; {reward.shape} was expected")
    if any(not 1 <= n <= candidates for n in sizes):
        raise UserError(f"sizes: numbers from 1 to the {candidates} candidates were expected")
    passed = judge_cost <= 0
    order = np.argsort(-np.where(passed, reward, -np.inf), axis=1, kind="stable")
    passed, bad, reward = (np.take_along_axis(x, order, axis=1) for x in (passed, bad, reward))
    behind = candidates - 1 - np.arange(candidates)
    curve = []
    for n in sizes:
        chosen = passed * _share_of_subsets(behind, n - 1, candidates, n)  # (prompts, candidates)
        answered, judged, harm, value = (
            float((chosen * x).sum(axis=1).mean()) for x in (1.0, ~passed, bad, reward)
        )
        curve.append(
            BestOfN(
                samples=n,
                judged_harm=judged,
                true_harm=harm,
                abstained=max(0.0, 1 - answered),
                reward=value / answered if answered else np.nan,
            )
        )
    return curve


def missed_harm(miss_rate: float, samples: int | np.ndarray) -> np.ndarray:
    """1 - (1 - miss_rate)^N: the largest possible harm rate of best-of-N.

    miss_rate: P(harmful and judged safe) for one draw. The bound is reached if the reward ranks harm first; if
    the reward ranks at random, the harm rate is miss_rate / P(judged safe) for every N.
    """
    return probability_of_safe(miss_rate, samples)


def _share_of_subsets(left: np.ndarray, choose: int, candidates: int, n: int) -> np.ndarray:
    """C(left, choose) / C(candidates, n), 0 where choose > left."""

    def log_binomial(a: np.ndarray | int, b: int) -> np.ndarray:
        a = np.asarray(a, dtype=np.float64)
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(np.maximum(a - b, 0) + 1)

    return np.where(left >= choose, np.exp(log_binomial(left, choose) - log_binomial(candidates, n)), 0.0)
