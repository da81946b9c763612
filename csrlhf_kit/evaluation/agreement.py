"""How far judges agree beyond chance: the oracle, cost models, people or the toy world's annotators.

| measure | raters | missing labels | chance agreement from |
|---|---|---|---|
| Cohen's κ | two | no | each rater's own shares |
| Fleiss' κ | any number, interchangeable | no | the pooled shares |
| Krippendorff's α | any number | yes | the pooled shares, drawn without replacement |

Cohen's κ is scikit-learn's. Krippendorff's α counts coincidences, and Fleiss' κ differs from it only in the last
column, so both come from one count. (The best-known library for α has the GPL, which this kit's licence excludes.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.scorer_metrics import metric_entry, share_entry
from csrlhf_kit.theory.intervals import Interval, clopper_pearson
from csrlhf_kit.world.annotators import ANNOTATORS
from csrlhf_kit.world.oracle import judge


def cohen_kappa(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Cohen's κ of two raters of the same items, (p_o − p_e) / (1 − p_e); nan if both name only one class.

    Source: Cohen, Educational and Psychological Measurement 20 (1960).
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise UserError(f"agreement: found {first.shape} and {second.shape} labels, expected two equal rows")
    if len(np.unique(np.concatenate([first, second]))) == 1:
        return float("nan")
    return float(cohen_kappa_score(first, second))


def coincidences(ratings: np.ndarray) -> np.ndarray:
    """How often each two of the v values occur together within each item: (items, v, v).

    ratings: (raters, items), nan where a rater gave no label. Within an item with m labels, each ordered pair of
    labels counts 1 / (m − 1), so that the item has weight m; items with fewer than two labels have weight 0.
    Source: Krippendorff, Content Analysis (2004), chapter 11.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2:
        raise UserError(f"agreement: found ratings of shape {ratings.shape}, expected (raters, items)")
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[..., None] == values).sum(0).astype(np.float64)  # (items, v)
    labels = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    weight = np.where(labels > 1, 1.0 / np.maximum(labels - 1, 1), 0.0)
    return pairs * weight[:, None, None]


def krippendorff_alpha(ratings: np.ndarray) -> float:
    """Nominal α = 1 − D_observed / D_expected over all pairs of labels of one item; nan if all labels are equal.

    ratings: (raters, items), nan for a missing label.
    """
    meetings = coincidences(ratings).sum(0)
    totals = meetings.sum(1)
    labels = totals.sum()
    different = 1.0 - np.eye(len(totals))
    expected = (np.outer(totals, totals) * different).sum()
    if labels < 2 or expected == 0:
        return float("nan")
    return float(1.0 - (labels - 1.0) * (meetings * different).sum() / expected)


def fleiss_kappa(ratings: np.ndarray) -> float:
    """Fleiss' κ of ratings (raters, items) without missing labels; nan if all labels are equal.

    With N labels in all, κ = 1 − (1 − α) N / (N − 1): the chance agreement of κ draws two labels with
    replacement, that of α without. Source: Fleiss, Psychological Bulletin 76 (1971).
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    if np.isnan(ratings).any():
        raise UserError("Fleiss' kappa: found a missing label, expected every rater to label every item")
    return 1.0 - (1.0 - krippendorff_alpha(ratings)) * ratings.size / (ratings.size - 1)


def bootstrap(
    statistic: Callable[[np.ndarray], float], ratings: np.ndarray, *, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """A measure of agreement of ratings (raters, items) with its 95% percentile interval over resampled items.

    Without any disagreement, or with one item, all resamples are alike, which says nothing about further items. Then
    as much disagreement is allowed as Clopper and Pearson's interval for 0 of `items` does, or any.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    items = ratings.shape[1]
    generator = np.random.default_rng(seed)
    draws = [statistic(ratings[:, generator.integers(items, size=items)]) for _ in range(resamples)]
    known = [value for value in draws if not np.isnan(value)]
    interval = Interval(*np.percentile(known, [2.5, 97.5])) if known else Interval(-1.0, 1.0)
    if interval.width == 0 and (interval.low == 1 or items == 1):
        shares = np.unique(ratings[~np.isnan(ratings)], return_counts=True)[1] / (~np.isnan(ratings)).sum()
        lost = clopper_pearson(0, items).high / (1 - shares @ shares) if interval.low == 1 else 2.0
        interval = Interval(max(1 - lost, -1.0), 1.0)
    return metric_entry(statistic(ratings), interval, items)


def agreement(raters: Mapping[str, Sequence[float | bool | None]], *, resamples: int = 500) -> dict[str, Any]:
    """All measures for a table of raters, each with a bootstrap interval over items.

    raters: name -> one label per item, None if it is missing. At least two raters.
    Returns `pairs`: {"a | b": {"agreement" (share of equal labels), "cohen"}} over the items that both labelled;
    `fleiss` (None if labels are missing); `krippendorff`; `items`. Raises UserError if there are fewer than two raters, no
    item, or unequal numbers of labels.
    """
    if len(raters) < 2 or len({len(labels) for labels in raters.values()}) != 1:
        raise UserError("agreement: expected at least two raters with one label, or none, for each item")
    table = np.array([[np.nan if x is None else float(x) for x in labels] for labels in raters.values()])
    if not table.shape[1]:
        raise UserError("agreement: found no item, expected at least one")
    pairs = {}
    for (a, name), (b, other) in combinations(enumerate(raters), 2):
        both = table[[a, b]]
        both = both[:, ~np.isnan(both).any(0)]
        if both.shape[1]:
            kappa = bootstrap(lambda rows: cohen_kappa(rows[0], rows[1]), both, resamples=resamples)
            pairs[f"{name} | {other}"] = {"agreement": share_entry(both[0] == both[1]), "cohen": kappa}
    complete = not np.isnan(table).any()
    return {
        "items": table.shape[1],
        "pairs": pairs,
        "fleiss": bootstrap(fleiss_kappa, table, resamples=resamples) if complete else None,
        "krippendorff": bootstrap(krippendorff_alpha, table, resamples=resamples),
    }


def toy_raters(
    prompts: Sequence[str], responses: Sequence[str], costs: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, list[bool]]:
    """Whether the oracle, each cost model and each of the toy world's three annotators calls the answers unsafe.

    costs: cost model -> logits (answers,); above 0 is unsafe. Each annotator errs with their own probabilities,
    independently of the others.
    """
    unsafe = [not judge(p, r).safe for p, r in zip(prompts, responses, strict=True)]
    raters = {"oracle": unsafe} | {name: (np.asarray(logits) > 0).tolist() for name, logits in costs.items()}
    for index, (slip, _) in enumerate(ANNOTATORS):
        rng = Random(f"{seed}/{index}")
        raters[f"annotator {index + 1}"] = [verdict != (rng.random() < slip) for verdict in unsafe]
    return raters
