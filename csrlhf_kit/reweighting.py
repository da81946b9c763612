"""Samples of the reference, reweighted to the policy that a multiplier would train: estimate and bootstrap.

The parts of `suggest_penalty` that compute. All weights are normalised per prompt by their own sum, so the
constants of the scores cancel, and the price of that is a bias of one over the number of samples, which
`random_halves` makes visible.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import brentq
from tqdm.auto import tqdm

from csrlhf_kit.errors import UserError
from csrlhf_kit.finite import FiniteProblem, Solution

Resample = Literal["prompts", "responses"]
_HALVINGS = 8


def tilt(problem: FiniteProblem, multiplier: float, normalised: bool) -> Solution:
    """The Solution at one multiplier. (r - m c) / (1 + m) = r - w (r + c) with w = m / (1 + m) in [0, 1]: the
    normalised tilt is a plain one, priced w, of the cost r + c."""
    if not normalised:
        return problem.tilted(multiplier)
    share = 1.0 if np.isinf(multiplier) else multiplier / (1 + multiplier)
    mixed = FiniteProblem(
        problem.reference,
        problem.reward - share * (problem.reward + problem.cost),
        problem.cost,
        beta=problem.beta,
        threshold=problem.threshold,
        prompt_weights=problem.weights,
    )
    return problem.evaluate(mixed.tilted(0.0).policy, multiplier)


def optimal_multiplier(problem: FiniteProblem, normalised: bool) -> float:
    """The price at which the tilt's cost is the threshold; 0 if slack, infinite if out of reach."""
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
    # Reward and cost may be opposed so strongly that the cost is not monotone in the share: first crossing.
    shares = np.linspace(0, 1, 33)
    reached = next((share for share in shares if violation(share) <= 0), None)
    if reached is None:
        return np.inf
    share = brentq(violation, reached - shares[1], reached, xtol=1e-12)
    return share / (1 - share) if share < 1 else np.inf


def random_halves(valid: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """2 * _HALVINGS masks: each prompt's samples split at random into two halves."""
    masks = []
    for _ in range(_HALVINGS):
        order = np.where(valid, rng.random(valid.shape), np.inf).argsort(axis=1).argsort(axis=1)
        first = valid & (order < valid.sum(axis=1, keepdims=True) // 2)
        masks += [first, valid & ~first]
    return masks


def bootstrap_multipliers(
    problem: FiniteProblem,
    valid: np.ndarray,
    estimate: float,
    normalised: bool,
    resample: Resample,
    replicates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(replicates,) multipliers. Cost curves on a grid around the estimate, resampled, then inverted."""
    spread = float(np.ptp(problem.cost[valid])) or 1.0
    unit = estimate if estimate > 0 else problem.beta / spread
    grid = np.concatenate([np.linspace(0, 4 * unit, 65), 4 * unit * np.geomspace(1.1, 1e3, 31)])
    scale = problem.beta * (1 + grid if normalised else np.ones_like(grid))
    prompts = len(valid)
    by_prompts = resample == "prompts" and prompts > 1
    curves = np.zeros((prompts if by_prompts else replicates, len(grid)))
    quick = by_prompts or prompts * replicates < 10**5
    for x in tqdm(range(prompts), desc="bootstrap", leave=False, disable=quick):
        r, c = problem.reward[x, valid[x]], problem.cost[x, valid[x]]  # (samples of x,)
        logits = (r[:, None] - grid * c[:, None]) / scale  # (samples of x, grid)
        weight = np.exp(logits - logits.max(axis=0))
        if by_prompts:
            curves[x] = (weight * c[:, None]).sum(axis=0) / weight.sum(axis=0)
        else:
            drawn = rng.standard_exponential((replicates, len(r)))  # a Bayesian bootstrap: no sample gets 0
            curves += problem.weights[x] * (drawn @ (weight * c[:, None])) / (drawn @ weight)
    if by_prompts:  # how often each prompt was drawn, times its weight
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=replicates) * problem.weights
        curves = (counts / counts.sum(axis=1, keepdims=True)) @ curves  # (replicates, grid)
    return np.array([_first_crossing(grid, curve, problem.threshold) for curve in curves])


def _first_crossing(grid: np.ndarray, curve: np.ndarray, threshold: float) -> float:
    below = np.flatnonzero(curve <= threshold)
    if len(below) == 0:
        return np.inf
    i = below[0]
    if i == 0:
        return 0.0
    share = (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
    return float(grid[i - 1] + share * (grid[i] - grid[i - 1]))
