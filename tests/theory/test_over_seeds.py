"""The one rule for figures over seeds, against textbook formulas, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from csrlhf_kit.theory.intervals import Estimate, Outcomes, clopper_pearson
from csrlhf_kit.theory.over_seeds import difference, mcnemar, mean_over_seeds, rate_over_seeds


def rates(counts: list[int], n: int = 200) -> Estimate:
    return rate_over_seeds([{"rate": k / n, "n": n} for k in counts])


def answers(table: np.ndarray, prompts: str = "same") -> Estimate:
    """Harm (seeds, prompts) as a figure whose answers were recorded."""
    found = rate_over_seeds([{"rate": row.mean(), "n": len(row)} for row in table])
    return found._replace(outcomes=Outcomes(prompts, np.asarray(table, dtype=float)))


def table(seed: int, seeds: int = 3, prompts: int = 60, rate: float = 0.3) -> np.ndarray:
    """Answers whose rate differs by seed and by prompt."""
    rng = np.random.default_rng(seed)
    chance = rate * rng.uniform(0.5, 1.5, (seeds, 1)) * rng.uniform(0.2, 1.8, prompts)
    return (rng.random((seeds, prompts)) < chance).astype(float)


counts = st.lists(st.integers(0, 200), min_size=1, max_size=5)
tables = st.builds(table, st.integers(0, 50), seeds=st.integers(1, 5))


# --- one figure ----------------------------------------------------------------------------------------


@given(counts)
def test_a_rate_holds_both_errors(found):
    one = rates(found)
    exact = clopper_pearson(sum(found), 200 * len(found))
    assert one.value == pytest.approx(sum(found) / (200 * len(found))) and one.n == 200 * len(found)
    assert 0 <= one.low <= exact.low + 1e-12 and exact.high - 1e-12 <= one.high <= 1
    if len(set(found)) > 1:
        shares = np.array(found) / 200
        t = stats.t.interval(0.95, len(found) - 1, shares.mean(), shares.std(ddof=1) / math.sqrt(len(found)))
        assert one.low <= max(t[0], 0) + 1e-9 and one.high >= min(t[1], 1) - 1e-9
        assert one.runs == pytest.approx(shares)


def test_means_are_students_and_one_seed_has_no_interval():
    found = mean_over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.high - 2.0 == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3))
    assert mean_over_seeds([0.9])[:3] == (0.9, -math.inf, math.inf)


# --- two methods, by the seeds' figures ------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda v: np.std(v) > 1e-3),
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda v: np.std(v) > 1e-3),
)
def test_means_are_compared_by_welch(first, second):
    found = difference(mean_over_seeds(first), mean_over_seeds(second))
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=1e-9)


def test_rates_that_agree_by_chance_are_as_uncertain_as_their_prompts():
    found = difference(rates([20, 20, 20]), rates([50, 50, 50]))
    variance = sum((k + 1) / 602 * (1 - (k + 1) / 602) / 600 for k in (60, 150))
    assert found.value - found.low == pytest.approx(1.96 * math.sqrt(variance), rel=0.01)
    none = difference(rates([0, 0, 0]), rates([0, 0, 0]))
    assert none.low < 0 < none.high < 0.01


@given(counts, counts, st.booleans())
def test_differences_mirror_and_do_not_know_the_order_of_seeds(first, second, plain):
    a, b = (mean_over_seeds(v) if plain else rates(v) for v in (first, second))
    forth, back = difference(a, b), difference(b, a)
    assert forth.value == -back.value and forth.low == pytest.approx(-back.high, abs=1e-12)
    assert forth.low <= forth.value <= forth.high and forth.seeds == min(len(first), len(second))
    again = difference(mean_over_seeds(first[::-1]) if plain else rates(first[::-1]), b)
    assert (again.low, again.high) == pytest.approx((forth.low, forth.high), abs=1e-12)


def test_figures_without_seeds_bring_their_own_intervals():
    """Newcombe's method 10 adds squared errors; by hand for 11 and 6 of 40 in notebook 09."""
    six, eleven = (Estimate(k / 40, *clopper_pearson(k, 40)) for k in (6, 11))
    found = difference(eleven, six)
    down = math.hypot(eleven.value - eleven.low, six.high - six.value)
    assert found.low == pytest.approx(0.125 - down) and found.seeds is None


def test_one_prompt_is_no_pair_and_no_certainty():
    found = difference(answers(np.array([[1.0]])), answers(np.array([[0.0]])))
    error = 1 - clopper_pearson(1, 1).low
    assert found.value == 1 and found.low == pytest.approx(1 - math.hypot(error, error)) and found.low < 0


# --- two methods, prompt by prompt -----------------------------------------------------------------------


@given(tables, tables, st.randoms(use_true_random=False))
def test_paired_differences_mirror_and_know_no_order(first, second, shuffle):
    found = difference(answers(first), answers(second))
    back = difference(answers(second), answers(first))
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert found.value == pytest.approx(first.mean() - second.mean())
    order = shuffle.sample(range(first.shape[1]), first.shape[1])
    moved = difference(answers(first[::-1][:, order]), answers(second[:, order]))
    assert moved[:3] == pytest.approx(found[:3])


def test_with_one_seed_each_the_prompts_are_paired_as_in_the_textbook():
    first, second = table(1, seeds=1)[0], table(2, seeds=1)[0]
    found = difference(answers(first[None]), answers(second[None]))
    theirs = stats.ttest_rel(first, second).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(theirs)) and found.seeds == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_test_of_discordant_pairs(b, c):
    expected = min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5))
    assert mcnemar(b, c) == pytest.approx(expected) and mcnemar(b, c) == mcnemar(c, b)


def test_variances_of_a_crossed_design_by_hand():
    """Two-way random effects from mean squares: seeds within a method, prompts across both."""
    first, second = table(3, seeds=5, prompts=400), table(4, seeds=4, prompts=400)
    seeds_part, noise = 0.0, 0.0
    for found in (first, second):
        rows, columns = found.shape
        seeds_part += found.mean(1).var(ddof=1) / rows
        rest = found - found.mean(0) - found.mean(1)[:, None] + found.mean()
        noise += (rest**2).sum() / ((rows - 1) * (columns - 1)) / (rows * columns)
    prompts_part = (first.mean(0) - second.mean(0)).var(ddof=1) / 400
    assert seeds_part > noise
    found = difference(answers(first), answers(second))
    spread = math.sqrt(seeds_part + prompts_part - noise)
    assert 1.96 < (found.high - found.value) / spread < stats.t.ppf(0.975, 3)


def test_pairing_needs_the_same_prompts_and_narrows_what_they_share():
    rng = np.random.default_rng(5)
    hard = (rng.random(300) < 0.4).astype(float)  # these prompts break every policy
    first, second = np.tile(hard, (3, 1)), np.tile(hard, (3, 1))
    second[:, :12] = 1.0
    paired = difference(answers(second), answers(first))
    apart = difference(answers(second, "others"), answers(first))
    assert paired.low > 0 > apart.low and paired.value == pytest.approx(apart.value)


@given(counts, counts, st.floats(0.5, 6))
def test_a_multiple_of_the_second_is_taken_off(first, second, factor):
    a, b = mean_over_seeds(first), mean_over_seeds(second)
    direct = difference(a, mean_over_seeds([factor * v for v in second]))
    assert difference(a, b, factor)[:3] == pytest.approx(direct[:3])
