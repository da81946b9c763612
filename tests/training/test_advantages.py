"""Token rewards, GAE on two streams, whitening: against loops, closed forms and invariants."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrlhf_kit.kernels.masks import last_true
from csrlhf_kit.training.advantages import advantages_and_returns, token_rewards, whiten

ACTIONS = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_score_is_added_at_the_last_action_and_nowhere_else():
    log_ratios = random(3, 6)
    scores = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    rewards = token_rewards(scores, log_ratios, ACTIONS, 0.1)
    expected = np.zeros((3, 6))
    for row in range(3):
        for column in range(6):
            if ACTIONS[row, column]:
                expected[row, column] = -0.1 * log_ratios[row, column]
    for row, column in ((0, 4), (1, 2), (2, 5)):
        expected[row, column] += float(scores[row])
    np.testing.assert_allclose(rewards.numpy(), expected, atol=1e-15)
    assert last_true(ACTIONS).tolist() == [4, 2, 5]


@settings(max_examples=30)
@given(multiplier=st.floats(0, 1e3), beta=st.floats(0.001, 1.0), seed=st.integers(0, 1000))
def test_kl_weight_does_not_depend_on_the_multiplier(multiplier, beta, seed):
    """With zero scores and values the combined advantages are those of the KL alone, whatever lambda is."""
    log_ratios, zero = random(3, 6, seed=seed), torch.zeros(3, dtype=torch.float64)
    rewards = token_rewards(zero, log_ratios, ACTIONS, beta)
    costs = token_rewards(zero, log_ratios, ACTIONS, -beta)
    values = torch.zeros(3, 6, 2, dtype=torch.float64)
    (reward_adv, cost_adv), _ = advantages_and_returns(rewards, costs, values, ACTIONS, gamma=1.0, lam=0.95)
    combined = (reward_adv - multiplier * cost_adv) / (1 + multiplier)
    torch.testing.assert_close(combined, reward_adv, rtol=1e-9, atol=1e-12)


def test_gae_against_the_sum_of_discounted_errors():
    rewards, costs = (random(3, 6, seed=seed) * ACTIONS for seed in (1, 2))
    values = random(3, 6, 2, seed=3)  # garbage outside the response must not leak in
    gamma, lam = 0.9, 0.7
    advantages, returns = advantages_and_returns(rewards, costs, values, ACTIONS, gamma=gamma, lam=lam)
    for stream, signal in enumerate((rewards, costs)):
        for row in range(3):
            steps = ACTIONS[row].nonzero().flatten().tolist()
            value = [float(values[row, t, stream]) for t in steps] + [0.0]
            errors = [float(signal[row, t]) + gamma * value[i + 1] - value[i] for i, t in enumerate(steps)]
            for i, t in enumerate(steps):
                expected = sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(steps)))
                assert abs(float(advantages[stream, row, t]) - expected) < 1e-12
                assert abs(float(returns[stream, row, t]) - expected - value[i]) < 1e-12
    assert not advantages[:, ~ACTIONS].any()


def test_whitening_removes_the_mean_over_the_whole_batch():
    values = 3.0 + 5.0 * random(3, 6)
    values[~ACTIONS] = 1e6  # padding
    whitened, scale = whiten(values, ACTIONS)
    real = values[ACTIONS].numpy()
    np.testing.assert_allclose(whitened[ACTIONS].numpy(), (real - real.mean()) / real.std(), rtol=1e-6)
    assert not whitened[~ACTIONS].any()
    assert abs(float(scale) * real.std() - 1) < 1e-6


def test_equal_advantages_whiten_to_zero():
    whitened, _ = whiten(torch.full((3, 6), 3.22), ACTIONS)
    assert float(whitened.abs().max()) < 1e-3
