"""The exercises of notebook 09: a picture and a check for each function that the learner writes.

9.1 `gap`: an interval for the difference of two rates. 9.2 `strengths`: Bradley-Terry strengths from counts of wins.
9.3 `verdict`: agrees, differs or undecided, from an interval and a claimed bound.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart, numbers
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.evaluation.ratings import bradley_terry
from csrlhf_kit.recipes.claims.evidence import AGREES, DIFFERS, UNDECIDED, Estimate, at_least
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.theory.over_seeds import difference

SPOILERS = {"2": ("bradley_terry",)}  # exercise -> what solves it already


def _rate(count: int, n: int) -> tuple[float, float, float]:
    return (count / n, *clopper_pearson(count, n))


def picture_1(attempt: Attempt) -> go.Figure:
    sizes = [40, 80, 160, 320, 640, 1280]
    found = [numbers(drawn(attempt, _rate(11 * n // 40, n), _rate(6 * n // 40, n)), (3,)) for n in sizes]
    curves = {"measured difference": (sizes, [12.5] * len(sizes))}
    if all(values is not None for values in found):
        curves["your upper end"] = (sizes, [100 * values[2] for values in found])
    return chart(
        "11 against 6 of 40, and the same shares of more prompts: from how many prompts on do they differ?",
        "prompts for each policy",
        "difference of harm rates, points",
        curves,
        yours=(sizes, [100 * values[1] for values in found]) if len(curves) > 1 else None,
        across=0.0,
        log_x=True,
    ).update_yaxes(range=[-12, 36])


def check_1(attempt: Attempt) -> None:
    for first, second in (((11, 40), (6, 40)), ((2, 500), (30, 500)), ((0, 60), (1, 20))):
        a, b = _rate(*first), _rate(*second)
        same(
            answer(attempt, a, b),
            difference(Estimate(*a), Estimate(*b))[:3],
            f"{first[0]} of {first[1]} against {second[0]} of {second[1]} (difference, low, high)",
            hint="What makes the difference smaller: the first one's error downwards and the second one's upwards.",
        )


_WINS = np.array([[0.0, 30.0, 9.0], [10.0, 0.0, 8.0], [1.0, 2.0, 0.0]])


def picture_2(attempt: Attempt) -> go.Figure:
    found = numbers(drawn(attempt, _WINS), (3,))
    truth = bradley_terry(_WINS)
    gaps, shares = [], []
    for i in range(3):
        for j in range(3):
            if i != j:
                gaps.append(truth[i] - truth[j] if found is None else float(found[i] - found[j]))
                shares.append(100 * _WINS[i, j] / (_WINS[i, j] + _WINS[j, i]))
    line = np.linspace(-4, 4, 33)
    return chart(
        "Every pair of three policies: does the difference of strengths explain who won?",
        "difference of strengths, nats",
        "games won, %",
        {"σ(difference)": (line, 100 / (1 + np.exp(-line)))},
        yours=None if found is None else tuple(zip(*sorted(zip(gaps, shares, strict=True)), strict=True)),
    )


def check_2(attempt: Attempt) -> None:
    same(
        answer(attempt, np.array([[0.0, 3.0], [1.0, 0.0]])),
        [np.log(3) / 2, -np.log(3) / 2],
        "two policies, 3 games to 1 (mean zero)",
        tolerance=1e-5,
    )
    for wins in (_WINS, np.array([[0, 5, 1, 2], [4, 0, 40, 3], [2, 9, 0, 1], [1, 1, 6, 0]], dtype=float)):
        same(
            answer(attempt, wins),
            bradley_terry(wins),
            f"{len(wins)} policies with unequal numbers of games",
            tolerance=1e-5,
            hint="At the maximum each policy has won as many games as its strengths predict.",
        )


_VERDICTS = {DIFFERS: -1.0, UNDECIDED: 0.0, AGREES: 1.0}


def picture_3(attempt: Attempt) -> go.Figure:
    sizes = [20, 40, 80, 160, 320, 640, 1280, 2560, 5120]
    spans = [clopper_pearson(round(0.92 * n), n) for n in sizes]
    words = [drawn(attempt, *span, 0.9) for span in spans]
    good = all(isinstance(word, str) and word in _VERDICTS for word in words)
    figure = chart(
        "'At least 90% safe', where 92% is the truth: your verdict as evidence grows",
        "prompts",
        "",
        {
            "the rule of the ledger": (
                sizes,
                [_VERDICTS[at_least(Estimate(0.92, *span), 0.9)] for span in spans],
            )
        },
        yours=(sizes, [_VERDICTS[word] for word in words]) if good else None,
        log_x=True,
    )
    return figure.update_yaxes(tickvals=list(_VERDICTS.values()), ticktext=list(_VERDICTS), range=[-1.2, 1.2])


def check_3(attempt: Attempt) -> None:
    for low, high, claimed in (
        (0.91, 0.95, 0.9),
        (0.5, 0.6, 0.9),
        (0.85, 0.97, 0.9),
        (0.9, 0.92, 0.9),
        (0.7, 0.9, 0.9),
    ):
        found = answer(attempt, low, high, claimed)
        expected = at_least(Estimate((low + high) / 2, low, high), claimed)
        if found != expected:
            why = {
                UNDECIDED: "the interval holds the claimed value: nothing has been shown either way",
                AGREES: "all of the interval is at or above the claim",
                DIFFERS: "all of the interval is below the claim",
            }[expected]
            raise Mistake(
                f"claimed {claimed:.0%}, interval [{low:.0%}, {high:.0%}]: you say {found!r:.40}, but {why}"
            )
