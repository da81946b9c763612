"""The exercises of notebook 05: a picture and a check for each function that the learner writes.

5.1 `kl_estimate`: an estimate of the KL from log ratios that is never negative. 5.2 `stopped`: the tokens at which
PPO's clipped loss has no gradient. 5.3 `rewards_by_token`: the KL penalty per token, and the score at the last one.
5.4 `gae`: advantages and the critic's targets. 5.5 `policy_loss`: PPO's clipped loss, and how far it went.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.kernels import gae
from csrlhf_kit.training.advantages import token_rewards
from csrlhf_kit.training.ppo_update import approximate_kl, policy_loss

SPOILERS = {
    "2": ("policy_loss",),
    "3": ("token_rewards",),
    "4": ("gae", "advantages_and_returns"),
    "5": ("policy_loss",),
}  # exercise -> what solves it already


def picture_1(attempt: Attempt) -> go.Figure:
    log_ratios = np.linspace(-1.5, 1.5, 31)
    values = drawn(attempt, log_ratios)
    fits = values is not None and np.shape(values) == log_ratios.shape
    return chart(
        "What one token says about the KL: the plain estimate is as often negative as positive",
        "log ratio of new to old policy, nats",
        "estimate, nats",
        {"plain estimate, −log ratio": (log_ratios, -log_ratios)},
        yours=(log_ratios, np.asarray(values, dtype=float)) if fits else None,
        across=0.0,
    )


def check_1(attempt: Attempt) -> None:
    rng = np.random.default_rng(5)
    for size in (2, 5):
        old, new = (rng.dirichlet(np.ones(size)) for _ in range(2))
        found = np.asarray(answer(attempt, np.log(new / old)), dtype=float)
        same(found.shape, (size,), "the shape of what you return", hint="One estimate for each log ratio.")
        if (found < 0).any():
            raise Mistake(
                f"a log ratio of {np.log(new / old)[found.argmin()]:.2f} gives a negative estimate, "
                f"{found.min():.2f}: no KL is negative, and this estimate never should be"
            )
        same(
            old @ found,
            old @ np.log(old / new),
            f"its mean over {size} tokens, drawn from the old policy, is not KL(old ‖ new)",
            hint="The mean of ratio - 1 under the old policy is 0, so adding it changes no mean.",
        )


def _slopes(ratio: np.ndarray, advantages: np.ndarray, clip: float) -> np.ndarray:
    """The gradient of the package's clipped loss in each ratio."""
    variable = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    given = torch.tensor(advantages, dtype=torch.float64)
    policy_loss(variable, given, torch.ones_like(given, dtype=torch.bool), clip).backward()
    return variable.grad.numpy()


def picture_2(attempt: Attempt) -> go.Figure:
    ratio = np.round(np.linspace(0.5, 1.5, 41), 4)
    values = drawn(attempt, ratio, -np.ones_like(ratio), 0.2)
    fits = values is not None and np.shape(values) == ratio.shape
    return chart(
        "A token with advantage −1: where does clipping stop its gradient? 1 = stopped",
        "ratio of new to old probability",
        "gradient stopped",
        {"what clipfrac counts": (ratio, (np.abs(ratio - 1) > 0.2).astype(float))},
        yours=(ratio, np.asarray(values, dtype=float)) if fits else None,
        down=1.0,
    )


def check_2(attempt: Attempt) -> None:
    ratio = np.array([0.5, 0.7, 0.9, 1.1, 1.3, 1.5])
    for clip in (0.2, 0.4):
        for advantage in (1.0, -2.0):
            advantages = np.full_like(ratio, advantage)
            found = answer(attempt, ratio, advantages, clip)
            same(found, (_slopes(ratio, advantages, clip) == 0).astype(float),
                 f"ratios {', '.join(f'{r:g}' for r in ratio)}, advantage {advantage:g}, clip {clip:g}",
                 hint="PPO stops what has gone far enough in the direction that the advantage asks for.")  # fmt: skip


def _answers() -> tuple[np.ndarray, np.ndarray]:
    """(log_ratios, response_mask) of three answers of 4, 2 and 5 tokens, with prompts before and padding after."""
    response_mask = np.zeros((3, 9), dtype=bool)
    for row, (first, end) in enumerate(((2, 6), (1, 3), (3, 8))):
        response_mask[row, first:end] = True
    return np.random.default_rng(6).normal(0, 0.3, response_mask.shape), response_mask


def _package(
    scores: np.ndarray, log_ratios: np.ndarray, response_mask: np.ndarray, beta: float
) -> np.ndarray:
    tensors = [torch.tensor(array) for array in (scores, log_ratios, response_mask)]
    return token_rewards(*tensors, beta).numpy()


def picture_3(attempt: Attempt) -> go.Figure:
    log_ratios, response_mask = _answers()
    scores = [-2.0, -1.0, 0.0, 1.0, 2.0]
    values = [
        drawn(attempt, np.full(3, score), np.zeros_like(log_ratios), response_mask, 0.1) for score in scores
    ]
    fits = all(np.shape(value) == response_mask.shape for value in values)
    return chart(
        "What an answer earns over its own tokens, against the score that it got",
        "score of the whole answer",
        "sum of the tokens' rewards",
        {"one for one": (scores, scores)},
        yours=(scores, [float((np.asarray(v, dtype=float) * response_mask)[0].sum()) for v in values])
        if fits
        else None,
    )


def check_3(attempt: Attempt) -> None:
    log_ratios, response_mask = _answers()
    scores = np.array([1.0, -2.0, 0.5])
    found = answer(attempt, scores, np.zeros_like(log_ratios), response_mask, 0.1)
    same(np.shape(found), response_mask.shape, "the shape of what you return")
    if not np.allclose((np.asarray(found, dtype=float) * response_mask).sum(axis=1), scores):
        raise Mistake(
            "the policy agrees with the reference, the scores are 1, -2 and 0.5, and over their own tokens the "
            f"answers earn {', '.join(f'{x:g}' for x in (np.asarray(found) * response_mask).sum(axis=1))}"
        )
    for beta in (0.1, 1.0):
        same(
            answer(attempt, scores, log_ratios, response_mask, beta),
            _package(scores, log_ratios, response_mask, beta),
            f"three answers, β = {beta:g}",
            hint="Each action token pays β times its log ratio; the score belongs to the last action.",
        )


def _tensors(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scores, values, response_mask) of the three answers: float64 noise, also where no answer is."""
    generator = torch.Generator().manual_seed(seed)
    response_mask = torch.tensor(_answers()[1])
    scores, values = torch.randn(2, *response_mask.shape, dtype=torch.float64, generator=generator)
    return scores, values, response_mask


def _pair(found: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Mistake(f"{what}: two results were expected, your function gives {type(found).__name__}")
    return found[0], found[1]


def _plain(found: Any) -> Any:
    return found.detach().numpy() if isinstance(found, torch.Tensor) else found


def picture_4(attempt: Attempt) -> go.Figure:
    """The advantage of the first token when only the last one of four is scored."""
    response_mask = torch.ones(1, 4, dtype=torch.bool)
    scores = torch.zeros(1, 4, dtype=torch.float64)
    scores[0, -1] = 1.0
    lams = np.round(np.linspace(0, 1, 21), 3)
    found = [drawn(attempt, scores, torch.zeros_like(scores), response_mask, float(lam)) for lam in lams]
    fits = all(isinstance(pair, tuple) and np.shape(_plain(pair[0])) == (1, 4) for pair in found)
    return chart(
        "Credit for the first of four tokens when only the last is scored: how far λ lets it reach",
        "λ of GAE",
        "advantage of the first token",
        {"Monte Carlo, λ = 1": (lams, np.ones_like(lams))},
        yours=(lams, [float(_plain(pair[0])[0, 0]) for pair in found]) if fits else None,
    ).update_yaxes(rangemode="tozero")


def check_4(attempt: Attempt) -> None:
    for seed, lam in ((1, 0.95), (2, 0.5), (3, 0.0), (4, 1.0)):
        scores, values, response_mask = _tensors(seed)
        advantages, returns = gae(scores, values, response_mask, gamma=1.0, lam=lam)
        mine = _pair(answer(attempt, scores, values, response_mask, lam), "what you return")
        for found, expected, what in ((mine[0], advantages, "advantages"), (mine[1], returns, "returns")):
            wanted = torch.where(response_mask, expected, 0.0).numpy()
            same(_plain(found), wanted, f"{what} of three answers, λ = {lam:g}",
                 hint="Go from the last token to the first, and let nothing follow the end of an answer.")  # fmt: skip


def picture_5(attempt: Attempt) -> go.Figure:
    ratios = np.round(np.linspace(0.5, 1.5, 41), 4)
    one = torch.ones(1, 1, dtype=torch.float64)
    found = [drawn(attempt, one * np.log(r), 0 * one, one, one.bool(), 0.2) for r in ratios]
    fits = all(isinstance(pair, tuple) and np.size(_plain(pair[0])) == 1 for pair in found)
    return chart(
        "PPO's loss of one token with advantage 1: beyond 1.2 there is nothing more to gain",
        "ratio of new to old probability",
        "loss",
        {"not clipped": (ratios, -ratios)},
        yours=(ratios, [float(_plain(pair[0])) for pair in found]) if fits else None,
        down=1.2,
    )


def check_5(attempt: Attempt) -> None:
    for seed, clip in ((5, 0.2), (6, 0.1)):
        new, advantages, response_mask = _tensors(seed)
        new = torch.where(response_mask, 0.4 * new, 0.0)  # log-probabilities are zero outside the answers
        old, count = torch.zeros_like(new), response_mask.sum()
        loss, kl = _pair(answer(attempt, new, old, advantages, response_mask, clip), "what you return")
        expected = policy_loss(new.exp(), advantages, response_mask, clip) / count
        same(_plain(loss), expected.numpy(), f"the loss of three answers, clip {clip:g}",
             hint="Per token of the answers: the larger of the two losses, summed, over their number.")  # fmt: skip
        same(_plain(kl), (approximate_kl(new - old, response_mask) / count).numpy(), "the approximate KL",
             hint="Exercise 5.1's estimate, averaged over the answers' tokens.")  # fmt: skip
