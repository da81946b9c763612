"""From scores and log-ratios to one advantage per token: pure functions around `kernels.gae`."""

from __future__ import annotations

import torch
from torch import Tensor

from csrlhf_kit.kernels import gae
from csrlhf_kit.kernels.masks import last_true


def token_rewards(scores: Tensor, log_ratios: Tensor, response_mask: Tensor, kl_coefficient: float) -> Tensor:
    """Per-token rewards (batch, length): -kl_coefficient * log_ratios, plus the score at the last response token.

    scores: (batch,); log_ratios: (batch, length), log pi - log pi_ref of the sampled tokens; response_mask: (batch,
    length), true at response tokens. Zero outside the response.

    Costs are built by the same function with **minus** the coefficient: in (A_R - lambda A_C) / (1 + lambda)
    the two KL terms then keep the weight beta for every lambda (Safe RLHF, Dai et al. 2023, arXiv 2310.12773,
    Appendix B).
    """
    rewards = torch.where(response_mask, -kl_coefficient * log_ratios, 0.0)
    rows = torch.arange(response_mask.shape[0], device=response_mask.device)
    rewards[rows, last_true(response_mask)] += scores
    return rewards


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true; both (batch, length)."""
    return (values * mask).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale to zero mean and unit variance where `mask` is true, over the *whole batch*; zero elsewhere.

    Returns the whitened values (batch, length) and the factor 1 / std. Some implementations add the mean back,
    so that a constant advantage raises the probability of every sampled token; this one does not. Equal
    advantages become zero.
    """
    centred = torch.where(mask, values - masked_mean(values, mask), 0.0)
    std = (centred.square().sum() / mask.sum()).sqrt()
    scale = 1.0 / (std + 1e-8)
    return centred * scale, scale


def advantages_and_returns(
    rewards: Tensor, costs: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE of reward and cost in one scan: (advantages, returns), each (2, batch, length), reward first.

    rewards, costs, response_mask (true at response tokens): (batch, length); values: (batch, length, 2), each of the
    state before the action. gamma: discount; lam: GAE's lambda.
    """
    return gae(torch.stack([rewards, costs]), values.movedim(-1, 0), response_mask, gamma=gamma, lam=lam)
