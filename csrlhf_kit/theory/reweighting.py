"""Reference samples, reweighted to the policy that a multiplier would train: estimate and bootstrap.

The computations behind `suggest_penalty` (suggest.py); builds on problem.py. Each prompt's weights are divided by
their sum, so that the policy's unknown constants cancel. This causes a bias of order one over the number of
samples, which the jackknife removes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are first used
from tqdm.auto import tqdm

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.problem import FiniteProblem, Solution

Resample = Literal["prompts", "responses"]


def tilt(problem: FiniteProblem, multiplier: float, normalised: bool) -> Solution:
    """The `Solution` at one multiplier. normalised: for the score (r - m c) / (1 + m) instead of r - m c.

    That equals r - w (r + c) with w = m / (1 + m) in [0, 1], a plain tilt by w of the cost r + c."""
    if not normalised:
        return problem.tilted(multiplier)
    share = 1.0 if np.isinf(multiplier) else multiplier / (1 + multiplier)
    mixed = FiniteProblem(
        problem.reference, problem.reward - share * (problem.reward + problem.cost), problem.cost,
        beta=problem.beta, threshold=problem.threshold, prompt_weights=problem.weights,
    )  # fmt: skip
    return problem.evaluate(mixed.tilted(0.0).policy, multiplier)


def optimal_multiplier(problem: FiniteProblem, normalised: bool) -> float:
    """The multiplier at which the tilt's cost equals the threshold; 0 if it is below anyway, infinite if never."""
    if not normalised:
        try:
            return float(problem.constrained_optimum().multiplier)
        except UserError:
            return np.inf

    def violation(share: float) -> float:
        price = share / (1 - share) if share < 1 else np.inf
        return tilt(problem, price, True).cost - problem.threshold

    if violation(0.0) <= 0:
        return 0.0
    # The cost need not fall monotonically with the share, so this takes the first crossing.
    shares = np.linspace(0, 1, 33)
    reached = next((share for share in shares if violation(share) <= 0), None)
    if reached is None:
        return np.inf
    share = scipy.optimize.brentq(violation, reached - shares[1], reached, xtol=1e-12)
    return share / (1 - share) if share < 1 else np.inf


def bootstrap_multipliers(
    problem: FiniteProblem,
    valid: np.ndarray,
    raw: float,
    normalised: bool,
    resample: Resample,
    replicates: int,
    rng: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """The multiplier corrected for bias, and bootstrap replicates of it (replicates,).

    valid: (prompts, samples), which samples exist. raw: the uncorrected estimate. Costs are computed on a grid of
    multipliers around it, averaged, and the multiplier is read where the curve meets the threshold; infinite if it
    never does. What is averaged and resampled are jackknife pseudo-values n * J - (n - 1) * J_without_i of each
    prompt's reweighted cost: their mean has no bias of order 1/n, and their spread is right even if one heavy
    sample dominates (Tukey 1958; Efron 1982, The Jackknife, the Bootstrap, chapter 2).
    """
    spread = float(np.ptp(problem.cost[valid])) or 1.0
    unit = raw if raw > 0 else problem.beta / spread
    grid = np.concatenate([np.linspace(0, 4 * unit, 65), 4 * unit * np.geomspace(1.1, 1e3, 31)])
    scale = problem.beta * (1 + grid if normalised else np.ones_like(grid))
    prompts = len(valid)
    by_prompts = resample == "prompts" and prompts > 1
    curves = np.zeros((prompts, len(grid)))
    redrawn = np.zeros((replicates, len(grid)))
    quick = by_prompts or prompts * replicates < 10**5
    for x in tqdm(range(prompts), desc="bootstrap", leave=False, disable=quick):
        values = _pseudo_values(problem.reward[x, valid[x]], problem.cost[x, valid[x]], grid, scale)
        curves[x] = values.mean(axis=0)
        if not by_prompts:  # a Bayesian bootstrap
            drawn = rng.standard_exponential((replicates, len(values)))
            redrawn += problem.weights[x] * (drawn @ values) / drawn.sum(axis=1, keepdims=True)
    if by_prompts:  # how often each prompt was drawn, times its weight
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=replicates) * problem.weights
        redrawn = (counts / counts.sum(axis=1, keepdims=True)) @ curves
    corrected = _first_crossing(grid, problem.weights @ curves, problem.threshold)
    return corrected, np.array([_first_crossing(grid, curve, problem.threshold) for curve in redrawn])


def _pseudo_values(r: np.ndarray, c: np.ndarray, grid: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(samples, grid) jackknife pseudo-values of one prompt's reweighted cost; r and c: (samples,)."""
    logits = (r[:, None] - grid * c[:, None]) / scale
    weight = np.exp(logits - logits.max(axis=0))
    weight /= weight.sum(axis=0)
    mean = c @ weight
    others = np.maximum(1 - weight, 1e-9)  # without a sample that has all the weight, nothing is left
    without = mean + weight * (mean - c[:, None]) / others
    return len(r) * mean - (len(r) - 1) * without


def _first_crossing(grid: np.ndarray, curve: np.ndarray, threshold: float) -> float:
    below = np.flatnonzero(curve <= threshold)
    if len(below) == 0:
        return np.inf
    i = below[0]
    if i == 0:
        return 0.0
    share = (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
    return float(grid[i - 1] + share * (grid[i] - grid[i - 1]))
