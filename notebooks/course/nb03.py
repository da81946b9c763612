"""The exercises of notebook 03: a picture and a check for each function that the learner writes.

3.1 `slater_bound`: an upper bound of λ* from a safe policy. 3.2 `dual`: the dual function D(λ). 3.3
`rectified_value`: the objective minus a rectified penalty on the mean cost. 3.4 `rectified_multiplier`: its slope.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory import FiniteProblem

SPOILERS = {
    "1": ("slater_bound",),
    "2": ("dual",),
    "3": ("penalised_value",),
}  # exercise -> what solves it already


def two_answers() -> FiniteProblem:
    """The problem that notebook 03 solves by hand: refuse or comply."""
    return FiniteProblem([0.5, 0.5], [0.0, 1.0], [0.0, 1.0], beta=1.0, threshold=0.2)


def uneven() -> FiniteProblem:
    """Three prompts of unequal weight: a solution that ignores the weights gives another value."""
    return FiniteProblem(
        [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2]],
        [[0.1, 1.0, 2.0], [0.0, 0.8, 1.5], [0.3, 0.9, 2.2]],
        [[0.0, 0.4, 1.0], [0.1, 0.2, 0.9], [0.0, 0.7, 0.8]],
        beta=0.5,
        threshold=0.25,
        prompt_weights=[1.0, 2.0, 5.0],
    )


def picture_1(attempt: Attempt) -> go.Figure:
    problem = uneven()
    price = problem.constrained_optimum().multiplier
    multiples = np.geomspace(1.1, 8, 24)
    bounds = [drawn(attempt, problem, problem.tilted(m * price).policy) for m in multiples]
    return chart(
        "What a safe policy that you own says about λ*",
        "how safe the policy is: the price (in λ*) that it answers to",
        "upper bound of λ*",
        {"λ* itself": ([multiples[0], multiples[-1]], [price, price])},
        yours=None if None in bounds else (multiples, bounds),
    )


def check_1(attempt: Attempt) -> None:
    two = two_answers()
    refuse = np.array([[1.0, 0.0]])
    same(
        answer(attempt, two, refuse),
        two.slater_bound(refuse),
        "two answers, the policy that always refuses",
        hint="The numerator is F* - F(policy), both with their KL; the denominator is how much cost is unused.",
    )
    problem = uneven()
    price = problem.constrained_optimum().multiplier
    for multiple in (1.2, 3.0):
        policy = problem.tilted(multiple * price).policy
        what = f"three prompts, the policy that answers to {multiple:g} λ*"
        same(answer(attempt, problem, policy), problem.slater_bound(policy), what)


def picture_2(attempt: Attempt) -> go.Figure:
    problem = uneven()
    optimum = problem.constrained_optimum()
    multipliers = np.linspace(0, 3 * optimum.multiplier, 41)
    values = [drawn(attempt, problem, m) for m in multipliers]
    return chart(
        "The dual: its lowest point should touch the constrained optimum",
        "multiplier λ",
        "D(λ), reward units",
        {"F*, the best feasible objective": ([0, multipliers[-1]], [optimum.objective] * 2)},
        yours=None if None in values else (multipliers, values),
        down=optimum.multiplier,
    )


def check_2(attempt: Attempt) -> None:
    problem = uneven()
    for multiplier in (0.0, 1.0, 4.0):
        same(
            answer(attempt, problem, multiplier),
            problem.dual(multiplier),
            f"three prompts, D({multiplier:g})",
            hint="Inside the exponent: (reward - λ·(cost - threshold)) / β. Outside: β, and the prompts' weights.",
        )
    steep = FiniteProblem([0.5, 0.5], [0.0, 1.0], [0.0, 1.0], beta=5e-4, threshold=0.2)
    with np.errstate(over="ignore"):
        found = answer(attempt, steep, 0.5)
    if not np.isfinite(found):
        raise Mistake(
            "with β = 0.0005 your D is not finite: exp(1200) overflows. Take the largest score out first"
        )
    same(found, steep.dual(0.5), "two answers with β = 0.0005")


def picture_3(attempt: Attempt) -> go.Figure:
    problem = uneven()
    optimum = problem.constrained_optimum()
    tilts = problem.frontier(optimum.multiplier * np.concatenate([[0.0], np.geomspace(0.05, 4, 40)]))
    values = [drawn(attempt, problem, t.policy, 2 * optimum.multiplier) for t in tilts]
    costs = [t.cost for t in tilts]
    marks = {}
    if None not in values:
        best = int(np.argmax(values))
        marks = {"your maximum": ([costs[best]], [values[best]])}
    return chart(
        "The penalised objective at λ = 2 λ*: the maximum belongs on the dotted threshold",
        "mean cost of the policy",
        "penalised objective",
        {"F, without a penalty": (costs, [t.objective for t in tilts])},
        yours=None if None in values else (costs, values),
        marks=marks,
        down=problem.threshold,
    )


def check_3(attempt: Attempt) -> None:
    problem = uneven()
    price = problem.constrained_optimum().multiplier
    # One prompt answered at full cost, two at the least: the mean is far below the threshold.
    safe = problem.evaluate([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    unsafe = problem.tilted(0.5 * price)
    found = answer(attempt, problem, safe.policy, 3.0)
    if found < safe.objective - 1e-9:
        raise Mistake(
            f"a policy whose mean cost is {safe.cost:.3f}, below the threshold, is charged "
            f"{safe.objective - found:.3f}; it should be charged nothing"
        )
    if found > safe.objective + 1e-9:
        raise Mistake("a policy below the threshold is paid for being safe; it should be charged nothing")
    same(
        answer(attempt, problem, unsafe.policy, 3.0),
        problem.penalised_value(unsafe.policy, 3.0),
        "a policy above the threshold",
    )


def picture_4(attempt: Attempt) -> go.Figure:
    violations = np.round(np.linspace(-0.05, 0.05, 11), 5)
    values = [drawn(attempt, float(v), 6.0) for v in violations]
    return chart(
        "The price of a unit of cost under the rectified penalty, λ = 6",
        "violation, J_C − d",
        "multiplier of this step",
        {"of the linear penalty": (violations, np.full(violations.shape, 6.0))},
        yours=None if None in values else (violations, np.asarray(values, dtype=float)),
        down=0.0,
    ).update_yaxes(rangemode="tozero")


def check_4(attempt: Attempt) -> None:
    for violation in (0.3, 0.001, -0.001, -0.2):
        for penalty in (6.0, 1.5):
            expected = penalty if violation > 0 else 0.0  # the slope of the hinge
            same(answer(attempt, violation, penalty), expected, f"violation {violation:g}, λ = {penalty:g}",
                 hint="It is the slope of λ max(J_C - d, 0) in J_C.")  # fmt: skip
    same(answer(attempt, 0.0, 6.0), 0.0, "a mean cost exactly at the limit, which is allowed")
