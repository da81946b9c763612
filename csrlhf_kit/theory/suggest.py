"""The penalty before training: the optimal multiplier and the whole frontier from scored reference samples.

Sample a few responses per prompt from the reference model and score them with the reward and cost models. Then
the dual of the constrained problem is a function of one number: reweight the samples by exp((reward - multiplier *
cost) / beta), normalise per prompt, and find where the mean cost meets the threshold. In other words, the samples
are the responses of a `FiniteProblem`. Builds on problem.py and reweighting.py.
Source of the idea: one-shot dual optimisation, CAN (arXiv 2405.19544).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import Interval, tail_probability
from csrlhf_kit.theory.problem import FiniteProblem, Solution
from csrlhf_kit.theory.reweighting import Resample, bootstrap_multipliers, optimal_multiplier, tilt

_FEW_SAMPLES = 5.0  # effective samples per prompt; with fewer, a reweighted mean is one or two responses
_FEW_TO_RESAMPLE = 20.0  # with fewer, intervals from resampled responses are too short


@dataclass(frozen=True)
class FrontierPoint:
    """The tilt by one multiplier, as estimated from the samples."""

    multiplier: float
    reward: float
    cost: float
    kl: float
    """Nats; at most log(samples), even if the true tilt is further away."""
    effective_samples: float
    """1 / (sum of squared weights), the median over prompts."""
    kl_weight: float | None = None
    """KL weight of this tilt: beta, or beta * (1 + multiplier) if the trainer divides by 1 + multiplier."""


@dataclass(frozen=True)
class Suggestion:
    """The penalty suggested by the reference samples."""

    multiplier: float
    """The optimal multiplier, corrected for the bias of self-normalised weights."""
    interval: Interval
    """Its bootstrap interval; `high` may be infinite."""
    bias: float
    """The estimated bias, which was subtracted."""
    recommended: float
    """The fixed penalty to train with."""
    rule: str
    """The reason for it, in a sentence."""
    frontier: list[FrontierPoint]
    warnings: list[str]
    prompts: int
    samples: float
    """Responses per prompt, the median."""
    beta: float
    threshold: float
    confidence: float

    def __str__(self) -> str:
        level, width = f"{self.confidence:.0%}", 12
        names = ("multiplier", "reward", "cost", "kl", "effective samples")
        lines = [
            f"{self.prompts} prompts, {self.samples:g} samples each, beta {self.beta:g}, "
            f"threshold {self.threshold:g}",
            f"optimal multiplier  {self.multiplier:.4g}   {level} interval "
            f"[{self.interval.low:.4g}, {self.interval.high:.4g}]",
            f"recommended penalty {self.recommended:.4g}",
            f"  {self.rule}",
            "",
            "".join(f"{name:>{max(width, len(name) + 2)}}" for name in names),
        ]
        for p in self.frontier:
            values = (p.multiplier, p.reward, p.cost, p.kl, p.effective_samples)
            lines.append(
                "".join(f"{v:>{max(width, len(name) + 2)}.4g}" for v, name in zip(values, names, strict=True))
            )
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])


def suggest_penalty(
    reward: np.ndarray,
    cost: np.ndarray,
    *,
    beta: float,
    threshold: float,
    prompt_weights: np.ndarray | None = None,
    normalised: bool = False,
    resample: Resample = "prompts",
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Suggestion:
    """The optimal multiplier, its bootstrap interval, the frontier, and a fixed penalty with its rule.

    reward, cost: (prompts, samples) scores of responses sampled from the *reference* model; nan where a prompt has
    fewer. beta: the KL weight of the planned training, in units of the reward. normalised: whether the trainer
    divides reward - m * cost by 1 + m while its KL weight stays beta, as Safe RLHF's and the kit's PPO do; False is
    the textbook objective. resample: "prompts" if the prompts are a sample of future ones (the usual case),
    "responses" if there are no others. bootstrap: the number of replicates.

    Raises UserError for scores of wrong shapes or values, and if no tilt of the samples meets the threshold.
    """
    r, c = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (reward, cost))
    if r.shape != c.shape or r.ndim != 2 or (np.isnan(r) != np.isnan(c)).any():
        raise UserError("reward and cost must be (prompts, samples) of one shape, nan in the same places")
    if not beta > 0:
        raise UserError(f"beta is {beta}; a positive KL weight was expected (reweighting needs one)")
    if resample not in ("prompts", "responses"):
        raise UserError(f"resample is {resample!r}; 'prompts' or 'responses' was expected")
    valid = ~np.isnan(r)
    if (valid.sum(axis=1) < 2).any():
        raise UserError(
            f"prompt {int(np.argmin(valid.sum(axis=1)))}: at least two scored samples were expected"
        )
    whole = FiniteProblem(
        valid / valid.sum(axis=1, keepdims=True), np.where(valid, r, 0.0), np.where(valid, c, 0.0),
        beta=beta, threshold=threshold, prompt_weights=prompt_weights,
    )  # fmt: skip
    raw = optimal_multiplier(whole, normalised)
    if np.isinf(raw):
        least = whole.smallest_cost() if not normalised else tilt(whole, np.inf, True).cost
        raise UserError(
            f"no tilt of the samples meets threshold {threshold:g}: the smallest reachable cost is "
            f"{least:.4g}; raise the threshold, lower beta or draw more samples a prompt"
        )
    corrected, replicates = bootstrap_multipliers(
        whole, valid, raw, normalised, resample, bootstrap, np.random.default_rng(seed)
    )
    multiplier = corrected if np.isfinite(corrected) else raw
    tail = tail_probability(confidence, "two-sided")
    if resample == "prompts" and len(r) > 1:
        # Percentile intervals from n resampled prompts are too short by sqrt((n - 1) / n) and ignore Student's t:
        # Hesterberg's expanded percentile, The American Statistician 69 (2015), corrects both.
        tail = float(
            scipy.stats.norm.cdf(scipy.stats.t.ppf(tail, len(r) - 1) * np.sqrt(len(r) / (len(r) - 1)))
        )
    interval = Interval(*map(float, np.quantile(replicates, [tail, 1 - tail], method="inverted_cdf")))
    recommended, rule = _recommend(multiplier, interval, normalised)
    frontier = [_frontier_point(whole, m, normalised) for m in _frontier_multipliers(whole, multiplier)]
    warnings = _warnings(tilt(whole, multiplier, normalised), valid, interval, raw - corrected, resample)
    return Suggestion(
        multiplier=multiplier, interval=interval, bias=raw - multiplier, recommended=recommended, rule=rule,
        frontier=frontier, warnings=warnings, prompts=len(r), samples=float(np.median(valid.sum(axis=1))),
        beta=float(beta), threshold=float(threshold), confidence=confidence,
    )  # fmt: skip


def best_reward(
    reward: np.ndarray,
    cost: np.ndarray,
    *,
    at_cost: float,
    at_kl: float,
    prompt_weights: np.ndarray | None = None,
) -> float:
    """The largest mean reward of a policy whose mean cost and mean KL (nats) are at most `at_cost` and `at_kl`.

    reward, cost: (prompts, samples) scores of reference samples, nan where a prompt has fewer. This is the minimum
    over multiplier m and KL weight w of the dual w * E_x log E_reference exp((reward - m * cost) / w) + m * at_cost
    + w * at_kl, convex in both; `shortfall` in `results.json` is the distance from it. Samples contain no policy
    further than log(samples) from the reference; beyond that, the result is too low.

    Raises UserError for scores of wrong shapes or values, and if the samples contain no such policy.
    """
    valid = ~np.isnan(np.atleast_2d(reward))
    tables = [np.where(valid, np.atleast_2d(x), 0.0) for x in (reward, cost)]
    uniform = valid / valid.sum(axis=1, keepdims=True)

    def problem(weight: float) -> FiniteProblem:
        return FiniteProblem(uniform, *tables, beta=weight, threshold=at_cost, prompt_weights=prompt_weights)

    spread = [float(np.ptp(x[valid])) or 1.0 for x in tables]
    unit = np.array([spread[0] / spread[1], spread[0]])  # of the multiplier and of the KL weight

    def dual(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        multiplier, weight = scaled * unit
        at = problem(weight).tilted(multiplier)
        slack = np.array([at_cost - at.cost, at_kl - at.kl])
        return at.reward + slack @ (multiplier, weight), slack * unit

    found = scipy.optimize.minimize(
        dual, [0.3, 0.3], jac=True, method="L-BFGS-B", bounds=[(0, 1e4), (1e-4, 1e4)]
    )
    if at_kl < 0 or found.x.max() > 0.99e4:
        raise UserError(f"the samples show no policy of cost {at_cost:.4g} within {at_kl:.4g} nats")
    return float(found.fun)


def _recommend(multiplier: float, interval: Interval, normalised: bool) -> tuple[float, str]:
    """A fixed penalty and its rule in words. For the factor 2, see `batch_hinge.equilibrium_violation`.

    A normalised gate that is open in a share g of the steps mixes (r - penalty * c) / (1 + penalty) with r: its
    effective multiplier is u / (1 - u), u = g * penalty / (1 + penalty), below 1 for g = 1/2 and every penalty.
    """
    if interval.high == 0:
        return 0.0, "no penalty: the reference, tilted by the reward alone, already meets the threshold."
    if normalised and multiplier >= 0.9:
        share = multiplier / (1 + multiplier)
        return max(20.0, 4 * interval.high), (
            "large: dividing by 1 + penalty caps the price that an open gate carries, so it must be open "
            f"on {share:.0%} of the steps even for an infinite penalty; the cost settles above the "
            "threshold by noise * Phi^-1(that share): lower the threshold by it, or use a dual method."
        )
    name = "2m / (1 - m), m the optimal multiplier" if normalised else "2 x the optimal multiplier"
    balanced = 2 * multiplier / (1 - multiplier) if normalised else 2 * multiplier
    if balanced < interval.high:
        return interval.high, (
            "the upper end of the interval: the samples leave the optimal multiplier so uncertain that "
            f"{name}, {balanced:.4g}, might not be enough even for an exact gate."
        )
    return balanced, (
        f"{name}: a gate on a noisy batch mean is open half the time at the threshold, so that this penalty "
        "acts there with exactly the optimal price, if the noise is Gaussian and the gate looks at another "
        f"batch. With a gate on an exact mean, any penalty above {interval.high:.4g} gives the same optimum."
    )


def _frontier_multipliers(problem: FiniteProblem, multiplier: float) -> np.ndarray:
    unit = multiplier if multiplier > 0 else problem.beta / (float(np.ptp(problem.cost)) or 1.0)
    return np.concatenate([[0.0], unit * 2.0 ** np.arange(-3, 3.5, 0.5)])


def _frontier_point(problem: FiniteProblem, multiplier: float, normalised: bool) -> FrontierPoint:
    at = tilt(problem, float(multiplier), normalised)
    effective = 1 / (at.policy**2).sum(axis=1)
    weight = problem.beta * (1 + float(multiplier) if normalised else 1.0)
    return FrontierPoint(float(multiplier), at.reward, at.cost, at.kl, float(np.median(effective)), weight)


def _warnings(
    at: Solution, valid: np.ndarray, interval: Interval, bias: float, resample: Resample
) -> list[str]:
    prompts, samples = len(valid), float(np.median(valid.sum(axis=1)))
    effective = 1 / (at.policy**2).sum(axis=1)  # (prompts,)
    median, poorest = float(np.median(effective)), float(np.quantile(effective, 0.1))
    few = "the interval resamples responses" if prompts == 1 else "the interval is too short"
    cases = [
        (
            median < _FEW_SAMPLES,
            f"at the optimum the median prompt rests on {median:.1f} effective samples of {samples:g}: draw "
            "more samples a prompt, or raise beta",
        ),
        (
            (resample == "responses" or prompts == 1) and poorest < _FEW_TO_RESAMPLE,
            f"a tenth of the prompts rest on {poorest:.1f} effective samples or fewer: good responses that were "
            "never drawn make the interval too short",
        ),
        (
            at.kl > 0.5 * np.log(samples),
            f"the optimum is {at.kl:.2f} nats from the reference, and {samples:g} samples can show at most "
            f"{np.log(samples):.2f}: the true tilt is probably further away",
        ),
        (
            np.isinf(bias),
            "corrected for bias, the samples do not reach the threshold: the estimate is the uncorrected one",
        ),
        (
            np.isfinite(bias) and abs(bias) > max(interval.width, 1e-12) / 2,
            f"the bias correction, {bias:.2g}, is as large as the statistical error: draw more samples",
        ),
        (
            np.isinf(interval.high),
            "some bootstrap samples cannot reach the threshold: the multiplier has no upper bound",
        ),
        (
            resample == "prompts" and prompts < 20,
            f"{prompts} prompts are too few to stand for those to come: {few}",
        ),
    ]
    return [sentence for applies, sentence in cases if applies]
