"""Without KL: the sorted hulls against HiGHS, a general solver that knows nothing of hulls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

from csrlhf_kit.errors import UserError
from csrlhf_kit.knapsack import hull_edges
from csrlhf_kit.theory import FiniteProblem, Solution

THOROUGH = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def highs(problem: FiniteProblem, penalty: float | None = None) -> tuple[float, np.ndarray]:
    """Objective and policy of the linear programme, from its definition: the policy, then one violation a
    constraint, at `penalty` each (None: no violation allowed). None of ours but the tables is used."""
    prompts, responses = problem.reference.shape
    n, w = prompts * responses, problem.weights
    limits = np.broadcast_to(problem.threshold, prompts) if problem.per_prompt else [problem.threshold]
    rows, cells = np.repeat(np.arange(prompts), responses), np.arange(n)
    if problem.per_prompt:
        spend = sparse.csr_array((problem.cost.ravel(), (rows, cells)), (prompts, n))
        share = w
    else:
        spend = sparse.csr_array((w[:, None] * problem.cost).reshape(1, n))
        share = np.ones(1)
    total = sparse.csr_array((np.ones(n), (rows, cells)), (prompts, n + len(share)))
    found = linprog(
        np.concatenate([-(w[:, None] * problem.reward).ravel(), share * (penalty or 0.0)]),
        A_ub=sparse.hstack([spend, -sparse.eye_array(len(share))]).tocsr(),
        b_ub=limits,
        A_eq=total,
        b_eq=np.ones(prompts),
        bounds=[(0, float(p > 0)) for p in problem.reference.ravel()]
        + [(0, None if penalty is not None else 0)] * len(share),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.status == 0, found.message
    return -found.fun, found.x[:n].reshape(prompts, responses)


def make_problem(
    seed: int,
    prompts: int,
    responses: int,
    depth: float,
    *,
    whole: bool = False,
    per_prompt: bool = False,
    gaps: bool = False,
) -> FiniteProblem:
    """`depth` of the way from the free optimum's cost to the least; `whole` numbers bring ties of every sort:
    equal responses, points on an edge, edges of one slope, budgets that end where an edge does."""
    rng = np.random.default_rng(seed)
    shape = (prompts, responses)
    if whole:
        reward, cost = rng.integers(-2, 3, size=(2, *shape)).astype(float)
        weights = np.ones(prompts)
    else:
        reward = rng.normal(size=shape)
        cost = rng.normal(size=shape) + 0.7 * reward
        weights = rng.uniform(0.5, 1.5, prompts)
    reference = rng.dirichlet(np.ones(responses), prompts)
    if gaps:
        reference[:, 1:] *= rng.random((prompts, responses - 1)) < 0.6
        reference /= reference.sum(axis=1, keepdims=True)
    given = {"beta": 0.0, "prompt_weights": weights, "per_prompt": per_prompt}
    free = FiniteProblem(reference, reward, cost, threshold=0.0, **given)
    at_once = np.asarray(free.violation(free.tilted(0.0).policy))
    threshold = at_once + depth * (np.asarray(free.smallest_cost()) - at_once)
    if whole:
        threshold = np.ceil(threshold * prompts) / prompts
    return FiniteProblem(
        reference, reward, cost, threshold=threshold if per_prompt else float(threshold), **given
    )


problems = st.builds(
    make_problem,
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(-20, 100).map(lambda percent: percent / 100),  # else a violation of 1e-12 counts as one
    whole=st.booleans(),
    per_prompt=st.booleans(),
    gaps=st.booleans(),
)


def is_vertex(problem: FiniteProblem, solution: Solution) -> bool:
    mixing = (solution.policy > 0).sum(axis=1)
    return mixing.max() <= 2 and (problem.per_prompt or (mixing == 2).sum() <= 1)


@THOROUGH
@given(problems)
def test_the_constrained_optimum_is_that_of_a_general_solver(problem):
    best = problem.constrained_optimum()
    value, policy = highs(problem)
    assert best.objective == pytest.approx(value, abs=1e-9)
    assert np.max(problem.violation(best.policy)) <= 1e-9
    assert is_vertex(problem, best)
    # The multiplier is the least minimiser of the dual: no gap at it, one below it, the budget spent.
    price = np.atleast_1d(best.multiplier)
    assert problem.dual(best.multiplier) == pytest.approx(value, abs=1e-9)
    binding = price > 0
    assert (binding.any() and best.status == "active") or (not binding.any() and best.status == "slack")
    assert np.abs(np.atleast_1d(problem.violation(best.policy))[binding]).max(initial=0) <= 1e-9
    assert np.abs(np.atleast_1d(problem.violation(policy))[binding]).max(initial=0) <= 1e-9  # so is theirs
    for x in np.flatnonzero(binding):
        lower = price.copy()
        lower[x] *= 0.9
        assert problem.dual(lower if problem.per_prompt else float(lower[0])) > value + 1e-12


@THOROUGH
@given(problems, st.floats(0, 4), st.floats(-2, 2))
def test_the_rectified_optimum_is_that_of_a_general_solver(problem, penalty, shift):
    """Also where the shifted threshold is out of reach, and where the penalty is a slope itself."""
    moved = FiniteProblem(
        problem.reference,
        problem.reward,
        problem.cost,
        beta=0.0,
        threshold=problem.threshold + shift,
        prompt_weights=problem.weights,
        per_prompt=problem.per_prompt,
    )
    _, edges = hull_edges(problem.cost, problem.reward, problem.reference > 0)
    for price in (penalty, *edges.slope[:1]):
        best = moved.penalised_optimum(float(price))
        value, _ = highs(moved, float(price))
        assert moved.penalised_value(best.policy, float(price)) == pytest.approx(value, abs=1e-9)
        assert (np.asarray(best.multiplier) <= price).all()
        assert is_vertex(moved, best)


@THOROUGH
@given(problems, st.floats(1.01, 100))
def test_any_penalty_above_the_multiplier_is_exact_and_one_below_is_not(problem, factor):
    best = problem.constrained_optimum()
    most = float(np.max(best.multiplier))
    above = problem.penalised_optimum(factor * most + 1e-3)
    assert above.objective == pytest.approx(best.objective, abs=1e-9)
    assert np.max(problem.violation(above.policy)) <= 1e-9
    if most > 0:
        assert np.max(problem.violation(problem.penalised_optimum(0.9 * most).policy)) > 1e-9


def test_small_problems_by_hand():
    # One prompt, hull (0, 0) -> (1, 2) -> (3, 3); (2, 2.4) lies under it, (2, 2.5) on it.
    reward, cost = [[2.0, 0.0, 2.4, 3.0, 2.5, 3.0]], [[1.0, 0.0, 2.0, 3.0, 2.0, 3.0]]
    reference = np.full((1, 6), 1 / 6)

    def solve(threshold: float) -> Solution:
        return FiniteProblem(reference, reward, cost, beta=0, threshold=threshold).constrained_optimum()

    first, edges = hull_edges(np.array(cost), np.array(reward), reference > 0)
    assert first.tolist() == [1]
    assert [edges.left.tolist(), edges.right.tolist()] == [[1, 0], [0, 3]]
    assert [edges.slope.tolist(), edges.length.tolist()] == [[2.0, 0.5], [1.0, 2.0]]
    assert [solve(t).multiplier for t in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)] == [2.0, 2.0, 0.5, 0.5, 0.0, 0.0]
    assert [solve(t).reward for t in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)] == [0.0, 1.0, 2.0, 2.5, 3.0, 3.0]
    assert solve(0.5).policy.tolist() == [[0.5, 0.5, 0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"smallest reachable cost is 0"):
        solve(-0.1)


def test_a_budget_that_ends_with_an_edge_up_to_rounding_asks_the_next_price():
    """0.1 + 0.2 is a hair more than 0.3: the first edges are bought, the multiplier is the third's."""
    cost = np.array([[0.0, 0.1], [0.0, 0.2], [0.0, 1.0]])
    reward = np.array([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]])
    problem = FiniteProblem(np.full((3, 2), 0.5), reward, cost, beta=0, threshold=0.3 / 3)
    best = problem.constrained_optimum()
    assert best.multiplier == pytest.approx(1.0)
    assert best.reward == pytest.approx(5.0 / 3)


def test_the_price_is_the_limit_of_a_vanishing_kl():
    problem = make_problem(4, 6, 8, 0.5)
    sharp = problem.constrained_optimum()
    soft = FiniteProblem(
        problem.reference, problem.reward, problem.cost, beta=1e-4, threshold=problem.threshold,
        prompt_weights=problem.weights,
    ).constrained_optimum()  # fmt: skip
    assert soft.multiplier == pytest.approx(sharp.multiplier, rel=0.01)
    assert soft.reward == pytest.approx(sharp.reward, abs=0.01)


def test_sorting_is_much_faster_than_a_general_solver(seconds):
    """A ratio of CPU times on one problem, so that it holds on any machine: 28-fold where it was written."""
    problem = make_problem(0, 300, 64, 0.5)
    assert problem.constrained_optimum().objective == pytest.approx(highs(problem)[0], abs=1e-9)

    assert seconds(problem.constrained_optimum) < seconds(lambda: highs(problem)) / 5
