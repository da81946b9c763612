"""Reference solutions of notebook 04, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, norm

EXERCISES = {"4.1": "mean_batch_hinge", "4.2": "penalty_for", "4.3": "combine"}


def mean_batch_hinge(rate, threshold, batch):
    unsafe = np.arange(batch + 1)  # how many of the batch are unsafe
    hinge = np.maximum(unsafe / batch - threshold, 0.0)
    return binom.pmf(unsafe, batch, rate) @ hinge


def mean_batch_hinge__rectifies_the_mean(rate, threshold, batch):
    """The hinge of the expectation: what one would like to compute."""
    return max(rate - threshold, 0.0)


def mean_batch_hinge__rectifies_each_answer(rate, threshold, batch):
    """The per-sample hinge, which no batch size changes."""
    return rate * (1 - threshold)


def mean_batch_hinge__never_sees_a_full_batch(rate, threshold, batch):
    """One count too few."""
    unsafe = np.arange(batch)
    return binom.pmf(unsafe, batch, rate) @ np.maximum(unsafe / batch - threshold, 0.0)


def penalty_for(multiplier, noise, violation):
    share_open = norm.cdf(violation / noise)
    return multiplier / share_open  # so that penalty * share_open is the optimal price


def penalty_for__always_twice(multiplier, noise, violation):
    """Right on the threshold only."""
    return 2 * multiplier


def penalty_for__wrong_side(multiplier, noise, violation):
    """The share of closed batches."""
    return multiplier / norm.cdf(-violation / noise)


def penalty_for__multiplies(multiplier, noise, violation):
    """The effective price of a penalty of λ*, not the penalty."""
    return multiplier * norm.cdf(violation / noise)


def combine(reward_advantages, cost_advantages, penalty, violation):
    felt = penalty if violation > 0 else 0.0  # the multiplier that acts in this step
    return (reward_advantages - felt * cost_advantages) / (1 + felt)


def combine__divides_even_when_closed(reward_advantages, cost_advantages, penalty, violation):
    """The planted bug."""
    gate = float(violation > 0)
    return (reward_advantages - gate * penalty * cost_advantages) / (1 + penalty)


def combine__never_divides(reward_advantages, cost_advantages, penalty, violation):
    """Steps as large as the penalty."""
    gate = float(violation > 0)
    return reward_advantages - gate * penalty * cost_advantages


def combine__never_closes(reward_advantages, cost_advantages, penalty, violation):
    """The linear penalty."""
    return (reward_advantages - penalty * cost_advantages) / (1 + penalty)
