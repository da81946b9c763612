"""The constrained problem without KL: a linear programme that sorting solves exactly.

    maximise  sum_x w_x sum_y p(y|x) reward(x, y)   subject to   sum_x w_x sum_y p(y|x) cost(x, y) <= room

One constraint over many prompts, each of which mixes its own responses, is the linear relaxation of the
multiple-choice knapsack. Only the vertices of each prompt's upper concave hull in the (cost, reward) plane
matter; the edges between them are cut from all prompts, and bought by falling slope (reward per cost) until
the room is used up. The slope of the first edge that is not bought whole is the optimal multiplier.
O(n log n) for n responses in all, and exact: no iteration, no tolerance but for rounding.

Sources: Sinha & Zoltners, Operations Research 27 (1979); Dyer, Mathematical Programming 29 (1984), and Zemel,
Information Processing Letters 18 (1984), who find the slope in O(n) without sorting.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

_ROUNDING = (
    1e-13  # an edge that ends this close (relative to the spread of costs) to the room is bought whole
)


class Edges(NamedTuple):
    """Edges of all prompts' hulls, each array (edges,), prompt by prompt and from the left to the right."""

    prompt: np.ndarray
    left: np.ndarray
    """The response that is given up."""
    right: np.ndarray
    """The response that is bought."""
    slope: np.ndarray
    """Reward per cost, > 0, falling within a prompt."""
    length: np.ndarray
    """Cost of the step, > 0."""


def hull_edges(cost: np.ndarray, reward: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, Edges]:
    """Each prompt's response of least cost (the best of them), (prompts,), and the edges up from there.

    cost, reward: (prompts, responses); allowed: (prompts, responses), at least one a prompt. Of responses
    that are equal in both the first one is taken; points on an edge are no vertices.
    """
    order = np.lexsort((-reward, np.where(allowed, cost, np.inf)), axis=1)
    sorted_reward = np.take_along_axis(np.where(allowed, reward, -np.inf), order, axis=1)
    before = np.maximum.accumulate(sorted_reward, axis=1)[:, :-1]
    worth = np.ones_like(allowed)
    worth[:, 1:] = sorted_reward[:, 1:] > before  # more reward than everything cheaper
    found = []
    for x, row in enumerate(order):
        hull: list[tuple[float, float, int]] = []
        for y in row[worth[x]].tolist():
            c, r = float(cost[x, y]), float(reward[x, y])
            while len(hull) > 1:  # the last vertex goes if it lies on or under the chord past it
                (c0, r0, _), (c1, r1, _) = hull[-2:]
                if (r1 - r0) * (c - c0) > (r - r0) * (c1 - c0):
                    break
                hull.pop()
            hull.append((c, r, y))
        found += [(x, a[2], b[2], (b[1] - a[1]) / (b[0] - a[0]), b[0] - a[0]) for a, b in pairwise(hull)]
    prompt, left, right, slope, length = zip(*found, strict=True) if found else ((), (), (), (), ())
    indices = (np.array(column, dtype=np.intp) for column in (prompt, left, right))
    return order[:, 0], Edges(*indices, np.array(slope, dtype=float), np.array(length, dtype=float))


def best_mixture(
    cost: np.ndarray,
    reward: np.ndarray,
    allowed: np.ndarray,
    *,
    weights: np.ndarray,
    room: float | np.ndarray,
    penalty: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The best policy whose cost stays within `room`, and its multiplier.

    cost: (prompts, responses), at least 0, the least of each prompt being 0; reward and allowed: the same
    shape. weights: (prompts,). room: the mean cost to spend, or (prompts,), one budget a prompt. penalty: the
    price at which the room may be exceeded (the rectified penalty); infinite: not at all, and then room >= 0.

    Returns the policy, (prompts, responses), a vertex: at most one prompt (with one budget a prompt: each)
    mixes two responses, and (constraints,) multipliers: the least price at which this policy is the best, at
    most `penalty`; 0 where the constraint is slack.
    """
    prompts = np.arange(len(cost))
    first, edges = hull_edges(cost, reward, allowed)
    own_budgets = np.ndim(room) > 0
    limit = np.atleast_1d(np.asarray(room, dtype=np.float64))
    if own_budgets:
        group, length = edges.prompt, edges.length
        spent = cost[edges.prompt, edges.left]  # by the prompt's steeper edges
    else:
        order = np.argsort(-edges.slope, kind="stable")
        edges = Edges(*(column[order] for column in edges))
        group, length = np.zeros_like(edges.prompt), weights[edges.prompt] * edges.length
        spent = np.concatenate([[0.0], np.cumsum(length)])[:-1]
    share = np.clip((limit[group] - spent) / length, 0.0, 1.0)
    share = np.where(edges.slope > penalty, 1.0, share)
    rounding = _ROUNDING * float(cost.max(initial=0.0))
    wanting = spent + length > limit[group] + rounding
    price = np.zeros(len(limit))
    np.maximum.at(price, group[wanting], edges.slope[wanting])
    price = np.where(limit < -rounding, np.inf, price)
    policy = np.zeros_like(cost)
    policy[prompts, first] = 1.0
    np.add.at(policy, (edges.prompt, edges.left), -share)
    np.add.at(policy, (edges.prompt, edges.right), share)
    return policy, np.minimum(price, penalty)
