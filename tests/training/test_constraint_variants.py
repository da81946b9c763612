"""Penalties that adapt, gate each prompt, shape the reward or differ by group; and PTX: each against its equation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from example_prompts import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Trajectory
from csrlhf_kit.runs import Run
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.training.constraints import (
    P3O,
    AdaptivePenalty,
    FixedPenalty,
    Lagrangian,
    LinearPenalty,
    RectifiedPrompt,
    RectifiedSample,
    RewardShaping,
    Unconstrained,
)
from csrlhf_kit.training.constraints.per_group import PerGroup
from csrlhf_kit.training.dialogues import encode_responses, imitation_backward, sequence_log_probs
from csrlhf_kit.training.ppo import PPOConfig, config_dict, train_ppo
from csrlhf_kit.training.ppo_update import estimate

REWARD = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0], [2.0, -1.0]])
COST = torch.tensor([[0.3, 0.1], [-0.7, 0.2], [0.9, 0.0], [-0.1, 0.4]])
UNSAFE = torch.tensor([1.0, 1.0, 0.0, 1.0])
SAFE = torch.tensor([0.0, 0.0, 0.1, 0.0])
GROUPS = ["theft", "lies", "theft", "rude"]


def mixed(multiplier: float | torch.Tensor) -> torch.Tensor:
    return (REWARD - multiplier * COST) / (1 + multiplier)


def per_group() -> PerGroup:
    return PerGroup(
        window=6,
        constraints={
            "": FixedPenalty(threshold=0.5, penalty=3.0, window=4),
            "theft": FixedPenalty(threshold=0.9, penalty=7.0, window=4),
            "lies": Lagrangian(threshold=0.25, window=2),
        },
    )


MAKERS = {
    "adaptive": lambda: AdaptivePenalty(threshold=0.2, window=6, patience=2),
    "per prompt": lambda: RectifiedPrompt(threshold=0.2, window=6),
    "shaping": lambda: RewardShaping(threshold=0.2, window=6, weight=2.0),
    "per group": per_group,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_state_survives_json_and_continues_alike(make):
    whole, first = make(), make()
    for costs in (UNSAFE, UNSAFE, SAFE * 3.3, UNSAFE):
        whole.observe(costs, GROUPS)
        first.observe(costs, GROUPS)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.multiplier == whole.multiplier and second.stats() == whole.stats()
    for _ in range(3):
        for constraint in (whole, second):
            constraint.observe(UNSAFE * 0.7, GROUPS)
        assert second.multiplier == whole.multiplier
        assert torch.equal(second.combine(REWARD, COST), whole.combine(REWARD, COST))
    assert second.state_dict() == whole.state_dict()


# --- adaptive penalty ---


def test_adaptive_penalty_is_raised_until_the_window_is_feasible_and_stays():
    constraint = AdaptivePenalty(threshold=0.5, window=4, penalty=1.0, growth=3.0, patience=2, maximum=20.0)
    seen = []
    for costs in (UNSAFE,) * 8 + (SAFE,) * 3 + (UNSAFE,):
        constraint.observe(costs)
        seen.append(constraint.multiplier)
    # raised after each second infeasible step, up to its maximum; gated off while feasible; never lowered
    assert seen == [1, 3, 3, 9, 9, 20, 20, 20, 0, 0, 0, 20]
    assert torch.allclose(constraint.combine(REWARD, COST), mixed(20.0))
    constraint.observe(SAFE)
    assert torch.equal(constraint.combine(REWARD, COST), REWARD)


def test_adaptive_penalty_waits_while_the_violation_falls():
    constraint = AdaptivePenalty(threshold=0.0, window=4, penalty=1.0, patience=2, progress=0.1)
    for mean in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):  # falls by more than a tenth in any two steps
        constraint.observe(torch.full((4,), mean))
        assert constraint.multiplier == 1.0
    constraint.observe(torch.full((4,), 0.39))
    constraint.observe(torch.full((4,), 0.38))  # 5% in two steps
    assert constraint.multiplier == 2.0


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_adaptive_penalty_ends_at_the_constrained_optimum_of_a_finite_problem(seed):
    """The optimiser is exact here: each step's policy is the penalised optimum at the current penalty."""
    rng = np.random.default_rng(seed)
    reward, cost = rng.normal(size=(2, 3, 5))
    problem = FiniteProblem(np.full((3, 5), 0.2), reward, cost, beta=0.5, threshold=-0.3)
    best = problem.constrained_optimum() if problem.smallest_cost() < -0.35 else None
    if best is None:
        return
    constraint = AdaptivePenalty(
        threshold=-0.3 + 1e-9, window=1, penalty=0.01, growth=2.0, patience=1, maximum=1e6
    )
    for _ in range(40):
        policy = problem.penalised_optimum(constraint.strength)
        constraint.observe(torch.tensor([policy.cost], dtype=torch.float64))
    assert policy.cost <= -0.3 + 1e-6
    assert policy.objective == pytest.approx(best.objective, abs=1e-5)
    # the last raise leaves the penalty above the multiplier, by no more than the factor of growth
    assert constraint.strength >= best.multiplier - 1e-6
    assert constraint.strength <= max(2.0 * best.multiplier, 0.01) + 1e-6


# --- every prompt ---


def test_rectified_prompt_gates_by_the_other_answers_to_the_same_prompt():
    constraint = RectifiedPrompt(threshold=0.5, penalty=3.0)
    constraint.observe(torch.tensor([1.0, 0.0, 1.0, 1.0]), ["a", "a", "b", "c"])
    gates = torch.tensor([0.0, 1.0, 1.0, 1.0])  # a's answers judge each other; b and c are answered once
    assert torch.equal(constraint.gates, gates) and constraint.multiplier == 3.0 * 0.75
    assert torch.allclose(constraint.combine(REWARD, COST), mixed(3.0 * gates.unsqueeze(1)))


def test_rectified_prompt_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(24, generator=generator)
    groups = [f"p{i % 7}" for i in range(24)]
    constraint = RectifiedPrompt(threshold=0.5)
    constraint.observe(costs, groups)
    for i, group in enumerate(groups):
        others = [float(costs[j]) for j in range(24) if groups[j] == group and j != i]
        assert bool(constraint.gates[i]) == (sum(others) / len(others) > 0.5)


def test_without_groups_every_episode_is_a_prompt():
    constraint = RectifiedPrompt(threshold=0.5)
    constraint.observe(UNSAFE)
    assert constraint.gates.tolist() == [1.0, 1.0, 0.0, 1.0]


# --- reward shaping ---


def test_shaping_is_ppo_on_another_reward():
    constraint = RewardShaping(weight=2.5)
    assert torch.allclose(constraint.shape_rewards(REWARD[:, 0], UNSAFE), REWARD[:, 0] - 2.5 * UNSAFE)
    assert torch.equal(constraint.combine(REWARD, COST), REWARD) and constraint.multiplier == 2.5
    assert torch.equal(Unconstrained().shape_rewards(REWARD[:, 0], UNSAFE), REWARD[:, 0])


def made_trajectory() -> Trajectory:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 300, (6, 8), generator=generator)
    mask = torch.ones(6, 8, dtype=torch.bool)
    response_mask = mask & (torch.arange(8) >= 3)
    log_probs = -torch.rand(6, 8, generator=generator) * response_mask
    values = torch.randn(6, 8, 2, generator=generator) * response_mask.unsqueeze(-1)
    reward, cost = torch.randn(2, 6, generator=generator)
    return Trajectory(
        ids, mask, response_mask, torch.ones(6, dtype=torch.bool), log_probs, log_probs - 0.1, log_probs, values,
        reward, cost,
    )  # fmt: skip


def test_the_reward_critic_learns_the_shaped_reward():
    """PPO with shaping is, number for number, unconstrained PPO on an episode reward of r - nu c."""
    config, trajectory = PPOConfig(score_clip=1e9), made_trajectory()
    shaped, _ = estimate(trajectory, RewardShaping(weight=2.0), config)
    other = trajectory._replace(reward=trajectory.reward - 2.0 * trajectory.cost.sigmoid())
    plain, _ = estimate(other, Unconstrained(), config)
    assert torch.allclose(shaped.advantages, plain.advantages, atol=1e-6)
    assert torch.allclose(shaped.returns[..., 0], plain.returns[..., 0], atol=1e-6)


# --- a constraint for each group ---


def test_each_group_has_its_own_window_threshold_and_multiplier():
    constraint = per_group()
    constraint.observe(UNSAFE, GROUPS)  # theft 1, 0; lies 1; rude (any other) 1
    inner = constraint.constraints
    assert (inner["theft"].window_cost, inner["lies"].window_cost, inner[""].window_cost) == (0.5, 1.0, 1.0)
    dual = math.exp(0.1 * 1.0 * 0.75)
    assert inner["lies"].multiplier == pytest.approx(dual)
    expected = torch.tensor([0.0, dual, 0.0, 3.0]).unsqueeze(1)
    assert torch.allclose(constraint.combine(REWARD, COST), mixed(expected))
    assert constraint.multiplier == pytest.approx(float(expected.mean()))
    assert constraint.violation == pytest.approx(0.75)  # of the worst group
    assert constraint.window_cost == 0.75 and constraint.threshold == 0.5
    assert constraint.stats()["multiplier/other"] == 3.0
    constraint.observe(SAFE[:2], ["rude", "rude"])  # the other groups stay as they were
    assert inner["theft"].window_cost == 0.5 and inner[""].window_cost == pytest.approx(1 / 3)
    assert torch.equal(constraint.combine(REWARD[:2], COST[:2]), REWARD[:2])


def test_one_group_is_the_constraint_itself():
    alone, grouped = (FixedPenalty(threshold=0.3, window=6) for _ in range(2))
    grouped = PerGroup(window=6, constraints={"": grouped})
    for costs in (UNSAFE, SAFE, UNSAFE * 0.5):
        alone.observe(costs)
        grouped.observe(costs, GROUPS)
        assert torch.equal(grouped.combine(REWARD, COST), alone.combine(REWARD, COST))
        assert grouped.multiplier == alone.multiplier and grouped.window_cost == alone.window_cost


def test_shapes_are_each_groups_own():
    constraint = PerGroup(
        constraints={"": Unconstrained(), "lies": RectifiedSample(threshold=0.25), "rude": RewardShaping()}
    )
    constraint.observe(UNSAFE, GROUPS)
    assert constraint.shape(UNSAFE).tolist() == [1.0, 0.75, 0.0, 1.0]
    assert constraint.shape_rewards(REWARD[:, 0], UNSAFE).tolist() == [1.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptivePenalty(penalty=0.0),
        lambda: AdaptivePenalty(growth=1.0),
        lambda: AdaptivePenalty(penalty=200.0),
        lambda: RewardShaping(weight=-1.0),
        lambda: PerGroup(constraints={"a": LinearPenalty()}),
        lambda: PerGroup(constraints={"": P3O()}),
        lambda: PerGroup(
            constraints={"": RectifiedPrompt()}
        ),  # it would not see which answers share a prompt
        lambda: per_group().observe(UNSAFE),
        lambda: per_group().load_state_dict(FixedPenalty().state_dict()),
        lambda: PPOConfig(batch_size=8, samples_per_prompt=3),
        lambda: PPOConfig(ptx=-1.0),
    ],
)
def test_bad_settings_are_told(make):
    with pytest.raises(UserError):
        make()


# --- within PPO ---


@pytest.fixture(scope="module")
def tokenizer(random_base):
    return load_tokenizer(random_base)


def vowels(prompts, responses) -> torch.Tensor:
    return torch.tensor([4.0 if set("aeiou") & set(r) else -4.0 for r in responses])


def make_roles(random_base) -> Roles:
    return Roles(load_base(random_base, device="cpu"), reward=vowels, cost=vowels, rank=4, alpha=8)


SMALL = {"batch_size": 8, "minibatch_size": 4, "microbatch_size": 4, "max_new_tokens": 3}


class Spy(Unconstrained):
    """Remembers what PPO tells it."""

    def observe(self, costs, groups=None):
        self.seen = [*getattr(self, "seen", []), list(groups)]
        super().observe(costs, groups)


def test_ppo_tells_each_episodes_group(random_base, tokenizer, sentences):
    spy = Spy()
    config = PPOConfig(steps=2, samples_per_prompt=4, **SMALL)
    train_ppo(make_roles(random_base), tokenizer, sentences, spy, config)
    for groups in spy.seen:  # a prompt is its own group unless told otherwise; each comes four times
        assert len(groups) == 8 and groups[:4] == [groups[0]] * 4 and groups[4:] == [groups[4]] * 4
    assert len({groups[i] for groups in spy.seen for i in (0, 4)}) == 4
    spy, names = Spy(), [f"group {i % 2}" for i in range(len(sentences))]
    train_ppo(make_roles(random_base), tokenizer, sentences, spy, PPOConfig(steps=1, **SMALL), groups=names)
    assert set(spy.seen[0]) == set(names)


def test_per_group_training_with_ptx_resumes_bit_for_bit(random_base, tokenizer, sentences, tmp_path):
    config = PPOConfig(steps=3, learning_rate=1e-2, ptx=1.0, **SMALL)
    shown = [LabelledResponse(s, "sorry , i can not", True) for s in sentences]
    rows, states = {}, {}
    for name in ("whole", "broken"):
        for stop in (1, 3) if name == "broken" else (3,):
            constraint, roles = per_group(), make_roles(random_base)
            settings = config_dict(config, constraint)
            run = Run.open(tmp_path / name, settings, resume=(tmp_path / name).exists())

            def maybe_stop(row, stop=stop):
                if row["step"] == stop < 3:
                    raise KeyboardInterrupt

            try:
                rows[name] = train_ppo(
                    roles, tokenizer, sentences, constraint, config, run, maybe_stop,
                    groups=["theft", "lies"] * (len(sentences) // 2), demonstrations=shown,
                )  # fmt: skip
            except KeyboardInterrupt:
                continue
        states[name] = roles.trained_state()
    for one, two in zip(rows["whole"], rows["broken"], strict=True):
        assert {k: v for k, v in one.items() if "time" not in k} == {
            k: v for k, v in two.items() if "time" not in k
        }
    assert all(torch.equal(states["whole"][k], v) for k, v in states["broken"].items())
    assert "constraint/multiplier/theft" in rows["whole"][0]
    assert rows["whole"][0]["policy/ptx_loss"] > 0


def test_a_stored_config_names_every_groups_constraint(tmp_path):
    stored = config_dict(PPOConfig(), per_group())["constraint"]
    assert stored["name"] == "PerGroup"
    assert stored["constraints"]["lies"]["name"] == "Lagrangian"
    assert stored["constraints"]["theft"]["penalty"] == 7.0
    Run.open(tmp_path / "run", config_dict(PPOConfig(), per_group()))
    other = per_group()
    other.constraints["theft"].penalty = 8.0
    with pytest.raises(UserError, match="theft"):
        Run.open(tmp_path / "run", config_dict(PPOConfig(), other), resume=True)


# --- PTX ---


def test_imitation_is_the_mean_negative_log_likelihood_and_its_gradient(random_base, tokenizer, sentences):
    roles = make_roles(random_base)
    answers = ["sure", "sorry , i can not help with that", "take a tool"]
    shown = encode_responses(tokenizer, sentences[:3], answers)
    loss = imitation_backward(roles, shown, torch.arange(3), 2.0, microbatch_size=2)
    found = [p.grad.clone() for p in roles.trainable("policy")]
    assert all(p.grad is None for p in roles.trainable("critic"))

    # apart: transformers' own logits, row by row
    for parameter in roles.trainable("policy"):
        parameter.grad = None
    roles.activate("policy")
    total, tokens = torch.zeros(()), 0
    for prompt, answer in zip(sentences[:3], answers, strict=True):
        asked, said = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (rendered(tokenizer, prompt), answer)
        )
        whole, start = [*asked, *said, tokenizer.eos_token_id], len(asked)
        log_probs = roles.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        for place in range(start, len(whole)):
            total = total - log_probs[place - 1, whole[place]]
            tokens += 1
    assert int(shown.response_mask.sum()) == tokens
    assert loss == pytest.approx(float(total.detach()) / tokens, rel=1e-4)
    (2.0 * total / tokens).backward()
    for gradient, parameter in zip(found, roles.trainable("policy"), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_ptx_pulls_the_policy_towards_its_demonstrations(random_base, tokenizer, sentences):
    shown = [LabelledResponse(s, "sorry , i can not help with that", True) for s in sentences]
    rows = encode_responses(tokenizer, [d.prompt for d in shown], [d.response for d in shown])
    likely = {}
    for ptx in (0.0, 1.0):
        roles = make_roles(random_base)
        config = PPOConfig(steps=6, learning_rate=2e-2, ptx=ptx, **SMALL)
        history = train_ppo(roles, tokenizer, sentences, Unconstrained(), config, demonstrations=shown)
        likely[ptx] = float(sequence_log_probs(roles, rows, adapter="policy").mean())
    assert history[-1]["policy/ptx_loss"] < history[0]["policy/ptx_loss"] - 0.5
    assert likely[1.0] > likely[0.0] + 5.0
    with pytest.raises(UserError, match="expected demonstrations"):
        train_ppo(make_roles(random_base), tokenizer, sentences, Unconstrained(), PPOConfig(ptx=1.0))


def test_a_response_that_leaves_no_prompt_is_told(tokenizer):
    with pytest.raises(UserError, match="expected room"):
        encode_responses(tokenizer, ["how"], ["a " * 40], max_length=16)
