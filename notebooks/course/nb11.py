"""The exercises of notebook 11: a picture and a check for each function that the learner writes.

11.1 `bits_per_weight`: bits of a 4-bit weight with its share of the scales. 11.2 `log_total`: log-sum-exp over the
vocabulary in chunks, without the matrix of all logits. 11.3 `dequantise`: weights from packed bytes and scales.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same

SPOILERS = {
    "3": ("dequantize_nf4", "dequantize_nf4_reference", "dequantize_4bit")
}  # exercise -> what solves it already


def picture_1(attempt: Attempt) -> go.Figure:
    blocks = [16, 32, 64, 128, 256, 512, 1024]
    values = [drawn(attempt, block, 256) for block in blocks]
    return chart(
        "What a 4-bit weight takes with its share of the scales, scales in 8 bits",
        "weights per block",
        "bits per weight",
        {"the brochure": ([16, 1024], [4.0, 4.0]), "8 bits, dense": ([16, 1024], [8.0, 8.0])},
        yours=None if None in values else (blocks, values),
        log_x=True,
    )


def check_1(attempt: Attempt) -> None:
    same(answer(attempt, 64), 4.5, "blocks of 64, a 32-bit scale each")
    for block, group, expected in ((64, 256, 4.126953125), (16, 256, 4.5078125), (64, 4, 4.25)):
        same(
            answer(attempt, block, group),
            expected,
            f"blocks of {block}, 8-bit scales, one 32-bit scale for {group} blocks",
            hint="Each block pays for its own scale and for its share of the second one.",
        )


class _Rows:
    """A matrix whose rows can be sliced; `most` is the largest number of rows in one slice so far."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix, self.most = matrix, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._matrix.shape

    def __len__(self) -> int:
        return len(self._matrix)

    def __getitem__(self, place: slice) -> np.ndarray:
        rows = self._matrix[place]
        self.most = max(self.most, len(rows) if rows.ndim == 2 else 1)
        return rows

    @property
    def T(self) -> np.ndarray:
        raise Mistake("`weight.T` takes the whole vocabulary at once: slice `weight[start:start + chunk]`")


def _problem(size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states (3, 8), weight (50, 8) with logits of about `size`, and the right answer (3,)."""
    rng = np.random.default_rng(11)
    hidden, weight = rng.standard_normal((3, 8)), size * rng.standard_normal((50, 8)) / np.sqrt(8)
    return hidden, weight, np.logaddexp.reduce(hidden @ weight.T, axis=1)


def picture_2(attempt: Attempt) -> go.Figure:
    sizes = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
    above, points = [], []
    for size in sizes:
        hidden, weight, truth = _problem(size)
        top = (hidden @ weight.T).max(axis=1)
        above.append(float((truth - top).mean()))
        with np.errstate(all="ignore"):
            found = drawn(attempt, hidden, _Rows(weight), 16)
        try:
            points.append((size, float((np.asarray(found, dtype=float) - top).mean())))
        except (TypeError, ValueError):
            continue
    points = [(size, value) for size, value in points if np.isfinite(value) and abs(value) < 1e4]
    figure = chart(
        "How far the log of the total lies above the largest logit",
        "size of the logits",
        "log total − largest logit",
        {"what it should be": (sizes, above)},
        yours=tuple(zip(*points, strict=True)) if points else None,
        across=0.0,
    )
    return figure.update_xaxes(
        type="log", tickvals=[0.1, 1, 10, 100, 1000], ticktext=["0.1", "1", "10", "100", "1000"]
    )


def check_2(attempt: Attempt) -> None:
    for size, chunk in ((1.0, 50), (1.0, 7), (1.0, 16), (1000.0, 16)):
        hidden, weight, truth = _problem(size)
        rows = _Rows(weight)
        what = f"50 words in chunks of {chunk}, logits of about {size:g}"
        with np.errstate(all="ignore"):
            found = answer(attempt, hidden, rows, chunk)
        same(found, truth, what, hint="Add the chunks' totals: logaddexp(a, b) is log(e^a + e^b), safely.")
        if rows.most > chunk:
            raise Mistake(f"{what}: right, but {rows.most} rows of the weight were in use at once")


def quantised(blocks: int = 3, block: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Packed bytes, scales (blocks,), a codebook (16,), and the weights (blocks * block,) that they encode."""
    rng = np.random.default_rng(4)
    code = np.concatenate([-(np.linspace(1, 1 / 8, 8) ** 1.5), [0.0], np.linspace(1 / 7, 1, 7) ** 1.5])
    index = rng.integers(0, 16, blocks * block).astype(np.uint8)
    absmax = np.linspace(0.5, 2.0, blocks)
    return index[0::2] << 4 | index[1::2], absmax, code, code[index] * np.repeat(absmax, block)


def picture_3(attempt: Attempt) -> go.Figure:
    packed, absmax, code, truth = quantised()
    found = drawn(attempt, packed, absmax, code, 8)
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    places = list(range(len(truth)))
    return chart(
        "Twenty-four weights, as they were stored and as they come back",
        "weight number",
        "value",
        {},
        yours=(places, values) if values.shape == truth.shape else None,
        marks={"stored": (places, truth)},
        across=0.0,
    )


def check_3(attempt: Attempt) -> None:
    for blocks, block in ((3, 8), (5, 64)):
        packed, absmax, code, truth = quantised(blocks, block)
        found = answer(attempt, packed, absmax, code, block)
        values = np.asarray(found, dtype=float)
        what = f"{blocks} blocks of {block} weights"
        if values.shape == truth.shape:
            swapped = truth.reshape(-1, 2)[:, ::-1].reshape(-1)
            if not np.allclose(values, truth) and np.allclose(values, swapped):
                raise Mistake(
                    f"{what}: every weight has changed places with its neighbour, so that norms and histograms "
                    "are right and the model is not"
                )
        same(found, truth, what, hint="Which scale belongs to which weight?")
