"""Reference solutions of notebook 07, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EXERCISES = {"7.1": "which_penalty", "7.2": "trained_by_division", "7.3": "rectified_advantages", "7.4": "combine"}


def which_penalty(violations, multipliers):
    if len(set(multipliers[multipliers > 0])) > 1:
        return "learned"
    below = violations <= 0
    if not below.any():
        return "cannot tell"
    return "linear" if (multipliers[below] > 0).any() else "rectified"


def which_penalty__forgets_that_logs_can_be_silent(violations, multipliers):
    """Calls every constant λ linear, though the rectifier may just never have been off."""
    if len(set(multipliers[multipliers > 0])) > 1:
        return "learned"
    return "rectified" if (multipliers == 0).any() else "linear"


def which_penalty__takes_a_gate_for_learning(violations, multipliers):
    """λ changes, but only between two values."""
    if len(set(multipliers)) > 1:
        return "learned"
    return "linear" if (violations <= 0).any() else "cannot tell"


def trained_by_division(problem, penalty):
    felt = (problem.reward - penalty * problem.cost) / (1 + penalty)
    scores = np.log(problem.reference) + felt / problem.beta
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def trained_by_division__forgets_to_divide(problem, penalty):
    """The tilt of the objective that one had in mind."""
    return problem.tilted(penalty).policy


def trained_by_division__divides_the_kl_too(problem, penalty):
    """Scales everything: then nothing changes."""
    felt = (problem.reward - penalty * problem.cost) / (1 + penalty)
    scores = np.log(problem.reference) + felt / (problem.beta / (1 + penalty))
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def trained_by_division__forgets_the_reference(problem, penalty):
    """A softmax, not a tilt."""
    felt = (problem.reward - penalty * problem.cost) / (1 + penalty)
    weight = np.exp((felt - felt.max(axis=1, keepdims=True)) / problem.beta)
    return weight / weight.sum(axis=1, keepdims=True)


def rectified_advantages(reward_advantages, cost_advantages, costs, penalty, threshold):
    violation = costs.mean() - threshold  # of the costs themselves
    felt = penalty if violation > 0 else 0.0
    return (reward_advantages - felt * cost_advantages) / (1 + felt)


def rectified_advantages__asks_the_advantages(reward_advantages, cost_advantages, costs, penalty, threshold):
    """The planted bug: advantages are about 0 on average, whatever the policy does."""
    violation = cost_advantages.mean() - threshold
    felt = penalty if violation > 0 else 0.0
    return (reward_advantages - felt * cost_advantages) / (1 + felt)


def rectified_advantages__gates_each_answer(reward_advantages, cost_advantages, costs, penalty, threshold):
    """The per-sample hinge of notebook 04."""
    felt = np.where(costs > threshold, penalty, 0.0)
    return (reward_advantages - felt * cost_advantages) / (1 + felt)


def rectified_advantages__never_closes(reward_advantages, cost_advantages, costs, penalty, threshold):
    """The linear penalty."""
    return (reward_advantages - penalty * cost_advantages) / (1 + penalty)


def combine(reward_a: Tensor, cost_a: Tensor, response_mask: Tensor, multiplier: float) -> Tensor:
    """(A_R - lambda A_C) / (1 + lambda), whitened over the batch's response tokens."""
    mixed = (reward_a - multiplier * cost_a) / (1 + multiplier)
    centred = torch.where(response_mask, mixed - mixed[response_mask].mean(), 0.0)
    return centred / (centred.square().sum() / response_mask.sum()).sqrt().clamp_min(1e-8)


def combine__does_not_divide(reward_a, cost_a, response_mask, multiplier):
    """Whitened it would not matter; but whitening is forgotten as well."""
    return torch.where(response_mask, reward_a - multiplier * cost_a, 0.0)


def combine__whitens_over_the_padding(reward_a, cost_a, response_mask, multiplier):
    """The zeros outside of the answers pull the mean and the spread."""
    mixed = torch.where(response_mask, (reward_a - multiplier * cost_a) / (1 + multiplier), 0.0)
    return torch.where(response_mask, mixed - mixed.mean(), 0.0) / mixed.std().clamp_min(1e-8)


def combine__adds_the_cost(reward_a, cost_a, response_mask, multiplier):
    """Harm is paid for."""
    return combine(reward_a, -cost_a, response_mask, multiplier)
