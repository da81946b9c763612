"""The exercises of notebook 06: a picture and a check for each function that the learner writes.

6.1 `rate_for`: the rate at which λ gets from one value to another in so many steps. 6.2 `calm_rate`: the largest rate
without oscillation. 6.3 `pid`: a PID controller's λ, whose integral is never negative. 6.4 `learned_multiplier`:
dual ascent on log λ.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory import PID, LogLagrangian, simulate_dual
from csrlhf_kit.theory.example import town

SPOILERS = {"3": ("PID",), "4": ("LogLagrangian",)}  # exercise -> what solves it already


def picture_1(attempt: Attempt) -> go.Figure:
    start, end, violation, steps = 1.0, 5.0, 0.4, 20
    rate = drawn(attempt, start, end, violation, steps)
    path = None
    if isinstance(rate, float) and 0 < rate < 10:
        controller = LogLagrangian(rate=rate, initial=start, maximum=2 * end)
        path = [start, *(controller(violation) for _ in range(30))]
    return chart(
        "With your rate, λ should pass 5 at about step 20",
        "step, each with a violation of 0.4",
        "multiplier λ",
        {"start": ([0, 30], [start, start]), "goal": ([0, 30], [end, end])},
        yours=None if path is None else (range(31), path),
        down=steps,
    )


def check_1(attempt: Attempt) -> None:
    for start, end, violation, steps in (
        (1.0, 5.0, 0.4, 20),
        (0.05, 2.5, 0.37, 100),
        (5.0, 2.5, -0.015, 50),
    ):
        rate = answer(attempt, start, end, violation, steps)
        what = f"from {start:g} to {end:g} in {steps} steps at a violation of {violation:g}"
        same(
            rate * steps * violation,
            1 / start - 1 / end,
            f"{what}: the way that 1/λ travels",
            tolerance=1e-9,
            hint="1/λ loses rate · violation in every step.",
        )


def _swings(rate: float, response: float, multiplier: float, slope: float) -> bool:
    """Whether λ oscillates: whether one step, linearised at the optimum, has complex eigenvalues."""
    pull = rate * multiplier**2 * slope
    step = np.array([[1.0, -pull], [response, 1 - response - response * pull]])
    return bool(abs(np.linalg.eigvals(step).imag).max() > 1e-9)


def picture_2(attempt: Attempt) -> go.Figure:
    problem = town()
    best = problem.constrained_optimum()
    inner = (best.policy * problem.cost).sum(axis=1, keepdims=True)
    slope = problem.weights @ (best.policy * (problem.cost - inner) ** 2).sum(axis=1) / problem.beta
    rate = drawn(attempt, 0.1, best.multiplier, slope)
    known = isinstance(rate, float) and 0 < rate < 100
    paths = {}
    for name, factor in (("yours", 1.0), ("10 times your rate", 10.0)):
        if known:
            controller = LogLagrangian(rate=factor * rate, initial=1.0, maximum=100.0)
            run = simulate_dual(problem, controller, steps=120, response=0.1)
            paths[name] = (range(120), run.eta / best.multiplier)
    return chart(
        "At the calm rate the price comes up to λ* and stays; it does not turn round",
        "simulated training step",
        "price acted on, in units of λ*",
        {"λ*": ([0, 120], [1.0, 1.0])} | {name: path for name, path in paths.items() if name != "yours"},
        yours=paths.get("yours"),
    )


def check_2(attempt: Attempt) -> None:
    for response, multiplier, slope in ((0.1, 2.7232, 0.0875), (0.5, 1.0, 0.16), (0.9, 6.0, 0.02)):
        rate = float(answer(attempt, response, multiplier, slope))
        what = f"response {response:g}, λ* = {multiplier:g}, slope {slope:g}"
        if not 0 < rate < np.inf:
            raise Mistake(f"{what}: {rate:g} is no rate")
        if _swings(0.99 * rate, response, multiplier, slope):
            raise Mistake(f"{what}: at {0.99 * rate:.4g}, a little below your rate {rate:.4g}, it swings")
        if not _swings(1.01 * rate, response, multiplier, slope):
            raise Mistake(
                f"{what}: at {1.01 * rate:.4g}, a little above your rate {rate:.4g}, it does not swing: "
                "yours is not where swinging starts"
            )


_SAFE, _AFTER = 60, 40  # steps


def _relapse() -> np.ndarray:
    """Violations (steps,): `_SAFE` steps below the threshold, then `_AFTER` steps above it."""
    return np.concatenate([[0.0], np.full(_SAFE - 1, -0.08), np.full(_AFTER, 0.1)])


def picture_3(attempt: Attempt) -> go.Figure:
    violations = _relapse()
    prices = drawn(attempt, violations, 1.0, 0.5, 0.0)
    steps = np.arange(len(violations))
    return chart(
        "Safe for 60 steps, then harm comes back: when does the price?",
        "step",
        "multiplier λ; violation × 10",
        {"violation × 10": (steps, 10 * violations)},
        yours=None if prices is None else (steps, prices),
        down=_SAFE,
    )


def check_3(attempt: Attempt) -> None:
    violations = _relapse()
    prices = np.asarray(answer(attempt, violations, 1.0, 0.5, 0.0), dtype=float)
    if prices.shape == violations.shape and prices[_SAFE + 20] < 0.2:
        raise Mistake(
            f"harm has been back for 20 steps and λ is {prices[_SAFE + 20]:.2g}, where it should be about 1: "
            "what has the integral been doing during the safe stretch?"
        )
    noisy = np.concatenate([[0.0], np.random.default_rng(6).normal(0.02, 0.1, 50)])
    for what, series, gains in (
        ("after a safe stretch", violations, (1.0, 0.5, 0.0)),
        ("a noisy violation", noisy, (2.0, 0.5, 0.0)),
        ("a noisy violation, with a derivative", noisy, (2.0, 0.5, 3.0)),
    ):
        controller = PID(*gains)
        same(
            answer(attempt, series, *gains),
            [controller(v) for v in series],
            what,
            hint="λ is the sum of three terms, and neither it nor the integral is ever negative.",
        )


def _climb(attempt: Attempt, rate: float, violations: np.ndarray) -> list[float] | None:
    """lambda after each step of an attempt at 6.4, or None."""
    multipliers = [1.0]
    for violation in violations:
        found = drawn(attempt, multipliers[-1], float(violation), rate, 5.0)
        if found is None or np.shape(found):
            return None
        multipliers.append(float(found))
    return multipliers[1:]


def picture_4(attempt: Attempt) -> go.Figure:
    violations = np.repeat([0.3, -0.02], [20, 60])
    steps = np.arange(1, len(violations) + 1)
    values = _climb(attempt, 0.1, violations)
    return chart(
        "λ while the limit is broken for 20 steps, and kept for 60: it learns fast and forgets slowly",
        "step",
        "λ",
        {"maximum": (steps, np.full(len(steps), 5.0))},
        yours=None if values is None else (steps, values),
        down=20.0,
    )


def check_4(attempt: Attempt) -> None:
    for start, violation, rate in ((1.0, 0.3, 0.1), (3.0, -0.02, 0.1), (0.5, 0.1, 1.0), (4.9, 0.4, 0.1)):
        controller = LogLagrangian(rate=rate, initial=start, maximum=5.0)
        same(
            answer(attempt, start, violation, rate, 5.0),
            controller(violation),
            f"λ = {start:g}, violation {violation:g}, η = {rate:g}, maximum 5",
            hint="Ascend in log λ: its slope is λ times the violation.",
        )
