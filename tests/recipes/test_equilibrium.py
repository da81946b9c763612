"""Where a gated penalty settles: against the closed form, a simulated gate, and brute force over batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from csrlhf_kit.evaluation.results import PolicyRow
from csrlhf_kit.recipes.claims.equilibrium import cost_share, cost_spread, predict_cost, settled_cost


def run(multiplier, cost, *, threshold=0.1, batch_size=64, seed=0) -> PolicyRow:
    curve = {"multiplier": list(multiplier), "cost": list(cost)}
    return PolicyRow("pid_lagrangian", {}, seed, threshold, {}, curve, batch_size)


def test_the_spread_of_one_episode_comes_back_from_batch_means_despite_a_drift():
    rng = np.random.default_rng(0)
    means = rng.normal(0.1, 0.3 / np.sqrt(64), size=20_000) + np.linspace(0, 0.5, 20_000)
    assert cost_spread({"cost": means}, 64) == pytest.approx(0.3, rel=0.02)


def test_only_the_second_half_counts():
    curve = {"multiplier": [100.0] * 10 + [1.0, 3.0] * 5, "cost": [0.9] * 10 + [0.1] * 10}
    assert cost_share(curve) == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert settled_cost(curve) == pytest.approx(0.1)


@given(w=st.floats(0.05, 0.9), batch=st.sampled_from([32, 64, 128]), penalty=st.floats(15, 100))
@settings(max_examples=30)
def test_the_prediction_makes_the_gates_average_share_the_dual_methods(w, batch, penalty):
    """At the predicted cost, E[g lambda / (1 + lambda)] = w, with P(g = 1) drawn from the normal law itself."""
    swing = 0.1 + 0.02 * np.where(np.arange(40) % 2, 1, -1)  # successive batch means of 64 differ by 0.04
    told = predict_cost([run([w / (1 - w)] * 40, swing, seed=s) for s in range(3)], penalty, batch)
    noise = 0.04 / np.sqrt(2) * np.sqrt(64) / np.sqrt(batch / 2)
    opened = norm.sf(0.1, loc=told.value, scale=noise)
    assert opened * penalty / (1 + penalty) == pytest.approx(w, rel=1e-6)
    assert told.seeds == 3 and told.low <= told.value <= told.high


def test_a_simulated_policy_settles_where_predicted():
    """Gradient steps on a mean cost, pushed up by the reward and down through a gate on binary costs."""
    rng, penalty, w, batch = np.random.default_rng(1), 20.0, 0.4, 64
    # A dual method that holds 10% with lambda / (1 + lambda) = w sees batch means of Bernoulli costs.
    dual = [run([w / (1 - w)] * 4000, rng.binomial(64, 0.1, 4000) / 64, seed=s) for s in range(3)]
    told = predict_cost(dual, penalty, batch)
    mean, seen = 0.1, []
    for _ in range(60_000):
        gate = rng.binomial(batch // 2, mean) / (batch // 2) > 0.1
        mean = float(np.clip(mean + 2e-4 * (w - gate * penalty / (1 + penalty)), 0.0, 1.0))
        seen.append(mean)
    # binary costs are skewed and discrete: the normal law is off by a fraction of one event in 32
    assert np.mean(seen[20_000:]) == pytest.approx(told.value, abs=0.5 / 32)


def test_a_price_beyond_the_penalty_has_no_equilibrium():
    told = predict_cost([run([99.0] * 8, [0.1, 0.2] * 4, seed=s) for s in range(3)], 4.0, 64)
    assert not np.isfinite(told.value)
