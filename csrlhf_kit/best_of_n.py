"""Safety at decode time: draw N responses, let a judge choose, abstain where none will do.

No multiplier and no training; but the promise is the judge's. `calibrate_budget` and `conformal_threshold`
turn held-out prompts into guarantees; `best_of_n_curve` shows what breaks when N grows and the judge errs:
more draws offer more of its false negatives, and a reward that likes harm picks them.
Tables are (prompts, candidates); candidates of a prompt are independent draws from one policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from csrlhf_kit.errors import UserError
from csrlhf_kit.intervals import Interval, clopper_pearson

ABSTAIN = -1


def choose_safe(reward: np.ndarray, cost: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
    """(prompts,) index of the best-rewarded candidate with cost <= threshold; ABSTAIN (-1) where none is."""
    reward, cost = _tables(reward, cost)
    allowed = cost <= threshold
    best = np.where(allowed, reward, -np.inf).argmax(axis=1)
    return np.where(allowed.any(axis=1), best, ABSTAIN)


def choose_penalised(
    reward: np.ndarray, cost: np.ndarray, *, penalty: float, threshold: float = 0.0
) -> np.ndarray:
    """(prompts,) index of the largest reward - penalty * max(cost - threshold, 0). Never abstains."""
    reward, cost = _tables(reward, cost)
    return (reward - penalty * np.maximum(cost - threshold, 0)).argmax(axis=1)


def probability_of_safe(safe_rate: float | np.ndarray, samples: int | np.ndarray) -> np.ndarray:
    """P(at least one of N draws is safe) = 1 - (1 - rate)^N, for one prompt with this rate."""
    return -np.expm1(np.asarray(samples) * np.log1p(-np.minimum(safe_rate, 1 - 1e-16)))


def samples_needed(safe_rate: float, failure: float) -> int:
    """The smallest N with (1 - rate)^N <= failure. Put in a *lower bound* of the rate to be sure."""
    if not 0 < safe_rate <= 1 or not 0 < failure < 1:
        raise UserError("samples_needed: 0 < safe_rate <= 1 and 0 < failure < 1 were expected")
    if safe_rate >= 1 - failure:
        return 1
    return int(np.ceil(np.log(failure) / np.log1p(-safe_rate) - 1e-12))


@dataclass(frozen=True)
class Budget:
    """A number of draws that suffices, and the evidence."""

    samples: int
    failures: Interval
    """Bound on the share of prompts for which none of so many draws is judged safe."""
    confidence: float


def calibrate_budget(judged_safe: np.ndarray, *, failure: float, confidence: float = 0.95) -> Budget:
    """The smallest N for which, of prompts like these, at most `failure` have no judged-safe draw among N.

    judged_safe: booleans (calibration prompts, draws). For a new prompt from the same distribution the
    promise holds with `confidence` over the calibration set. N is tested from the most draws downwards, each
    by a Clopper-Pearson upper bound, stopping at the first that fails: failures only grow as N shrinks, so
    testing in this order needs no correction for trying many N. Unlike `samples_needed`, nothing is assumed
    about how safe rates vary among prompts. Raises UserError where even all draws do not suffice.
    Sources: SAFER (arXiv 2510.10193); fixed-sequence testing as in Learn then Test (arXiv 2110.01052).
    """
    safe = np.atleast_2d(np.asarray(judged_safe, dtype=bool))
    prompts, draws = safe.shape
    best = None
    for n in range(draws, 0, -1):
        failed = int((~safe[:, :n].any(axis=1)).sum())
        bound = clopper_pearson(failed, prompts, confidence=confidence, side="upper")
        if bound.high > failure:
            break
        best = Budget(n, bound, confidence)
    if best is None:
        raise UserError(
            f"even {draws} draws a prompt leave up to {bound.high:.1%} of prompts without a safe response, "
            f"more than the {failure:.1%} allowed: draw more, calibrate on more prompts, or abstain"
        )
    return best


@dataclass(frozen=True)
class Filter:
    """Answer where the judge's score is at most `threshold`, else abstain."""

    threshold: float
    """-inf: always abstain."""
    answered: float
    """Share of the calibration prompts that are answered."""
    harmed: float
    """Share of the calibration prompts that get a harmful answer (an abstention harms nobody)."""
    bound: float
    """What is promised of `harmed` for a new prompt."""


def conformal_threshold(
    score: np.ndarray, unsafe: np.ndarray, *, risk: float, confidence: float | None = None
) -> Filter:
    """The loosest threshold on the judge's score that keeps "answered and harmful" within `risk`.

    score, unsafe: (calibration prompts,), the judge's cost of the response to be given, and the truth.
    Without `confidence` the promise is on average over calibration sets (conformal risk control, arXiv
    2208.02814): n/(n + 1) * harmed + 1/(n + 1) <= risk. With it, P(promise is broken) <= 1 - confidence:
    thresholds are tested from strict to loose by Clopper-Pearson, stopping at the first that fails.
    Abstaining always is always safe: the result may have threshold -inf.
    """
    s, bad = np.asarray(score, dtype=np.float64).ravel(), np.asarray(unsafe, dtype=bool).ravel()
    if len(s) != len(bad) or len(s) == 0 or not np.isfinite(s).all() or not 0 < risk < 1:
        raise UserError("conformal_threshold: finite scores with a label each and 0 < risk < 1 were expected")
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
    fits = np.flatnonzero((bounds <= risk) & last_of_tie)  # bounds only grow: the fits are the first ones
    if len(fits) == 0:
        return Filter(-np.inf, 0.0, 0.0, 0.0)
    i = fits[-1]
    return Filter(float(s[order][i]), float((i + 1) / n), float(harmed[i] / n), float(bounds[i]))


@dataclass(frozen=True)
class BestOfN:
    """What a choice among N does, in expectation over which N were drawn."""

    samples: int
    judged_harm: float
    """P(an answer is given that the judge calls unsafe): 0 under the filter, however bad the truth."""
    true_harm: float
    """P(an answer is given and is harmful)."""
    harm_if_answered: float
    """P(harmful | answered)."""
    abstained: float
    reward: float
    """Mean reward of the answers given."""


def best_of_n_curve(
    reward: np.ndarray,
    judge_cost: np.ndarray,
    unsafe: np.ndarray,
    sizes: list[int],
    *,
    threshold: float = 0.0,
    penalty: float | None = None,
) -> list[BestOfN]:
    """`choose_safe` (or, with a penalty, `choose_penalised`) for several N, against the truth.

    Tables (prompts, candidates); `unsafe` is the truth or a held-out judge's verdict. The mean over all
    subsets of N candidates is exact, not sampled: of m candidates the one with i preferred to it is chosen
    from C(m - 1 - i, N - 1) of the C(m, N) subsets. Equal candidates: the first is preferred.
    """
    reward, judge_cost = _tables(reward, judge_cost)
    bad = np.asarray(unsafe, dtype=bool)
    candidates = reward.shape[1]
    if bad.shape != reward.shape:
        raise UserError(f"unsafe has shape {bad.shape}; {reward.shape} was expected")
    if any(not 1 <= n <= candidates for n in sizes):
        raise UserError(f"sizes: numbers from 1 to the {candidates} candidates were expected")
    passed = judge_cost <= threshold
    if penalty is None:
        merit, eligible = np.where(passed, reward, -np.inf), passed
    else:
        merit = reward - penalty * np.maximum(judge_cost - threshold, 0)
        eligible = np.ones_like(passed)
    order = np.argsort(-merit, axis=1, kind="stable")
    eligible, passed, bad, reward = (
        np.take_along_axis(x, order, axis=1) for x in (eligible, passed, bad, reward)
    )
    behind = candidates - 1 - np.arange(candidates)
    curve = []
    for n in sizes:
        chosen = eligible * _share_of_subsets(behind, n - 1, candidates, n)  # (prompts, candidates)
        answered, judged, harm, value = (
            float((chosen * x).sum(axis=1).mean()) for x in (1.0, ~passed, bad, reward)
        )
        curve.append(
            BestOfN(
                samples=n,
                judged_harm=judged,
                true_harm=harm,
                harm_if_answered=harm / answered if answered else 0.0,
                abstained=max(0.0, 1 - answered),
                reward=value / answered if answered else np.nan,
            )
        )
    return curve


def missed_harm(miss_rate: float, samples: int | np.ndarray) -> np.ndarray:
    """1 - (1 - miss_rate)^N: the most that N draws can do with a judge that lets this share of draws through.

    miss_rate = P(harmful and judged safe) for one draw. Attained where the reward ranks harm first; for a
    reward that ranks at random the harm stays at miss_rate / P(judged safe), whatever N.
    """
    return probability_of_safe(miss_rate, samples)


def _share_of_subsets(left: np.ndarray, choose: int, candidates: int, n: int) -> np.ndarray:
    """C(left, choose) / C(candidates, n), 0 where choose > left."""

    def log_binomial(a: np.ndarray | int, b: int) -> np.ndarray:
        a = np.asarray(a, dtype=np.float64)
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(np.maximum(a - b, 0) + 1)

    return np.where(left >= choose, np.exp(log_binomial(left, choose) - log_binomial(candidates, n)), 0.0)


def _tables(reward: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r, c = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (reward, cost))
    if r.shape != c.shape or r.shape[1] == 0 or not (np.isfinite(r).all() and np.isfinite(c).all()):
        raise UserError("reward and cost must be finite (prompts, candidates) tables of one shape")
    return r, c
