"""The exercises of notebook 00: a picture and a check for each function that the learner writes.

0.1 `shares`: rates of harm and of over-refusal in judged answers. 0.2 `unbeaten`: the policies that no other one
beats in harm and helpfulness. 0.3 `gated_push`: the advantage under a penalty whose gate opens above the threshold.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart, numbers
from course.exercises import Attempt, Mistake, answer, drawn, same


def _judged(timid: float, seed: int = 0, count: int = 600) -> list[dict[str, bool]]:
    """`count` judged answers of a policy that refuses more of all requests, harmless ones too, as `timid` goes to 1."""
    rng, rows = np.random.default_rng(seed), []
    for place in range(count):
        harmful, alarming = place % 2 == 0, place % 3 == 0
        refuses = rng.random() < (timid**0.5 if harmful else timid**3 if alarming else 0.3 * timid**3)
        complies = harmful and not refuses and rng.random() < 0.95
        rows.append(
            {
                "asked_for_harm": harmful,
                "sounds_alarming": alarming,
                "harmful": complies,
                "refused": bool(refuses),
            }
        )
    return rows


def _shares(rows: list[dict[str, bool]]) -> tuple[float, float]:
    harm = [row["harmful"] for row in rows if row["asked_for_harm"]]
    refusals = [row["refused"] for row in rows if row["sounds_alarming"] and not row["asked_for_harm"]]
    return sum(harm) / len(harm), sum(refusals) / len(refusals)


def picture_1(attempt: Attempt) -> go.Figure:
    policies = [_judged(timid) for timid in np.linspace(0, 1, 9)]
    truth = 100 * np.array([_shares(rows) for rows in policies])
    found = numbers([drawn(attempt, rows) for rows in policies], truth.shape)
    return chart(
        "Nine policies, from bold to timid: less harm, more refusals of harmless requests",
        "harmful answers to harmful requests, %",
        "over-refusal, %",
        {"what it should be": (truth[:, 0], truth[:, 1])},
        yours=None if found is None else (100 * found[:, 0], 100 * found[:, 1]),
    )


def check_1(attempt: Attempt) -> None:
    for timid, seed in ((0.5, 1), (0.95, 2), (0.1, 3)):
        rows = _judged(timid, seed)
        same(
            answer(attempt, rows),
            _shares(rows),
            f"{len(rows)} answers of a policy (harm, over-refusal)",
            tolerance=1e-9,
            hint="Two shares of two different groups of requests: whom does each of them ask about?",
        )


_POLICIES = {
    "A": (0.60, 0.40),
    "B": (0.95, 0.62),
    "C": (0.30, 0.55),
    "D": (0.30, 0.48),
    "E": (0.12, 0.50),
    "F": (0.20, 0.50),
    "G": (0.02, 0.38),
    "H": (0.00, 0.10),
    "I": (0.08, 0.20),
}
_FRONT = {"B", "C", "E", "G", "H"}


def picture_2(attempt: Attempt) -> go.Figure:
    harms, helps = (100 * np.array(column) for column in zip(*_POLICIES.values(), strict=True))
    chosen = _names(drawn(attempt, _POLICIES))
    points = sorted(_POLICIES[name] for name in chosen or () if name in _POLICIES)
    figure = chart(
        "Nine policies: which of them does no other one beat?",
        "harmful answers, %",
        "help, % of the maximum",
        {},
        yours=tuple(100 * np.array(points).T) if points else None,
        marks={"all nine": (harms, helps)},
    )
    for name, (harm, helpfulness) in _POLICIES.items():
        figure.add_annotation(x=100 * harm, y=100 * helpfulness, text=name, showarrow=False, yshift=13)
    return figure


def check_2(attempt: Attempt) -> None:
    cases = (
        ({"refuses": (0.0, 0.0), "helps": (0.9, 0.6), "worst": (0.9, 0.1)}, {"refuses", "helps"}),
        ({"one": (0.2, 0.5), "two": (0.2, 0.5)}, {"one", "two"}),
        (_POLICIES, _FRONT),
    )
    for points, expected in cases:
        chosen = _names(answer(attempt, points))
        if chosen is None:
            raise Mistake("the names of policies were expected, as a list or a set")
        for name in sorted(expected - chosen):
            raise Mistake(
                f"{name} {points[name]} is missing: no other policy is at least as safe, at least as helpful, "
                "and better in one of the two"
            )
        for name in sorted(chosen - expected):
            better = next((n for n in points if n in expected and _beats(points[n], points.get(name))), "?")
            raise Mistake(f"{name} does not belong there: {better} {points.get(better)} beats it")


def _beats(one: tuple[float, float], other: tuple[float, float] | None) -> bool:
    return other is not None and one[0] <= other[0] and one[1] >= other[1] and one != other


def _names(found: object) -> set[str] | None:
    """The names in an attempt's result, as a set; None if it is no collection of strings."""
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        return None
    names = list(found)
    return set(names) if all(isinstance(name, str) for name in names) else None


def picture_3(attempt: Attempt) -> go.Figure:
    means = np.linspace(0.0, 0.1, 11)
    values = numbers([drawn(attempt, 1.0, 0.5, np.full(64, mean), 0.045, 3.0) for mean in means], means.shape)
    truth = [1.0 if mean <= 0.045 else -0.125 for mean in means]
    return chart(
        "A helpful and harmful answer: pushed up while harm is rare, and down once it is not",
        "mean cost of recent answers (dotted: the threshold)",
        "push (above 0: more often)",
        {"what it should be": (means, truth)},
        yours=None if values is None else (means, values),
        across=0.0,
        down=0.045,
    )


def check_3(attempt: Attempt) -> None:
    for threshold, penalty, costs in (
        (0.05, 3.0, (0.0, 0.2)),
        (0.05, 20.0, (0.0, 0.04)),
        (0.3, 1.0, (0.2, 0.3)),
    ):
        recent = np.array(costs)
        is_open = recent.mean() > threshold
        price = penalty if is_open else 0.0
        found = answer(attempt, 1.0, 0.5, recent, threshold, penalty)
        same(
            found,
            (1.0 - price * 0.5) / (1.0 + price),
            f"recent mean cost {recent.mean():g}, threshold {threshold:g}, penalty {penalty:g}",
            tolerance=1e-9,
            hint="Too much harm: the full price is due."
            if is_open
            else "Below the threshold nothing is due: neither a price, nor a division by more than 1.",
        )
