"""The exact part: every theorem the course quotes, against independent computations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory import FiniteProblem, violation_bound

THOROUGH = settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])


def random_problem(
    seed: int,
    *,
    prompts: int = 3,
    responses: int = 5,
    depth: float = 0.5,
    **changes,
) -> FiniteProblem:
    """A problem whose threshold lies `depth` of the way from the unconstrained cost to the least cost."""
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(responses), prompts)
    reward = rng.normal(size=(prompts, responses))
    cost = rng.normal(size=(prompts, responses)) + 0.7 * reward
    given = {"beta": 0.5, "prompt_weights": rng.uniform(0.5, 1.5, prompts)} | changes
    free = FiniteProblem(reference, reward, cost, threshold=0, **given)
    at_once = free.violation(free.tilted(0.0).policy)
    threshold = at_once + depth * (free.smallest_cost() - at_once)
    return FiniteProblem(reference, reward, cost, threshold=threshold, **given)


problems = st.builds(
    random_problem,
    st.integers(0, 2**32 - 1),
    prompts=st.integers(1, 5),
    responses=st.integers(2, 7),
    depth=st.floats(0.05, 0.95),
    beta=st.floats(0.1, 3.0),
).filter(lambda p: p.violation(p.tilted(0.0).policy) > 1e-3)  # else the constraint asks for rounding error


def random_policies(problem: FiniteProblem, count: int, seed: int) -> np.ndarray:
    """(count, prompts, responses): Dirichlet ones, and mixtures of good policies with them."""
    rng = np.random.default_rng(seed)
    prompts, responses = problem.reference.shape
    loose = rng.dirichlet(np.full(responses, 0.5), size=(count, prompts))
    good = np.stack([problem.tilted(m).policy for m in (0.0, *np.geomspace(0.1, 10, 8))])
    share = rng.uniform(0, 1, size=(count, 1, 1)) ** 2
    mixed = share * loose + (1 - share) * good[rng.integers(len(good), size=count)]
    return np.where(rng.random((count, 1, 1)) < 0.5, loose, mixed)


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum(axis=1).max() / 2)


def maximise(problem: FiniteProblem, penalty: float | None) -> np.ndarray:
    """SLSQP over the policy itself: constrained (penalty None), or with a priced violation s >= E[cost] - d.

    Knows nothing of tilts: objective, constraints and gradients from their definitions.
    """
    shape, n = problem.reference.shape, problem.reference.size
    w = np.repeat(problem.weights, shape[1])
    reference, reward, cost = (x.ravel() for x in (problem.reference, problem.reward, problem.cost))
    rows = np.repeat(np.eye(shape[0]), shape[1], axis=1)

    def negative(z: np.ndarray) -> float:
        p = np.maximum(z[:n], 1e-300)
        return -float(w @ (p * (reward - problem.beta * np.log(p / reference)))) + (penalty or 0) * z[n]

    def gradient(z: np.ndarray) -> np.ndarray:
        p = np.maximum(z[:n], 1e-300)
        return np.append(-w * (reward - problem.beta * (np.log(p / reference) + 1)), penalty or 0)

    spend = np.append(-w * cost, 1.0)
    result = minimize(
        negative,
        np.append(problem.reference.ravel(), 1.0 if penalty is not None else 0.0),
        jac=gradient,
        method="SLSQP",
        bounds=[(1e-12, 1)] * n + [(0, None if penalty is not None else 0)],
        constraints=[
            {
                "type": "eq",
                "fun": lambda z: rows @ z[:n] - 1,
                "jac": lambda z: np.c_[rows, np.zeros(len(rows))],
            },
            {"type": "ineq", "fun": lambda z: spend @ z + problem.threshold, "jac": lambda z: spend},
        ],
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return result.x[:n].reshape(shape)


# ---- the constrained optimum ----------------------------------------------------------------------------


@THOROUGH
@given(problems)
def test_kkt_conditions_of_the_constrained_optimum(problem):
    best = problem.constrained_optimum()
    assert best.status == "active" and best.multiplier > 0
    assert abs(problem.violation(best.policy)) <= 1e-8  # primal feasible, complementary slack
    assert np.abs(best.policy.sum(axis=1) - 1).max() <= 1e-12
    # Stationary: reward - multiplier * cost - beta * log(policy / reference) is one number for each prompt.
    residual = problem.reward - best.multiplier * problem.cost
    residual = residual - problem.beta * np.log(best.policy / problem.reference)
    assert np.ptp(residual, axis=1).max() <= 1e-8
    assert best.objective == pytest.approx(best.reward - problem.beta * best.kl, abs=1e-12)
    assert problem.dual(best.multiplier) == pytest.approx(best.objective, abs=1e-9)  # strong duality


@THOROUGH
@given(problems, st.floats(0, 20))
def test_the_dual_is_convex_and_bounds_every_feasible_policy(problem, multiplier):
    best = problem.constrained_optimum()
    assert problem.dual(multiplier) >= best.objective - 1e-10
    middle = problem.dual((multiplier + best.multiplier) / 2)
    assert middle <= (problem.dual(multiplier) + best.objective) / 2 + 1e-10
    # D' = threshold - E[cost]: the slope by finite differences against the tilt's own cost.
    h = 1e-5
    slope = (problem.dual(multiplier + h) - problem.dual(max(multiplier - h, 0))) / (h + min(h, multiplier))
    assert slope == pytest.approx(-problem.violation(problem.tilted(multiplier).policy), abs=2e-3)


@pytest.mark.parametrize("seed", range(50))
def test_an_independent_solver_finds_the_same_optimum(seed):
    rng = np.random.default_rng(seed + 1000)
    problem = random_problem(
        seed, prompts=2, responses=4, depth=rng.uniform(0.2, 0.8), beta=rng.uniform(0.3, 1.5)
    )
    best = problem.constrained_optimum()
    found = maximise(problem, penalty=None)
    assert total_variation(found, best.policy) < 1e-6
    assert problem.evaluate(found / found.sum(axis=1, keepdims=True)).objective <= best.objective + 1e-8


# ---- the three penalties --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_rectified_penalty_is_exact_above_the_multiplier_and_not_below(seed):
    """By a solver that sees only the penalised objective: at 1.01 the constrained optimum, at 0.99 not."""
    problem = random_problem(seed, prompts=2, responses=4, beta=0.6)
    best = problem.constrained_optimum()
    above = maximise(problem, penalty=1.01 * best.multiplier)
    assert total_variation(above, best.policy) < 1e-6
    below = maximise(problem, penalty=0.99 * best.multiplier)
    assert problem.violation(below) > 1e-5
    assert total_variation(below, problem.penalised_optimum(0.99 * best.multiplier).policy) < 1e-6


@THOROUGH
@given(problems, st.floats(1.01, 1000))
def test_the_rectified_optimum_does_not_depend_on_the_penalty(problem, factor):
    best = problem.constrained_optimum()
    at = problem.penalised_optimum(factor * best.multiplier)
    assert total_variation(at.policy, best.policy) <= 1e-6
    assert at.multiplier == pytest.approx(best.multiplier)
    below = problem.penalised_optimum(0.99 * best.multiplier)
    assert problem.violation(below.policy) > 0


@THOROUGH
@given(problems, st.integers(0, 2**32 - 1), st.sampled_from(["rectified", "linear", "per_sample"]))
def test_no_random_policy_beats_a_penalised_optimum(problem, seed, kind):
    penalty = 1.5 * problem.constrained_optimum().multiplier
    best = problem.penalised_optimum(penalty, kind)
    top = problem.penalised_value(best.policy, penalty, kind)
    for policy in random_policies(problem, 50, seed):
        assert problem.penalised_value(policy, penalty, kind) <= top + 1e-9


@THOROUGH
@given(problems)
def test_a_linear_penalty_at_twice_the_multiplier_is_safer_and_poorer(problem):
    best = problem.constrained_optimum()
    linear = problem.penalised_optimum(2 * best.multiplier, "linear")
    assert linear.cost < best.cost
    assert linear.objective < best.objective


@THOROUGH
@given(problems, st.floats(0, 100))
def test_the_per_sample_hinge_is_never_exactly_feasible_under_kl(problem, penalty):
    hinge = np.maximum(problem.cost - problem.threshold, 0)
    assume((hinge > 0).any())
    policy = problem.penalised_optimum(penalty, "per_sample").policy
    # Compared in logarithms: the mass decays like exp(-penalty * hinge / beta) and may underflow, but no
    # finite exponent is minus infinity.
    logits = np.log(problem.reference) + (problem.reward - penalty * hinge) / problem.beta
    mass = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert np.isfinite(mass[hinge > 0]).all()
    assert np.allclose(np.exp(mass), policy, atol=1e-12)


def test_the_per_sample_hinge_keeps_unsafe_mass_at_every_moderate_penalty():
    problem = random_problem(3)
    hinge = np.maximum(problem.cost - problem.threshold, 0)
    previous = np.inf
    for penalty in (0, 1, 2, 5, 10, 20):
        policy = problem.penalised_optimum(penalty, "per_sample").policy
        left = float(problem.weights @ (policy * hinge).sum(axis=1))
        assert 0 < left < previous
        previous = left


def test_violation_bound_over_ten_thousand_policies():
    checked = 0
    for seed in range(20):
        problem = random_problem(seed, depth=0.3 + 0.03 * seed)
        best = problem.constrained_optimum()
        penalty = (1.05 + 0.2 * seed) * best.multiplier
        top = problem.penalised_value(best.policy, penalty)
        for policy in random_policies(problem, 500, seed):
            suboptimality = top - problem.penalised_value(policy, penalty)
            assert suboptimality >= -1e-9
            bound = violation_bound(max(suboptimality, 0), penalty=penalty, multiplier=best.multiplier)
            assert max(problem.violation(policy), 0) <= bound + 1e-7
            checked += 1
    assert checked == 10_000


def test_violation_bound_is_attained_in_the_limit_and_void_below():
    problem = random_problem(1)
    best = problem.constrained_optimum()
    penalty = 2 * best.multiplier
    near = problem.tilted(best.multiplier - 1e-4).policy
    gap = problem.penalised_value(best.policy, penalty) - problem.penalised_value(near, penalty)
    ratio = problem.violation(near) / violation_bound(gap, penalty=penalty, multiplier=best.multiplier)
    assert 0.99 < ratio <= 1
    assert violation_bound(0.1, penalty=1.0, multiplier=1.0) == np.inf
    with pytest.raises(UserError, match="suboptimality"):
        violation_bound(-1, penalty=2, multiplier=1)


@THOROUGH
@given(problems, st.floats(1.05, 50))
def test_slaters_bound_is_above_the_multiplier(problem, factor):
    best = problem.constrained_optimum()
    assert problem.slater_bound(problem.tilted(factor * best.multiplier).policy) >= best.multiplier - 1e-9
    with pytest.raises(UserError, match="strictly feasible"):
        problem.slater_bound(problem.tilted(0.0).policy)


def test_slaters_bound_of_the_policy_that_always_refuses_in_whole_numbers():
    problem = FiniteProblem([[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0]], beta=0.1, threshold=0.2)
    by_hand = (
        problem.constrained_optimum().objective + 0.1 * np.log(2)
    ) / 0.2  # F = -beta log 2, slack = 0.2
    assert problem.slater_bound([0, 1]) == pytest.approx(by_hand, abs=1e-9)


@THOROUGH
@given(problems)
def test_the_frontier_is_monotone_and_nothing_lies_above_it(problem):
    points = problem.frontier(np.linspace(0, 5, 9))
    costs, objectives = [p.cost for p in points], [p.objective for p in points]
    assert all(a >= b - 1e-12 for a, b in pairwise(costs))
    assert all(a >= b - 1e-12 for a, b in pairwise(objectives))
    for policy in random_policies(problem, 30, 0):
        other = problem.evaluate(policy)
        for p in points:
            assert other.objective - p.multiplier * other.cost <= p.objective - p.multiplier * p.cost + 1e-9
