"""The theory's figures show what the theory says: checked against closed forms and brute force."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.coverage_figures import interval_coverage, read_coverage
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures import theory as figures
from csrlhf_kit.figures.static import static_svg
from csrlhf_kit.theory import FiniteProblem, FixedGate, LogLagrangian, simulate_dual, suggest_penalty

TABLES = Path(__file__).parents[2] / "benchmarks" / "results"


def make_problem(threshold: float = -0.1) -> FiniteProblem:
    rng = np.random.default_rng(3)
    reward = rng.normal(size=(6, 12))
    cost = 0.8 * reward + rng.normal(size=(6, 12))
    return FiniteProblem(rng.dirichlet(np.ones(12), 6), reward, cost, beta=0.5, threshold=threshold)


PROBLEM = make_problem()
OPTIMUM = PROBLEM.constrained_optimum()
TRAJECTORIES = {
    "fixed_penalty": simulate_dual(PROBLEM, FixedGate(2 * OPTIMUM.multiplier), steps=60),
    "lagrangian": simulate_dual(PROBLEM, LogLagrangian(rate=0.5), steps=60),
}


def suggestion():
    rng = np.random.default_rng(0)
    reward, cost = rng.normal(size=(2, 8, 64))
    return suggest_penalty(reward, cost, beta=0.5, threshold=-0.3, bootstrap=50)


DRAWN = {
    "penalty_landscape": lambda: figures.penalty_landscape(PROBLEM),
    "penalty_frontier": lambda: figures.penalty_frontier(PROBLEM),
    "violation_and_loss": lambda: figures.violation_and_loss(PROBLEM),
    "batch_hinge": lambda: figures.batch_hinge(PROBLEM, repeats=1000),
    "dual_trajectories": lambda: figures.dual_trajectories(
        TRAJECTORIES, threshold=PROBLEM.threshold, multiplier=OPTIMUM.multiplier
    ),
    "interval_coverage": lambda: interval_coverage(read_coverage(TABLES / "coverage.csv")),
    "judge_coverage": lambda: interval_coverage(
        read_coverage(TABLES / "coverage_judge.csv"), group="judge", panel=None
    ),
    "suggested_frontier": lambda: figures.suggested_frontier(
        suggestion().frontier,
        {"ppo": {"reward": 0.4, "cost": 0.2, "kl": 0.6, "shortfall": 0.5}},
        threshold=-0.3,
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_figure_is_deterministic_small_and_has_a_twin(name):
    figure, again = DRAWN[name](), DRAWN[name]()
    assert figure.to_json() == again.to_json()
    assert "bdata" not in figure.to_json()
    svg = static_svg(figure)
    assert svg == static_svg(again)
    assert len(svg) < 80_000
    ElementTree.fromstring(svg)  # a page of its own, too
    for axis in [*figure.select_xaxes(), *figure.select_yaxes()]:
        assert axis.title.text or axis.matches
        assert (axis.title.text or "") in svg.replace("&lt;", "<").replace("&gt;", ">")


def traces(figure, **wanted):
    return [t for t in figure.data if all(t[key] == value for key, value in wanted.items())]


def test_the_rectified_maximum_stays_in_the_kink_and_the_linear_one_leaves_it():
    multiples = (0.5, 2.0, 5.0)
    figure = figures.penalty_landscape(PROBLEM, multiples=multiples)
    dots = traces(figure, mode="markers")
    rectified, linear = ([t for t in dots if (t.xaxis or "x") == axis] for axis in ("x", "x2"))
    assert rectified[0].x[0] > PROBLEM.threshold
    for dot in rectified[1:]:
        assert dot.x[0] == pytest.approx(PROBLEM.threshold, abs=1e-5)
    for dot in linear[1:]:
        assert dot.x[0] < PROBLEM.threshold - 0.01
    lines = traces(figure, mode="lines")
    for line in lines:
        [dot] = [t for t in dots if t.legendgroup == line.legendgroup and t.xaxis == line.xaxis]
        assert dot.y[0] >= max(line.y) - 1e-4, "the dot is the curve's maximum"
        assert dot.y[0] == pytest.approx(max(line.y), abs=0.02)


def test_no_random_policy_beats_the_frontier_that_is_drawn():
    figure = figures.penalty_frontier(PROBLEM)
    [line] = traces(figure, mode="lines")
    order = np.argsort(line.x)
    rng = np.random.default_rng(0)
    for sharpness in (0.3, 1.0, 3.0) * 50:
        logits = np.log(PROBLEM.reference) + sharpness * rng.normal(size=PROBLEM.reference.shape)
        policy = np.exp(logits - logits.max(axis=1, keepdims=True))
        worth = PROBLEM.evaluate(policy / policy.sum(axis=1, keepdims=True))
        if min(line.x) <= worth.cost <= max(line.x):
            best = np.interp(worth.cost, np.array(line.x)[order], np.array(line.y)[order])
            assert worth.objective <= best + 0.01
    per_sample = traces(figure, name="per-sample hinge")[0]
    best = np.interp(per_sample.x, np.array(line.x)[order], np.array(line.y)[order])
    assert (best - np.array(per_sample.y) > 0.001).any(), "the per-sample hinge leaves the frontier"
    linear = traces(figure, name="linear penalty")[0]
    assert np.interp(linear.x, np.array(line.x)[order], np.array(line.y)[order]) == pytest.approx(
        linear.y, abs=0.01
    )


def test_violation_and_loss_are_zero_past_the_optimal_multiplier_for_the_rectified_penalty_only():
    figure = figures.violation_and_loss(PROBLEM, multiples=[0.5, 0.99, 1.01, 4.0])
    values = {(t.name, t.yaxis): t.y for t in figure.data}
    assert values["rectified mean", "y"][1] > 0
    assert values["rectified mean", "y"][2:] == (0.0, 0.0)
    assert values["rectified mean", "y2"][2:] == (0.0, 0.0)
    assert values["linear penalty", "y"][3] == 0.0
    assert values["linear penalty", "y2"][3] > 0.1
    assert values["per-sample hinge", "y2"][3] > 0


def test_batch_hinge_agrees_with_its_closed_form_and_crosses_at_twice_the_optimum():
    figure = figures.batch_hinge(PROBLEM, batches=(16, 256), repeats=4000, seed=1)
    line, dots = figure.data[:2]
    joint = PROBLEM.weights[:, None] * OPTIMUM.policy
    spread = math.sqrt((joint * (PROBLEM.cost - (joint * PROBLEM.cost).sum()) ** 2).sum())
    for x, y in zip(line.x, line.y, strict=True):
        assert y == pytest.approx(spread / math.sqrt(2 * math.pi * x), rel=1e-3)
    for x, y, error in zip(dots.x, dots.y, dots.error_y.array, strict=True):
        assert abs(y - spread / math.sqrt(2 * math.pi * x)) < 2 * error + 0.03 * y
    for curve in figure.data[2:]:
        assert np.interp(2.0, curve.x, curve.y) == pytest.approx(0.0, abs=2e-3)
        assert curve.y[0] > 0 > curve.y[-1]


def test_trajectories_are_drawn_step_by_step():
    figure = figures.dual_trajectories(TRAJECTORIES, threshold=-0.1, multiplier=0.5, steps=40)
    assert [len(t.x) for t in figure.data] == [40] * 4
    gate = TRAJECTORIES["fixed_penalty"]
    assert figure.data[0].y == pytest.approx(gate.eta[:40], rel=1e-4)
    assert [shape.y0 for shape in figure.layout.shapes] == [0.5, -0.1]


def test_coverage_is_drawn_from_the_committed_table():
    rows = read_coverage(TABLES / "coverage.csv")
    figure = interval_coverage(rows)
    drawn = [
        (y, e) for t in figure.data if t.error_y.array for y, e in zip(t.y, t.error_y.array, strict=True)
    ]
    told = [(100 * float(row["coverage"]), 200 * float(row["error"])) for row in rows]
    assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(told)))
    widths = [y for t in figure.data if not t.error_y.array for y in t.y]
    assert sorted(widths) == pytest.approx(sorted(100 * float(row["mean_width"]) for row in rows), rel=1e-4)
    assert static_svg(figure) == (TABLES / "coverage.svg").read_text(), "python benchmarks/coverage.py --draw"


def test_coverage_far_below_its_promise_is_told_by_its_number():
    figure = interval_coverage(read_coverage(TABLES / "coverage_judge.csv"), group="judge", panel=None)
    [judge] = [t for t in figure.data if t.name == "judge alone" and t.error_y.array]
    assert judge.text == ("23%", "0%", "0%", "") and judge.y[:3] == (90.0, 90.0, 90.0)
    assert judge.marker.symbol == ("circle-open", "circle-open", "circle-open", "circle")


def test_a_table_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match="expected a table of coverage"):
        read_coverage(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("method,width\nwilson,1\n")
    with pytest.raises(UserError, match="column `coverage` or every row is missing"):
        read_coverage(tmp_path / "other.csv")


def test_a_policys_bar_ends_at_the_best_reward_for_its_own_cost_and_kl():
    policies = {"ppo": {"reward": 0.4, "cost": 0.2, "kl": 0.6, "shortfall": 0.5}}
    figure = figures.suggested_frontier(suggestion().frontier, policies, threshold=-0.3)
    marks = traces(figure, name="PPO, unconstrained")
    assert [(t.x, t.y, t.error_y.array) for t in marks] == [((x,), (0.4,), (0.5,)) for x in (0.2, 0.6)]


def test_unsupported_points_of_a_suggested_frontier_are_hollow():
    points = suggestion().frontier
    figure = figures.suggested_frontier(points, threshold=-0.3)
    symbols = figure.data[0].marker.symbol
    assert [s == "circle-open" for s in symbols] == [p.effective_samples < 5 for p in points]


def test_a_problem_without_a_kink_is_refused():
    problem = make_problem(threshold=50.0)
    for draw in (
        figures.penalty_landscape,
        figures.penalty_frontier,
        figures.violation_and_loss,
        figures.batch_hinge,
    ):
        with pytest.raises(UserError, match="constraint that binds; here it is slack"):
            draw(problem)
