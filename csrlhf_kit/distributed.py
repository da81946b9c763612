"""One job on several processes (torchrun, accelerate launch): split the work, gather the results.

Each process holds the whole model and works on its share of a batch; then the results are gathered, so that every
process makes the same decisions on the whole batch. Accelerate does the communication. Without a launcher there is
one process, and each function returns its argument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, pad_across_processes, reduce
from torch import Tensor, nn

from csrlhf_kit.errors import UserError

Result = TypeVar("Result")


def start() -> None:
    """Join the other processes if a launcher has started any: by NCCL between GPUs, by gloo between CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def count() -> int:
    """The number of processes."""
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def bar() -> dict[str, bool]:
    """Options for tqdm that show a progress bar in the main process only, where TQDM_DISABLE still applies."""
    return {} if is_main() else {"disable": True}


def device() -> torch.device:
    """The default device for models: this process's GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def share(rows: Tensor) -> Tensor:
    """This process's contiguous part of `rows` (rows, ...); parts are in rank order."""
    return rows.tensor_split(count())[rank()]


def check_divisible(**sizes: int) -> None:
    """Raise UserError, naming the size, if one of `sizes` is no multiple of the number of processes."""
    for name, size in sizes.items():
        if size % count():
            raise UserError(f"{name} is {size}: expected a multiple of the {count()} processes that share it")


def gathered(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """All processes' rows of each tensor (rows, ...), in rank order; dimension 1 is padded with zeros first."""
    if count() == 1:
        return list(tensors)
    return [None if t is None else _gathered(t) for t in tensors]


def _gathered(tensor: Tensor) -> Tensor:
    plain = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    if tensor.dim() > 1:
        plain = pad_across_processes(plain, dim=1)
    return gather(plain).to(tensor.dtype)


def summed(tensor: Tensor) -> Tensor:
    """The elementwise sum of all processes' tensors."""
    return reduce(tensor, "sum") if count() > 1 else tensor


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum of all processes' tensors."""
    return reduce(tensor, "max") if count() > 1 else tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one message, since adapters are small."""
    if count() == 1:
        return
    found = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in found])
    for parameter, part in zip(found, summed(flat).split([p.numel() for p in found]), strict=True):
        parameter.grad = part.view_as(parameter)


def wait() -> None:
    """Wait until every process has got here."""
    if count() > 1:
        torch.distributed.barrier()


def on_main(function: Callable[[], Result]) -> Result | None:
    """Call `function` in the main process only; the others wait and get None.

    A UserError of the main process is raised in every process.
    """
    if count() == 1:
        return function()
    result, told = None, [None]
    if is_main():
        try:
            result = function()
        except UserError as error:
            told = [str(error)]
    broadcast_object_list(told)
    if told[0] is not None:
        raise UserError(told[0])
    return result
