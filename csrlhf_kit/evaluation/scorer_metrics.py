"""How good a cost or reward model is: each metric with its definition, its count and a 95% interval.

Scores are logits: a cost above 0 calls the response unsafe, and sigmoid(cost) is the probability. The positive
class is *unsafe* throughout. Strata are those of the toy world; `auroc_tricky` is over the two that words alone
cannot tell apart, benign but alarming and covertly harmful.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from csrlhf_kit.theory.intervals import Interval, clopper_pearson
from csrlhf_kit.world.requests import STRATA

TRICKY = ("benign_alarming", "covert")


# --- ranking: AUROC ----------------------------------------------------------------------------------


def auroc(scores: np.ndarray, unsafe: np.ndarray) -> float:
    """P(unsafe row's score > safe row's) + ½ P(equal), over all pairs of an unsafe and a safe row.

    scores: (rows,); unsafe: booleans, (rows,). Returns the area in [0, 1]; nan if one class is missing.
    Source: Mann & Whitney 1947; Hanley & McNeil 1982.
    """
    scores, unsafe = _checked(scores, unsafe)
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = stats.rankdata(scores)  # ties share their mean rank
    wins = ranks[unsafe].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def auroc_interval(scores: np.ndarray, unsafe: np.ndarray) -> Interval:
    """DeLong's 95% interval for the AUROC, on the logit scale so that it stays inside (0, 1).

    If the classes are separated without error, DeLong's variance is 0, which would claim certainty. The interval
    is then Clopper-Pearson's for m of m, m = min(n₊, n₋): so many disjoint pairs of an unsafe and a safe row are
    independent trials of the event whose probability is the AUROC. With one class missing it is [0, 1].

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); placements as in Sun & Xu 2014.
    """
    scores, unsafe = _checked(scores, unsafe)
    area = auroc(scores, unsafe)
    positives, negatives = scores[unsafe], scores[~unsafe]
    fewest = min(len(positives), len(negatives))
    if fewest == 0:
        return Interval(0.0, 1.0)
    if area in (0.0, 1.0) or fewest < 2:
        return clopper_pearson(round(area * fewest), fewest)
    # Placement of a row: the share of the other class that it exceeds (or, for safe rows, that exceeds it).
    everything = stats.rankdata(scores)
    above = (everything[unsafe] - stats.rankdata(positives)) / len(negatives)  # (positives,)
    below = 1 - (everything[~unsafe] - stats.rankdata(negatives)) / len(positives)  # (negatives,)
    variance = above.var(ddof=1) / len(positives) + below.var(ddof=1) / len(negatives)
    centre = np.log(area / (1 - area))
    margin = stats.norm.isf(0.025) * np.sqrt(variance) / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(centre + np.array([-margin, margin]))))
    return Interval(float(low), float(high))


# --- probability: calibration ------------------------------------------------------------------------


def expected_calibration_error(probabilities: np.ndarray, unsafe: np.ndarray, *, bins: int = 10) -> float:
    """Mean over rows of |share unsafe in the row's bin − mean probability in that bin|; bins of equal width.

    probabilities: P(unsafe), (rows,), in [0, 1]; unsafe: booleans, (rows,); bins: number of bins; bin k holds
    [k / bins, (k + 1) / bins), the last one also 1.
    Source: Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599. It is biased upwards on few rows.
    """
    probabilities, unsafe = _checked(probabilities, unsafe)
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=unsafe - probabilities, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def calibration_interval(probabilities: np.ndarray, unsafe: np.ndarray) -> Interval:
    """95% percentile bootstrap interval for the expected calibration error (500 resamples of rows)."""
    probabilities, unsafe = _checked(probabilities, unsafe)
    if len(probabilities) < 2:
        return Interval(0.0, 1.0)
    result = stats.bootstrap(
        (probabilities, unsafe), expected_calibration_error, paired=True, vectorized=False,
        n_resamples=500, method="percentile", confidence_level=0.95, rng=np.random.default_rng(0),
    )  # fmt: skip
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


# --- decisions: labels and pairs ---------------------------------------------------------------------


def classification_metrics(scores: np.ndarray, unsafe: np.ndarray) -> dict[str, Any]:
    """AUROC, accuracy, precision, recall, false-positive rate and ECE of scores (rows,) against labels (rows,).

    The decision is score > 0. precision = share of unsafe rows among those called unsafe; recall = share called
    unsafe among the unsafe; false-positive rate = share called unsafe among the safe. Each is {"value", "low",
    "high", "n"}, where n is the number of rows; value is None if n is 0. Intervals: Clopper-Pearson for shares,
    DeLong for AUROC, bootstrap for ECE.
    """
    scores, unsafe = _checked(scores, unsafe)
    called = scores > 0
    probabilities = _sigmoid(scores)
    rows = len(scores)
    result = {
        "n": rows,
        "n_unsafe": int(unsafe.sum()),
        "auroc": metric_entry(auroc(scores, unsafe), auroc_interval(scores, unsafe), rows),
        "accuracy": share_entry(called == unsafe),
        "precision": share_entry(unsafe[called]),
        "recall": share_entry(called[unsafe]),
        "false_positive_rate": share_entry(called[~unsafe]),
    }
    error = expected_calibration_error(probabilities, unsafe) if rows else float("nan")
    return result | {"ece": metric_entry(error, calibration_interval(probabilities, unsafe), rows)}


def cost_metrics(scores: np.ndarray, unsafe: np.ndarray, strata: Sequence[str] = ()) -> dict[str, Any]:
    """`classification_metrics` of all rows and, if strata are given, of each stratum.

    scores: costs in logits, (rows,). unsafe: booleans, (rows,). strata: stratum of each row; empty if the data
    have none.
    Returns the metrics of all rows; `auroc_tricky` over the rows in the two tricky strata;
    `false_positive_rate_benign_alarming`; `strata`: the metrics within each.
    """
    scores, unsafe = _checked(scores, unsafe)
    result = classification_metrics(scores, unsafe)
    names = np.asarray(strata, dtype=str)
    if len(names) and len(names) != len(scores):
        raise ValueError(f"found {len(scores)} scores and {len(names)} strata")
    present = [name for name in STRATA if name in set(names.tolist())]
    if not present:
        return result
    tricky = np.isin(names, TRICKY)
    alarming = names == "benign_alarming"
    rows = scores[tricky], unsafe[tricky]
    result["auroc_tricky"] = metric_entry(auroc(*rows), auroc_interval(*rows), int(tricky.sum()))
    result["false_positive_rate_benign_alarming"] = share_entry(scores[alarming & ~unsafe] > 0)
    result["strata"] = {
        name: classification_metrics(scores[names == name], unsafe[names == name]) for name in present
    }
    return result


def pair_metrics(
    winner_scores: np.ndarray,
    loser_scores: np.ndarray,
    winner_unsafe: np.ndarray | None = None,
    loser_unsafe: np.ndarray | None = None,
) -> dict[str, Any]:
    """Ranking accuracy and, for costs with labels, sign accuracy, from scores (pairs,) and labels (pairs,).

    ranking = share of pairs with winner score > loser score (a tie is an error). The winner is the more harmful
    response for a cost, the more helpful one for a reward. sign = share of single responses, two per pair, whose
    cost is above 0 exactly if they are unsafe; its interval treats responses as independent.

    Source: safe-rlhf's cost trainer reports both.
    """
    winners, losers = np.asarray(winner_scores, float), np.asarray(loser_scores, float)
    result = {"n": len(winners), "ranking_accuracy": share_entry(winners > losers)}
    if winner_unsafe is not None and loser_unsafe is not None:
        scores = np.concatenate([winners, losers])
        labels = np.concatenate([np.asarray(winner_unsafe, bool), np.asarray(loser_unsafe, bool)])
        result["sign_accuracy"] = share_entry((scores > 0) == labels)
    return result


# --- shapes of results -------------------------------------------------------------------------------


def share_entry(hits: np.ndarray) -> dict[str, Any]:
    """Share of true entries with its Clopper-Pearson 95% interval."""
    hits = np.asarray(hits, dtype=bool)
    value = float(hits.mean()) if hits.size else float("nan")
    return metric_entry(value, clopper_pearson(int(hits.sum()), hits.size), hits.size)


def metric_entry(value: float, interval: Interval, n: int) -> dict[str, Any]:
    """{"value", "low", "high", "n"}; an undefined value (nan) becomes None, for JSON."""
    known = None if np.isnan(value) else float(value)
    return {"value": known, "low": float(interval.low), "high": float(interval.high), "n": int(n)}


def metrics_table(columns: dict[str, dict[str, Any]]) -> str:
    """Metrics of several models as a text table: one row per metric, one column per model."""
    first = next(iter(columns.values()))
    names = [name for name, entry in first.items() if isinstance(entry, dict) and "value" in entry]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"  {title:>22}" for title in columns)]
    for name in names:
        cells = "".join(f"  {_cell(metrics.get(name)):>22}" for metrics in columns.values())
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def few_rows(columns: dict[str, dict[str, Any]]) -> str:
    """A warning to print under `metrics_table` if a class has fewer than 30 rows or pairs; else an empty string."""
    counts: dict[str, int] = {}
    for metrics in columns.values():
        if "n" in metrics:
            counts |= {"unsafe": metrics["n_unsafe"], "safe": metrics["n"] - metrics["n_unsafe"]}
        if "n_pairs" in metrics:
            counts["pairs"] = metrics["n_pairs"]
    found = ", ".join(f"{name}: {count}" for name, count in counts.items() if count < 30)
    return f"Warning: these figures rest on fewer than 30 rows of a kind ({found}).\n" if found else ""


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -scores))


def _checked(scores: np.ndarray, unsafe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, unsafe = np.asarray(scores, dtype=np.float64), np.asarray(unsafe, dtype=bool)
    if scores.ndim != 1 or scores.shape != unsafe.shape:
        raise ValueError(f"expected two arrays of one shape (rows,), found {scores.shape} and {unsafe.shape}")
    if np.isnan(scores).any():
        raise ValueError("found scores that are nan")
    return scores, unsafe
