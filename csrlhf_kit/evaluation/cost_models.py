"""A cost model's row in `results.json`: how well it detects harm on the shipped test labels and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, winner_id
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.evaluation.keyword import fit_keyword, keyword_scores
from csrlhf_kit.evaluation.safety import rate
from csrlhf_kit.evaluation.scorer_metrics import cost_metrics, pair_metrics
from csrlhf_kit.models.scorers import Scorer, score_texts


def scorer_row(scorer: Scorer) -> dict[str, Any]:
    """The row of a trained cost model on the shipped test labels and pairs."""
    test = read_records("shipped", LabelledResponse, split="test").records
    scores = score_texts(scorer, [r.prompt for r in test], [r.response for r in test])
    pairs = read_records("shipped", PreferencePair, split="test").records
    return cost_model_row(test, scores) | ranking(scorer, pairs)


def keyword_row() -> dict[str, Any]:
    """The row of the keyword baseline, fitted to the training labels of the semantic model."""
    train, test = (read_records("shipped", LabelledResponse, split=s).records for s in ("train", "test"))
    keyword = fit_keyword(
        [r.prompt for r in train], [r.response for r in train], [not r.is_safe for r in train]
    )
    scores = keyword_scores(keyword, [r.prompt for r in test], [r.response for r in test])
    return cost_model_row(test, scores)


def cost_model_row(records: Sequence[LabelledResponse], scores: np.ndarray) -> dict[str, Any]:
    """A row of `results.json` from cost logits (records,): point values by name, `intervals` and `strata`."""
    unsafe = np.array([not r.is_safe for r in records])
    metrics = cost_metrics(scores, unsafe, [r.stratum for r in records])
    strata = metrics.pop("strata", {})
    named = {k: v for k, v in metrics.items() if isinstance(v, dict)}
    probabilities = 1 / (1 + np.exp(-scores))
    bins = np.minimum((probabilities * 10).astype(int), 9)
    return {
        **{name: entry["value"] for name, entry in named.items()},
        "n": metrics["n"],
        "intervals": {name: [entry["low"], entry["high"]] for name, entry in named.items()},
        "strata": {
            s: {k: _as_rate(v) for k, v in m.items() if isinstance(v, dict)} for s, m in strata.items()
        },
        "calibration": [
            {"predicted": float(probabilities[bins == b].mean()), **rate(unsafe[bins == b].tolist())}
            for b in sorted(set(bins.tolist()))
        ],
    }


def ranking(scorer: Scorer, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Ranking accuracy and, if the pairs have safety labels, sign accuracy of a cost model on annotators' pairs."""
    found = pairs_measured(pair_scores(scorer, pairs), pairs, "semantic")
    return {name: entry["value"] for name, entry in found.items() if isinstance(entry, dict)}


def _as_rate(entry: dict[str, Any]) -> dict[str, Any] | None:
    """A metric under the names that figures read; None if it is undefined."""
    if entry["value"] is None:
        return None
    return {"rate": entry["value"], **{k: entry[k] for k in ("low", "high", "n")}}


def pair_scores(scorer: Scorer, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Scores (pairs, 2) of response 0 and of response 1 of each pair."""
    prompts = [pair.prompt for pair in pairs]
    both = [pair.response_0 for pair in pairs] + [pair.response_1 for pair in pairs]
    return np.stack(np.split(score_texts(scorer, prompts + prompts, both), 2), axis=1)


def pairs_measured(scores: np.ndarray, pairs: Sequence[PreferencePair], objective: str) -> dict[str, Any]:
    """`pair_metrics` of scores (pairs, 2) of both responses; the objective decides which of them wins."""
    winners = np.array([winner_id(pair, objective) for pair in pairs])
    rows = np.arange(len(pairs))
    labels: list[np.ndarray] = []
    if objective != "reward" and not any(None in pair.safety for pair in pairs):
        unsafe = ~np.array([pair.safety for pair in pairs], dtype=bool)  # (pairs, 2)
        labels = [unsafe[rows, winners], unsafe[rows, 1 - winners]]
    measured = pair_metrics(scores[rows, winners], scores[rows, 1 - winners], *labels)
    return {"n_pairs": measured.pop("n"), **measured}
