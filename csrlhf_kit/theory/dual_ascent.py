"""Dual ascent without a neural network: how learning the multiplier affects training.

The policy takes damped natural-gradient steps on F - multiplier * E[cost]. Such steps, from the unconstrained
optimum, never leave the family of tilts: log policy moves a share `response` of the way to the best response.
So one number describes the policy, the multiplier `eta` that it currently acts on, and

    eta <- eta + response * (multiplier - eta).

The controller sees the measured violation and sets the multiplier. A policy that lags behind an integrating
controller behaves like a spring, hence the oscillation, overshoot and tuning, which a fixed penalty avoids.
Controllers, each `(violation) -> multiplier`: `FixedGate`, `LogLagrangian`, `PID`. Builds on problem.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.problem import FiniteProblem


class FixedGate:
    """The penalty while the measured cost is above the threshold, else 0: the rectified penalty in one step.

    Source: CS-RLHF's objective (arXiv 2510.03520), the subgradient of penalty * max(E[cost] - threshold, 0).
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(self, violation: float) -> float:
        return self.penalty if violation > 0 else 0.0


class LogLagrangian:
    """log m <- log m + rate * m * (mean violation of a window), clamped at `maximum`.

    Source: the code of Safe RLHF (arXiv 2310.12773), with its defaults; its window is 128 episodes.
    """

    def __init__(
        self, rate: float = 0.1, initial: float = 1.0, maximum: float = 5.0, window: int = 1
    ) -> None:
        self.rate, self.multiplier, self.maximum = rate, initial, maximum
        self.recent: deque[float] = deque(maxlen=window)

    def __call__(self, violation: float) -> float:
        self.recent.append(violation)
        step = self.rate * self.multiplier * float(np.mean(self.recent))
        self.multiplier = float(min(self.multiplier * np.exp(min(step, 50.0)), self.maximum))
        return self.multiplier


class PID:
    """m = max(0, proportional * v + I + derivative * max(0, v - previous v)), I <- max(0, I + integral * v).

    v: the violation. Source: Stooke et al. 2020 (arXiv 2007.03964); defaults as in OmniSafe.
    """

    def __init__(self, proportional: float = 0.1, integral: float = 0.01, derivative: float = 0.01) -> None:
        self.proportional, self.integral, self.derivative = proportional, integral, derivative
        self.sum, self.previous = 0.0, 0.0

    def __call__(self, violation: float) -> float:
        self.sum = max(0.0, self.sum + self.integral * violation)
        rise = max(0.0, violation - self.previous)
        self.previous = violation
        return max(0.0, self.proportional * violation + self.sum + self.derivative * rise)


class DualTrajectory(NamedTuple):
    """One simulated training, arrays (steps,); all exact except `measured`."""

    multiplier: np.ndarray
    """Set by the controller."""
    eta: np.ndarray
    """The multiplier that the policy acts on; it lags behind `multiplier`."""
    cost: np.ndarray
    objective: np.ndarray
    """F = reward - beta * KL."""
    measured: np.ndarray
    """The violation as estimated from the batch."""

    def overshoot(self, optimum: float) -> float:
        """How far `eta` goes beyond the optimal multiplier, as a share of it; 0 if it never does."""
        return float(max(0.0, self.eta.max() - optimum) / optimum)

    def settled_at(self, threshold: float, tolerance: float) -> int:
        """The first step from which the cost stays within `tolerance` of the threshold; `steps` if there is none."""
        outside = np.flatnonzero(np.abs(self.cost - threshold) > tolerance)
        return int(outside[-1]) + 1 if len(outside) else 0


def simulate_dual(
    problem: FiniteProblem,
    controller: Callable[[float], float],
    *,
    steps: int = 400,
    response: float = 0.1,
    batch: int | None = None,
    seed: int = 0,
) -> DualTrajectory:
    """Simulate dual ascent from the unconstrained optimum. Raises UserError for values out of range.

    response: the share of the way to the best response that the policy moves per step, in (0, 1].
    batch: responses per step from which the cost is measured; None measures it exactly.
    """
    if steps < 1 or not 0 < response <= 1 or (batch is not None and batch < 1):
        raise UserError("simulate_dual: steps >= 1, 0 < response <= 1 and batch >= 1 were expected")
    rng = np.random.default_rng(seed)
    eta, rows = 0.0, []
    for _ in range(steps):
        now = problem.tilted(eta)
        violation = now.cost - problem.threshold
        if batch is None:
            measured = violation
        else:
            joint = (problem.weights[:, None] * now.policy).ravel()
            seen = rng.choice(problem.cost.ravel(), size=batch, p=joint / joint.sum())
            measured = float(seen.mean()) - problem.threshold
        multiplier = controller(measured)
        rows.append((multiplier, eta, now.cost, now.objective, measured))
        eta += response * (multiplier - eta)
    return DualTrajectory(*np.array(rows).T)
