"""NF4 weights as bitsandbytes stores them, converted back to floating point, bit for bit.

A weight W (out, in) is flattened row by row. Byte j packs elements 2j (high nibble) and 2j + 1 (low nibble);
each nibble indexes a codebook of 16 values, and each block of 64 elements shares one scale (`absmax`). Double
quantisation stores the scales in 8 bits too: scale = code2[absmax] * absmax2[block // 256] + offset.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; layout as in bitsandbytes 0.50.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.backend import use_triton
from csrlhf_kit.kernels.nf4_format import Nf4


def is_quantised(weight: Tensor) -> bool:
    """Whether `weight` is a bitsandbytes 4-bit parameter."""
    return getattr(weight, "quant_state", None) is not None


def read_params4bit(weight: Tensor, quant_state: Any = None) -> Nf4:
    """Views of the parts of a bitsandbytes `Params4bit`, or of packed bytes with their `QuantState`.

    Raises UserError if the weight is not quantised, not NF4, or repacked by bitsandbytes for AVX512.
    """
    state = quant_state if quant_state is not None else getattr(weight, "quant_state", None)
    if state is None:
        raise UserError(
            "This weight has no quant_state: expected a bitsandbytes Params4bit that is quantised."
        )
    if state.quant_type != "nf4":
        raise UserError(f"This weight is quantised as {state.quant_type!r}: only 'nf4' is read here.")
    if getattr(state, "packing_format_for_cpu", False):
        raise UserError(
            "bitsandbytes has repacked this weight for AVX512 inference, which training cannot read: after "
            "loading, set support_avx512bf16_for_cpu = False on every bitsandbytes Linear4bit (fuse does)."
        )
    second = state.state2 if state.nested else None
    return Nf4(
        packed=weight.data.contiguous().view(torch.uint8).reshape(-1), absmax=state.absmax.reshape(-1),
        code=state.code, absmax2=second.absmax if second else None, code2=second.code if second else None,
        offset=state.offset if second else None, shape=tuple(state.shape), dtype=state.dtype,
        blocksize=state.blocksize, blocksize2=second.blocksize if second else 1,
    )  # fmt: skip


def dequantize_nf4_reference(parts: Nf4) -> Tensor:
    """As `dequantize_nf4`, in plain torch, by the layout described at the top of this file."""
    if parts.code2 is None:
        scale = parts.absmax.float()
    else:
        assert parts.absmax2 is not None and parts.offset is not None  # the three come together
        block = torch.arange(parts.absmax.numel(), device=parts.absmax.device)
        scale = parts.code2[parts.absmax.int()] * parts.absmax2[block // parts.blocksize2] + parts.offset
    size = math.prod(parts.shape)
    # A byte is its high nibble, then its low one.
    pairs = torch.cartesian_prod(parts.code, parts.code)  # (256, 2)
    values = pairs.index_select(0, parts.packed.int()).view(-1)[:size]
    whole = size // parts.blocksize * parts.blocksize  # the last block may be short
    head = values[:whole].view(-1, parts.blocksize) * scale[: whole // parts.blocksize, None]
    if whole == size:
        return head.view(parts.shape).to(parts.dtype)
    tail = values[whole:] * scale[whole // parts.blocksize]
    return torch.cat((head.reshape(-1), tail)).view(parts.shape).to(parts.dtype)


def dequantize_nf4(weight: Tensor | Nf4, quant_state: Any = None) -> Tensor:
    """The dense weight of a bitsandbytes NF4 parameter, plain or double-quantised, bit for bit as theirs.

    weight: a `Params4bit`, packed bytes with their `quant_state`, or a result of `read_params4bit`.
    Returns a tensor of the original shape (out, in) and dtype, without a gradient.
    Raises UserError if the weight cannot be read (see `read_params4bit`).
    """
    parts = weight if isinstance(weight, Nf4) else read_params4bit(weight, quant_state)
    if parts.packed.numel() and use_triton(parts.packed):
        from csrlhf_kit.kernels.triton_kernels import nf4_dequantize

        return nf4_dequantize(parts)
    with torch.no_grad():
        return dequantize_nf4_reference(parts)
