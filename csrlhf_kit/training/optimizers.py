"""AdamW from PyTorch, and its 8-bit and paged forms from bitsandbytes for runs that are short of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from csrlhf_kit.errors import UserError

if TYPE_CHECKING:  # `csrlhf plan` needs only the names below, and does not wait for PyTorch
    import torch
    from torch import Tensor, nn

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
BYTES_PER_PARAMETER = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # its two moments


def make_optimizer(
    name: OptimizerName,
    parameters: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW on `parameters` (Loshchilov & Hutter 2017, arXiv 1711.05101).

    The 8-bit forms keep both moments in blocks of 8-bit numbers (Dettmers et al. 2021, arXiv 2110.02861); the
    paged one lets the driver move them to host memory when GPU memory runs short (arXiv 2305.14314).
    Tensors with fewer than 4,096 elements stay in 32 bit.

    Raises UserError for an unknown name, a paged optimiser without a GPU, or bitsandbytes missing.
    """
    import torch

    options: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, **options, fused=True)
    if name not in BYTES_PER_PARAMETER:
        raise UserError(f"optimizer is {name!r}: expected one of {', '.join(BYTES_PER_PARAMETER)}")
    paged = name.startswith("paged")
    if paged and not all(parameter.is_cuda for parameter in parameters):
        raise UserError(f"optimizer {name} needs a CUDA GPU: expected adamw or adamw_8bit on a CPU")
    try:
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise UserError(f"optimizer {name} needs bitsandbytes: expected it to be installed") from error
    return (PagedAdamW8bit if paged else AdamW8bit)(parameters, **options)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state for a checkpoint: "parameter index.name" -> tensor.

    bitsandbytes counts steps in Python numbers, and nests its 8-bit tensors in one more mapping.
    """
    import torch

    found: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        flat: dict[str, object] = {}
        for name, value in state.items():
            flat |= value if isinstance(value, dict) else {name: value}
        found |= {f"{index}.{name}": torch.as_tensor(value) for name, value in flat.items()}
    return found


def load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a state that `moments` returned."""
    states: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        count = value.dim() == 0 and not value.is_floating_point()  # bitsandbytes' step is a number
        states.setdefault(int(index), {})[name] = value.item() if count else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
