"""The exercises of notebook 12: a picture and a check for each function that the learner writes.

12.1 `mean_state`: a model's states, averaged over the tokens of the answer. 12.2 `alpha`: Krippendorff's α of raters
who say yes or no. 12.3 `split_jailbreaks`: jailbreaks for training and for the test, by family.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import plotly.graph_objects as go

from course.chart import chart, numbers
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.evaluation.agreement import krippendorff_alpha

SPOILERS = {"2": ("krippendorff_alpha", "coincidences", "agreement")}  # exercise -> what solves it already


def _padded(padding: int) -> tuple[np.ndarray, np.ndarray]:
    """States (1, length, 2) of 4 tokens of a request, 6 of an answer and some padding, and the answer's mask."""
    length = 10 + padding
    places = np.arange(length, dtype=float)
    states = np.stack([places, np.where(places < 10, 1.0, 0.0)], axis=1)[None]
    return states, ((places >= 4) & (places < 10))[None]


def picture_1(attempt: Attempt) -> go.Figure:
    paddings = list(range(0, 21, 2))
    found = [numbers(drawn(attempt, *_padded(padding)), (1, 2)) for padding in paddings]
    missing = any(value is None for value in found)
    return chart(
        "A mean over the answer does not depend on what stands beside it",
        "tokens of padding after the answer",
        "first number of the mean state",
        {"mean of the answer's six tokens": ([0, 20], [6.5, 6.5])},
        yours=None if missing else (paddings, [float(value[0, 0]) for value in found if value is not None]),
    )


def check_1(attempt: Attempt) -> None:
    states, mask = _padded(0)
    same(answer(attempt, states, mask), [[6.5, 1.0]], "tokens 0 to 9, the answer from 4 to 9")
    states, mask = _padded(6)
    same(
        answer(attempt, states, mask),
        [[6.5, 1.0]],
        "the same with six tokens of padding",
        hint="Divide by the number of the answer's tokens, not by the length.",
    )
    rng = np.random.default_rng(12)
    states = rng.normal(size=(5, 12, 3))
    mask = np.arange(12) < rng.integers(1, 13, size=(5, 1))
    expected = np.stack([own[inside].mean(0) for own, inside in zip(states, mask, strict=True)])
    same(answer(attempt, states, mask), expected, "five answers of different lengths")


def _rated(wrong: float, seed: int, items: int = 3000, unsafe: float = 0.5) -> np.ndarray:
    """Labels (3, items) of three raters, each of whom gets a share `wrong` of the answers wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.random(items) < unsafe
    return ((rng.random((3, items)) < wrong) ^ truth).astype(float)


def picture_2(attempt: Attempt) -> go.Figure:
    shares = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    rated = [_rated(share, 12, unsafe=0.05) for share in shares]
    equal = [float(np.mean([r[a] == r[b] for a, b in ((0, 1), (0, 2), (1, 2))])) for r in rated]
    found = [drawn(attempt, ratings) for ratings in rated]
    return chart(
        "Three raters, one answer in twenty unsafe: most of their labels are equal long after α is low",
        "labels that each of them gets wrong, %",
        "share of equal labels, or α",
        {"share of equal labels": ([100 * share for share in shares], equal)},
        yours=None
        if None in found
        else ([100 * share for share in shares], [float(np.ravel(value)[0]) for value in found]),
    )


def check_2(attempt: Attempt) -> None:
    two = np.array([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=float)
    same(
        answer(attempt, two),
        1 - 2 / 8 / (2 * 3 * 5 / (8 * 7)),
        "four answers, two raters who differ in one",
        hint="Differing pairs within an answer, over differing pairs of any two labels, drawn without putting back.",
    )
    same(answer(attempt, np.repeat([[0.0, 1.0, 1.0]], 3, axis=0)), 1.0, "three raters who agree in all")
    for seed, wrong in ((1, 0.1), (2, 0.35)):
        ratings = _rated(wrong, seed, items=40, unsafe=0.3)
        same(answer(attempt, ratings), krippendorff_alpha(ratings), f"three raters, {wrong:.0%} wrong labels")


_SIZES = {"role play": 14, "alter ego": 9, "translation": 6, "story": 4, "payload": 3, "politeness": 2}


def _jailbreaks(more: int = 0) -> list[tuple[str, str]]:
    """(family, text) of all families, with `more` in each than `_SIZES` says."""
    return [
        (family, f"{family} {number}") for family, size in _SIZES.items() for number in range(size + more)
    ]


def _sides(found: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]] | None:
    """(training, test) as lists of (family, text); None for anything else."""
    try:
        training, test = ([(str(family), str(text)) for family, text in side] for side in found)
    except (TypeError, ValueError):
        return None
    return training, test


def picture_3(attempt: Attempt) -> go.Figure:
    sides = _sides(drawn(attempt, _jailbreaks(), Random(1)))
    places = list(range(len(_SIZES)))
    held = Counter(family for family, _ in sides[1]) if sides else Counter()
    figure = chart(
        "How much of each family of jailbreaks is kept for the test",
        "",
        "jailbreaks in the test, %",
        {"all of it": ([-0.3, 5.3], [100.0, 100.0]), "nothing of it": ([-0.3, 5.3], [0.0, 0.0])},
        yours=None if sides is None else (places, [100 * held[f] / size for f, size in _SIZES.items()]),
    )
    figure.update_xaxes(tickvals=places, ticktext=list(_SIZES))
    return figure.update_yaxes(range=[-5, 108])


def check_3(attempt: Attempt) -> None:
    for seed in (2, 3, 4):
        jailbreaks = _jailbreaks(more=seed)
        _check_split(_sides(answer(attempt, jailbreaks, Random(seed))), jailbreaks)


def _check_split(
    sides: tuple[list[tuple[str, str]], list[tuple[str, str]]] | None, jailbreaks: list[tuple[str, str]]
) -> None:
    if sides is None:
        raise Mistake("two lists of (family, text) were expected: for training, for the test")
    training, test = sides
    if Counter(training) + Counter(test) != Counter(jailbreaks):
        raise Mistake("every jailbreak should be on exactly one side")
    families = [{family for family, _ in side} for side in sides]
    if both := sorted(families[0] & families[1]):
        raise Mistake(
            f"{both[0]} is on both sides. A policy that has met its siblings in training has as good as met it: "
            "what the test then measures is memory"
        )
    if min(map(len, families)) < 2:
        raise Mistake("one side has fewer than two families: nothing could be said about families from it")
