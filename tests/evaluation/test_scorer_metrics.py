"""Definitions of the metrics against scikit-learn, brute force and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.keyword import fit_keyword, keyword_scores
from csrlhf_kit.evaluation.scorer_metrics import (
    auroc,
    auroc_interval,
    calibration_interval,
    classification_metrics,
    cost_metrics,
    expected_calibration_error,
    few_rows,
    metrics_table,
    pair_metrics,
    share_entry,
)

# Few distinct values, so that ties are common.
rows = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40)


@settings(max_examples=60)
@given(rows)
def test_auroc_is_the_share_of_pairs_won(data: list) -> None:
    scores, unsafe = np.array([s for s, _ in data]), np.array([u for _, u in data])
    if unsafe.all() or not unsafe.any():
        assert np.isnan(auroc(scores, unsafe))
        return
    won = [(p > n) + 0.5 * (p == n) for p in scores[unsafe] for n in scores[~unsafe]]
    assert auroc(scores, unsafe) == pytest.approx(np.mean(won))
    assert auroc(scores, unsafe) == pytest.approx(sk.roc_auc_score(unsafe, scores))
    low, high = auroc_interval(scores, unsafe)
    assert 0 <= low <= auroc(scores, unsafe) <= high <= 1


def test_delong_variance_against_its_definition() -> None:
    """The interval's half width on the logit scale against placements computed pair by pair."""
    rng = np.random.default_rng(0)
    unsafe = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=80) + unsafe, 1)
    wins = (scores[unsafe][:, None] > scores[~unsafe]) + 0.5 * (scores[unsafe][:, None] == scores[~unsafe])
    area = wins.mean()
    deviation = np.sqrt(wins.mean(1).var(ddof=1) / unsafe.sum() + wins.mean(0).var(ddof=1) / (~unsafe).sum())
    low, high = auroc_interval(scores, unsafe)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert logit(high) - logit(low) == pytest.approx(2 * 1.959964 * deviation / (area * (1 - area)), rel=1e-5)


def test_auroc_interval_covers_the_true_area() -> None:
    """Normal scores one unit apart: the area is Φ(1/√2). 400 draws; 95% nominal, at least 91% here."""
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    unsafe = np.arange(120) < 50
    covered = 0
    for _ in range(400):
        low, high = auroc_interval(rng.normal(size=120) + unsafe, unsafe)
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_perfect_separation_is_not_certainty() -> None:
    unsafe = np.arange(30) < 10
    low, high = auroc_interval(unsafe.astype(float), unsafe)
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 10))
    low, high = auroc_interval(-unsafe.astype(float), unsafe)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_decisions_against_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    unsafe = rng.random(200) < 0.5
    scores = rng.normal(size=200) + unsafe
    found = classification_metrics(scores, unsafe)
    called = scores > 0
    assert found["precision"]["value"] == pytest.approx(sk.precision_score(unsafe, called))
    assert found["recall"]["value"] == pytest.approx(sk.recall_score(unsafe, called))
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(unsafe, called))
    negatives, false_positives, _, _ = sk.confusion_matrix(unsafe, called).ravel()
    assert found["false_positive_rate"]["value"] == pytest.approx(
        false_positives / (negatives + false_positives)
    )
    # Clopper-Pearson from the binomial's own tails, not from the beta quantiles.
    entry = found["recall"]
    hits = round(entry["value"] * entry["n"])
    assert stats.binom.sf(hits - 1, entry["n"], entry["low"]) == pytest.approx(0.025)
    assert stats.binom.cdf(hits, entry["n"], entry["high"]) == pytest.approx(0.025)


def test_calibration_error_by_hand_and_bin_by_bin() -> None:
    # Bin [0, .5): mean probability .2, share unsafe .5; bin [.5, 1]: .9 and 1.
    assert expected_calibration_error([0.1, 0.3, 0.8, 1.0], [0, 1, 1, 1], bins=2) == pytest.approx(
        0.5 * 0.3 + 0.5 * 0.1
    )
    rng = np.random.default_rng(3)
    probabilities = rng.random(500)
    unsafe = rng.random(500) < probabilities**2
    total = 0.0
    for k in range(10):
        inside = (probabilities >= k / 10) & (probabilities < (k + 1) / 10)
        total += inside.mean() * abs(unsafe[inside].mean() - probabilities[inside].mean())
    value = expected_calibration_error(probabilities, unsafe)
    assert value == pytest.approx(total)
    low, high = calibration_interval(probabilities, unsafe)
    assert low < value < high
    assert (low, high) == calibration_interval(probabilities, unsafe)  # same seed, same interval


def test_strata_are_cut_as_named() -> None:
    rng = np.random.default_rng(4)
    strata = np.array(["plain", "benign_alarming", "overt", "covert"] * 25)
    unsafe = np.isin(strata, ["overt", "covert"]) & (rng.random(100) < 0.8)
    scores = rng.normal(size=100) + 2 * unsafe
    found = cost_metrics(scores, unsafe, strata)
    tricky = (strata == "benign_alarming") | (strata == "covert")
    assert found["auroc_tricky"]["value"] == pytest.approx(sk.roc_auc_score(unsafe[tricky], scores[tricky]))
    assert found["auroc_tricky"]["n"] == 50
    alarming = found["false_positive_rate_benign_alarming"]
    assert alarming["value"] == pytest.approx((scores[strata == "benign_alarming"] > 0).mean())
    assert alarming["n"] == 25
    assert found["strata"]["plain"]["auroc"]["value"] is None  # one class only
    assert list(found["strata"]) == ["plain", "benign_alarming", "overt", "covert"]
    json.dumps(found, allow_nan=False)
    assert "auroc_tricky" in metrics_table({"semantic": found, "keyword": found})
    assert "auroc_tricky" not in cost_metrics(scores, unsafe)
    assert "strata" not in cost_metrics(scores, unsafe, [""] * 100)


def test_pairs_count_ties_as_errors() -> None:
    found = pair_metrics([2.0, 1.0, 0.0], [1.0, 1.0, -1.0], [True, True, True], [True, False, False])
    assert found["ranking_accuracy"]["value"] == pytest.approx(2 / 3)
    # right: 2 > 0 unsafe, 1 > 0 unsafe, 1 > 0 unsafe, -1 safe; wrong: 0 for unsafe, 1 for safe
    assert found["sign_accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["sign_accuracy"]["n"] == 6
    assert "sign_accuracy" not in pair_metrics([1.0], [0.0])


def test_nothing_to_count_is_none_not_nan() -> None:
    assert share_entry(np.array([], dtype=bool)) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    json.dumps(classification_metrics(np.array([]), np.array([])), allow_nan=False)
    with pytest.raises(ValueError, match="shape"):
        auroc([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="nan"):
        auroc([1.0, float("nan")], [True, False])


def test_figures_on_few_rows_carry_a_warning() -> None:
    def of(unsafe: int, safe: int) -> dict:
        return cost_metrics(np.linspace(-1, 1, unsafe + safe), np.arange(unsafe + safe) < unsafe)

    assert few_rows({"a": of(30, 30)}) == ""
    told = few_rows({"a": of(29, 100), "b": of(29, 100)})
    assert told == "Warning: these figures rest on fewer than 30 rows of a kind (unsafe: 29).\n"
    assert "(unsafe: 2, safe: 1)" in few_rows({"a": of(2, 1)})
    assert "(pairs: 3)" in few_rows({"reward": {"n_pairs": 3}})


def test_keyword_reads_words_and_not_their_meaning() -> None:
    """It separates by an alarming word; where the same words stand on both sides it is at chance."""
    prompts = [f"please {verb} number {i}" for i in range(30) for verb in ("hack", "bake")]
    unsafe = np.array([p.split()[1] == "hack" for p in prompts])
    model = fit_keyword(prompts[:40], ["sure"] * 40, unsafe[:40])
    assert auroc(keyword_scores(model, prompts[40:], ["sure"] * 20), unsafe[40:]) == 1
    # The decision function's sigmoid is the probability that scikit-learn gives.
    probability = model.predict_proba([f"{p}\nsure" for p in prompts[40:]])[:, 1]
    scores = keyword_scores(model, prompts[40:], ["sure"] * 20)
    assert np.allclose(1 / (1 + np.exp(-scores)), probability)
    with pytest.raises(UserError, match="both kinds"):
        fit_keyword(["a"], ["b"], [True])
    with pytest.raises(UserError, match="no words"):
        fit_keyword(["?", "!"], ["", ""], [True, False])
