"""The differentiable operations of cpu_trunk.py, which save little for backward and write each gradient once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


class Folded(torch.autograd.Function):
    """x W'^T + b for x (tokens, inputs), where rows of W' have adapters folded in; gradients for x and adapters."""

    @staticmethod
    def forward(ctx, x, weight, bias, places, *adapters):
        ctx.places = places  # [(rows of W', scaling), ...], one for each pair (A, B) of `adapters`
        ctx.save_for_backward(x, weight, *adapters)
        return linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, *adapters = ctx.saved_tensors
        downs, ups = adapters[::2], adapters[1::2]
        ranks = [a.shape[0] for a in downs]
        narrow = x @ torch.cat(downs).t()  # (tokens, sum of ranks)
        through = torch.empty_like(narrow)
        grads_up = []
        start = 0
        for (rows, scaling), rank, up in zip(ctx.places, ranks, ups, strict=True):
            dy, columns = grad[:, rows], slice(start, start + rank)
            torch.mm(dy, up * scaling, out=through[:, columns])
            grads_up.append((dy.t() @ narrow[:, columns]).mul_(scaling))
            start += rank
        grads_down = (through.t() @ x).split(ranks)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        pairs = [g for pair in zip(grads_down, grads_up, strict=True) for g in pair]
        return grad_x, None, None, None, *pairs


class Norm(torch.autograd.Function):
    """RMSNorm of x (tokens, hidden) with a frozen weight: y = w x r, r = (mean x^2 + eps)^(-1/2)."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        r = torch.linalg.vecdot(x, x).div_(x.shape[1]).add_(eps).rsqrt_().unsqueeze(1)  # (tokens, 1)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, r = ctx.saved_tensors
        dy = grad * weight
        along = torch.linalg.vecdot(dy, x).unsqueeze(1) * r.pow(3).div_(x.shape[1])
        return dy.mul_(r).addcmul_(x, along, value=-1), None, None


class Gate(torch.autograd.Function):
    """silu(gate) * up (tokens, n), from one matrix (tokens, 2 n) that holds gate and up side by side."""

    @staticmethod
    def forward(ctx, both):
        gate, up = both.chunk(2, 1)
        opened = silu(gate)
        ctx.save_for_backward(both, opened)
        return opened * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        both, opened = ctx.saved_tensors
        gate, up = both.chunk(2, 1)
        result = torch.empty_like(both)
        d_gate, d_up = result.chunk(2, 1)
        torch.mul(grad, opened, out=d_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=d_gate)
        return result


def swap(x: Tensor) -> Tensor:
    """x with the two halves of its last dimension exchanged."""
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], x[..., :half]), -1)


class RotateAndPad(torch.autograd.Function):
    """Rotate the first `heads` heads of each token (RoPE), and pad the tokens to (size, columns), zero elsewhere.

    x: (tokens, columns), heads side by side; at: (tokens,), index of each token among size = batch * width.
    cos, sin: (tokens, 1, head size), the first half of sin negated.
    """

    @staticmethod
    def forward(ctx, x, cos, sin, heads, at, size):
        ctx.save_for_backward(cos, sin, at)
        ctx.heads = heads
        columns = heads * cos.shape[-1]
        head = x[:, :columns].reshape(x.shape[0], heads, -1)  # (tokens, heads, head size)
        rotated = (head * cos).addcmul_(swap(head), sin)
        rows = x.new_zeros(size, x.shape[1])
        rows[:, :columns].index_copy_(0, at, rotated.view(x.shape[0], columns))
        if columns < x.shape[1]:
            rows[:, columns:].index_copy_(0, at, x[:, columns:])
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        cos, sin, at = ctx.saved_tensors
        grad = grad.index_select(0, at)
        columns = ctx.heads * cos.shape[-1]
        head = grad[:, :columns].view(grad.shape[0], ctx.heads, -1)
        head.copy_((head * cos).add_(swap(head * sin)))
        return grad, None, None, None, None, None


class Unpad(torch.autograd.Function):
    """Rows at the indices `at` (tokens,), none of them twice: (batch * width, columns) -> (tokens, columns)."""

    @staticmethod
    def forward(ctx, rows, at):
        ctx.save_for_backward(at)
        ctx.size = rows.shape[0]
        return rows.index_select(0, at)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (at,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, grad.shape[1]).index_copy_(0, at, grad), None
