"""The exercises of notebook 07: a picture and a check for each function that the learner writes.

7.1 `which_penalty`: the kind of penalty that a log of violations and λ comes from. 7.2 `trained_by_division`: the
optimal policy if (r - λc) / (1 + λ) replaces the reward. 7.3 `combine`: the advantage, with the gate on mean costs.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.theory.example import town
from csrlhf_kit.theory.reweighting import tilt

NAMES = ("rectified", "linear", "learned", "cannot tell")
_LOGS = {  # violations and multipliers, step by step, and who wrote them
    "A": ([0.2, 0.1, -0.02, 0.03, -0.01], [20.0, 20.0, 20.0, 20.0, 20.0], "linear"),
    "B": ([0.2, 0.15, 0.1, 0.05, 0.02], [20.0, 20.0, 20.0, 20.0, 20.0], "cannot tell"),
    "C": ([0.2, 0.1, -0.02, 0.03, -0.01], [20.0, 20.0, 0.0, 20.0, 0.0], "rectified"),
    "D": ([0.2, 0.1, -0.02, 0.03, -0.01], [1.2, 1.5, 1.4, 1.6, 1.5], "learned"),
}


def picture_1(attempt: Attempt) -> go.Figure:
    found = [drawn(attempt, np.array(v), np.array(m)) for v, m, _ in _LOGS.values()]
    known = all(isinstance(name, str) and name in NAMES for name in found)
    places = [NAMES.index(name) for name in found] if known else []
    figure = chart(
        "Four logs (violation → λ in each of five steps): which penalty wrote them?",
        "",
        "your verdict",
        {},
        marks={"your verdict": ([0, 1, 2, 3], places)} if known else {},
        caption="Each line of a log is a step. A mark appears for each verdict that your function gives.",
    )
    words = [
        "<br>".join(f"{v:+.2f} → {m:g}" for v, m in zip(*log[:2], strict=True)) for log in _LOGS.values()
    ]
    words = [f"log {name}<br>{told}" for name, told in zip(_LOGS, words, strict=True)]
    figure.update_xaxes(tickvals=[0, 1, 2, 3], ticktext=words, range=[-0.5, 3.5])
    figure.update_yaxes(tickvals=[0, 1, 2, 3], ticktext=list(NAMES), range=[-0.5, 3.5])
    return figure.update_layout(margin={"l": 110, "b": 130}, showlegend=False)


def check_1(attempt: Attempt) -> None:
    for name, (violations, multipliers, kind) in _LOGS.items():
        for scale in (1.0, 0.3):  # the verdict must not depend on the size of λ
            found = answer(attempt, np.array(violations), scale * np.array(multipliers))
            if found not in NAMES:
                raise Mistake(
                    f"log {name}: one of {', '.join(NAMES)} was expected, your function says {found!r}"
                )
            if found != kind:
                why = {
                    "rectified": "λ is 0 exactly where the violation is not positive",
                    "linear": "λ stays where it is, even below the threshold",
                    "learned": "λ takes more than one value above 0",
                    "cannot tell": "there was no step below the threshold in which the two could differ",
                }[kind]
                raise Mistake(f"log {name} is not '{found}': {why}")


def picture_2(attempt: Attempt) -> go.Figure:
    problem = town(beta=0.1)
    penalties = np.geomspace(0.5, 64, 22)

    def cost(penalty: float) -> float | None:
        policy = drawn(attempt, problem, penalty)
        return None if policy is None else float(problem.weights @ (policy * problem.cost).sum(axis=1))

    costs = [cost(penalty) for penalty in penalties]
    return chart(
        "Mean cost of the policy that a linear penalty trains, with and without the division",
        "penalty λ",
        "mean cost",
        {"without the division": (penalties, [problem.tilted(penalty).cost for penalty in penalties])},
        yours=None if None in costs else (penalties, costs),
        across=problem.threshold,
        log_x=True,
    )


def check_2(attempt: Attempt) -> None:
    small = FiniteProblem([0.5, 0.5], [0.0, 1.0], [0.0, 1.0], beta=1.0, threshold=0.2)
    for what, problem, penalty in (
        ("two answers, λ = 3", small, 3.0),
        ("the town, λ = 0", town(), 0.0),
        ("the town, λ = 20", town(beta=0.1), 20.0),
    ):
        same(
            answer(attempt, problem, penalty),
            tilt(problem, penalty, True).policy,
            what,
            hint="(r - λc) / (1 + λ) takes the place of the reward; β stays what it is.",
        )


def _batch(mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Costs (100,) with this mean, and their advantages: the costs minus their mean, as with a fitted critic."""
    costs = (np.arange(100) < round(100 * mean)).astype(float)
    return costs, costs - costs.mean()


def picture_3(attempt: Attempt) -> go.Figure:
    means = np.linspace(0.0, 0.5, 26)
    weights = []
    for mean in means:
        costs, advantages = _batch(float(mean))
        given = drawn(attempt, np.zeros(100), np.ones(100), costs, 8.0, 0.1)
        centred = drawn(attempt, np.zeros(100), advantages, costs, 8.0, 0.1)
        used = None if centred is None or given is None else -float(np.ravel(centred) @ advantages)
        length = float(advantages @ advantages)
        weights.append(None if used is None else used / length if length > 0 else 0.0)
    return chart(
        "How strongly is a cost advantage weighed (λ = 8), in batches of rising mean cost?",
        "mean cost of the batch",
        "weight of the cost advantage",
        {"λ / (1 + λ)": ([0, 0.5], [8 / 9, 8 / 9]), "0": ([0, 0.5], [0.0, 0.0])},
        yours=None if None in weights else (means, weights),
        down=0.1,
    )


def check_3(attempt: Attempt) -> None:
    rewards = np.random.default_rng(7).standard_normal(100)
    costs, advantages = _batch(0.4)
    found = np.asarray(answer(attempt, rewards, advantages, costs, 20.0, 0.1), dtype=float)
    if found.shape == rewards.shape and np.allclose(found, rewards):
        raise Mistake(
            "40% of the batch is unsafe, 10% are allowed, and the cost has no weight at all. Advantages are "
            "centred: what is their mean, whatever the policy does?"
        )
    same(found, (rewards - 20 * advantages) / 21, "mean cost 0.4, threshold 0.1: the gate is open")
    costs, advantages = _batch(0.05)
    same(
        answer(attempt, rewards, advantages + 0.3, costs, 20.0, 0.1),
        rewards,
        "mean cost 0.05, threshold 0.1, a critic that is off by 0.3: the gate is closed",
        hint="The gate asks for the mean cost, not for what the critic makes of it.",
    )
