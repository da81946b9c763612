"""The critic's fit to the base's answers: targets by brute force, learning, storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.training.critic import (
    CriticConfig,
    base_episodes,
    fit_critic,
    load_critic,
    returns,
    save_critic,
)
from csrlhf_kit.training.ppo import PPOConfig


def asked_for_help(prompts, responses) -> torch.Tensor:
    """A reward that a critic can know from the prompt alone."""
    return torch.tensor([2.0 if "help" in prompt else -1.0 for prompt in prompts])


def asked_for_locks(prompts, responses) -> torch.Tensor:
    """A cost logit that a critic can know from the prompt alone."""
    return torch.tensor([3.0 if "lock" in prompt else -3.0 for prompt in prompts])


def make_roles(random_base: Path) -> Roles:
    return Roles(load_base(random_base), reward=asked_for_help, cost=asked_for_locks)


@pytest.fixture
def settings() -> PPOConfig:
    return PPOConfig(max_new_tokens=6, missing_eos_penalty=0.5, gamma=0.9, microbatch_size=8)


def test_targets_are_the_discounted_scores(random_base, sentences, settings):
    roles, tokenizer = make_roles(random_base), load_tokenizer(random_base)
    torch.manual_seed(0)
    (batch,) = base_episodes(roles, tokenizer, sentences, settings)
    targets = returns(batch, settings)
    assert targets.shape == (*batch.ids.shape, 2)
    for row in range(len(sentences)):
        columns = batch.response_mask[row].nonzero().flatten().tolist()
        reward = float(batch.reward[row]) - (0.0 if batch.ended[row] else 0.5)
        cost = float(torch.sigmoid(batch.cost[row]))
        for steps_left, column in enumerate(reversed(columns)):
            expected = torch.tensor([reward * 0.9**steps_left, cost * 0.9**steps_left])
            torch.testing.assert_close(targets[row, column], expected)


def test_the_base_answers_and_not_the_policy(random_base, sentences, settings):
    roles, tokenizer = make_roles(random_base), load_tokenizer(random_base)
    torch.manual_seed(0)
    before = base_episodes(roles, tokenizer, sentences, settings)[0].ids
    for parameter in roles.trainable("policy"):
        parameter.data += 1.0
    torch.manual_seed(0)
    assert torch.equal(base_episodes(roles, tokenizer, sentences, settings)[0].ids, before)


def test_the_critic_learns_what_the_prompt_tells_and_nothing_else_changes(
    random_base, sentences, settings, tmp_path
):
    roles, tokenizer = make_roles(random_base), load_tokenizer(random_base)
    policy = [parameter.clone() for parameter in roles.trainable("policy")]
    config = CriticConfig(episodes=60, epochs=12, batch_size=20, learning_rate=2e-2)
    history = fit_critic(roles, tokenizer, sentences * 10, settings, config)
    assert len(history) == 12
    for first, last in zip(history[0], history[-1], strict=True):
        assert last < 0.3 * first
    for kept, parameter in zip(policy, roles.trainable("policy"), strict=True):
        assert torch.equal(kept, parameter)

    save_critic(roles, tmp_path / "critic.safetensors")
    other = make_roles(random_base)
    load_critic(other, tmp_path / "critic.safetensors")
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(other.values(ids, mask), roles.values(ids, mask))


def test_the_rate_falls_to_a_tenth_however_few_answers_are_sampled_at_once(
    random_base, sentences, settings, monkeypatch
):
    rates = []

    class Noted(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    config = CriticConfig(episodes=18, epochs=3, batch_size=18, learning_rate=1e-3)
    roles, tokenizer = make_roles(random_base), load_tokenizer(random_base)
    fit_critic(roles, tokenizer, sentences * 3, settings, config, rollout_size=6)
    assert len(rates) == 9 and rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.2e-3


def test_the_fit_is_a_function_of_the_seed(random_base, sentences, settings):
    tokenizer, config = load_tokenizer(random_base), CriticConfig(episodes=6, epochs=2, batch_size=3)
    histories = [
        fit_critic(make_roles(random_base), tokenizer, sentences, settings, config) for _ in range(2)
    ]
    assert histories[0] == histories[1]


def test_bad_input_is_told(random_base, settings, tmp_path):
    roles, tokenizer = make_roles(random_base), load_tokenizer(random_base)
    with pytest.raises(UserError, match="no prompt"):
        fit_critic(roles, tokenizer, [], settings, CriticConfig())
    with pytest.raises(UserError, match="is no critic"):
        load_critic(roles, tmp_path / "missing.safetensors")
