"""Generalised advantage estimation (GAE) for reward and cost in one scan, correct for padding on either side."""

from __future__ import annotations

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.backend import use_triton


def gae_reference(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """As `gae`, by the paper's recursion: one vector operation per time step."""
    mask = mask.bool().expand(rewards.shape)
    advantages = torch.zeros_like(rewards)
    carry = rewards.new_zeros(rewards.shape[:-1])  # A_{t+1} of the next real position
    next_value = torch.zeros_like(carry)  # V_{t+1}; 0 after the end of an episode
    for t in range(rewards.shape[-1] - 1, -1, -1):
        keep, value = mask[..., t], values[..., t]
        delta = rewards[..., t] + gamma * next_value - value
        carry = torch.where(keep, delta + gamma * lam * carry, carry)
        next_value = torch.where(keep, value, next_value)
        advantages[..., t] = torch.where(keep, carry, 0.0)
    returns = torch.where(mask, advantages + values, 0.0)
    return advantages, returns


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of whole episodes.

    rewards, values: (..., batch, length), any leading dimensions (stack reward and cost to do both in one scan).
    mask: broadcastable to that shape, true at real positions. Padding, wherever it stands, is skipped: the
    successor of a real position is the next real one; the value after the last is 0.
    Returns (advantages, returns), both (..., batch, length), 0 at masked positions; no gradient flows.
    Raises UserError for shapes or dtypes that do not fit.
    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16: A_t = delta_t + gamma lam A_{t+1}.
    """
    if (
        rewards.shape != values.shape
        or mask.shape[-1:] != rewards.shape[-1:]
        or rewards.dtype != values.dtype
    ):
        raise UserError(
            f"gae got rewards {tuple(rewards.shape)} {rewards.dtype}, values {tuple(values.shape)} "
            f"{values.dtype} and mask {tuple(mask.shape)}; expected rewards and values alike, (..., batch, "
            "length), and a mask that broadcasts to it."
        )
    if rewards.numel() and use_triton(rewards):
        from csrlhf_kit.kernels.triton_kernels import gae_scan

        length = rewards.shape[-1]
        flat = [x.float().reshape(-1, length) for x in (rewards, values, mask.expand(rewards.shape))]
        advantages, returns = gae_scan(flat[0], flat[1], flat[2], gamma, lam)
        return advantages.view_as(rewards).to(rewards.dtype), returns.view_as(rewards).to(rewards.dtype)
    return gae_reference(rewards, values, mask, gamma, lam)
