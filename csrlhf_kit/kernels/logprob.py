"""Per-token log-probability and entropy straight from hidden states."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """The definition, with all logits in memory; differentiable by plain autograd."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(
        torch.promote_types(hidden.dtype, torch.float32)
    )
    all_log_probs = (logits / temperature).log_softmax(-1)
    entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
    ignored = targets == ignore_index
    picked = all_log_probs.gather(-1, targets.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
    return picked.masked_fill(ignored, 0.0), entropy.masked_fill(ignored, 0.0)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """log softmax((hidden @ weight.T + bias) / temperature)[targets] and the entropy of that distribution.

    hidden: (..., hidden); weight: (vocabulary, hidden); targets: (...), integer; bias: (vocabulary,) or None.
    Returns (log_probs, entropy), both (...), in nats, at least float32, and 0 where targets == ignore_index.
    Both are differentiable with respect to hidden, weight and bias.
    """
    return linear_logprob_reference(hidden, weight, targets, temperature, bias, ignore_index)
