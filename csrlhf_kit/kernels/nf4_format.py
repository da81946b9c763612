"""A matrix in NF4, as the torch reference, the LoRA layer and the Triton kernels read it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Nf4(NamedTuple):
    """The parts of one quantised weight with n elements in b blocks; views of bitsandbytes' tensors."""

    packed: Tensor  # uint8, ceil(n / 2)
    absmax: Tensor  # (b,), float32, or uint8 if double-quantised
    code: Tensor  # (16,), float32
    absmax2: Tensor | None  # (ceil(b / blocksize2),), float32
    code2: Tensor | None  # (256,), float32
    offset: Tensor | None  # (), float32
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocksize: int
    blocksize2: int
