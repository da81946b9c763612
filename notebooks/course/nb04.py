"""The exercises of notebook 04: a picture and a check for each function that the learner writes.

4.1 `mean_batch_hinge`: the mean of a batch's hinge, by summing over all outcomes. 4.2 `penalty_for`: the penalty
whose effective multiplier under a noisy gate is λ*. 4.3 `combine`: the advantage under a gated penalty.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory import equilibrium_violation, expected_hinge

SPOILERS = {
    "1": ("batch_hinge_equilibrium", "expected_hinge"),
    "2": ("equilibrium_violation",),
}  # exercise -> what solves it already


def _by_brute_force(rate: float, threshold: float, batch: int) -> float:
    """The mean hinge over all 2^batch outcomes, each with its probability."""
    total = 0.0
    for costs in product((0, 1), repeat=batch):
        probability = rate ** sum(costs) * (1 - rate) ** (batch - sum(costs))
        total += probability * max(sum(costs) / batch - threshold, 0.0)
    return total


def picture_1(attempt: Attempt) -> go.Figure:
    batches = [1, 2, 4, 8, 16, 32, 64, 128]
    values = [drawn(attempt, 0.1, 0.1, batch) for batch in batches]
    smooth = np.geomspace(1, 128, 40)
    return chart(
        "The mean hinge of a policy that sits exactly on the threshold, where the true hinge is 0",
        "batch size B",
        "mean batch hinge, cost units",
        {"Gaussian: 0.399·σ/√B": (smooth, expected_hinge(0.0, 0.3 / np.sqrt(smooth)))},
        yours=None if None in values else (batches, values),
        across=0.0,
        log_x=True,
    )


def check_1(attempt: Attempt) -> None:
    same(answer(attempt, 0.5, 0.5, 2), 0.125, "the coin of this notebook, a batch of two")
    for rate, threshold, batch in ((0.1, 0.1, 1), (0.3, 0.1, 5), (0.05, 0.2, 9)):
        same(
            answer(attempt, rate, threshold, batch),
            _by_brute_force(rate, threshold, batch),
            f"rate {rate}, threshold {threshold}, batch {batch}",
            hint="For each count k of unsafe answers: its probability times max(k/B - threshold, 0).",
        )


def picture_2(attempt: Attempt) -> go.Figure:
    wanted = np.linspace(-0.03, 0.03, 25)
    values = [drawn(attempt, 2.5, 0.05, v) for v in wanted]
    return chart(
        "The penalty that makes training settle where you want it: 2 λ* on the threshold itself",
        "violation where training should settle, cost units",
        "penalty λ",
        {"2 λ*": ([wanted[0], wanted[-1]], [5.0, 5.0]), "λ*": ([wanted[0], wanted[-1]], [2.5, 2.5])},
        yours=None if None in values else (wanted, values),
        down=0.0,
    )


def check_2(attempt: Attempt) -> None:
    same(answer(attempt, 2.5, 0.05, 0.0), 5.0, "on the threshold, λ* = 2.5")
    for multiplier, noise, violation in ((2.5, 0.05, 0.02), (0.7, 0.2, -0.15), (3.0, 0.01, 0.005)):
        penalty = answer(attempt, multiplier, noise, violation)
        same(penalty, np.asarray(penalty, dtype=float).reshape(()), "the penalty")
        if not penalty > multiplier:
            raise Mistake(
                f"λ* = {multiplier:g}: a penalty of {penalty:.4g} is not even above λ*, so nothing settles"
            )
        settled = equilibrium_violation(float(penalty), multiplier=multiplier, noise=noise)
        same(
            settled,
            violation,
            f"λ* = {multiplier:g}, noise {noise:g}: with your penalty {penalty:.4g} training settles elsewhere",
            hint="The gate's share of open batches, times the penalty, must be λ*.",
        )


def picture_3(attempt: Attempt) -> go.Figure:
    violations = np.array([-0.10, -0.05, -0.01, 0.01, 0.05, 0.10])
    ones, zeros = np.ones(1), np.zeros(1)
    values = [drawn(attempt, ones, zeros, 8.0, v) for v in violations]
    weights = None if None in values else [float(np.ravel(v)[0]) for v in values]
    edges = [violations[0], violations[-1]]
    return chart(
        "What is a unit of reward worth to the gradient, before and after the gate opens (λ = 8)?",
        "measured violation, cost units",
        "weight of the reward advantage",
        {"1": (edges, [1.0, 1.0]), "1 / (1 + λ)": (edges, [1 / 9, 1 / 9])},
        yours=None if weights is None else (violations, weights),
        down=0.0,
    )


def check_3(attempt: Attempt) -> None:
    reward, cost = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.4])
    closed = np.asarray(answer(attempt, reward, cost, 20.0, -0.01), dtype=float)
    if closed.shape == reward.shape and np.allclose(closed, reward / 21):
        raise Mistake(
            "the constraint is met, the gate is closed, and yet the reward counts for 1/21: β·KL, which nobody "
            "divides, now weighs 21 times as much beside it"
        )
    same(closed, reward, "a closed gate: the reward advantages as they are")
    same(
        answer(attempt, reward, cost, 20.0, 0.01),
        (reward - 20 * cost) / 21,
        "an open gate with λ = 20",
        hint="(A_R - λ·A_C) / (1 + λ) keeps the size of a step.",
    )
    same(answer(attempt, reward, cost, 3.0, 1.0), (reward - 3 * cost) / 4, "an open gate with λ = 3")
