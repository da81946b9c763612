"""The exact part at its edges: vanishing KL, slack, tight and infeasible thresholds, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_problem import THOROUGH, problems, random_problem, total_variation

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory import FiniteProblem


@pytest.mark.parametrize("seed", range(10))
def test_as_the_kl_vanishes_it_is_the_linear_programme(seed):
    rng = np.random.default_rng(seed)
    shape = (3, 5)
    reward, cost = rng.normal(size=shape), rng.normal(size=shape)
    free = (reward == reward.max(axis=1, keepdims=True)).astype(float)
    threshold = float(((free * cost).sum(axis=1).mean() + cost.min(axis=1).mean()) / 2)
    direct = linprog(
        -reward.ravel() / 3,
        A_ub=[cost.ravel() / 3],
        b_ub=[threshold],
        A_eq=np.repeat(np.eye(3), 5, axis=1),
        b_eq=np.ones(3),
    )
    problem = FiniteProblem(np.full(shape, 0.2), reward, cost, beta=1e-3, threshold=threshold)
    best = problem.constrained_optimum()
    assert best.reward == pytest.approx(-direct.fun, abs=0.02)
    assert best.multiplier == pytest.approx(-direct.ineqlin.marginals[0], rel=0.1, abs=0.02)


def test_a_slack_constraint_costs_nothing():
    problem = random_problem(0, depth=-0.5)
    best = problem.constrained_optimum()
    assert best.status == "slack" and best.multiplier == 0
    assert np.array_equal(best.policy, problem.tilted(0.0).policy)
    assert problem.penalised_optimum(100.0).objective == best.objective


def test_a_tight_constraint_leaves_only_the_least_cost():
    reward, cost = np.array([[3.0, 1.0, 0.0, 2.0]]), np.array([[1.0, 0.0, 0.0, 0.5]])
    problem = FiniteProblem(np.full((1, 4), 0.25), reward, cost, beta=0.5, threshold=0.0)
    best = problem.constrained_optimum()
    assert best.cost == 0 and (best.policy[0, [0, 3]] == 0).all()
    assert best.status == "tight" and best.multiplier == np.inf
    odds = best.policy[0, 1] / best.policy[0, 2]
    assert odds == pytest.approx(np.exp(1 / 0.5))
    assert problem.penalised_optimum(10.0).cost > 0  # no finite penalty is exact here


@THOROUGH
@given(st.integers(0, 2**32 - 1), st.floats(1e-9, 1e-3))
@example(493, 0.0003269361746281074)  # a solver by Newton's steps jumped to and fro here
def test_thresholds_a_hair_above_the_least_cost_are_met(seed, hair):
    problem = random_problem(seed, depth=1 - hair)
    best = problem.constrained_optimum()
    assert np.isfinite(best.multiplier)
    assert abs(problem.violation(best.policy)) <= 1e-9


def test_an_infeasible_problem_names_the_smallest_reachable_cost():
    problem = FiniteProblem(
        [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]],
        [[1, 2, 3], [1, 2, 3]],
        [[1.25, 2, -9], [0.75, 1, 1]],  # -9 is not within the reference's reach
        beta=0.5,
        threshold=0.5,
    )
    with pytest.raises(UserError, match=r"threshold 0\.5.*smallest reachable cost is 1"):
        problem.constrained_optimum()
    assert problem.smallest_cost() == 1.0
    # The penalised problem is still one, and goes as far as the penalty pays for.
    assert problem.penalised_optimum(1e6).cost == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": [[0.5, 0.6]]}, "sum to 1"),
        ({"reference": [[1.5, -0.5]]}, "sum to 1"),
        ({"reward": [[1.0]]}, "reward has shape"),
        ({"cost": [[np.nan, 1.0]]}, "cost: every response"),
        ({"beta": -1}, "beta is -1"),
        ({"beta": 0}, "beta is 0"),
        ({"beta": np.inf}, "beta is inf"),
        ({"threshold": [0.1, 0.2]}, "threshold"),
        ({"prompt_weights": [0.0]}, "prompt_weights"),
    ],
)
def test_what_makes_no_problem_is_told(change, words):
    given = {
        "reference": [[0.5, 0.5]],
        "reward": [[1.0, 2.0]],
        "cost": [[0.0, 1.0]],
        "beta": 1,
        "threshold": 0,
    }
    given |= change
    with pytest.raises(UserError, match=words):
        FiniteProblem(given.pop("reference"), given.pop("reward"), given.pop("cost"), **given)


def test_policies_that_make_no_sense_are_told():
    problem = FiniteProblem([[0.5, 0.5, 0.0]], [[1, 2, 3]], [[0, 1, 2]], beta=1, threshold=0.5)
    with pytest.raises(UserError, match="KL is infinite"):
        problem.evaluate([[0.5, 0.0, 0.5]])
    with pytest.raises(UserError, match="probabilities were expected"):
        problem.evaluate([[0.5, 0.6, 0.0]])
    with pytest.raises(UserError, match="multiplier"):
        problem.tilted(-1.0)
    with pytest.raises(UserError, match="kind is"):
        problem.penalised_optimum(1.0, "hinge")
    uniform = problem.evaluate([[0.25, 0.75, 0.0]])
    assert uniform.kl == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))


@THOROUGH
@given(problems, st.floats(0.01, 100), st.floats(-50, 50))
def test_units_do_not_matter(problem, scale, shift):
    """Costs in other units: the multiplier is in reward per cost, the policy is the same."""
    best = problem.constrained_optimum()
    moved = FiniteProblem(
        problem.reference,
        problem.reward + shift,
        scale * problem.cost + shift,
        beta=problem.beta,
        threshold=scale * problem.threshold + shift,
        prompt_weights=problem.weights,
    ).constrained_optimum()
    assert moved.multiplier * scale == pytest.approx(best.multiplier, rel=1e-6)
    assert total_variation(moved.policy, best.policy) < 1e-6


def test_the_multiplier_of_a_thousand_prompts_costs_a_few_dozen_tilts(seconds):
    """A ratio of CPU times, so that it holds on any machine; benchmarks/solver.py has the seconds."""
    rng = np.random.default_rng(0)
    reference = rng.dirichlet(np.ones(64), 1000)
    reward, cost = rng.normal(size=(2, 1000, 64))
    problem = FiniteProblem(reference, reward, cost, beta=0.1, threshold=-0.5)

    assert seconds(problem.constrained_optimum) < 40 * seconds(lambda: problem.tilted(1.0))
    assert problem.constrained_optimum().cost == pytest.approx(-0.5, abs=1e-10)
