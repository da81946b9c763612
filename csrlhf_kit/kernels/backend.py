"""Which implementation of each kernel runs, torch or Triton: only `use_triton` decides."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError

CHOICES = ("auto", "torch", "triton")
_override: list[str] = []


@cache
def triton_installed() -> bool:
    """Whether Triton is installed (there is none for macOS and Windows), without importing it."""
    return importlib.util.find_spec("triton") is not None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the block, every kernel runs as `name`: auto, torch or triton. Raises UserError for another name.

    For a whole process, set the environment variable CSRLHF_KERNELS to one of these (default: auto).
    """
    _override.append(_known(name))
    try:
        yield
    finally:
        _override.pop()


def use_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernel runs for `tensor`: if it is on a GPU and Triton is installed, unless overridden.

    float64 always runs on torch. Raises UserError if Triton is requested and cannot run.
    """
    name = _override[-1] if _override else _known(os.environ.get("CSRLHF_KERNELS", "auto"))
    if name == "torch" or tensor.dtype == torch.float64:
        return False
    if name == "auto":
        return tensor.is_cuda and triton_installed()
    if not triton_installed():
        raise UserError("Triton was requested but is not installed: pip install 'csrlhf-kit[kernels]'.")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"Triton was requested on {tensor.device}: it needs a GPU (or TRITON_INTERPRET=1).")
    return True


def _known(name: str) -> str:
    if name not in CHOICES:
        raise UserError(f"Kernel backend {name!r} is unknown: expected one of {', '.join(CHOICES)}.")
    return name
