"""Intervals: exact values, published implementations' values, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import (
    ConfidenceSequence,
    Interval,
    betting,
    clopper_pearson,
    empirical_bernstein,
    hoeffding,
    wilson,
)

GOLDEN = np.arange(1, 301) * 0.6180339887498949 % 1  # (300,) equidistributed, the same on every machine
SERIES = {"cube": GOLDEN**3, "rare": (GOLDEN < 0.03).astype(float), "uniform": GOLDEN}


@settings(max_examples=60)
@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.999]))
def test_rates_against_scipys_binomtest(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    test = binomtest(successes, trials)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = test.proportion_ci(confidence, method=method)
        assert ours(successes, trials, confidence=confidence) == pytest.approx(tuple(theirs), abs=1e-9)
    upper = binomtest(successes, trials, alternative="less").proportion_ci(confidence, method="exact")
    found = clopper_pearson(successes, trials, confidence=confidence, side="upper")
    assert found == pytest.approx(tuple(upper), abs=1e-9)


def test_clopper_pearson_at_the_edges():
    assert clopper_pearson(0, 0) == Interval(0, 1)
    assert clopper_pearson(0, 59, side="upper").high == pytest.approx(
        0.0495, abs=5e-5
    )  # "59 clean certify 5%"
    assert clopper_pearson(0, 59, side="upper").high == pytest.approx(1 - 0.05 ** (1 / 59))
    assert clopper_pearson(7, 7).high == 1 and clopper_pearson(0, 7).low == 0
    assert clopper_pearson(6, 40).width == clopper_pearson(6, 40).high - clopper_pearson(6, 40).low


@pytest.mark.parametrize(("trials", "confidence"), [(20, 0.95), (75, 0.9)])
def test_clopper_pearson_covers_at_every_rate_and_wilson_does_not(trials, confidence):
    """Exact coverage, summed over outcomes; no simulation."""
    rates = np.linspace(0.001, 0.5, 120)
    for method, always in ((clopper_pearson, True), (wilson, False)):
        ends = np.array([method(k, trials, confidence=confidence) for k in range(trials + 1)])
        inside = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])  # (outcomes, rates)
        coverage = (inside * binom.pmf(np.arange(trials + 1)[:, None], trials, rates)).sum(axis=0)
        assert (coverage.min() >= confidence) == always
        assert always or coverage.min() < confidence - 0.02


def test_hoeffding_and_bernstein_by_hand():
    x = np.array([0.0, 0.5, 1.0, 0.5] * 50)
    margin = np.sqrt(np.log(2 / 0.05) / (2 * 200))
    assert hoeffding(x) == pytest.approx((0.5 - margin, 0.5 + margin))
    variance, log_term = x.var(ddof=1), np.log(4 / 0.05)
    margin = np.sqrt(2 * variance * log_term / 200) + 7 * log_term / (3 * 199)
    assert empirical_bernstein(x) == pytest.approx((0.5 - margin, 0.5 + margin))
    assert empirical_bernstein([0.3]) == Interval(0, 1)
    assert hoeffding([0.0, 0.0], side="upper").low == 0


# betting_ci(x, alpha, breaks=20000, trunc_scale=0.5, m_trunc=True) and betting_cs(x, alpha, breaks=20000,
# running_intersection=True) of confseq 0.0.11, the authors' package, at n = 300, and the latter at n = 100.
# It needs a C++ build with Boost, so its values are kept here; its grid resolves 1/20000.
CONFSEQ = {
    ("cube", 0.05): ((0.209, 0.297), (0.19775, 0.30115), (0.1698, 0.3347)),
    ("cube", 0.2): ((0.2176, 0.2863), (0.20595, 0.29055), (0.1838, 0.3145)),
    ("rare", 0.05): ((0.0082, 0.06055), (0.004, 0.06185), (0.0, 0.10845)),
    ("rare", 0.2): ((0.0128, 0.05195), (0.0082, 0.0538), (0.0, 0.0806)),
    ("uniform", 0.05): ((0.45535, 0.54435), (0.4485, 0.55235), (0.41755, 0.5829)),
    ("uniform", 0.2): ((0.46485, 0.53455), (0.45795, 0.54275), (0.4337, 0.5659)),
}


@pytest.mark.parametrize(("name", "alpha"), CONFSEQ)
def test_betting_agrees_with_the_authors_package(name, alpha):
    x = SERIES[name]
    fixed, late, early = CONFSEQ[name, alpha]
    assert betting(x, confidence=1 - alpha) == pytest.approx(fixed, abs=6e-5)
    sequence = ConfidenceSequence(confidence=1 - alpha)
    assert sequence.update(x[:100]) == pytest.approx(early, abs=6e-5)
    assert sequence.update(x[100:]) == pytest.approx(late, abs=6e-5)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.99]))
def test_every_interval_is_one_and_grows_with_confidence(values, confidence):
    for method in (hoeffding, empirical_bernstein, betting):
        inner, outer = (method(values, confidence=c) for c in (confidence, confidence + 0.005))
        assert 0 <= outer.low <= inner.low <= inner.high <= outer.high <= 1
        upper, lower = (method(values, confidence=confidence, side=s) for s in ("upper", "lower"))
        assert upper.low == 0 and lower.high == 1 and upper.high <= inner.high + 1e-12
        mirrored = method([1 - v for v in values], confidence=confidence)
        assert mirrored == pytest.approx((1 - inner.high, 1 - inner.low), abs=1e-9)


def test_a_confidence_sequence_never_widens_and_does_not_care_about_batches():
    rng = np.random.default_rng(0)
    x = rng.random(300)
    one = ConfidenceSequence()
    assert one.interval() == Interval(0, 1)
    last = one.interval()
    for part in np.split(x, [1, 5, 50, 120]):
        now = one.update(part)
        assert now.low >= last.low and now.high <= last.high
        last = now
    assert ConfidenceSequence().update(x) == last
    assert betting(x).width < last.width  # the price of looking at any time


# ---- coverage by simulation (sized down; the table is benchmarks/results/coverage.csv) --------------------

TRUTHS = {
    "rare harm": (0.03, lambda rng, n: (rng.random(n) < 0.03).astype(float)),
    "small variance": (0.1, lambda rng, n: rng.beta(10, 90, n)),
    "uniform": (0.5, lambda rng, n: rng.random(n)),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("method", [hoeffding, empirical_bernstein, betting])
def test_coverage(method, truth):
    mean, draw = TRUTHS[truth]
    rng, repeats = np.random.default_rng(1), 200
    hits = sum(
        i.low <= mean <= i.high for i in (method(draw(rng, 150), confidence=0.9) for _ in range(repeats))
    )
    assert hits / repeats >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / repeats)


@pytest.mark.parametrize("truth", ["rare harm", "small variance"])
def test_betting_is_shortest_where_the_variance_is_small(truth):
    rng = np.random.default_rng(2)
    draws = [TRUTHS[truth][1](rng, 400) for _ in range(20)]
    width = {m: np.mean([m(x).width for x in draws]) for m in (betting, empirical_bernstein, hoeffding)}
    assert width[betting] < width[empirical_bernstein] < width[hoeffding]


def test_looking_after_every_batch_breaks_an_interval_but_not_a_sequence():
    rng, repeats, rate = np.random.default_rng(3), 150, 0.1
    wrong_interval = wrong_sequence = 0
    for _ in range(repeats):
        x = (rng.random(600) < rate).astype(float)
        looks = range(20, 601, 20)
        ends = (clopper_pearson(int(x[:n].sum()), n, confidence=0.9) for n in looks)
        wrong_interval += any(not i.low <= rate <= i.high for i in ends)
        # The sequence only shrinks, so its last look decides whether it was ever wrong.
        last = ConfidenceSequence(confidence=0.9).update(x)
        wrong_sequence += not last.low <= rate <= last.high
    assert wrong_interval / repeats > 0.15
    assert wrong_sequence / repeats <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / repeats)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clopper_pearson(3, 2), "3 successes in 2 trials"),
        (lambda: clopper_pearson(0.5, 2), "whole numbers"),
        (lambda: wilson(1, 2, confidence=1.0), "confidence is 1.0"),
        (lambda: hoeffding([]), "no values"),
        (lambda: betting([0.5, 1.5]), "lie in"),
        (lambda: empirical_bernstein([0.5, np.nan]), "lie in"),
        (lambda: betting([0.5], side="left"), "side is 'left'"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
