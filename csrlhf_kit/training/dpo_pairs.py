"""Which of two responses wins: by a label, by SafeDPO's rule, or by MoCAN's scores of the base's own answers.

Makes the pairs that `dpo.py` trains on; MoCAN's multiplier comes from `theory.problem`.
Sources: SafeDPO, Kim et al. 2025, arXiv 2505.20065; CAN and MoCAN, Huang et al. 2024, arXiv 2405.19544.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from csrlhf_kit.data.chat import fit_prompts
from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import MAX_PROMPT, in_batches, response_texts, sample_episodes, score_episodes
from csrlhf_kit.runs import seed_everything
from csrlhf_kit.theory.problem import FiniteProblem

SAMPLED_AT_ONCE = 128  # answers of the base


class Ranked(NamedTuple):
    """One pair, ordered as the policy is to learn it."""

    prompt: str
    winner: str
    loser: str
    offset: float = 0.0
    """Subtracted from the loss's argument beta * margin: how much more clearly the winner must win."""


def by_label(pairs: Sequence[PreferencePair], label: Literal["safer", "better"]) -> list[Ranked]:
    """Order each pair by one of its two judgements."""
    ranked = []
    for pair in pairs:
        winner = pair.safer_response_id if label == "safer" else pair.better_response_id
        ranked.append(Ranked(pair.prompt, pair.responses[winner], pair.responses[1 - winner]))
    return ranked


def safedpo_order(pairs: Sequence[PreferencePair], offset: float) -> list[Ranked]:
    """SafeDPO's transformation: the more helpful response wins, unless it is unsafe and the other one safe.

    offset: Delta, the pair's offset if a safe response beats an unsafe one. Two unsafe responses keep their
    order. The paper maximises E[r] - beta KL over *safe* responses only; no Delta >= 0 moves that maximiser.
    Raises UserError if a pair has no safety labels.
    """
    ranked = []
    for pair in pairs:
        if None in pair.safety:
            raise UserError("safedpo: found a pair without safety labels, expected is_response_*_safe")
        unsafe = [not safe for safe in pair.safety]
        winner = pair.better_response_id
        if unsafe[winner] and not unsafe[1 - winner]:
            winner = 1 - winner
        margin = offset * (unsafe[1 - winner] - unsafe[winner])
        ranked.append(Ranked(pair.prompt, pair.responses[winner], pair.responses[1 - winner], margin))
    return ranked


# --- MoCAN: the multiplier and the labels from scores, before any training ---


class Offline(NamedTuple):
    """Scored answers of the base."""

    prompts: list[str]
    responses: list[list[str]]  # (prompts, samples)
    reward: np.ndarray  # (prompts, samples)
    cost: np.ndarray  # (prompts, samples), probabilities


def offline_answers(
    roles: Roles, tokenizer: Any, prompts: Sequence[str], *, samples: int, max_new_tokens: int, seed: int
) -> Offline:
    """Sample `samples` answers of the base to each prompt, and score them with the learned reward and cost."""
    seed_everything(seed)
    prompts = fit_prompts(tokenizer, prompts, max_length=MAX_PROMPT, tell=True)
    asked = [prompt for prompt in prompts for _ in range(samples)]
    texts = [""] * len(asked)
    reward, cost = np.zeros(len(asked)), np.zeros(len(asked))
    sample_batch = partial(sample_episodes, roles, tokenizer, adapter=None, max_new_tokens=max_new_tokens)
    batches = in_batches(sample_batch, tokenizer, asked, batch_size=SAMPLED_AT_ONCE, longest_first=False)
    for rows, episodes in tqdm(
        batches, desc="answers of the base", unit="batch", total=-(-len(asked) // SAMPLED_AT_ONCE)
    ):
        scored = score_episodes(
            roles, tokenizer, [asked[row] for row in rows.tolist()], episodes,
            temperature=1.0, policy=False, critic=False,
        )  # fmt: skip
        reward[rows.numpy()] = scored.reward.double().cpu()
        cost[rows.numpy()] = scored.cost.double().sigmoid().cpu()
        for row, text in zip(rows.tolist(), response_texts(tokenizer, episodes), strict=True):
            texts[row] = text.strip()
    grid = (len(prompts), samples)
    answers = [texts[i * samples : (i + 1) * samples] for i in range(len(prompts))]
    return Offline(list(prompts), answers, reward.reshape(grid), cost.reshape(grid))


def one_shot_multiplier(
    reward: np.ndarray, cost: np.ndarray, *, beta: float, threshold: float, maximum: float
) -> float:
    """lambda* = argmin over lambda >= 0 of beta E_x log E_y exp((r - lambda (c - d)) / beta), at most `maximum`.

    reward, cost: (prompts, samples) scores of answers drawn from the reference, equally weighted; d: `threshold`.
    The dual is convex with slope d - J_C, whose root `FiniteProblem` finds; no policy is trained for it (CAN,
    arXiv 2405.19544, algorithm 1). If no reweighting of the samples meets the threshold, the dual has no
    minimum: `maximum` is returned, with a warning.
    """
    problem = FiniteProblem(
        np.full(reward.shape, 1 / reward.shape[1]), reward, cost, beta=beta, threshold=threshold
    )
    least = problem.smallest_cost()
    if least >= threshold:
        warnings.warn(
            f"no tilt of the base's answers meets threshold {threshold:g} (least cost {least:.3g}): "
            f"lambda is {maximum:g}, its maximum",
            stacklevel=2,
        )
        return maximum
    return min(float(problem.constrained_optimum().multiplier), maximum)


def pseudo_pairs(offline: Offline, multiplier: float, *, seed: int) -> list[Ranked]:
    """Pair neighbouring answers and draw each winner by the Bradley-Terry model of s = r - lambda c.

    The first wins with probability sigmoid(s_0 - s_1), so that DPO with weight beta has the constrained optimum
    pi_ref exp(s / beta). Pairs of equal answers, or with an empty one, are left out.
    """
    scores = offline.reward - multiplier * offline.cost
    draws = np.random.default_rng(seed).random(scores.shape)
    ranked = []
    for row, (prompt, answers) in enumerate(zip(offline.prompts, offline.responses, strict=True)):
        for a in range(0, len(answers) - 1, 2):
            first, second = answers[a], answers[a + 1]
            if first == second or not first or not second:
                continue
            chance = 1.0 / (1.0 + math.exp(min(scores[row, a + 1] - scores[row, a], 700.0)))
            wins = draws[row, a] < chance
            ranked.append(Ranked(prompt, *((first, second) if wins else (second, first))))
    return ranked
