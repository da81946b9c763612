"""Per-token log-probability and entropy straight from hidden states, without the logits of all tokens.

With z = (x W^T + b) / T, log p(y) = z_y - logsumexp(z) and H = -sum p log p:

    d log p(y) / dz = onehot(y) - p            dH / dz = -p (log p + H)

A frozen head makes d log p(y) / dx = (onehot(y) - p) W / T independent of what comes after, so it is computed
in the forward pass while the chunk's probabilities are at hand, and backward is one multiplication: 4 N H V
FLOPs instead of the 6 N H V of recomputing, exact. Entropy's gradient and a trainable head recompute.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.backend import use_triton

# Elements of one chunk of logits. On a CPU a chunk and its copy should stay near the cache; on a GPU the two
# matrix products of a chunk should fill the machine (0.5 GB of float32 logits).
CHUNK_ELEMENTS = {"cpu": 3 << 19, "cuda": 1 << 27}


def linear_logprob_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, *,
    temperature: float = 1.0, bias: Tensor | None = None, ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, with all logits in memory; differentiable by plain autograd."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(_wide(hidden.dtype)) / temperature
    all_log_probs = logits.log_softmax(-1)  # (..., vocabulary)
    entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
    ignored = targets == ignore_index
    picked = all_log_probs.gather(-1, targets.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
    return picked.masked_fill(ignored, 0.0), entropy.masked_fill(ignored, 0.0)


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *,
    temperature: float = 1.0, bias: Tensor | None = None, ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log softmax((hidden @ weight.T + bias) / temperature)[targets], and the entropy of that distribution.

    hidden: (..., hidden); weight: (vocabulary, hidden); targets: (...), integer; bias: (vocabulary,) or None.
    Returns (log_probs, entropy), both (...), in nats, float32 (float64 for float64 input), and exactly 0
    where targets == ignore_index: those rows are never computed, so mask prompt and padding for speed.
    Both results are differentiable once with respect to hidden, weight and bias; log_probs' gradient is free
    with a frozen head, entropy's costs two more matrix products (none if no loss uses it).
    Raises UserError for shapes that do not fit, a temperature that is not positive, or (on a CPU; a GPU gives
    NaN) a target outside the vocabulary.
    Source: the chunked head of Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009) and of Liger-Kernel
    (Hsu et al. 2024, arXiv 2410.10989), here per token, with entropy, for a frozen head.
    """
    _check_shapes(hidden, weight, targets, bias, temperature)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    log_probs, entropy, _ = torch.ops.csrlhf.linear_logprob(
        rows, weight.to(dtype), targets.reshape(-1), bias if bias is None else bias.to(dtype),
        float(temperature), ignore_index, torch.is_grad_enabled() and rows.requires_grad and frozen,
    )  # fmt: skip
    return log_probs.view(targets.shape), entropy.view(targets.shape)


def _check_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
) -> None:
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or hidden.shape[:-1] != targets.shape:
        raise UserError(
            f"linear_logprob got hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets "
            f"{tuple(targets.shape)}; expected (..., hidden), (vocabulary, hidden) and (...)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"linear_logprob got a bias {tuple(bias.shape)}; expected {tuple(weight.shape[:1])}.")
    if not temperature > 0:
        raise UserError(f"linear_logprob got temperature {temperature}; expected a positive number.")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _kept_rows(targets: Tensor, ignore_index: int, vocabulary: int) -> Tensor | None:
    """Indices of the rows to compute, or None for all of them."""
    keep = targets != ignore_index
    if targets.device.type == "cpu" and bool((keep & ((targets < 0) | (targets >= vocabulary))).any()):
        raise UserError(
            f"linear_logprob got a target outside 0..{vocabulary - 1} that is not {ignore_index=}."
        )
    return None if bool(keep.all()) else keep.nonzero().squeeze(-1)


class _Chunk:
    """Logits of some rows in reused memory; their statistics; their gradient, written over them."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> None:
        self.weight, self.bias, self.temperature = weight, bias, temperature
        budget = CHUNK_ELEMENTS.get(rows.device.type, CHUNK_ELEMENTS["cuda"])
        self.size = min(max(32, budget // weight.shape[0] // 32 * 32), rows.shape[0])
        self.wide = _wide(rows.dtype)
        self.triton = use_triton(rows)
        shape = (self.size, weight.shape[0])
        self.buffer = rows.new_empty(shape, dtype=rows.dtype if self.triton else self.wide)
        self.second = None if self.triton else rows.new_empty(shape, dtype=self.wide)

    def log_probs(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """log p(target) and entropy of rows (n, hidden), n <= size; keeps what `gradient` needs."""
        n, scale = rows.shape[0], 1 / self.temperature
        if self.triton:
            from csrlhf_kit.kernels.triton_kernels import logprob_statistics

            self.logits = None  # frees the last chunk's before the next one's are made
            self.logits = matmul_wide(rows, self.weight.t())
            self.log_total, picked, self.entropy = logprob_statistics(self.logits, self.bias, targets, scale)
            return picked, self.entropy
        logits, log_probs = self.buffer[:n], self.second[:n]
        if rows.dtype != self.wide:  # half precision: the product is rounded as in the plain path
            product = torch.nn.functional.linear(rows, self.weight, self.bias)
            torch.mul(product, scale, out=logits)
        elif self.bias is None:
            torch.addmm(logits, rows, self.weight.t(), beta=0, alpha=scale, out=logits)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), beta=scale, alpha=scale, out=logits)
        torch.ops.aten._log_softmax.out(logits, -1, False, out=log_probs)
        picked = log_probs.gather(1, targets[:, None]).squeeze(1)
        self.probabilities = torch.exp(log_probs, out=logits)
        self.weighted = log_probs.mul_(self.probabilities)  # p log p
        self.entropy = -self.weighted.sum(-1)
        return picked, self.entropy

    def gradient(self, targets: Tensor, grad: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
        """grad * dlog p(target)/dz + grad_entropy * dH/dz, (n, vocabulary); grad None means ones."""
        if self.triton:
            from csrlhf_kit.kernels.triton_kernels import logprob_gradient

            return logprob_gradient(
                self.logits, self.bias, targets, 1 / self.temperature, self.log_total, self.entropy,
                grad, grad_entropy, self.buffer[: targets.shape[0]],
            )  # fmt: skip
        slope = self.probabilities
        one = torch.ones_like(self.entropy) if grad is None else grad
        if grad_entropy is not None:
            self.weighted.addcmul_(slope, self.entropy[:, None]).mul_(grad_entropy[:, None])
        if grad is not None:
            slope.mul_(grad[:, None])
        if grad_entropy is not None:
            slope.add_(self.weighted)
        slope.scatter_add_(1, targets[:, None], -one[:, None])
        return slope.neg_().to(self.weight.dtype)


def matmul_wide(left: Tensor, right: Tensor) -> Tensor:
    """left @ right for 2-D operands of one dtype, accumulated and returned in at least float32."""
    wide = _wide(left.dtype)
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)


def _chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> Iterator[tuple[_Chunk, slice | Tensor, Tensor, Tensor]]:
    """(chunk, where its rows stand, rows, targets), chunk after chunk, over the rows that are not ignored."""
    kept = _kept_rows(targets, ignore_index, weight.shape[0])
    if kept is not None:
        hidden, targets = hidden[kept], targets[kept]
    if not targets.numel():
        return
    with torch.autocast(hidden.device.type, enabled=False):
        chunk = _Chunk(hidden, weight, bias, temperature)
        for start in range(0, targets.numel(), chunk.size):
            part = slice(start, start + chunk.size)
            yield chunk, part if kept is None else kept[part], hidden[part], targets[part]


@torch.library.custom_op("csrlhf::linear_logprob", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float,
    ignore_index: int, want_slope: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """log_probs (N,), entropy (N,) and, if wanted, slope = d log_probs / d hidden (N, hidden), else empty."""
    log_probs = hidden.new_zeros(hidden.shape[0], dtype=_wide(hidden.dtype))
    entropy = torch.zeros_like(log_probs)
    slope = torch.zeros_like(hidden) if want_slope else hidden.new_empty((0, hidden.shape[1]))
    for chunk, at, rows, picks in _chunks(hidden, weight, targets, bias, temperature, ignore_index):
        log_probs[at], entropy[at] = chunk.log_probs(rows, picks)
        if want_slope:
            slope[at] = (chunk.gradient(picks, None, None) @ weight) / temperature
    return log_probs, entropy, slope


@_forward.register_fake
def _(hidden, weight, targets, bias, temperature, ignore_index, want_slope):
    n, width = hidden.shape
    log_probs = hidden.new_empty(n, dtype=_wide(hidden.dtype))
    return log_probs, torch.empty_like(log_probs), hidden.new_empty((n if want_slope else 0, width))


@torch.library.custom_op(
    "csrlhf::linear_logprob_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float,
    ignore_index: int, grad: Tensor, grad_entropy: Tensor | None, train_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of hidden and, where the head is trained, of weight and bias (else empty), chunk by chunk."""
    wide, (vocabulary, width) = _wide(hidden.dtype), weight.shape
    grad_hidden = torch.zeros_like(hidden)
    grad_weight = weight.new_zeros((vocabulary if train_head else 0, width), dtype=wide)
    grad_bias = weight.new_zeros(vocabulary if train_head and bias is not None else 0, dtype=wide)
    for chunk, at, rows, picks in _chunks(hidden, weight, targets, bias, temperature, ignore_index):
        chunk.log_probs(rows, picks)
        slope = chunk.gradient(picks, grad[at], None if grad_entropy is None else grad_entropy[at])
        grad_hidden[at] = (slope @ weight) / temperature
        if train_head:
            grad_weight += matmul_wide(slope.t(), rows)
        if grad_bias.numel():
            grad_bias += slope.sum(0, dtype=wide)
    return (
        grad_hidden,
        (grad_weight / temperature).to(weight.dtype),
        (grad_bias / temperature).to(weight.dtype),
    )


@_backward.register_fake
def _(hidden, weight, targets, bias, temperature, ignore_index, grad, grad_entropy, train_head):
    vocabulary, width = weight.shape
    grad_weight = weight.new_empty((vocabulary if train_head else 0, width))
    grad_bias = weight.new_empty(vocabulary if train_head and bias is not None else 0)
    return torch.empty_like(hidden), grad_weight, grad_bias


@torch.library.custom_op("csrlhf::scale_rows", mutates_args=())
def _scale_rows(rows: Tensor, factors: Tensor) -> Tensor:
    """rows * factors[:, None]; an operator, so that a second differentiation is refused instead of wrong."""
    return (rows * factors[:, None]).to(rows.dtype)


@_scale_rows.register_fake
def _(rows, factors):
    return torch.empty_like(rows)


def _save(ctx, inputs, output) -> None:
    hidden, weight, targets, bias, ctx.temperature, ctx.ignore_index, ctx.has_slope = inputs
    ctx.set_materialize_grads(False)  # entropy's missing gradient stays None, and costs nothing
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(hidden, weight, targets, bias, output[2])


def _differentiate(ctx, grad, grad_entropy, _):
    hidden, weight, targets, bias, slope = ctx.saved_tensors
    if grad is None and grad_entropy is None:
        return (None,) * 7
    if grad_entropy is None and ctx.has_slope:
        return torch.ops.csrlhf.scale_rows(slope, grad), *(None,) * 6
    grad = torch.zeros_like(grad_entropy) if grad is None else grad
    want_hidden, want_weight, _, want_bias, *_ = ctx.needs_input_grad
    grad_hidden, grad_weight, grad_bias = torch.ops.csrlhf.linear_logprob_backward(
        hidden, weight, targets, bias, ctx.temperature, ctx.ignore_index, grad, grad_entropy,
        want_weight or want_bias,
    )  # fmt: skip
    return (
        grad_hidden if want_hidden else None, grad_weight if want_weight else None, None,
        grad_bias if want_bias else None, None, None, None,
    )  # fmt: skip


_forward.register_autograd(_differentiate, setup_context=_save)
