"""PPO: losses against loops, the step's invariants, and learning a simple reward under a constraint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Trajectory
from csrlhf_kit.training.constraints import P3O, FixedPenalty, Lagrangian, LinearPenalty, Unconstrained
from csrlhf_kit.training.ppo import config_dict, learning_rate_factor, prompt_rows, train_ppo
from csrlhf_kit.training.ppo_update import (
    PPOConfig,
    approximate_kl,
    episode_costs,
    episode_rewards,
    estimate,
    policy_loss,
    update,
    value_loss,
)

ACTIONS = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def letters(prompts, responses) -> torch.Tensor:
    """Reward: share of a response's characters that are lower-case letters."""
    return torch.tensor([np.mean([c.isascii() and c.islower() for c in r] or [0.0]) for r in responses])


def vowels(prompts, responses) -> torch.Tensor:
    """Cost logit: 4 where a response holds a vowel, else -4. At odds with `letters`."""
    return torch.tensor([4.0 if set("aeiou") & set(r) else -4.0 for r in responses])


@pytest.fixture(scope="module")
def tokenizer(random_base: Path):
    return load_tokenizer(random_base)


def make_roles(random_base: Path) -> Roles:
    return Roles(load_base(random_base, device="cpu"), reward=letters, cost=vowels, rank=8, alpha=16)


def optimizers_of(roles: Roles, rate: float) -> dict[str, torch.optim.Optimizer]:
    return {role: torch.optim.SGD(roles.trainable(role), lr=rate) for role in ("policy", "critic")}


def made_trajectory(roles: Roles, *, batch: int = 8, length: int = 10) -> Trajectory:
    """Episodes of random tokens, with log-probabilities and values of the roles as they are."""
    ids = torch.randint(4, 300, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([10, 7, 9, 6, 8, 10, 5, 7][:batch]).unsqueeze(1)
    response_mask = mask & (torch.arange(length) >= 3)
    with torch.no_grad():
        log_probs, entropy = roles.log_probs(ids, mask, response_mask)
        values = roles.values(ids, mask) * response_mask.unsqueeze(-1)
    reward, cost = random(2, batch, seed=2).float()
    ended = torch.arange(batch) % 2 == 0
    return Trajectory(
        ids, mask, response_mask, ended, log_probs, log_probs - 0.1, entropy, values, reward, cost
    )


# --- losses ---


def test_policy_loss_and_its_gradient_against_a_loop():
    ratio, advantages = (0.4 * random(2, 4)).exp().requires_grad_(), random(2, 4, seed=1)
    loss = policy_loss(ratio, advantages, ACTIONS, 0.2)
    expected, slope = 0.0, torch.zeros(2, 4, dtype=torch.float64)
    for i, j in ACTIONS.nonzero().tolist():
        r, a = float(ratio[i, j].detach()), float(advantages[i, j])
        expected -= min(r * a, min(max(r, 0.8), 1.2) * a)
        held = (a > 0 and r > 1.2) or (a < 0 and r < 0.8)
        slope[i, j] = 0.0 if held else -a
    assert float(loss.detach()) == pytest.approx(expected)
    torch.testing.assert_close(torch.autograd.grad(loss, ratio)[0], slope)


def test_value_loss_is_clipped_and_masked():
    values, old, returns = (3 * random(2, 4, 2, seed=seed) for seed in range(3))
    values[~ACTIONS] = torch.nan  # what stands at a masked position must not count, not even nan
    values.requires_grad_()
    losses = value_loss(values, old, returns, ACTIONS, 0.5)
    for stream in range(2):
        expected = 0.0
        for i, j in ACTIONS.nonzero().tolist():
            v, o, t = (float(x[i, j, stream].detach()) for x in (values, old, returns))
            expected += 0.5 * max((v - t) ** 2, (o + min(max(v - o, -0.5), 0.5) - t) ** 2)
        assert float(losses[stream].detach()) == pytest.approx(expected)


def test_approximate_kl_is_unbiased_and_never_negative():
    """Expectation over the old policy of (ratio - 1 - log ratio) is KL(old || new), exactly."""
    old, new = random(1, 7).softmax(-1), random(1, 7, seed=1).softmax(-1)
    log_ratio = (new / old).log()
    each = log_ratio.exp() - 1 - log_ratio
    assert float(each.min()) >= 0
    everything = torch.ones(1, 7, dtype=torch.bool)
    total = sum(
        float(old[0, y] * approximate_kl(log_ratio[:, y : y + 1], everything[:, :1])) for y in range(7)
    )
    assert total == pytest.approx(float((old * (old / new).log()).sum()))
    assert float(approximate_kl(log_ratio, ~everything)) == 0


# --- pieces of a step ---


def test_scores_are_clipped_and_cut_answers_pay():
    trajectory = Trajectory(*[None] * 3, torch.tensor([True, False, True]), *[None] * 4, None, None)
    trajectory = trajectory._replace(
        reward=torch.tensor([60.0, 1.0, -60.0]), cost=torch.tensor([0.0, 60.0, -2.0])
    )
    config = PPOConfig(missing_eos_penalty=0.25)
    assert episode_rewards(trajectory, config).tolist() == [50.0, 0.75, -50.0]
    assert episode_costs(trajectory.cost, config).tolist() == pytest.approx([0.5, 1.0, 1 / (1 + np.exp(2))])
    assert episode_costs(trajectory.cost, PPOConfig(cost_scale="logit")).tolist() == [0.0, 50.0, -2.0]


def test_learning_rate_is_a_function_of_the_step():
    config = PPOConfig(steps=10, warmup_steps=4, schedule="linear")
    factors = [learning_rate_factor(step, config) for step in range(11)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0 and factors[10] == pytest.approx(0.1)
    cosine = PPOConfig(steps=10, schedule="cosine")
    assert [learning_rate_factor(s, cosine) for s in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert learning_rate_factor(7, PPOConfig(steps=10)) == 1.0


def test_prompts_come_in_whole_permutations():
    rows = [row for step in range(10) for row in prompt_rows(10, 4, step, seed=3)]
    for epoch in range(4):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert rows[:10] != rows[10:20]
    assert prompt_rows(10, 4, 7, seed=3) == rows[28:32]
    assert len(prompt_rows(3, 8, 0, seed=0)) == 8


def test_advantages_of_a_batch_have_zero_mean_and_unit_variance(random_base):
    trajectory = made_trajectory(make_roles(random_base))
    batch, scale = estimate(trajectory, LinearPenalty(penalty=3.0), PPOConfig())
    real = batch.advantages[batch.response_mask]
    assert abs(float(real.mean())) < 1e-5 and abs(float(real.std(correction=0)) - 1) < 1e-4
    raw, unit = estimate(trajectory, LinearPenalty(penalty=3.0), PPOConfig(whiten_advantages=False))
    assert unit == 1.0
    assert scale == pytest.approx(1 / float(raw.advantages[raw.response_mask].std(correction=0)), rel=1e-4)


def test_microbatches_do_not_change_the_step(random_base):
    """Gradients are sums over one mini-batch, so its split into micro-batches must not matter."""
    states = []
    for size in (8, 3):
        roles = make_roles(random_base)
        config = PPOConfig(batch_size=8, minibatch_size=8, microbatch_size=size, max_grad_norm=1e9)
        torch.manual_seed(0)
        stats = update(roles, optimizers_of(roles, 0.1), made_trajectory(roles), LinearPenalty(), config)
        states.append((roles.trained_state(), stats))
    for name, tensor in states[0][0].items():
        torch.testing.assert_close(tensor, states[1][0][name], rtol=1e-3, atol=1e-6)
    for name, value in states[0][1].items():
        assert states[1][1][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_gradients_are_clipped_for_policy_and_critic_apart(random_base):
    roles = make_roles(random_base)
    before = {role: [p.detach().clone() for p in roles.trainable(role)] for role in ("policy", "critic")}
    config = PPOConfig(batch_size=8, minibatch_size=8, max_grad_norm=1e-3)
    torch.manual_seed(0)
    stats = update(roles, optimizers_of(roles, 1.0), made_trajectory(roles), Unconstrained(), config)
    assert stats["policy/grad_norm"] > 1e-3
    for role, old in before.items():  # plain SGD with step size 1 moves by the clipped gradient
        moved = (
            sum(float((p - o).square().sum()) for p, o in zip(roles.trainable(role), old, strict=True)) ** 0.5
        )
        assert moved == pytest.approx(1e-3, rel=1e-2)


def test_updates_stop_once_the_policy_has_moved_too_far(random_base):
    roles = make_roles(random_base)
    trajectory = made_trajectory(roles)
    config = PPOConfig(batch_size=8, minibatch_size=4, epochs=4, target_kl=1e-4, max_grad_norm=1.0)
    torch.manual_seed(0)
    stats = update(roles, optimizers_of(roles, 2.0), trajectory, Unconstrained(), config)
    assert stats["policy/stopped"] == 1 and 1 <= stats["policy/updates"] < 8
    free = update(
        make := make_roles(random_base),
        optimizers_of(make, 2.0),
        made_trajectory(make),
        Unconstrained(),
        PPOConfig(**{**config.__dict__, "target_kl": None}),
    )
    assert free["policy/stopped"] == 0 and free["policy/updates"] == 8


def test_p3o_adds_its_penalty_to_the_policy_loss(random_base):
    """One plain gradient step with P3O is the step without it plus that of the penalty."""
    moves = {}
    for name, constraint in (
        ("off", P3O(threshold=2.0)),
        ("on", P3O(threshold=0.0, penalty=5.0)),
    ):
        roles = make_roles(random_base)
        before = [p.detach().clone() for p in roles.trainable("policy")]
        config = PPOConfig(batch_size=8, minibatch_size=8, max_grad_norm=1e9, whiten_advantages=False)
        torch.manual_seed(0)
        trajectory = made_trajectory(roles)
        update(roles, optimizers_of(roles, 1.0), trajectory, constraint, config)
        moves[name] = [p.detach() - b for p, b in zip(roles.trainable("policy"), before, strict=True)]
        batch, _ = estimate(trajectory, constraint, config)
    roles = make_roles(random_base)
    log_probs, _ = roles.log_probs(trajectory.ids, trajectory.mask, trajectory.response_mask)
    surrogate = ((log_probs * batch.cost_advantages) * batch.response_mask).sum() / batch.response_mask.sum()
    (-5.0 * surrogate).backward()
    for parameter, on, off in zip(roles.trainable("policy"), moves["on"], moves["off"], strict=True):
        torch.testing.assert_close(on - off, parameter.grad, rtol=1e-3, atol=1e-5)


# --- the whole loop ---


def test_at_learning_rate_zero_nothing_moves(random_base, tokenizer, sentences):
    """The most repeated RLHF bug (padding, positions, temperature, dropout, adapters) shows here."""
    roles = make_roles(random_base)
    with torch.no_grad():  # not the identity: a policy that differs from its reference
        for index, parameter in enumerate(roles.trainable("policy")):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
    config = PPOConfig(
        steps=2,
        batch_size=12,
        minibatch_size=6,
        microbatch_size=4,
        epochs=2,
        learning_rate=0.0,
        critic_learning_rate=0.0,
        temperature=0.7,
        max_new_tokens=12,
    )
    seen = []
    history = train_ppo(roles, tokenizer, sentences, Lagrangian(threshold=0.1), config, on_step=seen.append)
    assert seen == history and [row["step"] for row in history] == [1, 2]
    for row in history:
        assert row["policy/max_log_ratio_first"] < 1e-4
        assert row["policy/approxkl"] < 1e-8 and row["policy/clipfrac"] == 0
        assert abs(row["objective/kl"]) > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in roles.state_dict().items())


def test_the_critic_warms_up_alone(random_base, tokenizer, sentences):
    roles = make_roles(random_base)
    policy, critic = ([p.detach().clone() for p in roles.trainable(role)] for role in ("policy", "critic"))
    config = PPOConfig(steps=1, critic_warmup=1, batch_size=6, minibatch_size=3, max_new_tokens=4)
    (row,) = train_ppo(roles, tokenizer, sentences, Unconstrained(), config)
    assert row["policy/updates"] == row["policy/stopped"] == row["policy/loss"] == 0
    assert all(torch.equal(p, old) for p, old in zip(roles.trainable("policy"), policy, strict=True))
    assert not all(torch.equal(p, old) for p, old in zip(roles.trainable("critic"), critic, strict=True))


def test_ratio_is_one_in_the_first_minibatch_of_every_step(random_base, tokenizer, sentences):
    config = PPOConfig(steps=3, batch_size=12, minibatch_size=4, microbatch_size=3, max_new_tokens=8)
    for row in train_ppo(make_roles(random_base), tokenizer, sentences, FixedPenalty(threshold=0.1), config):
        assert row["policy/max_log_ratio_first"] < 1e-4


def test_ppo_learns_the_reward_and_a_constraint_holds_the_cost(random_base, tokenizer, sentences):
    """Letters are wanted and vowels cost: unconstrained PPO takes both, the rectified penalty holds back."""
    config = PPOConfig(
        steps=25,
        batch_size=32,
        minibatch_size=16,
        microbatch_size=16,
        epochs=2,
        learning_rate=2e-2,
        critic_learning_rate=1e-2,
        kl_coefficient=0.005,
        missing_eos_penalty=0.0,
        max_new_tokens=4,
    )
    early, late = {}, {}
    for constraint in (Unconstrained(threshold=0.2), FixedPenalty(threshold=0.2, penalty=10.0, window=64)):
        roles = make_roles(random_base)
        before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
        history = train_ppo(roles, tokenizer, sentences, constraint, config)
        kind = type(constraint)
        for name in ("objective/reward", "objective/cost", "val/reward_loss", "val/cost_loss"):
            early[kind, name] = np.mean([row[name] for row in history[:3]])
            late[kind, name] = np.mean([row[name] for row in history[-6:]])
        for name, tensor in roles.state_dict().items():
            trained = ".policy." in name or ".critic." in name or name.startswith("value_head")
            assert trained or torch.equal(tensor, before[name]), name
    assert late[Unconstrained, "objective/reward"] > early[Unconstrained, "objective/reward"] + 0.1
    assert late[FixedPenalty, "objective/cost"] < late[Unconstrained, "objective/cost"] - 0.15
    assert late[FixedPenalty, "objective/cost"] < early[FixedPenalty, "objective/cost"]
    for kind in (Unconstrained, FixedPenalty):
        assert late[kind, "val/reward_loss"] < early[kind, "val/reward_loss"]


def test_bad_settings_and_divergence_are_told(random_base, tokenizer, sentences):
    for field, value in (("temperature", 0.0), ("batch_size", 0), ("schedule", "zigzag"), ("target_kl", 0.0)):
        with pytest.raises(UserError, match=field):
            PPOConfig(**{field: value})
    roles = make_roles(random_base)
    with pytest.raises(UserError, match="no prompt"):
        train_ppo(roles, tokenizer, [], Unconstrained(), PPOConfig())
    config = PPOConfig(steps=1, batch_size=4, max_new_tokens=3)
    roles.scorers["reward"] = lambda prompts, responses: torch.full((len(prompts),), torch.nan)
    with pytest.raises(UserError, match="diverged"):
        train_ppo(roles, tokenizer, sentences, Unconstrained(), config)


def test_stored_config_names_the_constraint_and_its_settings_only():
    stored = config_dict(PPOConfig(), Lagrangian(threshold=0.02))
    assert stored["constraint"] == {
        "name": "Lagrangian",
        "threshold": 0.02,
        "window": 128,
        "initial": 1.0,
        "rate": 0.1,
        "maximum": 5.0,
        "scaled": True,
    }
    assert stored["batch_size"] == 64
