"""Per-token log-probability and entropy directly from hidden states, without the logits of all tokens.

With z = (x W^T + b) / T, log p(y) = z_y - logsumexp(z) and H = -sum p log p. As the head is frozen, the gradient
d log p(y) / dx = (onehot(y) - p) W / T can be computed in the forward pass, while the chunk's probabilities are in
memory, and backward is one multiplication. For N tokens, hidden size H and vocabulary V this takes 4 N H V FLOPs,
where recomputing takes 6 N H V, and is exact. No gradient flows through the entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.backend import use_triton

# Elements of one chunk of logits, and its fewest rows: with 32 of SmolLM2's vocabulary, products took 1.6 times as
# long. On a CPU a chunk and its copy should about fit into the cache; on a GPU its products keep it busy (0.5 GB).
CHUNK_ELEMENTS, LEAST_ROWS = {"cpu": 3 << 19, "cuda": 1 << 27}, 64


def linear_logprob_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, *,
    temperature: float = 1.0, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `linear_logprob`, with all logits in memory and ordinary autograd."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(_wide(hidden.dtype)) / temperature
    all_log_probs = logits.log_softmax(-1)  # (..., vocabulary)
    entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
    return all_log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *,
    temperature: float = 1.0, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log softmax((hidden @ weight.T + bias) / temperature)[targets], and the entropy of that distribution.

    hidden: (..., hidden); weight: (vocabulary, hidden); targets: (...), integer; bias: (vocabulary,) or None.
    Returns (log_probs, entropy), both (...), in nats, float32 (float64 for float64 input). log_probs is
    differentiable once with respect to hidden.
    Raises UserError for shapes that do not fit, a temperature that is not positive, a head that wants a
    gradient (it would get none), or (on a CPU; a GPU gives NaN) a target outside the vocabulary.
    Source: the chunked head of Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009) and of Liger-Kernel
    (Hsu et al. 2024, arXiv 2410.10989), here per token, with entropy, for a frozen head.
    """
    _check_shapes(hidden, weight, targets, bias, temperature)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    log_probs, entropy, _ = torch.ops.csrlhf.linear_logprob(
        rows, weight.to(dtype), targets.reshape(-1), bias if bias is None else bias.to(dtype),
        float(temperature), torch.is_grad_enabled() and rows.requires_grad,
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
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise UserError(
            "linear_logprob's head must be frozen: call requires_grad_(False) on weight and bias."
        )
    if not temperature > 0:
        raise UserError(f"linear_logprob got temperature {temperature}; expected a positive number.")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Chunk:
    """Logits of some rows in reused memory, with their statistics; their gradient overwrites them."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> None:
        self.weight, self.bias, self.temperature = weight, bias, temperature
        budget = CHUNK_ELEMENTS.get(rows.device.type, CHUNK_ELEMENTS["cuda"])
        self.size = min(max(LEAST_ROWS, budget // weight.shape[0] // 32 * 32), rows.shape[0])
        self.wide = _wide(rows.dtype)
        self.triton = use_triton(rows)
        shape = (self.size, weight.shape[0])
        self.buffer = rows.new_empty(shape, dtype=rows.dtype if self.triton else self.wide)
        self.second = None if self.triton else rows.new_empty(shape, dtype=self.wide)

    def log_probs(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """log p(target) and entropy, both (n,), of rows (n, hidden), n <= size; keeps what `gradient` needs."""
        n, scale = rows.shape[0], 1 / self.temperature
        if self.triton:
            from csrlhf_kit.kernels.triton_kernels import logprob_statistics

            self.logits = None  # frees the last chunk's logits before the next are allocated
            self.logits = matmul_wide(rows, self.weight.t())
            self.log_total, picked, self.entropy = logprob_statistics(self.logits, self.bias, targets, scale)
            return picked, self.entropy
        assert self.second is not None
        logits, log_probs = self.buffer[:n], self.second[:n]
        if rows.dtype != self.wide:  # half precision: round the product as the reference does
            product = torch.nn.functional.linear(rows, self.weight, self.bias)
            torch.mul(product, scale, out=logits)
        elif self.bias is None:
            torch.addmm(logits, rows, self.weight.t(), beta=0, alpha=scale, out=logits)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), beta=scale, alpha=scale, out=logits)
        torch.ops.aten._log_softmax.out(logits, -1, False, out=log_probs)
        picked = log_probs.gather(1, targets[:, None]).squeeze(1)
        self.probabilities = torch.exp(log_probs, out=logits)
        self.entropy = -log_probs.mul_(self.probabilities).sum(-1)
        return picked, self.entropy

    def gradient(self, targets: Tensor) -> Tensor:
        """dlog p(target)/dz, (n, vocabulary)."""
        if self.triton:
            from csrlhf_kit.kernels.triton_kernels import logprob_gradient

            assert self.logits is not None
            out, scale = self.buffer[: targets.shape[0]], 1 / self.temperature
            return logprob_gradient(self.logits, self.bias, targets, scale, self.log_total, out)
        slope = self.probabilities
        slope.scatter_add_(1, targets[:, None], -torch.ones_like(self.entropy)[:, None])
        return slope.neg_().to(self.weight.dtype)


def matmul_wide(left: Tensor, right: Tensor) -> Tensor:
    """left @ right for 2-D operands of one dtype, accumulated and returned in at least float32."""
    wide = _wide(left.dtype)
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)


@torch.library.custom_op("csrlhf::linear_logprob", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, want_slope: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log_probs (N,), entropy (N,) and, if wanted, slope = d log_probs / d hidden (N, hidden), else empty."""
    if targets.device.type == "cpu" and bool(((targets < 0) | (targets >= weight.shape[0])).any()):
        raise UserError(f"linear_logprob got a target outside 0..{weight.shape[0] - 1}.")
    log_probs = hidden.new_zeros(hidden.shape[0], dtype=_wide(hidden.dtype))
    entropy = torch.zeros_like(log_probs)
    slope = torch.zeros_like(hidden) if want_slope else hidden.new_empty((0, hidden.shape[1]))
    if not targets.numel():
        return log_probs, entropy, slope
    with torch.autocast(hidden.device.type, enabled=False):
        chunk = _Chunk(hidden, weight, bias, temperature)
        for start in range(0, targets.numel(), chunk.size):
            at = slice(start, start + chunk.size)
            log_probs[at], entropy[at] = chunk.log_probs(hidden[at], targets[at])
            if want_slope:
                slope[at] = (chunk.gradient(targets[at]) @ weight) / temperature
    return log_probs, entropy, slope


@_forward.register_fake
def _(hidden, weight, targets, bias, temperature, want_slope):
    n, width = hidden.shape
    log_probs = hidden.new_empty(n, dtype=_wide(hidden.dtype))
    return log_probs, torch.empty_like(log_probs), hidden.new_empty((n if want_slope else 0, width))


@torch.library.custom_op("csrlhf::scale_rows", mutates_args=())
def _scale_rows(rows: Tensor, factors: Tensor) -> Tensor:
    """rows * factors[:, None], as an operator, so that differentiating twice fails instead of being wrong."""
    return (rows * factors[:, None]).to(rows.dtype)


@_scale_rows.register_fake
def _(rows, factors):
    return torch.empty_like(rows)


def _save(ctx, inputs, output) -> None:
    _, entropy, slope = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(entropy, slope)
    ctx.save_for_backward(slope)


def _differentiate(ctx, grad, *_):
    (slope,) = ctx.saved_tensors
    return None if grad is None else torch.ops.csrlhf.scale_rows(slope, grad), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_save)
