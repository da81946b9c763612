"""The batch hinge and dual ascent: closed forms against quadrature, Monte Carlo and simulated training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory import (
    PID,
    FiniteProblem,
    FixedGate,
    LogLagrangian,
    batch_hinge_equilibrium,
    effective_multiplier,
    equilibrium_violation,
    expected_hinge,
    hinge_bias,
    simulate_dual,
    simulate_gate,
)


@pytest.fixture(scope="module")
def problem() -> FiniteProblem:
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(8, 12))
    cost = rng.normal(size=(8, 12)) + 0.5 * reward
    return FiniteProblem(rng.dirichlet(np.ones(12), 8), reward, cost, beta=0.5, threshold=-0.3)


@settings(max_examples=50)
@given(st.floats(-3, 3), st.floats(0.05, 3))
@example(2.375, 0.296875)  # as a difference of two numbers near 2.4 the bias came out as -4e-16
def test_the_expected_hinge_is_the_gaussian_integral(violation, noise):
    value, _ = quad(
        lambda z: max(violation + noise * z, 0) * norm.pdf(z), -12, 12, points=[-violation / noise]
    )
    assert expected_hinge(violation, noise) == pytest.approx(value, abs=1e-7)
    assert hinge_bias(violation, noise) == pytest.approx(value - max(violation, 0), abs=1e-7)
    assert hinge_bias(violation, noise) >= 0  # Jensen
    h = 1e-6  # the price that the gradient carries is the derivative of what is charged
    slope = (expected_hinge(violation + h, noise) - expected_hinge(violation - h, noise)) / (2 * h)
    assert effective_multiplier(7.0, violation, noise) == pytest.approx(7 * slope, abs=1e-5)


def test_the_bias_at_the_boundary_is_0_399_standard_errors():
    for batch in (1, 16, 256):
        noise = 2.0 / np.sqrt(batch)
        assert hinge_bias(0.0, noise) == pytest.approx(noise / np.sqrt(2 * np.pi))
        assert hinge_bias(0.0, noise) == pytest.approx(0.399 * noise, rel=1e-3)
    grid = np.linspace(-2, 2, 41)
    assert grid[np.argmax(hinge_bias(grid, 0.5))] == pytest.approx(0, abs=1e-12)


def test_without_noise_it_is_the_hinge_itself():
    v = np.array([-1.0, 0.0, 2.0])
    assert np.array_equal(expected_hinge(v, 0.0), [0, 0, 2])
    assert np.array_equal(effective_multiplier(3.0, v, 0.0), [0, 0, 3])


def test_the_penalty_looks_sufficient_only_at_twice_the_multiplier():
    at = lambda factor: equilibrium_violation(factor * 0.7, multiplier=0.7, noise=0.2)  # noqa: E731
    assert at(1.01) > at(1.5) > at(2.0) > at(4.0)
    assert at(1.5) > 0 > at(4.0) and at(2.0) == pytest.approx(0, abs=1e-12)
    assert equilibrium_violation(0.7, multiplier=0.7, noise=0.2) == np.inf
    settled = equilibrium_violation(3.0, multiplier=0.7, noise=0.2)
    assert effective_multiplier(3.0, settled, 0.2) == pytest.approx(0.7)


@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("factor", [1.2, 2.0, 4.0])
def test_the_equilibrium_on_a_finite_problem(problem, batch, factor):
    best = problem.constrained_optimum()
    settled = batch_hinge_equilibrium(problem, factor * best.multiplier, batch=batch)
    violation = settled.cost - problem.threshold
    assert np.sign(round(violation, 9)) == np.sign(2 - factor)
    # At the fixed point the price acted on is the share of open gates times the penalty ...
    joint = problem.weights[:, None] * settled.policy
    noise = np.sqrt((joint * (problem.cost - settled.cost) ** 2).sum() / batch)
    assert settled.multiplier == pytest.approx(factor * best.multiplier * norm.cdf(violation / noise))
    # ... which simulated batches of the true, discrete costs confirm up to the central limit theorem ...
    gate = simulate_gate(problem, settled.policy, batch=batch, repeats=4000, own_batch=False, seed=1)
    assert gate.gate == pytest.approx(norm.cdf(violation / noise), abs=0.03 + 4 * gate.gate_error)
    assert gate.carried == pytest.approx(gate.gate, abs=4 * gate.carried_error)
    assert gate.hinge == pytest.approx(float(expected_hinge(violation, noise)), abs=0.02)


def test_simulated_training_settles_at_the_equilibrium(problem):
    best = problem.constrained_optimum()
    for factor in (1.3, 4.0):
        predicted = batch_hinge_equilibrium(problem, factor * best.multiplier, batch=32).cost
        run = simulate_dual(
            problem, FixedGate(factor * best.multiplier), steps=1500, response=0.03, batch=32, seed=3
        )
        assert run.cost[500:].mean() == pytest.approx(predicted, abs=0.03)


def test_a_gate_on_its_own_batch_is_correlated_with_the_gradient():
    """Rare large costs: the batches that open the gate are those whose gradient is inflated."""
    cost = np.array([[0.0, 1.0]])
    problem = FiniteProblem([[0.95, 0.05]], [[0.0, 0.0]], cost, beta=1.0, threshold=0.05)
    own = simulate_gate(problem, problem.reference, batch=16, repeats=20_000)
    other = simulate_gate(problem, problem.reference, batch=16, repeats=20_000, own_batch=False)
    assert own.carried > own.gate + 10 * own.carried_error
    assert other.carried == pytest.approx(other.gate, abs=4 * other.carried_error)
    assert own.gate == pytest.approx(1 - 0.95**16, abs=4 * own.gate_error)  # any harm in 16 exceeds 5%


def test_an_equilibrium_needs_no_penalty_where_the_constraint_is_slack():
    problem = FiniteProblem([[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 1.0]], beta=0.2, threshold=5.0)
    assert batch_hinge_equilibrium(problem, 10.0, batch=64).multiplier == pytest.approx(0, abs=1e-9)


# ---- dual ascent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "controller",
    [LogLagrangian(0.5, maximum=50.0), PID(0.5, 0.05, 0.1)],
    ids=lambda c: type(c).__name__,
)
def test_dual_methods_find_the_multiplier_without_noise(problem, controller):
    best = problem.constrained_optimum()
    run = simulate_dual(problem, controller, steps=600)
    assert run.eta[-1] == pytest.approx(best.multiplier, rel=1e-3)
    assert run.cost[-1] == pytest.approx(problem.threshold, abs=1e-3)
    assert run.objective[-1] == pytest.approx(best.objective, abs=1e-3)
    assert run.settled_at(problem.threshold, 0.02) < 500


def test_a_faster_dual_overshoots_more_and_a_slow_one_violates_longer(problem):
    best = problem.constrained_optimum()
    slow, fast = (simulate_dual(problem, LogLagrangian(r, maximum=50.0, initial=0.1)) for r in (0.05, 1.0))
    assert fast.overshoot(best.multiplier) > slow.overshoot(best.multiplier) + 0.1
    above = [np.maximum(run.cost - problem.threshold, 0).mean() for run in (slow, fast)]
    assert above[0] > 2 * above[1]


def test_a_multiplier_clamped_below_the_optimum_never_becomes_feasible(problem):
    best = problem.constrained_optimum()
    run = simulate_dual(problem, LogLagrangian(0.5, initial=0.1, maximum=0.8 * best.multiplier))
    assert run.cost[-1] > problem.threshold + 0.01
    assert run.multiplier.max() <= 0.8 * best.multiplier + 1e-12


def test_the_policy_is_always_a_tilt_and_moves_by_the_stated_share(problem):
    run = simulate_dual(problem, FixedGate(1.0), steps=5, response=0.25)
    assert run.eta[0] == 0 and run.eta[1] == pytest.approx(0.25) and run.eta[2] == pytest.approx(0.4375)
    assert run.cost[2] == pytest.approx(problem.tilted(0.4375).cost)
    # The same step on the policy itself: log pi <- 0.75 log pi + 0.25 log(best response).
    old, best = problem.tilted(0.25).policy, problem.tilted(1.0).policy
    new = old**0.75 * best**0.25
    assert np.allclose(new / new.sum(axis=1, keepdims=True), problem.tilted(0.4375).policy)


def test_the_same_seed_gives_the_same_training(problem):
    a, b, c = (simulate_dual(problem, PID(), steps=50, batch=8, seed=s) for s in (1, 1, 2))
    assert np.array_equal(a.measured, b.measured) and not np.array_equal(a.measured, c.measured)


def test_what_cannot_be_simulated_is_told(problem):
    with pytest.raises(UserError, match="response"):
        simulate_dual(problem, PID(), response=0.0)
    with pytest.raises(UserError, match="repeats"):
        simulate_gate(problem, problem.reference, batch=0)
