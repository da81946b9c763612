"""The Triton kernels, imported only if they run; their definitions are the torch references beside their callers.

All arithmetic is float32: loads are widened first, since Triton's interpreter is wrong on bfloat16, and float64 runs
on torch. One program works on one row, or on a few blocks; nothing depends on the order of programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrlhf_kit.kernels.nf4_format import Nf4


@triton.jit
def _rounded(values, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """`values` in `dtype`, rounded to nearest, ties to even; Triton's interpreter would truncate to bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.float32).to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)


@triton.jit
def _scaled_logits(logits, bias, columns, inside, scale):
    z = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, z * scale, float("-inf"))


@triton.jit
def _statistics_kernel(
    logits, bias, targets, log_total, picked, entropy, vocabulary, scale, BLOCK: tl.constexpr
):
    """One pass over a row: running maximum m, sums of e^(z-m) and of e^(z-m) z (online softmax)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    m = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        z = _scaled_logits(logits, bias, columns, inside, scale)
        new_m = tl.maximum(m, tl.max(z, 0))
        shrink = tl.exp(m - new_m)
        e = tl.exp(z - new_m)
        total = total * shrink + tl.sum(e, 0)
        weighted = weighted * shrink + tl.sum(e * tl.where(inside, z, 0.0), 0)
        m = new_m
    log_sum = m + tl.log(total)
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < vocabulary)
    z_target = tl.load(logits + target, mask=valid, other=float("nan")).to(tl.float32)
    if bias is not None:
        z_target += tl.load(bias + target, mask=valid, other=0.0).to(tl.float32)
    tl.store(log_total + row, log_sum)
    tl.store(picked + row, z_target * scale - log_sum)
    tl.store(entropy + row, log_sum - weighted / total)


@triton.jit
def _gradient_kernel(
    logits, bias, targets, log_total, out, vocabulary, scale, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr
):
    """onehot(target) - p for one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    z = _scaled_logits(logits + row * vocabulary, bias, columns, inside, scale)
    p = tl.exp(z - tl.load(log_total + row))
    slope = tl.where(columns == tl.load(targets + row), 1.0, 0.0) - p
    slope = _rounded(slope, out.dtype.element_ty, INTERPRETED)
    tl.store(out + row * vocabulary + columns, slope, mask=inside)


def interpreted() -> bool:
    """Whether Triton's interpreter runs these kernels, as in tests on a machine without a GPU."""
    return not isinstance(_nf4_kernel, triton.runtime.JITFunction)


def logprob_statistics(
    logits: Tensor, bias: Tensor | None, targets: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logsumexp, log p(target) and entropy, each (n,), of the rows of (logits + bias) * scale (n, vocabulary)."""
    n, vocabulary = logits.shape
    log_total, picked, entropy = torch.empty((3, n), dtype=logits.dtype, device=logits.device).unbind()
    _statistics_kernel[(n,)](
        logits, bias, targets, log_total, picked, entropy, vocabulary, scale,
        BLOCK=min(8192, triton.next_power_of_2(vocabulary)), num_warps=16,
    )  # fmt: skip
    return log_total, picked, entropy


def logprob_gradient(
    logits: Tensor, bias: Tensor | None, targets: Tensor, scale: float, log_total: Tensor, out: Tensor
) -> Tensor:
    """The gradient of log p(target) with respect to the scaled logits, written to `out` (n, vocabulary)."""
    n, vocabulary = logits.shape
    block = min(4096, triton.next_power_of_2(vocabulary))
    _gradient_kernel[(n, triton.cdiv(vocabulary, block))](
        logits, bias, targets, log_total, out, vocabulary, scale,
        BLOCK=block, INTERPRETED=interpreted(), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _nf4_kernel(
    packed, absmax, code, absmax2, code2, offset, out, size,
    BLOCKSIZE: tl.constexpr, BLOCKSIZE2: tl.constexpr, BLOCKS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """BLOCKS quantisation blocks as rows: (BLOCKS, BLOCKSIZE / 2) bytes in, (BLOCKS, BLOCKSIZE) values out."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    first = block[:, None] * BLOCKSIZE  # flat index of each block's first element
    byte = tl.arange(0, BLOCKSIZE // 2)[None, :]
    both = tl.load(packed + first // 2 + byte, mask=first + 2 * byte < size, other=0).to(tl.int32)
    real = block * BLOCKSIZE < size
    if absmax2 is None:
        scale = tl.load(absmax + block, mask=real, other=0.0).to(tl.float32)
    else:
        index = tl.load(absmax + block, mask=real, other=0).to(tl.int32)
        scale = tl.load(code2 + index) * tl.load(absmax2 + block // BLOCKSIZE2, mask=real, other=0.0)
        scale += tl.load(offset)
    high = tl.load(code + (both >> 4)) * scale[:, None]
    low = tl.load(code + (both & 15)) * scale[:, None]
    values = _rounded(tl.interleave(high, low), out.dtype.element_ty, INTERPRETED)
    element = first + tl.arange(0, BLOCKSIZE)[None, :]
    tl.store(out + element, values, mask=element < size)


def nf4_dequantize(parts: Nf4) -> Tensor:
    """The dense weight of `parts`, in one pass over nibbles and (double-quantised) scales."""
    out = torch.empty(parts.shape, dtype=parts.dtype, device=parts.packed.device)
    blocks = max(1, 4096 // parts.blocksize)
    _nf4_kernel[(triton.cdiv(parts.absmax.numel(), blocks),)](
        parts.packed, parts.absmax, parts.code, parts.absmax2, parts.code2, parts.offset, out, out.numel(),
        BLOCKSIZE=parts.blocksize, BLOCKSIZE2=parts.blocksize2, BLOCKS=blocks, INTERPRETED=interpreted(),
        num_warps=8, enable_fp_fusion=False,  # bitsandbytes rounds between the product and the offset
    )  # fmt: skip
    return out


@triton.jit
def _affine(factor, constant, next_factor, next_constant):
    """The composition of x -> factor x + constant and, after it, x -> next_factor x + next_constant."""
    return factor * next_factor, constant * next_factor + next_constant


@triton.jit
def _gae_kernel(rewards, values, mask, advantages, returns, length, gamma, decay, BLOCK: tl.constexpr):
    """One row from its end: first the next real value, then the advantages, each as a scan of affine maps."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK)
    inside = t < length
    start = row * length
    keep = tl.load(mask + start + t, mask=inside, other=0) != 0
    value = tl.load(values + start + t, mask=inside, other=0.0)
    reward = tl.load(rewards + start + t, mask=inside, other=0.0)
    after = t + 1 < length
    keep_after = tl.load(mask + start + t + 1, mask=after, other=0) != 0
    value_after = tl.load(values + start + t + 1, mask=after, other=0.0)
    hold = tl.where(keep_after, 0.0, 1.0)
    taken = tl.where(keep_after, value_after, 0.0)
    _, next_value = tl.associative_scan((hold, taken), 0, _affine, reverse=True)
    delta = reward + gamma * next_value - value
    factor = tl.where(keep, decay, 1.0)
    _, advantage = tl.associative_scan((factor, tl.where(keep, delta, 0.0)), 0, _affine, reverse=True)
    tl.store(advantages + start + t, tl.where(keep, advantage, 0.0), mask=inside)
    tl.store(returns + start + t, tl.where(keep, advantage + value, 0.0), mask=inside)


def gae_scan(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """As `gae_reference`, for contiguous rewards, values and mask (rows, length)."""
    rows, length = rewards.shape
    advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
    _gae_kernel[(rows,)](
        rewards, values, mask.to(torch.uint8), advantages, returns, length, gamma, gamma * lam,
        BLOCK=triton.next_power_of_2(length),
    )  # fmt: skip
    return advantages, returns
