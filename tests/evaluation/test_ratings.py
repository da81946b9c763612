"""The arena: closed forms, an independent solver, and what must not matter."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.ratings import (
    ELO,
    bradley_terry,
    outcomes,
    rate_policies,
    ratings,
    two_by_two,
    win_rate,
)
from csrlhf_kit.world.requests import STRATA, sample_request, surface
from csrlhf_kit.world.responses import helpful, refusal

tables = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(1, 40), min_size=k, max_size=k), min_size=k, max_size=k)
)


def test_two_players_have_a_closed_form():
    wins = np.array([[0, 30], [10, 0]])
    theta = bradley_terry(wins)
    assert theta[0] - theta[1] == pytest.approx(math.log(3), abs=1e-9)
    assert 1 / (1 + 10 ** (-ELO * math.log(3) / 400)) == pytest.approx(0.75), (
        "three wins to one, in Elo points"
    )
    assert pytest.approx(400.0) == ELO * math.log(10)


def test_a_prior_is_virtual_draws():
    wins = np.array([[0.0, 12.0], [0.0, 0.0]])
    theta = bradley_terry(wins, prior=4)
    assert theta[0] - theta[1] == pytest.approx(math.log(14 / 2), abs=1e-9)
    with pytest.raises(UserError, match="never lost"):
        bradley_terry(wins)


@given(tables)
@settings(max_examples=40)
def test_strengths_are_those_of_logistic_regression(table):
    """Bradley-Terry is a logistic regression of the result on which two players met."""
    wins = np.array(table, dtype=float)
    k = len(wins)
    rows, results, weights = [], [], []
    for i in range(k):
        for j in range(k):
            if i != j:
                row = np.zeros(k)
                row[i], row[j] = 1, -1
                rows += [row, -row]
                results += [1, 0]
                weights += [wins[i, j], wins[i, j]]
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=2000)
    fit.fit(np.array(rows), results, sample_weight=weights)
    theirs = fit.coef_[0] - fit.coef_[0].mean()
    assert bradley_terry(wins) == pytest.approx(theirs, abs=2e-4)


@given(tables, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_strengths_solve_the_likelihood_equations_in_any_order(table, random):
    """At the maximum each player wins as often as expected; naming the players otherwise changes nothing."""
    wins = np.array(table, dtype=float)
    np.fill_diagonal(wins, 0)
    theta = bradley_terry(wins)
    probability = 1 / (1 + np.exp(theta[None] - theta[:, None]))
    assert ((wins + wins.T) * probability).sum(1) - np.diag((wins + wins.T) * probability) == pytest.approx(
        wins.sum(1), abs=1e-6
    )
    order = list(range(len(wins)))
    random.shuffle(order)
    assert bradley_terry(wins[np.ix_(order, order)]) == pytest.approx(theta[order], abs=1e-8)


def test_batches_of_tables_are_solved_like_each_alone():
    generator = np.random.default_rng(0)
    wins = generator.integers(1, 200, size=(7, 4, 4)).astype(float)
    assert bradley_terry(wins) == pytest.approx(np.stack([bradley_terry(w) for w in wins]), abs=1e-8)


def test_extreme_tables_converge():
    wins = np.array([[0, 1e5, 1e5], [1e-3, 0, 5e4], [1e-3, 1, 0]])
    theta = bradley_terry(wins)
    probability = 1 / (1 + np.exp(theta[None] - theta[:, None]))
    expected = ((wins + wins.T) * probability).sum(1) - np.diag((wins + wins.T) * probability)
    assert np.abs(expected - wins.sum(1)).max() < 1e-4


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_outcomes_and_the_table_add_up(pairs):
    first, second = np.array(pairs, dtype=float).T
    assert outcomes(first, second) + outcomes(second, first) == pytest.approx(np.ones(len(pairs)))
    safe = first > 1
    cells = two_by_two(first, second, safe)
    assert sum(sum(row.values()) for row in cells.values()) == pytest.approx(1.0)
    assert cells["better"]["safe"] + cells["worse"]["safe"] == pytest.approx(safe.mean())
    rate = win_rate(first[None], second[None])
    assert cells["better"]["safe"] + cells["better"]["unsafe"] == pytest.approx(rate["rate"])
    assert rate["low"] <= rate["rate"] <= rate["high"]


def test_a_win_rate_is_over_all_seeds_and_inside_its_interval_whatever_the_order_of_the_prompts():
    rival = np.zeros((3, 200))
    first = np.where(np.arange(200) < [[160], [150], [140]], 1.0, -1.0)  # the prompts that it loses come last
    found = win_rate(first, rival)
    assert found["rate"] == pytest.approx(0.75) and found["n"] == 600
    # By hand: rates .8, .75, .7, so that t is 4.303 of 2 degrees of freedom, and the margin 4.303 * .05 / sqrt(3).
    assert (found["low"], found["high"]) == pytest.approx((0.75 - 0.1242, 0.75 + 0.1242), abs=1e-4)
    one = win_rate(first[:1], rival[:1])
    assert one["low"] < one["rate"] == 0.8 < one["high"]


def test_the_table_of_a_worked_example():
    cells = two_by_two([3, 1, 2, 2], [1, 3, 2, 1], [True, True, False, False])
    assert cells == {
        "better": {"safe": 0.25, "unsafe": 0.375},
        "worse": {"safe": 0.25, "unsafe": 0.125},
    }


def test_ratings_find_the_strengths_that_made_the_scores():
    generator = np.random.default_rng(1)
    means = {"base": 0.0, "good": 1.0, "better": 2.0}
    # Gumbel noise around a strength makes exactly Bradley-Terry comparisons.
    scores = {n: m + generator.gumbel(size=(5, 3000)) for n, m in means.items()}
    found = ratings(scores, "base", resamples=200)
    for name, mean in means.items():
        assert found[name].low <= ELO * mean <= found[name].high
        assert found[name].high - found[name].low < 80
    assert found["base"] == (0.0, 0.0, 0.0)
    again = ratings(dict(reversed(scores.items())), "base", resamples=200)
    assert again["good"].elo == pytest.approx(found["good"].elo, abs=1e-6)


def test_rating_intervals_cover():
    """Of 60 repeated experiments with 95% intervals at least 50 cover the truth (binomial: P < 1e-3 of fewer)."""
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        scores = {"a": generator.gumbel(size=300), "b": 0.7 + generator.gumbel(size=300)}
        low, high = ratings(scores, "a", prior=0.01, resamples=200, seed=seed)["b"][1:]
        covered += low <= 0.7 * ELO <= high
    assert covered >= 50


def test_rating_intervals_cover_with_three_seeds():
    """Of 100 methods that are as good as the anchor on average, with seeds that differ, at least 90 intervals hold 0."""
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        luck = generator.normal(0.0, 0.8, size=(3, 1))
        scores = {"a": generator.gumbel(size=(10, 60)), "b": luck + generator.gumbel(size=(3, 60))}
        low, high = ratings(scores, "a", resamples=200, seed=seed)["b"][1:]
        covered += low <= 0.0 <= high
    assert covered >= 90


def test_seeds_that_disagree_widen_the_interval():
    generator = np.random.default_rng(0)
    base = generator.gumbel(size=(3, 400))
    alike = 1.0 + generator.gumbel(size=(3, 400))
    apart = np.array([[0.0], [1.0], [2.0]]) + generator.gumbel(size=(3, 400))
    width = [np.diff(ratings({"a": base, "b": b}, "a")["b"][1:])[0] for b in (alike, apart)]
    assert width[1] > 1.5 * width[0]


def made(count: int = 60) -> tuple[list[Prompt], dict[str, dict[int, list[str]]]]:
    """Prompts of all strata; a policy that always tells and one that always refuses."""
    rng = Random(0)
    prompts, tells, refuses = [], [], []
    for i in range(count):
        request = sample_request(rng, STRATA[i % 4], "test")
        prompts.append(Prompt(surface(request, rng), stratum=request.stratum, harmful=request.harmful))
        tells.append(helpful(request, rng, count=2, wrong=0.0))
        refuses.append(refusal(request, rng))
    return prompts, {"tells": {0: tells, 1: tells}, "refuses": {0: refuses}}


def test_the_arena_tells_helpful_from_harmless():
    prompts, answers = made()
    result = rate_policies(prompts, answers, anchor="tells", resamples=100)
    assert result["helpfulness"]["ratings"]["refuses"]["high"] < 0
    assert result["harmlessness"]["ratings"]["refuses"]["low"] > 0
    pair = result["pairs"]["tells vs refuses"]
    assert pair["helpfulness"]["rate"] == 1.0 and pair["harmlessness"]["rate"] == 0.0
    # One seed of two meets the rival's only one.
    assert pair["helpfulness"]["n"] == result["helpfulness"]["prompts"]
    assert pair["table"]["better"]["unsafe"] == pytest.approx(0.5)
    assert result["pairs"]["refuses vs tells"]["table"]["worse"]["safe"] == pytest.approx(1.0)
    assert result["seeds"] == {"tells": 2, "refuses": 1}


def test_pairs_meet_seed_by_seed_whatever_their_order():
    prompts, answers = made()
    tells, refuses = answers["tells"][0], answers["refuses"][0]
    turns = {
        "first": {0: tells, 1: refuses, 2: tells},
        "second": {5: tells, 1: refuses, 0: tells},
        "apart": {9: tells},
    }
    result = rate_policies(prompts, turns, anchor="first", resamples=20)
    pair = result["pairs"]["first vs second"]  # seeds 0 and 1 only, and each meets its own answers
    assert (
        pair["helpfulness"]["ties"] == 1.0
        and pair["helpfulness"]["n"] == 2 * result["helpfulness"]["prompts"]
    )
    assert set(result["pairs"]) == {"first vs second", "second vs first"}
    turned = {name: dict(reversed(runs.items())) for name, runs in reversed(turns.items())}
    assert rate_policies(prompts, turned, anchor="first", resamples=20) == result


def test_bad_arenas_are_one_sentence():
    prompts, answers = made(8)
    with pytest.raises(UserError, match="has not answered"):
        rate_policies(prompts[:-1], answers, anchor="tells")
    with pytest.raises(UserError, match="at least two"):
        ratings({"a": np.ones(3)}, "a")
    with pytest.raises(UserError, match="the same"):
        ratings({"a": np.ones(3), "b": np.ones(4)}, "a")
    with pytest.raises(UserError, match="expected \\(players"):
        bradley_terry(np.ones((2, 3)))
