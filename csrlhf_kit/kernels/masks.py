"""Positions and last tokens of padded rows, computed from their masks."""

from __future__ import annotations

import torch
from torch import Tensor


def position_ids(mask: Tensor) -> Tensor:
    """Positions (batch, length) that count the real tokens of `mask` only, so that padding changes nothing."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def last_true(mask: Tensor) -> Tensor:
    """Column (batch,) of the last true entry of each row of `mask` (batch, length)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * columns).argmax(1)
