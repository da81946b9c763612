"""One PPO update: from a batch of scored episodes to clipped gradient steps on policy and critic.

Built from `advantages.py`, a constraint and the roles of `models.roles`; `ppo.py` calls it once per step.
Sources: PPO, Schulman et al. 2017, arXiv 1707.06347; RLHF with a per-token KL, Ziegler et al. 2019, arXiv
1909.08593; reward and cost streams, Safe RLHF, Dai et al. 2023, arXiv 2310.12773.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csrlhf_kit import distributed
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Trajectory, by_length
from csrlhf_kit.training.advantages import advantages_and_returns, token_rewards, whiten
from csrlhf_kit.training.configs import PPOConfig
from csrlhf_kit.training.constraints.base import Constraint

# --- losses: pure functions on tensors ---


def policy_loss(ratio: Tensor, advantages: Tensor, response_mask: Tensor, clip: float) -> Tensor:
    """Sum over response tokens of -min(ratio A, clip(ratio) A), from (batch, length) each. Schulman 2017, eq. 7."""
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return (torch.maximum(-ratio * advantages, -clipped * advantages) * response_mask).sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, clip: float
) -> Tensor:
    """Clipped squared errors / 2 of reward and cost, (2,), summed over response tokens.

    values, old_values, returns: (batch, length, 2); response_mask: (batch, length), other positions do not count.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * torch.where(response_mask.unsqueeze(-1), errors, 0.0).sum((0, 1))


def approximate_kl(log_ratio: Tensor, response_mask: Tensor) -> Tensor:
    """Sum over response tokens of ratio - 1 - log ratio: an unbiased estimate of KL(old || new), never negative."""
    return torch.where(response_mask, log_ratio.exp() - 1.0 - log_ratio, 0.0).sum()


# --- one update ---


def episode_costs(logits: Tensor, config: PPOConfig) -> Tensor:
    """Costs (batch,) from cost logits (batch,), on the scale of the threshold."""
    if config.cost_scale == "probability":
        return logits.sigmoid()
    return logits.clamp(-config.score_clip, config.score_clip)


def episode_rewards(trajectory: Trajectory, config: PPOConfig) -> Tensor:
    """Rewards (batch,): the clipped score, minus the penalty if the answer was cut before EOS."""
    clipped = trajectory.reward.clamp(-config.score_clip, config.score_clip)
    return clipped - config.missing_eos_penalty * (~trajectory.ended)


class Batch(NamedTuple):
    """One batch of episodes as the update needs it."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length)
    response_mask: Tensor  # (batch, length)
    log_probs: Tensor  # (batch, length), before the update
    values: Tensor  # (batch, length, 2), before the update
    advantages: Tensor  # (batch, length), combined and whitened
    cost_advantages: Tensor  # (batch, length)
    returns: Tensor  # (batch, length, 2), of reward and cost
    shared_states: Tensor | None = None  # (batch, length, hidden), see `Trajectory`

    def take(self, rows: Tensor, longest: int) -> Batch:
        """The given rows, trimmed to `longest` tokens."""
        return Batch._make(None if tensor is None else tensor[rows, :longest] for tensor in self)


def estimate(
    trajectory: Trajectory, constraint: Constraint, config: PPOConfig, *, groups: Sequence[str] | None = None
) -> tuple[Batch, float]:
    """Advantages and value targets of a batch of episodes, and the factor by which whitening scaled them.

    groups: the group (batch,) of each episode's prompt. The constraint observes the batch's costs here.
    """
    costs = episode_costs(trajectory.cost, config)
    constraint.observe(costs, groups)
    log_ratios = trajectory.log_probs - trajectory.reference_log_probs
    beta, response_mask = config.kl_coefficient, trajectory.response_mask
    rewards = constraint.shape_rewards(episode_rewards(trajectory, config), costs)
    token_scores = token_rewards(rewards, log_ratios, response_mask, beta)
    cost_kl = -beta if constraint.kl_in_costs else 0.0
    token_costs = token_rewards(constraint.shape(costs), log_ratios, response_mask, cost_kl)
    (reward_advantages, cost_advantages), returns = advantages_and_returns(
        token_scores, token_costs, trajectory.values, response_mask, gamma=config.gamma, lam=config.gae_lambda
    )
    advantages, scale = constraint.combine(reward_advantages, cost_advantages), 1.0
    if config.whiten_advantages:
        advantages, factor = whiten(advantages, response_mask)
        scale = float(factor)
    kept = (trajectory.ids, trajectory.mask, response_mask, trajectory.log_probs, trajectory.values)
    return Batch(*kept, advantages, cost_advantages, returns.movedim(0, -1), trajectory.shared_states), scale


def policy_backward(
    roles: Roles, batch: Batch, tokens: Tensor, scale: float, constraint: Constraint, config: PPOConfig
) -> Tensor:
    """Add the gradient of one micro-batch's policy loss; tokens: response tokens of the whole mini-batch.

    Returns (loss, approximate KL, clipped share, entropy, max |log ratio|); the first four are summands of the
    mini-batch's means per token. scale: whitening's factor, for a constraint's extra loss.
    """
    log_probs, entropy = roles.log_probs(
        batch.ids, batch.mask, batch.response_mask,
        temperature=config.temperature, shared_states=batch.shared_states,
    )  # fmt: skip
    log_ratio = torch.where(batch.response_mask, log_probs - batch.log_probs, 0.0)
    ratio = log_ratio.exp()
    loss = policy_loss(ratio, batch.advantages, batch.response_mask, config.clip) / tokens
    extra = constraint.extra_loss(ratio, batch.cost_advantages, batch.response_mask)
    if extra is not None:  # a mean over episodes, while the loss above is a mean over tokens, and whitened
        loss = loss + extra * scale * batch.ids.shape[0] / tokens
    loss.backward()
    with torch.no_grad():
        kl = approximate_kl(log_ratio, batch.response_mask) / tokens
        clipped = (((ratio - 1.0).abs() > config.clip) & batch.response_mask).sum() / tokens
        return torch.stack([loss.detach(), kl, clipped, entropy.sum() / tokens, log_ratio.abs().max()])


def critic_backward(roles: Roles, batch: Batch, tokens: Tensor, config: PPOConfig) -> Tensor:
    """Add the gradient of one micro-batch's value losses; returns its summands (reward, cost) of the means."""
    values = roles.values(batch.ids, batch.mask, batch.response_mask, batch.shared_states)
    losses = value_loss(values, batch.values, batch.returns, batch.response_mask, config.value_clip) / tokens
    losses.sum().backward()
    return losses.detach()


def update(
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    trajectory: Trajectory,
    constraint: Constraint,
    config: PPOConfig,
    *,
    critic_only: bool = False,
    groups: Sequence[str] | None = None,
    imitate: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Turn one batch of episodes into gradient steps on policy and critic; return their metrics.

    groups: the group (batch,) of each episode's prompt. imitate: adds a supervised gradient to the policy's,
    once per optimiser step, and returns its loss.

    Losses are means over a mini-batch's response tokens, however it is split into micro-batches (but see P3O). Once the
    approximate KL of a mini-batch exceeds `target_kl`, the policy stays as it is until the next step; the critic
    continues, since its targets remain valid.
    """
    batch, scale = estimate(trajectory, constraint, config, groups=groups)
    policy_rows: list[tuple[float, ...]] = []
    critic_rows, imitation = [], []
    largest_first, stopped = 0.0, critic_only
    for _ in range(config.epochs):
        for rows in torch.randperm(batch.ids.shape[0]).to(batch.ids.device).split(config.minibatch_size):
            tokens = batch.response_mask[rows].sum()
            own = distributed.share(rows)
            parts = [batch.take(*chunk) for chunk in by_length(batch.mask, own, config.microbatch_size)]
            if not stopped:
                args = (tokens, scale, constraint, config)
                stats = torch.stack([policy_backward(roles, part, *args) for part in parts])
                loss, kl, clipped, entropy, _ = distributed.summed(stats.sum(0)).tolist()
                if not policy_rows:
                    largest_first = float(distributed.largest(stats[:, 4].max()))
                stopped = config.target_kl is not None and kl > config.target_kl
                if stopped:
                    optimizers["policy"].zero_grad(set_to_none=True)
                elif imitate is not None:
                    imitation.append(imitate())
                norm = 0.0 if stopped else _descend(optimizers["policy"], config.max_grad_norm)
                policy_rows.append((loss, kl, clipped, entropy, norm))
            losses: Any = sum(critic_backward(roles, part, tokens, config) for part in parts)
            critic_rows.append(distributed.summed(losses).tolist())
            _descend(optimizers["critic"], config.max_grad_norm)
    names = ("policy/loss", "policy/approxkl", "policy/clipfrac", "policy/entropy", "policy/grad_norm")
    policy_means = torch.tensor(policy_rows or [(0.0,) * len(names)], dtype=torch.float64).mean(0).tolist()
    value_losses = torch.tensor(critic_rows, dtype=torch.float64).mean(0).tolist()
    return {
        **dict(zip(names, policy_means, strict=True)),
        "val/reward_loss": value_losses[0],
        "val/cost_loss": value_losses[1],
        "policy/max_log_ratio_first": largest_first,
        "policy/updates": sum(row[-1] > 0 for row in policy_rows),
        "policy/stopped": float(stopped and not critic_only),
        **({"policy/ptx_loss": math.fsum(imitation) / len(imitation)} if imitation else {}),
    }


def _descend(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Sum the processes' gradients, clip their norm, take one step; return the norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    distributed.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)
