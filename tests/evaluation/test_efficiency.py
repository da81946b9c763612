"""Time to safety: against brute force, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.efficiency import TimeToSafety, harm_bounds, speed_up, time_to_safety


def rows(rates):
    return [{"step": i + 1, "objective/harmful": r, "time/rollout": 1.0} for i, r in enumerate(rates)]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(1, 80))
def test_bounds_are_those_of_the_windows(harmful, window):
    """Each window is the fewest last steps that hold `window` episodes, or all of them."""
    bounds = harm_bounds(harmful, [8] * len(harmful), window=window)
    steps = -(-window // 8)
    for step in range(len(harmful)):
        inside = harmful[max(0, step + 1 - steps) : step + 1]
        k, n = sum(inside), 8 * len(inside)
        expected = 1.0 if k == n else stats.beta.ppf(0.95, k + 1, n - k)
        assert bounds[step] == pytest.approx(expected, abs=1e-9)


def test_it_is_the_last_crossing_that_counts():
    found = time_to_safety(
        rows([0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]), batch_size=64, limit=0.05, window=64
    )
    assert found[:4] == (True, 6, 6 * 64, 6.0)
    assert found.last_bound == pytest.approx(1 - 0.05 ** (1 / 64))


def test_a_run_that_ends_unsafe_is_censored():
    found = time_to_safety(rows([0.0] * 5 + [0.5]), batch_size=64, limit=0.05, window=64)
    assert found[:3] == (False, 6, 6 * 64)


def test_a_run_that_starts_safe_needs_one_step():
    assert time_to_safety(rows([0.0] * 4), batch_size=100, limit=0.05, window=100).step == 1


@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0]), min_size=1, max_size=40),
    st.floats(0.05, 0.3),
    st.floats(0.0, 0.3),
)
def test_a_looser_limit_is_never_reached_later(rates, limit, more):
    options = {"batch_size": 64, "window": 128}
    tight = time_to_safety(rows(rates), limit=limit, **options)
    loose = time_to_safety(rows(rates), limit=limit + more, **options)
    assert loose.step <= tight.step and loose.reached >= tight.reached


def test_a_window_too_short_for_its_limit_is_refused():
    with pytest.raises(UserError, match="longer window"):
        time_to_safety(rows([0.0]), batch_size=64, limit=0.01, window=128)
    with pytest.raises(UserError, match="metrics"):
        time_to_safety([], batch_size=64, limit=0.5)


def test_speed_up_says_when_it_is_a_bound():
    def run(reached, episodes):
        return TimeToSafety(reached, 1, episodes, 0.0, 0.0)

    exact = speed_up([run(True, 500), run(True, 300)], [run(True, 100)])
    assert exact == {"ratio": 4.0, "low": 3.0, "high": 5.0, "pairs": 2, "censored": "no"}
    assert speed_up([run(False, 500)], [run(True, 100)])["censored"] == "at least"
    assert speed_up([run(True, 500)], [run(False, 100)])["censored"] == "at most"
    assert speed_up([run(False, 500)], [run(False, 100)])["censored"] == "unknown"
    with pytest.raises(UserError, match="no run"):
        speed_up([], [run(True, 1)])


def test_the_bound_covers_a_steady_rate():
    """At a steady rate of 4% at most 5% of windows may have a bound below it; 400 windows, P < 1e-3 beyond 10%."""
    draws = np.random.default_rng(0).binomial(256, 0.04, size=400)
    bounds = [harm_bounds([k], [256], window=256)[0] for k in draws]
    assert np.mean(np.array(bounds) < 0.04) <= 0.10
