"""What becomes of the exact penalty when the mean cost is estimated from a batch.

The theorem rectifies an expectation, but a training step has only B samples of it. Their mean is off by about
noise = sd(cost) / sqrt(B), and rectifying a noisy number is not the same as rectifying its mean: feasible
policies are penalised too, and the gate is open for a *fraction* of the batches, which turns the kink into a
smooth, implicit multiplier. All numbers are in units of the cost; violation = E[cost] - threshold.
Derived here from Jensen's inequality and the Gaussian integral; the tests check it by Monte Carlo.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.problem import FiniteProblem, Solution


def expected_hinge(violation: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    """E[max(violation + noise * Z, 0)] for standard normal Z: v * Phi(v/s) + s * phi(v/s), elementwise."""
    v, s = np.asarray(violation, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = v * norm.cdf(v / s) + s * norm.pdf(v / s)
    return np.where(s > 0, smooth, np.maximum(v, 0))


def hinge_bias(violation: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    """The mean error of the batch hinge, never negative; largest at the boundary: 0.399 * sd / sqrt(B)."""
    return expected_hinge(-np.abs(violation), noise)  # the difference by symmetry, without its cancellation


def effective_multiplier(
    penalty: float, violation: np.ndarray | float, noise: np.ndarray | float
) -> np.ndarray:
    """penalty * P(gate open) = penalty * Phi(violation / noise): the multiplier in the mean gradient.

    It is also the derivative of penalty * `expected_hinge` with respect to the violation. It is exact for a gate
    from an independent batch; one from the gradient's own batch is correlated with it (see `simulate_gate`).
    """
    v, s = np.asarray(violation, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return penalty * np.where(s > 0, norm.cdf(v / s), v > 0)


def equilibrium_violation(penalty: float, *, multiplier: float, noise: float) -> float:
    """The violation at which training settles: noise * Phi^-1(multiplier / penalty).

    multiplier: the optimal one; training settles where the effective multiplier equals it. So a penalty of one to
    two times the optimal multiplier, exact in theory, still violates; twice settles on the threshold; more is
    over-conservative. Below the optimal multiplier there is no equilibrium near the threshold: infinity.
    Raises UserError for a negative noise or multiplier.
    """
    if noise < 0 or multiplier < 0:
        raise UserError("equilibrium_violation: noise and multiplier must be at least 0")
    return float(noise * norm.ppf(multiplier / penalty)) if penalty > multiplier else np.inf


def batch_hinge_equilibrium(problem: FiniteProblem, penalty: float, *, batch: int) -> Solution:
    """The tilt by the effective multiplier that it causes: eta = penalty * Phi(violation(eta) / noise(eta)).

    Gaussian approximation, with the exact mean and standard deviation of the cost under the tilted policy and
    batches of `batch` independent prompts, one response each. The violation falls as eta grows, so that a root is
    bracketed between 0 and the penalty.
    """

    def excess(eta: float) -> float:
        violation, noise = _violation_and_noise(problem, problem.tilted(eta).policy, batch)
        return eta - float(effective_multiplier(penalty, violation, noise))

    if excess(0.0) >= 0:  # the gate never opens at the unconstrained optimum
        return problem.tilted(0.0)
    return (
        problem.tilted(brentq(excess, 0.0, penalty, xtol=1e-12))
        if excess(penalty) > 0
        else problem.tilted(penalty)
    )


class GateEstimate(NamedTuple):
    """Monte Carlo estimates for one training step's gate; `*_error` are standard errors."""

    hinge: float
    """Mean of max(batch mean - threshold, 0)."""
    hinge_error: float
    gate: float
    """Share of batches with the gate open."""
    gate_error: float
    carried: float
    """E[gate * gradient] / E[gradient] of the cost along the tilt: the share of the penalty that takes effect."""
    carried_error: float


def simulate_gate(
    problem: FiniteProblem,
    policy: np.ndarray,
    *,
    batch: int,
    repeats: int = 10_000,
    own_batch: bool = True,
    seed: int = 0,
) -> GateEstimate:
    """Draw `repeats` batches of `batch` costs from `policy` (prompts, responses) and observe the gate.

    own_batch: compute the gate on the batch whose gradient it gates, as naive code would; otherwise on an
    independent batch, for which `carried` equals `gate`. The two differ if costs are skewed: rare large costs
    open the gate exactly when they also inflate the gradient. Raises UserError for too few draws.
    """
    if batch < 1 or repeats < 2:
        raise UserError("simulate_gate: batch >= 1 and repeats >= 2 were expected")
    rng = np.random.default_rng(seed)
    joint = (problem.weights[:, None] * np.atleast_2d(policy)).ravel()
    # The gradient of E[cost] along the tilt is minus its variance within prompts, estimated by the batch.
    by_prompt = (np.atleast_2d(policy) * problem.cost).sum(axis=1, keepdims=True)
    direction = ((problem.cost - by_prompt) ** 2).ravel()
    cost = problem.cost.ravel()
    drawn = rng.choice(len(joint), size=(repeats, batch), p=joint / joint.sum())
    gradient = direction[drawn].mean(axis=1)
    judged = drawn if own_batch else rng.choice(len(joint), size=(repeats, batch), p=joint / joint.sum())
    violation = cost[judged].mean(axis=1) - problem.threshold
    hinge, gate = np.maximum(violation, 0), (violation > 0).astype(np.float64)
    carried = gate * gradient / (joint @ direction)
    root = np.sqrt(repeats)
    return GateEstimate(*(float(x) for v in (hinge, gate, carried) for x in (v.mean(), v.std(ddof=1) / root)))


def _violation_and_noise(problem: FiniteProblem, policy: np.ndarray, batch: int) -> tuple[float, float]:
    joint = problem.weights[:, None] * policy
    mean = float((joint * problem.cost).sum())
    variance = float((joint * (problem.cost - mean) ** 2).sum())
    return problem.violation(policy), np.sqrt(variance / batch)
