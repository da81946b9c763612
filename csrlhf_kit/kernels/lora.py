"""A linear layer with a LoRA adapter as one differentiable function, over a dense or an NF4 base.

    y = x W^T + b + s x A^T B^T

The matrix products are cuBLAS's (fusing dequantisation into them is slower at training sizes). Memory and time are
saved around them: no clone, no separate scale and add over (tokens, out), one dequantised weight in memory at a
time, and only the activations x and x A^T are kept. With dz = s dy B:

    dB = s dy^T (x A^T)      dA = dz^T x      dx = dy W + dz A      db = sum dy

dA and dB are accumulated in float32 or wider and rounded once, to the adapter's dtype. Inputs are not modified.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.logprob import matmul_wide
from csrlhf_kit.kernels.nf4 import dequantize_nf4, is_quantised, read_params4bit
from csrlhf_kit.kernels.nf4_format import Nf4


def lora_linear_reference(
    x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, *, bias: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:  # fmt: skip
    """As `lora_linear` for a dense weight, in plain torch."""
    return torch.nn.functional.linear(x, weight, bias) + scaling * (x @ lora_a.t() @ lora_b.t())


def lora_linear(
    x: Tensor, weight: Tensor | Nf4, lora_a: Tensor, lora_b: Tensor, *, bias: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:  # fmt: skip
    """x @ weight.T + bias + scaling * x @ lora_a.T @ lora_b.T, differentiable once in x, A, B, bias.

    x: (..., in); weight: (out, in), frozen: dense, a bitsandbytes NF4 `Params4bit`, or an `Nf4`;
    lora_a: (rank, in); lora_b: (out, rank); bias: (out,) or None.
    Computes and returns x's dtype (under autocast, autocast's), to which adapters and dense weight are cast.
    Raises UserError for shapes that do not fit, or a weight that requires a gradient: it would get none.
    Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, eq. 3; Dettmers et al. 2023 (QLoRA), 2305.14314, eq. 5.
    """
    if not isinstance(weight, Nf4):
        if weight.requires_grad:
            raise UserError("lora_linear's base weight must be frozen: call weight.requires_grad_(False).")
        if is_quantised(weight):
            weight = read_params4bit(weight)
    out_features, in_features = weight.shape
    rank = lora_a.shape[0]
    if (
        x.shape[-1] != in_features
        or lora_a.shape != (rank, in_features)
        or lora_b.shape != (out_features, rank)
    ):
        raise UserError(
            f"lora_linear got x {tuple(x.shape)}, weight {tuple(weight.shape)}, A {tuple(lora_a.shape)} "
            f"and B {tuple(lora_b.shape)}; expected (..., in), (out, in), (rank, in) and (out, rank)."
        )
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return _LoraLinear.apply(x, lora_a, lora_b, bias, weight, float(scaling))


def _dense(weight: Tensor | Nf4, dtype: torch.dtype) -> Tensor:
    return (dequantize_nf4(weight) if isinstance(weight, Nf4) else weight).to(dtype)


def _no_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lora_a, lora_b, bias, weight, scaling):
        with _no_autocast(x.device.type):
            rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
            base = _dense(weight, x.dtype).t()
            y = rows @ base if bias is None else torch.addmm(bias.to(x.dtype), rows, base)
            del base
            down = rows @ lora_a.to(x.dtype).t()  # (tokens, rank)
            y.addmm_(down, lora_b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(rows, down, lora_a, lora_b, bias, None if isinstance(weight, Nf4) else weight)
        ctx.nf4 = weight if isinstance(weight, Nf4) else None
        ctx.scaling, ctx.shape = scaling, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, down, lora_a, lora_b, bias, weight = ctx.saved_tensors
        want_x, want_a, want_b, want_bias = ctx.needs_input_grad[:4]
        grad_x = grad_a = grad_b = grad_bias = None
        with _no_autocast(rows.device.type):
            dy = grad.reshape(-1, grad.shape[-1])  # (tokens, out)
            if want_x or want_a:
                through = (dy @ lora_b.to(dy.dtype)).mul_(ctx.scaling)  # (tokens, rank)
            if want_a:
                grad_a = matmul_wide(through.t(), rows).to(lora_a.dtype)
            if want_b:
                grad_b = matmul_wide(dy.t(), down).mul_(ctx.scaling).to(lora_b.dtype)
            if want_bias:
                grad_bias = dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)).to(bias.dtype)
            if want_x:
                base = _dense(weight if ctx.nf4 is None else ctx.nf4, dy.dtype)
                grad_x = (dy @ base).addmm_(through, lora_a.to(dy.dtype)).view(ctx.shape)
        return grad_x, grad_a, grad_b, grad_bias, None, None
