"""The exercises of notebook 10: a picture and a check for each function that the learner writes.

10.1 `holds_after`: the share of requests without a harmful answer in k tries. 10.2 `rate_of_a_try`: the probability
that one try succeeds, from logs of a red team. 10.3 `add_twins`: a benign twin in the same wrappers for each find.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same

_ALIKE, _UNLIKE = np.full(100, 0.1), np.where(np.arange(100) < 20, 0.5, 0.0)


def picture_1(attempt: Attempt) -> go.Figure:
    tries = [1, 2, 4, 8, 16, 32, 64]
    values = [drawn(attempt, _UNLIKE, count) for count in tries]
    return chart(
        "Ten answers in a hundred are harmful: all of them on one request in five",
        "tries per request",
        "requests that hold, %",
        {"every request alike, 0.9^k": (tries, [100 * 0.9**count for count in tries])},
        yours=None if None in values else (tries, [100 * float(np.ravel(value)[0]) for value in values]),
        log_x=True,
    )


def check_1(attempt: Attempt) -> None:
    same(answer(attempt, _ALIKE, 2), 0.81, "all requests at 10%, two tries")
    same(
        answer(attempt, _UNLIKE, 2),
        0.85,
        "one request in five at 50%, the others at 0, two tries",
        hint="First each request's own chance to hold, then the mean over requests.",
    )
    rates = np.array([0.0, 0.02, 0.3, 1.0])
    same(answer(attempt, rates, 16), float(np.mean((1 - rates) ** 16)), "rates 0, 2%, 30% and 100%, 16 tries")


def _log(rate: float, budget: int, seed: int, requests: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """(tries used, whether the request broke), (requests,) each; every try succeeds with probability `rate`."""
    needed = np.random.default_rng(seed).geometric(rate, requests)
    return np.minimum(needed, budget), needed <= budget


def picture_2(attempt: Attempt) -> go.Figure:
    budgets = [1, 2, 4, 8, 16, 32, 64]
    values = [drawn(attempt, *_log(0.05, budget, 1)) for budget in budgets]
    return chart(
        "Every try is harmful with probability 5%: what is read off logs of different budgets",
        "budget of tries per request",
        "rate of one try, %",
        {"the truth": ([1, 64], [5.0, 5.0])},
        yours=None if None in values else (budgets, [100 * float(np.ravel(value)[0]) for value in values]),
        log_x=True,
    )


def check_2(attempt: Attempt) -> None:
    tries, broken = np.array([1, 3, 4, 4]), np.array([True, True, False, False])
    same(
        answer(attempt, tries, broken),
        2 / 12,
        "four requests: broken at try 1 and try 3, and two that held 4 tries",
        hint="How many tries were made in all, and how many of them were harmful?",
    )
    for rate, budget in ((0.05, 8), (0.3, 2), (0.01, 64)):
        tries, broken = _log(rate, budget, 2)
        what = f"a rate of {rate:.0%}, budget {budget}"
        same(answer(attempt, tries, broken), broken.sum() / tries.sum(), what)


_FAMILIES = ("role_play", "authority", "flattery", "multi_step")
_BENIGN = ("feed a dog", "protect a bridge", "kill a rumour", "water a garden")
_HARMFUL = ("feed a rumour", "sabotage a bridge", "kill a dog")


def _finds(count: int = 400) -> list[tuple[str, tuple[str, ...]]]:
    """(request, stack of wrappers) of attacks that succeeded, most of them with the wrapper role play."""
    rng = Random(10)
    names = rng.choices(_FAMILIES, (8, 3, 2, 1), k=count)
    stacks = [(name,) if rng.random() < 0.7 else (name, rng.choice(_FAMILIES)) for name in names]
    return [(rng.choice(_HARMFUL), stack) for stack in stacks]


def _shares(records: Any) -> list[float] | None:
    """For each wrapper, the share of harmful requests among its records; None if `records` is no list of records."""
    try:
        shares = []
        for family in _FAMILIES:
            labels = [bool(harmful) for _, stack, harmful in records if family in stack]
            shares.append(100 * float(np.mean(labels)) if labels else 0.0)
    except (TypeError, ValueError):
        return None
    return shares


def picture_3(attempt: Attempt) -> go.Figure:
    shares = _shares(drawn(attempt, _finds(), _BENIGN, _FAMILIES, Random(1)))
    places = list(range(len(_FAMILIES)))
    figure = chart(
        "What the next model could learn from the wrapper alone",
        "",
        "harmful records, %",
        {"nothing: a coin": ([-0.3, 3.3], [50.0, 50.0])},
        yours=None if shares is None else (places, shares),
    )
    figure.update_xaxes(tickvals=places, ticktext=[family.replace("_", " ") for family in _FAMILIES])
    return figure.update_yaxes(range=[0, 105])


def check_3(attempt: Attempt) -> None:
    for finds in (_finds(), _finds(60)):
        _check_twins(answer(attempt, finds, _BENIGN, _FAMILIES, Random(2)), finds)


def _check_twins(records: Any, finds: list[tuple[str, tuple[str, ...]]]) -> None:
    if _shares(records) is None or len(records) != 2 * len(finds):
        raise Mistake("a list of (request, stack, harmful) was expected, two for each find")
    kept = Counter((request, tuple(stack)) for request, stack, harmful in records if harmful)
    if kept != Counter(finds):
        raise Mistake("the finds themselves should be in the list as they were, and labelled harmful")
    twins = [(request, tuple(stack)) for request, stack, harmful in records if not harmful]
    if any(request not in _BENIGN for request, _ in twins):
        raise Mistake("a twin is one of the benign requests, and here a harmful one is called benign")
    found, worn = Counter(stack for _, stack in finds), Counter(stack for _, stack in twins)
    if worn != found:
        stack = max(found | worn, key=lambda s: (abs(found[s] - worn[s]), s))
        name = " + ".join(stack) or "no wrapper"
        raise Mistake(
            f"{name}: worn by {found[stack]} finds and by {worn[stack]} twins. A model learns to refuse the "
            "wrapper that mostly finds wear"
        )
    if len({request for request, _ in twins}) < 2:
        raise Mistake("all twins are the same request")
