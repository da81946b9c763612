"""Where a rectified penalty's mean cost settles if a batch gates it: predicted without looking at its runs.

A gate on a noisy estimate of J_C is open on a share p of the steps. PPO divides by 1 + g lambda, so the cost's mean
share of the gradient is p lambda / (1 + lambda), against lambda / (1 + lambda) for a multiplier that is always on.
Training settles where it equals w, the share at which a dual method meets the limit: p = w (1 + lambda) / lambda,
and the violation is noise * Phi^-1(p) (`theory.batch_hinge.equilibrium_violation`). Both w and the noise come from
runs of that dual method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.theory.batch_hinge import equilibrium_violation
from csrlhf_kit.theory.over_seeds import mean_over_seeds


def last_half(curve: Mapping[str, Sequence[float]], name: str) -> np.ndarray:
    """A metric's values (steps / 2,) in the second half of a run, assumed to have settled."""
    values = np.asarray(curve[name], dtype=np.float64)
    return values[len(values) // 2 :]


def cost_share(curve: Mapping[str, Sequence[float]]) -> float:
    """w: the cost's mean share lambda / (1 + lambda) of the gradient in the second half of a run."""
    multiplier = last_half(curve, "multiplier")
    return float((multiplier / (1 + multiplier)).mean())


def cost_spread(curve: Mapping[str, Sequence[float]], batch_size: int) -> float:
    """Standard deviation of one episode's cost, from the differences between successive batch means.

    A slow drift of the mean hardly changes successive differences (von Neumann et al. 1941).
    """
    steps = np.diff(last_half(curve, "cost"))
    return float(np.sqrt((steps**2).mean() / 2 * batch_size))


def settled_cost(curve: Mapping[str, Sequence[float]]) -> float:
    """Mean cost over the second half of a run."""
    return float(last_half(curve, "cost").mean())


def predict_cost(prices: Sequence[ev.PolicyRow], penalty: float, batch_size: int) -> ev.Estimate:
    """Mean cost at which `FixedPenalty(penalty, gate="half")` settles in batches of `batch_size`.

    prices: runs of a dual method at the same threshold, one per seed; the interval is over them. Infinite if the
    penalty is too small to meet the limit, so that nothing settles.
    """
    settled = []
    for run in prices:
        noise = cost_spread(run.curve, run.batch_size) / np.sqrt(batch_size / 2)
        violation = equilibrium_violation(
            penalty / (1 + penalty), multiplier=cost_share(run.curve), noise=float(noise)
        )
        settled.append(run.threshold + violation)
    if not np.isfinite(settled).all():
        return ev.Estimate(np.inf, np.inf, np.inf, len(settled))
    return mean_over_seeds(settled)
