"""Each constraint against its equation, computed apart; and the protocol that all of them share."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from csrlhf_kit.errors import UserError
from csrlhf_kit.training.constraints import (
    CONSTRAINTS,
    CRPO,
    P3O,
    AugmentedLagrangian,
    Constraint,
    FixedPenalty,
    Lagrangian,
    LinearPenalty,
    PIDLagrangian,
    RectifiedSample,
    Unconstrained,
)

ALL = [
    Unconstrained,
    FixedPenalty,
    LinearPenalty,
    RectifiedSample,
    Lagrangian,
    PIDLagrangian,
    AugmentedLagrangian,
    P3O,
    CRPO,
]
REWARD = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0], [2.0, -1.0]])
COST = torch.tensor([[0.3, 0.1], [-0.7, 0.2], [0.9, 0.0], [-0.1, 0.4]])
UNSAFE = torch.tensor([1.0, 1.0, 0.0, 1.0])
SAFE = torch.tensor([0.0, 0.0, 0.1, 0.0])


def mixed(multiplier: float) -> torch.Tensor:
    return (REWARD - multiplier * COST) / (1 + multiplier)


@pytest.mark.parametrize("kind", ALL)
def test_state_survives_json_and_continues_alike(kind):
    whole, first = kind(threshold=0.2, window=6), kind(threshold=0.2, window=6)
    for costs in (UNSAFE, SAFE * 3.3):
        whole.observe(costs)
        first.observe(costs)
    second = kind(threshold=0.2, window=6)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.multiplier == whole.multiplier
    for constraint in (whole, second):
        constraint.observe(UNSAFE * 0.7)
    assert second.multiplier == whole.multiplier
    assert torch.equal(second.combine(REWARD, COST), whole.combine(REWARD, COST))


@pytest.mark.parametrize("kind", ALL)
def test_window_mean_is_over_the_last_episodes(kind):
    constraint = kind(threshold=0.5, window=6)
    constraint.observe(UNSAFE)
    constraint.observe(SAFE)
    assert constraint.window_cost == pytest.approx((0 + 1 + 0 + 0 + 0.1 + 0) / 6, abs=1e-7)
    assert constraint.violation == pytest.approx(constraint.window_cost - 0.5)


@pytest.mark.parametrize("kind", ALL)
def test_no_violation_and_no_multiplier_means_plain_ppo(kind):
    """Where the effective multiplier is 0 the advantages are the reward's: divided by 1, not by 1 +
    lambda.
    """
    constraint = kind(threshold=0.5)
    constraint.observe(SAFE)
    if constraint.multiplier == 0:
        assert torch.equal(constraint.combine(REWARD, COST), REWARD)
    else:
        assert kind in (LinearPenalty, RectifiedSample, Lagrangian)
        assert torch.allclose(constraint.combine(REWARD, COST), mixed(constraint.multiplier))


def test_fixed_penalty_gates_on_the_window_mean():
    constraint = FixedPenalty(threshold=0.5, window=8, penalty=20)
    constraint.observe(UNSAFE)  # mean 0.75
    assert constraint.multiplier == 20
    assert torch.allclose(constraint.combine(REWARD, COST), mixed(20))
    constraint.observe(SAFE)  # window mean 0.3875, though half of it is the unsafe batch
    assert constraint.multiplier == 0
    assert torch.equal(constraint.combine(REWARD, COST), REWARD)


def test_fixed_penalty_does_not_fire_at_the_threshold_itself():
    constraint = FixedPenalty(threshold=0.75)
    constraint.observe(UNSAFE)
    assert constraint.multiplier == 0


def test_fixed_penalty_gates_on_the_same_batch():
    constraint = FixedPenalty(threshold=0.5, window=1000, gate="batch")
    constraint.observe(UNSAFE)
    constraint.observe(SAFE)
    assert constraint.multiplier == 0
    constraint.observe(UNSAFE)
    assert constraint.multiplier == 20


def test_fixed_penalty_gates_each_half_by_the_other():
    constraint = FixedPenalty(threshold=0.5, gate="half", penalty=3)
    constraint.observe(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    combined = constraint.combine(REWARD, COST)
    assert torch.equal(combined[:2], REWARD[:2])  # the other half is safe
    assert torch.allclose(combined[2:], mixed(3)[2:])
    assert constraint.multiplier == 1.5


def test_fixed_penalty_gates_on_a_moving_average():
    constraint = FixedPenalty(threshold=0.5, gate="ema", ema_decay=0.8)
    constraint.observe(UNSAFE)
    for step in range(1, 5):
        constraint.observe(torch.zeros(4))
        assert (constraint.multiplier > 0) == (0.75 * 0.8**step > 0.5)


def test_linear_penalty_ignores_the_threshold():
    for threshold in (0.0, 1e9):
        constraint = LinearPenalty(threshold=threshold, penalty=7)
        constraint.observe(SAFE)
        assert torch.allclose(constraint.combine(REWARD, COST), mixed(7))


def test_rectified_sample_clips_each_episode():
    constraint = RectifiedSample(threshold=0.25)
    assert constraint.shape(torch.tensor([1.0, 0.2, 0.25])).tolist() == [0.75, 0.0, 0.0]
    assert Unconstrained(threshold=0.25).shape(SAFE) is SAFE


def test_lagrangian_follows_safe_rlhf_and_stops_at_its_maximum():
    constraint = Lagrangian(threshold=0.25, window=4, initial=1.0, rate=0.1, maximum=5.0)
    multiplier = 1.0
    for costs in (UNSAFE, SAFE, UNSAFE):
        constraint.observe(costs)
        # gradient of lambda * (J_C - d) with respect to log lambda, by central differences
        step, gap = 1e-6, float(costs.mean()) - 0.25
        log = math.log(multiplier)
        gradient = (math.exp(log + step) * gap - math.exp(log - step) * gap) / (2 * step)
        multiplier = math.exp(log + 0.1 * gradient)
        assert constraint.multiplier == pytest.approx(multiplier, rel=1e-7)
    for _ in range(200):
        constraint.observe(UNSAFE)
    assert constraint.multiplier == pytest.approx(5.0)
    for _ in range(3):
        constraint.observe(SAFE)
    assert constraint.multiplier < 5.0  # clamped, not wound up


def test_unscaled_lagrangian_moves_the_logarithm_alone():
    constraint = Lagrangian(threshold=0.25, window=4, initial=0.01, rate=0.1, scaled=False)
    constraint.observe(UNSAFE)
    assert constraint.multiplier == pytest.approx(0.01 * math.exp(0.1 * 0.5))


def test_pid_against_its_recursion():
    constraint = PIDLagrangian(threshold=0.25, window=4, proportional=0.3, integral=0.2, derivative=0.5)
    integral, previous = 0.0, None
    for mean, costs in ((0.75, UNSAFE), (0.025, SAFE), (0.75, UNSAFE), (0.025, SAFE)):
        constraint.observe(costs)
        gap = mean - 0.25
        integral = max(0.0, integral + 0.2 * gap)
        rise = 0.0 if previous is None else max(0.0, gap - previous)
        previous = gap
        assert constraint.multiplier == pytest.approx(max(0.0, 0.3 * gap + integral + 0.5 * rise), abs=1e-7)


def test_augmented_lagrangian_is_the_gradient_of_its_penalty():
    constraint = AugmentedLagrangian(threshold=0.25, window=4, rho=2.0, initial=0.3)
    mu = 0.3

    def penalty(gap: float) -> float:
        return (max(mu + 2.0 * gap, 0.0) ** 2 - mu**2) / (2 * 2.0)

    for mean, costs in ((0.75, UNSAFE), (0.025, SAFE), (0.025, SAFE), (0.025, SAFE), (0.025, SAFE)):
        constraint.observe(costs)
        gap, step = mean - 0.25, 1e-6
        assert constraint.multiplier == pytest.approx(
            (penalty(gap + step) - penalty(gap - step)) / (2 * step), abs=1e-6
        )
        mu = constraint.multiplier
    assert mu == 0.0


def test_p3o_penalty_and_its_gradient():
    constraint = P3O(threshold=0.25, window=4, penalty=20, clip=0.2)
    constraint.observe(UNSAFE)  # violation 0.5
    response_mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    ratio = torch.ones(4, 2, requires_grad=True)
    loss = constraint.extra_loss(ratio, COST, response_mask)
    assert float(loss.detach()) == pytest.approx(20 * 0.5)  # at ratio 1: the window's violation
    (gradient,) = torch.autograd.grad(loss, ratio)
    assert torch.allclose(gradient, 20 * COST * response_mask / 4, atol=1e-6)
    assert torch.equal(constraint.combine(REWARD, COST), REWARD)
    assert not constraint.kl_in_costs

    for value in (0.5, 1.1, 1.7):  # a drop beyond the clip range is not credited where the cost is positive
        total = 0.0
        for cost, action in zip(COST.flatten().tolist(), response_mask.flatten().tolist(), strict=True):
            total += max((value - 1) * cost, (min(max(value, 0.8), 1.2) - 1) * cost) * action
        got = float(constraint.extra_loss(torch.full((4, 2), value), COST, response_mask))
        assert got == pytest.approx(20 * max(total / 4 + 0.5, 0.0), rel=1e-5)

    constraint.observe(SAFE)  # violation -0.225
    assert float(constraint.extra_loss(ratio.detach(), torch.zeros(4, 2), response_mask)) == 0
    assert constraint.multiplier == 0


def test_crpo_switches_between_cost_and_reward():
    constraint = CRPO(threshold=0.25, window=4, tolerance=0.4)
    constraint.observe(UNSAFE)
    assert torch.equal(constraint.combine(REWARD, COST), -COST)
    constraint = CRPO(threshold=0.25, window=4, tolerance=0.6)
    constraint.observe(UNSAFE)
    assert torch.equal(constraint.combine(REWARD, COST), REWARD)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constraint(window=0),
        lambda: FixedPenalty(penalty=-1),
        lambda: FixedPenalty(gate="weather"),
        lambda: LinearPenalty(penalty=math.nan),
        lambda: Lagrangian(initial=0.0),
        lambda: Lagrangian(initial=6.0, maximum=5.0),
        lambda: PIDLagrangian(derivative=-0.1),
        lambda: Lagrangian().load_state_dict(Unconstrained().state_dict()),
    ],
)
def test_bad_settings_are_told(make):
    with pytest.raises(UserError):
        make()


def test_no_constraint_costs_a_fiftieth_of_a_step():
    """The benchmark itself, at its smallest; CPU seconds of one thread, so that other processes do not matter."""
    path = Path(__file__).parents[2] / "benchmarks" / "constraint_overhead.py"
    spec = importlib.util.spec_from_file_location("constraint_overhead", path)
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["constraint_overhead"] = benchmark  # its dataclass looks its own module up
    spec.loader.exec_module(benchmark)
    rows = benchmark.measure(benchmark.Config(shape="tiny", steps=1, repeats=30))
    assert {row["method"] for row in rows} == {*CONSTRAINTS, "per_group (14)"}
    assert all(row["share_percent"] < 2.0 for row in rows), rows
