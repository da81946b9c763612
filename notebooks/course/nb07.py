"""The exercises of notebook 07: a picture and a check for each function that the learner writes.

7.1 `which_penalty`: the kind of penalty that a log of violations and λ comes from. 7.2 `trained_by_division`: the
optimal policy if (r - λc) / (1 + λ) replaces the reward. 7.3 `rectified_advantages`: with the gate on mean costs.
7.4 `combine`: the advantages that PPO gets, divided and whitened.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.theory.example import town
from csrlhf_kit.theory.reweighting import tilt
from csrlhf_kit.training.advantages import whiten

SPOILERS = {"2": ("tilt", "tilted"), "4": ("combine", "whiten")}  # exercise -> what solves it already


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


def _advantages(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(reward_a, cost_a, response_mask) of three answers between prompts and padding, in float64."""
    generator = torch.Generator().manual_seed(seed)
    reward_a, cost_a = torch.randn(2, 3, 9, dtype=torch.float64, generator=generator)
    places = torch.arange(9)
    response_mask = torch.stack([(places >= a) & (places < b) for a, b in ((2, 6), (1, 3), (3, 8))])
    return reward_a + 1.0, 3.0 * cost_a, response_mask


def picture_4(attempt: Attempt) -> go.Figure:
    """The weight of a token whose advantage in cost is large, as lambda grows."""
    reward_a, cost_a, response_mask = _advantages(1)
    multipliers = np.array([0.0, 1.0, 4.0, 16.0])
    found = [drawn(attempt, reward_a, cost_a, response_mask, float(m)) for m in multipliers]
    fits = all(isinstance(f, torch.Tensor) and f.shape == reward_a.shape for f in found)
    return chart(
        "The spread of the advantages that PPO gets, answers only: whitened it is 1 for every λ",
        "multiplier λ",
        "standard deviation",
        {"not divided, not whitened": (multipliers, [float((reward_a - m * cost_a)[response_mask].std()) for m in multipliers])},
        yours=(multipliers, [float(f[response_mask].std(correction=0)) for f in found]) if fits else None,
    )  # fmt: skip


def check_4(attempt: Attempt) -> None:
    for seed, multiplier in ((2, 0.0), (3, 6.0), (4, 1.5)):
        reward_a, cost_a, response_mask = _advantages(seed)
        found = answer(attempt, reward_a, cost_a, response_mask, multiplier)
        mixed = (reward_a - multiplier * cost_a) / (1 + multiplier)
        expected = whiten(mixed, response_mask)[0]
        same(found.detach().numpy() if isinstance(found, torch.Tensor) else found, expected.numpy(),
             f"three answers, λ = {multiplier:g}", tolerance=1e-5,
             hint="Mean and spread are those of the answers' tokens alone, and outside of them is zero.")  # fmt: skip
