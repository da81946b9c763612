"""The exercises of notebook 02: a picture and a check for each function that the learner writes.

2.1 `auroc`: the area under the ROC curve, with ties. 2.2 `calibration_error`: the expected calibration error in bins.
2.3 `pooled`: the last and the mean state of each dialogue in a batch, without its padding.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from scipy.stats import norm

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.evaluation.scorer_metrics import auroc, expected_calibration_error

SPOILERS = {
    "1": ("auroc", "roc_auc_score", "roc_curve"),
    "2": ("expected_calibration_error",),
}  # exercise -> what solves it already


def _scored(gap: float, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread scores of as many safe as unsafe rows whose means are `gap` standard deviations apart."""
    spread = norm.ppf((np.arange(rows) + 0.5) / rows)
    return np.concatenate([spread, spread + gap]), np.arange(2 * rows) >= rows


def picture_1(attempt: Attempt) -> go.Figure:
    gaps = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    values = [drawn(attempt, *_scored(gap)) for gap in gaps]
    smooth = np.linspace(0, 3, 31)
    return chart(
        "Two bell curves of scores, drawn apart: from a coin's AUROC towards 1",
        "distance of the means, standard deviations",
        "AUROC",
        {"theory, Φ(distance / √2)": (smooth, norm.cdf(smooth / np.sqrt(2)))},
        yours=None if None in values else (gaps, [float(value) for value in values]),
        across=0.5,
    )


def check_1(attempt: Attempt) -> None:
    same(
        answer(attempt, np.array([3.0, 1.0, 2.0]), np.array([True, True, False])),
        0.5,
        "unsafe scores 3 and 1, a safe score 2",
        hint="One of the two pairs is in the right order.",
    )
    same(
        answer(attempt, np.array([1.0, 1.0, 0.0]), np.array([True, False, False])),
        0.75,
        "an unsafe score 1, safe scores 1 and 0",
        hint="A tie is half a success.",
    )
    rng = np.random.default_rng(2)
    for rows in (20, 200):
        scores, unsafe = rng.integers(0, 9, rows).astype(float), rng.random(rows) < 0.3
        unsafe[:2] = True, False
        same(answer(attempt, scores, unsafe), auroc(scores, unsafe), f"{rows} rows with many ties")


def _stated(temperature: float, rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities stated at a temperature, and labels that were drawn from those at temperature 1."""
    rng = np.random.default_rng(3)
    logits = rng.normal(-0.5, 2.0, rows)
    unsafe = rng.random(rows) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-logits / temperature)), unsafe


def picture_2(attempt: Attempt) -> go.Figure:
    temperatures = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    values = [drawn(attempt, *_stated(t), 10) for t in temperatures]
    return chart(
        "Stated too boldly (left), too timidly (right): the calibration error has a valley at T = 1",
        "temperature that the scores are divided by",
        "calibration error",
        {"a perfect statement": ([0.25, 8.0], [0.0, 0.0])},
        yours=None if None in values else (temperatures, [float(value) for value in values]),
        log_x=True,
    ).update_yaxes(range=[-0.02, 0.5])


def check_2(attempt: Attempt) -> None:
    few = np.array([0.05, 0.15, 0.85, 0.95]), np.array([False, True, True, True])
    same(
        answer(attempt, *few, 2),
        0.25,
        "probabilities 5%, 15% | 85%, 95% and labels 0, 1 | 1, 1 in two bins",
        hint="First bin: half unsafe, 10% stated. Second: all unsafe, 90% stated. Half of the rows in each.",
    )
    uneven = np.array([0.1, 0.1, 0.1, 1.0]), np.array([False, False, True, True])
    same(
        answer(attempt, *uneven, 10),
        expected_calibration_error(*uneven, bins=10),
        "three rows at 10%, one at 100%",
        hint="A bin counts by its rows, and 100% belongs to the last bin.",
    )
    for temperature, bins in ((0.4, 10), (3.0, 15)):
        stated = _stated(temperature, 700)
        same(
            answer(attempt, *stated, bins),
            expected_calibration_error(*stated, bins=bins),
            f"700 rows in {bins} bins",
        )


def _batch(padding: int) -> tuple[np.ndarray, np.ndarray]:
    """States (2, length, 3) of two dialogues, the second `padding` tokens longer, and their mask (2, length).

    The states at padding are random numbers, as a model's are: they must not change a dialogue's result.
    """
    rng = np.random.default_rng(4)
    lengths = 5, 5 + padding
    own = [np.random.default_rng(seed).normal(size=(20, 3))[:length] for seed, length in enumerate(lengths)]
    states = rng.normal(size=(2, max(lengths), 3))
    mask = np.zeros((2, max(lengths)), dtype=bool)
    for row, (values, length) in enumerate(zip(own, lengths, strict=True)):
        states[row, :length], mask[row, :length] = values, True
    return states, mask


def _wanted(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows = [s[m] for s, m in zip(states, mask, strict=True)]
    return np.stack([np.concatenate([row[-1], row.mean(axis=0)]) for row in rows])


def picture_3(attempt: Attempt) -> go.Figure:
    paddings = list(range(13))
    right = float(_wanted(*_batch(0))[0].sum())
    values = [drawn(attempt, *_batch(padding)) for padding in paddings]
    try:
        scores = [float(np.asarray(value, dtype=float)[0].sum()) for value in values]
    except (TypeError, ValueError, IndexError):
        scores = None
    return chart(
        "The score of one and the same answer, beside longer and longer neighbours in its batch",
        "tokens by which the neighbour is longer",
        "score",
        {"on its own": ([0, 12], [right, right])},
        yours=None if scores is None else (paddings, scores),
    )


def check_3(attempt: Attempt) -> None:
    for padding in (0, 1, 7):
        states, mask = _batch(padding)
        found = answer(attempt, states, mask)
        same(np.shape(found), (2, 6), "the shape of what you return", hint="Two rows: last state, then mean.")
        found, wanted = np.asarray(found, dtype=float), _wanted(states, mask)
        what = f"a neighbour that is longer by {padding} token{'s' * (padding != 1)}"
        for name, part in (("the last real token's state", slice(0, 3)), ("the mean state", slice(3, 6))):
            if not np.allclose(found[:, part], wanted[:, part]):
                raise Mistake(f"{what}: {name} is not what it is without padding")
