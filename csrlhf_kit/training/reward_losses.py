"""The losses of reward and cost models: pure functions of scores, one per objective of `reward_modeling.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from csrlhf_kit.data.records import Objective


def semantic_loss(costs: torch.Tensor, unsafe: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy on absolute labels: −u log σ(C) − (1 − u) log σ(−C), mean over the batch.

    costs: scores C, (batch,). unsafe: u, 1 for unsafe, 0 for safe, (batch,).
    Source: CS-RLHF, arXiv 2510.03520, and the cost-model training of its released code.
    """
    return F.binary_cross_entropy_with_logits(costs, unsafe.to(costs.dtype))


def bradley_terry_loss(winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """Ranking alone: −log σ(S_w − S_l), mean over the pairs.

    It does not change if a constant is added to every score. So the sign of a score means nothing, and such a
    cost model cannot tell "safe" from "unsafe".

    winners, losers: scores S_w of the more harmful (cost) or more helpful (reward) responses and S_l of the others,
    (batch,). Source: Bradley & Terry 1952; Christiano et al. 2017, arXiv 1706.03741.
    """
    return -F.logsigmoid(winners - losers).mean()


def score_regularizer(winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """(S_w² + S_l²) / 2, mean over the pairs: keeps the scores near 0. Source: safe-rlhf's trainers."""
    return (winners.square() + losers.square()).mean() / 2


def reward_loss(
    winners: torch.Tensor, losers: torch.Tensor, *, regularization: float = 0.001
) -> torch.Tensor:
    """−log σ(R_w − R_l) + regularization · (R_w² + R_l²) / 2, mean over the pairs.

    winners, losers: rewards R_w of the more helpful responses and R_l of the others, (batch,).
    regularization: weight of the squared scores.
    Source: Safe RLHF, arXiv 2310.12773, and safe-rlhf's reward trainer (0.001).
    """
    return bradley_terry_loss(winners, losers) + regularization * score_regularizer(winners, losers)


def ranking_sign_loss(
    winners: torch.Tensor,
    losers: torch.Tensor,
    winner_signs: torch.Tensor,
    loser_signs: torch.Tensor,
    *,
    regularization: float = 0.001,
) -> torch.Tensor:
    """−log σ(C_w − C_l) − log σ(s_w C_w) − log σ(s_l C_l) + regularization · (C_w² + C_l²) / 2, mean.

    Args:
        winners: Costs C_w of the more harmful responses, (batch,).
        losers: Costs C_l of the less harmful ones, (batch,).
        winner_signs: s_w: +1 where the response is unsafe, −1 where it is safe, (batch,).
        loser_signs: s_l, the same for the losers, (batch,).
        regularization: Weight of the squared scores.

    Source: Safe RLHF, arXiv 2310.12773, equation of the cost model, and safe-rlhf's cost trainer.
    """
    signs = -F.logsigmoid(winner_signs * winners) - F.logsigmoid(loser_signs * losers)
    return (
        bradley_terry_loss(winners, losers)
        + signs.mean()
        + regularization * score_regularizer(winners, losers)
    )


def objective_loss(
    objective: Objective, scores: torch.Tensor, targets: torch.Tensor, *, regularization: float
) -> torch.Tensor:
    """The loss of one batch, as the trainer arranges it: a scalar.

    objective: one of the four. scores: (batch,) for `semantic`; (2 · batch,) for pairs, the winners first, then
    the losers. targets: (batch,) labels, 1 unsafe, for `semantic`; (batch, 2) signs of winner and loser for pairs.
    regularization: weight of the squared scores; not used by `semantic` and `bradley_terry`.
    """
    if objective == "semantic":
        return semantic_loss(scores, targets)
    winners, losers = scores.chunk(2)
    if objective == "bradley_terry":
        return bradley_terry_loss(winners, losers)
    if objective == "reward":
        return reward_loss(winners, losers, regularization=regularization)
    return ranking_sign_loss(winners, losers, targets[:, 0], targets[:, 1], regularization=regularization)
