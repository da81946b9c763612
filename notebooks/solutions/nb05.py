"""Reference solutions of notebook 05, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EXERCISES = {"5.1": "kl_estimate", "5.2": "stopped", "5.3": "rewards_by_token", "5.4": "gae", "5.5": "policy_loss"}


def kl_estimate(log_ratio):
    return np.exp(log_ratio) - 1 - log_ratio  # its mean is that of -log_ratio, and it is never negative


def kl_estimate__plain(log_ratio):
    """Right on average, and negative half of the time."""
    return -log_ratio


def kl_estimate__squared(log_ratio):
    """Never negative, and right for small steps only."""
    return log_ratio**2 / 2


def kl_estimate__the_other_way_round(log_ratio):
    """Takes the ratio upside down."""
    return np.exp(-log_ratio) - 1 + log_ratio


def stopped(ratio, advantages, clip):
    too_far_up = (advantages > 0) & (ratio > 1 + clip)
    too_far_down = (advantages < 0) & (ratio < 1 - clip)
    return too_far_up | too_far_down


def stopped__counts_both_sides(ratio, advantages, clip):
    """What `clipfrac` counts: also tokens that have moved the wrong way and may come back."""
    return np.abs(ratio - 1) > clip


def stopped__forgets_the_sign(ratio, advantages, clip):
    """Right for tokens that were better than expected."""
    return ratio > 1 + clip


def stopped__is_upside_down(ratio, advantages, clip):
    """Stops those that moved the wrong way."""
    return np.where(advantages > 0, ratio < 1 - clip, ratio > 1 + clip)


def rewards_by_token(scores, log_ratios, response_mask, beta):
    rewards = np.where(response_mask, -beta * log_ratios, 0.0)
    last = (response_mask * np.arange(response_mask.shape[1])).argmax(axis=1)
    rewards[np.arange(len(scores)), last] += scores  # the last action: EOS, where the policy chose to stop
    return rewards


def rewards_by_token__one_slot_too_late(scores, log_ratios, response_mask, beta):
    """The planted bug."""
    rewards = np.where(response_mask, -beta * log_ratios, 0.0)
    last = (response_mask * np.arange(response_mask.shape[1])).argmax(axis=1)
    rewards[np.arange(len(scores)), last + 1] += scores
    return rewards


def rewards_by_token__scores_every_token(scores, log_ratios, response_mask, beta):
    """A long answer is paid for its length."""
    return np.where(response_mask, -beta * log_ratios + scores[:, None], 0.0)


def rewards_by_token__pays_for_drifting(scores, log_ratios, response_mask, beta):
    """The KL with the wrong sign."""
    rewards = np.where(response_mask, beta * log_ratios, 0.0)
    last = (response_mask * np.arange(response_mask.shape[1])).argmax(axis=1)
    rewards[np.arange(len(scores)), last] += scores
    return rewards


def gae(scores: Tensor, values: Tensor, response_mask: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (batch, length), discount 1 (arXiv 1506.02438, equation 16)."""
    advantages, carry = torch.zeros_like(scores), torch.zeros(len(scores))
    following = carry  # carry and following: A and V of the next token; nothing follows the last one
    for t in reversed(range(scores.shape[1])):
        delta = scores[:, t] + following - values[:, t]
        carry = torch.where(response_mask[:, t], delta + lam * carry, carry)
        following = torch.where(response_mask[:, t], values[:, t], following)
        advantages[:, t] = torch.where(response_mask[:, t], carry, 0.0)
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def gae__bootstraps_after_the_end(scores, values, response_mask, lam):
    """Lets the value of the padding follow the last token."""
    advantages, carry = torch.zeros_like(scores), torch.zeros(len(scores))
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    for t in reversed(range(scores.shape[1])):
        carry = scores[:, t] + following[:, t] - values[:, t] + lam * carry
        advantages[:, t] = torch.where(response_mask[:, t], carry, 0.0)
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def gae__forgets_lambda(scores, values, response_mask, lam):
    """Right for lambda = 1."""
    return gae(scores, values, response_mask, 1.0)


def gae__returns_the_scores(scores, values, response_mask, lam):
    """The critic's target is the advantage plus the value, not the score."""
    return gae(scores, values, response_mask, lam)[0], torch.where(response_mask, scores, 0.0)


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, response_mask: Tensor, clip: float):
    """PPO's clipped loss per response token, and the approximate KL from the old policy (arXiv 1707.06347)."""
    log_ratio, count = new - old, response_mask.sum()  # log_ratio is zero outside the answers
    ratio = log_ratio.exp()
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    return (loss * response_mask).sum() / count, (ratio - 1 - log_ratio).sum() / count


def policy_loss__takes_the_larger(new, old, advantages, response_mask, clip):
    """The more hopeful of the two objectives."""
    log_ratio, count = new - old, response_mask.sum()
    ratio = log_ratio.exp()
    loss = torch.minimum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    return (loss * response_mask).sum() / count, (ratio - 1 - log_ratio).sum() / count


def policy_loss__averages_over_everything(new, old, advantages, response_mask, clip):
    """Prompts and padding count as tokens."""
    log_ratio = new - old
    ratio = log_ratio.exp()
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    return (loss * response_mask).mean(), (ratio - 1 - log_ratio).mean()


def policy_loss__ascends(new, old, advantages, response_mask, clip):
    """The objective, not the loss."""
    loss, kl = policy_loss(new, old, advantages, response_mask, clip)
    return -loss, kl
