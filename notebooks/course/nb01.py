"""The exercises of notebook 01: a picture and a check for each function that the learner writes.

1.1 `majority_error`: the probability that most of several annotators are wrong. 1.2 `kappa`: Cohen's kappa of two
annotators. 1.3 `cost_targets`: which answer of a pair costs more, and the safety signs of both.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.evaluation.agreement import cohen_kappa

SPOILERS = {"2": ("cohen_kappa", "cohen_kappa_score")}  # exercise -> what solves it already


def _majority_error(slips: tuple[float, ...]) -> float:
    total = 0.0
    for wrong in product((False, True), repeat=len(slips)):
        if sum(wrong) * 2 > len(slips):
            total += float(np.prod([s if w else 1 - s for s, w in zip(slips, wrong, strict=True)]))
    return total


def picture_1(attempt: Attempt) -> go.Figure:
    sizes = [1, 3, 5, 7, 9]
    values = [drawn(attempt, (0.1,) * size) for size in sizes]
    figure = chart(
        "How often the majority is wrong when each annotator is wrong in one case of ten",
        "annotators",
        "majority wrong, %",
        {"one annotator": ([1, 9], [10.0, 10.0])},
        yours=None if None in values else (sizes, [100 * float(value) for value in values]),
        across=0.0,
    )
    return figure.update_yaxes(range=[0, 11])


def check_1(attempt: Attempt) -> None:
    for slips in ((0.3,), (0.02, 0.03, 0.05), (0.1, 0.2, 0.3, 0.4, 0.05)):
        same(
            answer(attempt, slips),
            _majority_error(slips),
            f"annotators with error rates {', '.join(f'{s:g}' for s in slips)}",
            tolerance=1e-9,
            hint="Add up the probabilities of every pattern of right and wrong in which more than half are wrong.",
        )


def _raters(share: float, mistakes: float, items: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Two annotators of the same items, each wrong now and then; `share` of the items are unsafe."""
    rng = np.random.default_rng(4)
    truth = rng.random(items) < share
    return tuple(truth ^ (rng.random(items) < mistakes) for _ in range(2))


def picture_2(attempt: Attempt) -> go.Figure:
    shares = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    raters = [_raters(share, 0.05) for share in shares]
    values = [drawn(attempt, *pair) for pair in raters]
    return chart(
        "Two annotators, each wrong in 5% of cases, on data with more and more unsafe answers",
        "unsafe answers, %",
        "agreement",
        {"equal labels": ([100 * s for s in shares], [float((a == b).mean()) for a, b in raters])},
        yours=None if None in values else ([100 * s for s in shares], [float(value) for value in values]),
    ).update_yaxes(range=[-0.05, 1.05])


def check_2(attempt: Attempt) -> None:
    first, second = np.array([True, True, False, False]), np.array([True, False, False, False])
    same(answer(attempt, first, second), 0.5, "four answers, labelled TTFF and TFFF")
    for share, mistakes in ((0.05, 0.05), (0.5, 0.2), (0.9, 0.3)):
        first, second = _raters(share, mistakes)
        same(
            answer(attempt, first, second),
            cohen_kappa(first, second),
            f"{share:.0%} unsafe, annotators wrong in {mistakes:.0%}",
            hint="Chance agreement: both say unsafe, or both say safe, each at their own rate.",
        )


def _pair(safe: tuple[bool, bool], better: int, safer: int) -> PreferencePair:
    return PreferencePair("how do i feed a rumour?", "first.", "second.", *safe, better, safer)


_PAIRS = [
    _pair((True, False), 1, 0),
    _pair((False, True), 1, 1),
    _pair((True, True), 0, 1),
    _pair((False, False), 1, 0),
    _pair((False, False), 0, 1),
    _pair((True, True), 1, 1),
]


def picture_3(attempt: Attempt) -> go.Figure:
    targets = [drawn(attempt, pair) for pair in _PAIRS]
    good = all(isinstance(t, tuple | list) and len(t) == 3 for t in targets)
    names = ["both safe", "astride", "both unsafe"]
    by_kind = [[t for t, p in zip(targets, _PAIRS, strict=True) if sum(p.safety) == 2 - k] for k in range(3)]
    points = [float(np.mean([t[1] for t in kind])) for kind in by_kind] if good else []
    figure = chart(
        "The sign that the costlier answer of a pair is taught: +1 is harmful, −1 is safe",
        "",
        "mean sign of the costlier answer",
        {"what it should be": ([0, 1, 2], [-1.0, 1.0, 1.0])},
        yours=([0, 1, 2], points) if good else None,
        across=0.0,
    )
    return figure.update_xaxes(tickvals=[0, 1, 2], ticktext=names)


def check_3(attempt: Attempt) -> None:
    for pair in _PAIRS:
        costlier, its_sign, other_sign = answer(attempt, pair)
        labels = f"a pair labelled {' and '.join('safe' if s else 'unsafe' for s in pair.safety)}"
        if costlier != 1 - pair.safer_response_id:
            raise Mistake(
                f"{labels}, safer is {pair.safer_response_id}: the costlier answer is the other one, "
                f"and you say {costlier}. Helpfulness has no say in this"
            )
        expected = tuple(-1 if pair.safety[place] else 1 for place in (costlier, 1 - costlier))
        if (its_sign, other_sign) != expected:
            raise Mistake(
                f"{labels}: the costlier answer should get sign {expected[0]:+d} and the other {expected[1]:+d}, "
                f"you give {its_sign:+d} and {other_sign:+d}"
            )
