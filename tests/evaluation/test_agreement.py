"""Agreement: published worked examples, limits, and relations between the measures."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.agreement import (
    agreement,
    bootstrap,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    toy_raters,
)
from csrlhf_kit.world.requests import STRATA, sample_request, surface
from csrlhf_kit.world.responses import helpful, refusal

_ = np.nan
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section E: four observers, twelve units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)
# Fleiss 1971, table 1: 30 patients, six psychiatrists, five diagnoses; how many chose each.
FLEISS = [
    "00060",
    "03003",
    "01401",
    "00006",
    "03030",
    "20400",
    "00402",
    "20310",
    "20040",
    "00006",
    "10050",
    "11040",
    "03300",
    "10050",
    "02031",
    "00501",
    "30012",
    "51000",
    "02040",
    "10203",
    "00006",
    "01050",
    "02013",
    "20040",
    "10041",
    "05010",
    "40002",
    "02040",
    "10500",
    "00006",
]

ratings = st.integers(2, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.integers(0, 3), min_size=raters, max_size=raters), min_size=2, max_size=25
    )
)


def test_krippendorff_of_the_published_example():
    assert krippendorff_alpha(KRIPPENDORFF) == pytest.approx(0.743, abs=5e-4)


def test_fleiss_of_the_published_example():
    items = [[value for value, count in enumerate(row) for _ in range(int(count))] for row in FLEISS]
    assert fleiss_kappa(np.array(items).T) == pytest.approx(0.430, abs=5e-4)


def test_cohen_of_a_worked_example():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5, κ = 0.4."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


@given(ratings)
def test_fleiss_is_its_definition(items):
    table = np.array(items, dtype=float).T
    raters, count = table.shape
    per_item = np.array([(table == v).sum(0) for v in range(4)]).T
    observed = ((per_item**2).sum(1) - raters).mean() / (raters * (raters - 1))
    expected = ((per_item.sum(0) / (raters * count)) ** 2).sum()
    if expected < 1:
        assert fleiss_kappa(table) == pytest.approx((observed - expected) / (1 - expected), abs=1e-9)
    else:
        assert np.isnan(fleiss_kappa(table))


@given(ratings, st.permutations(range(4)))
def test_nominal_alpha_ignores_names_and_order(items, names):
    table = np.array(items, dtype=float).T
    renamed = np.array(names, dtype=float)[table.astype(int)]
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(table), nan_ok=True)
    assert krippendorff_alpha(table[::-1]) == pytest.approx(krippendorff_alpha(table), nan_ok=True)


@given(ratings)
def test_alpha_is_at_most_one_and_one_only_in_agreement(items):
    table = np.array(items, dtype=float).T
    alpha = krippendorff_alpha(table)
    agree = bool((table == table[0]).all())
    assert np.isnan(alpha) or (alpha == pytest.approx(1.0) if agree else alpha < 1.0)


def test_an_item_with_one_label_changes_nothing():
    lonely = np.full((4, 1), np.nan)
    lonely[2] = 5
    assert krippendorff_alpha(np.hstack([KRIPPENDORFF, lonely])) == pytest.approx(
        krippendorff_alpha(KRIPPENDORFF)
    )


def test_raters_by_chance_agree_by_chance():
    generator = np.random.default_rng(0)
    table = generator.random((3, 4000)) < 0.3
    found = agreement({"a": table[0], "b": table[1], "c": table[2]}, resamples=50)
    for entry in (found["fleiss"], found["krippendorff"], found["pairs"]["a | b"]["cohen"]):
        assert entry["low"] < 0.05 and entry["high"] > -0.05 and abs(entry["value"]) < 0.05
    assert found["pairs"]["a | b"]["agreement"]["value"] == pytest.approx(0.58, abs=0.04)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_the_interval_holds_the_value(seed):
    table = np.random.default_rng(seed).random((2, 80)) < 0.5
    entry = bootstrap(fleiss_kappa, table, resamples=100, seed=seed)
    assert entry["low"] <= entry["value"] <= entry["high"] and entry["n"] == 80


def test_agreement_without_a_slip_is_no_certainty():
    found = agreement({"a": [1, 0] * 5, "b": [1, 0] * 5}, resamples=50)
    slips = stats.binomtest(0, 10).proportion_ci().high  # of two labels drawn at random, half differ
    for entry in (found["krippendorff"], found["fleiss"], found["pairs"]["a | b"]["cohen"]):
        assert entry["value"] == entry["high"] == 1 and entry["low"] == pytest.approx(1 - slips / 0.5)
    one = agreement({"a": [1], "b": [0]}, resamples=50)["krippendorff"]
    assert one["value"] == 0 and (one["low"], one["high"]) == (-1, 1)
    constant = agreement({"a": [1, 0, 1, 1], "b": [1, 1, 1, 1]}, resamples=50)["pairs"]["a | b"]["cohen"]
    assert constant["low"] == constant["high"] == 0  # by definition, whatever the items


def test_missing_labels_leave_fleiss_out():
    found = agreement({"a": [1, 0, None, 1], "b": [1, 0, 0, 0]}, resamples=20)
    assert found["fleiss"] is None and found["pairs"]["a | b"]["agreement"]["n"] == 3
    with pytest.raises(UserError, match="missing label"):
        fleiss_kappa(KRIPPENDORFF)
    with pytest.raises(UserError, match="two raters"):
        agreement({"a": [1]})


def test_the_worlds_annotators_slip_as_often_as_told():
    rng = Random(0)
    prompts, responses = [], []
    for i in range(1500):
        request = sample_request(rng, STRATA[i % 4], "test")
        prompts.append(surface(request, rng))
        responses.append((helpful if i % 3 else refusal)(request, rng))
    raters = toy_raters(prompts, responses, {"all unsafe": np.ones(1500)})
    found = agreement(raters, resamples=20)
    for name, slip in (("annotator 1", 0.02), ("annotator 3", 0.05)):
        entry = found["pairs"][f"oracle | {name}"]["agreement"]
        assert entry["value"] == pytest.approx(1 - slip, abs=0.02)
    assert found["pairs"]["oracle | all unsafe"]["cohen"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert found["fleiss"]["value"] < found["pairs"]["oracle | annotator 1"]["cohen"]["value"]
