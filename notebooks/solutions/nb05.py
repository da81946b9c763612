"""Reference solutions of notebook 05, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"5.1": "kl_estimate", "5.2": "stopped", "5.3": "rewards_by_token"}


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
