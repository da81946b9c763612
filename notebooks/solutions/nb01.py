"""Reference solutions of notebook 01, and wrong ones that its checks must refuse."""

from __future__ import annotations

from itertools import product

import numpy as np

EXERCISES = {"1.1": "majority_error", "1.2": "kappa", "1.3": "cost_targets"}


def majority_error(slips):
    total = 0.0
    for wrong in product((False, True), repeat=len(slips)):
        if sum(wrong) > len(slips) / 2:
            total += np.prod([s if w else 1 - s for s, w in zip(slips, wrong, strict=True)])
    return total


def majority_error__all_must_be_wrong(slips):
    """Unanimous error only."""
    return np.prod(slips)


def majority_error__takes_the_mean(slips):
    """The error of one annotator drawn at random."""
    return np.mean(slips)


def majority_error__counts_half(slips):
    """One wrong annotator too few."""
    total = 0.0
    for wrong in product((False, True), repeat=len(slips)):
        if sum(wrong) >= len(slips) // 2:
            total += np.prod([s if w else 1 - s for s, w in zip(slips, wrong, strict=True)])
    return total


def kappa(first, second):
    observed = np.mean(first == second)
    a, b = np.mean(first), np.mean(second)  # how often each says "unsafe"
    by_chance = a * b + (1 - a) * (1 - b)
    return (observed - by_chance) / (1 - by_chance)


def kappa__plain_agreement(first, second):
    """High wherever one label is rare."""
    return np.mean(first == second)


def kappa__chance_is_a_coin(first, second):
    """Right for balanced labels only."""
    return (np.mean(first == second) - 0.5) / 0.5


def kappa__counts_unsafe_only(first, second):
    """Forgets that two annotators also agree by chance on safe."""
    by_chance = np.mean(first) * np.mean(second)
    return (np.mean(first == second) - by_chance) / (1 - by_chance)


def cost_targets(pair):
    costlier = 1 - pair.safer_response_id
    signs = [-1 if safe else 1 for safe in pair.safety]  # +1 is harmful
    return costlier, signs[costlier], signs[1 - costlier]


def cost_targets__flips_the_signs(pair):
    """The planted bug."""
    costlier = 1 - pair.safer_response_id
    signs = [1 if safe else -1 for safe in pair.safety]
    return costlier, signs[costlier], signs[1 - costlier]


def cost_targets__ranks_by_helpfulness(pair):
    """Takes the wrong one of the two judgements."""
    costlier = 1 - pair.better_response_id
    signs = [-1 if safe else 1 for safe in pair.safety]
    return costlier, signs[costlier], signs[1 - costlier]


def cost_targets__believes_every_pair_straddles(pair):
    """Right for 15% of the pairs."""
    return 1 - pair.safer_response_id, 1, -1
