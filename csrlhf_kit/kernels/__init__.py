"""Kernels for the heavy steps: a torch reference and a Triton kernel under one name, chosen by device (backend.py);
and a faster forward pass for small models on CPUs (cpu_trunk.py). Builds on `errors` only.
"""

from __future__ import annotations

from typing import Any

from csrlhf_kit.kernels.backend import backend
from csrlhf_kit.kernels.gae import gae
from csrlhf_kit.kernels.logprob import linear_logprob
from csrlhf_kit.kernels.lora import lora_linear
from csrlhf_kit.kernels.nf4 import dequantize_nf4

__all__ = ["backend", "dequantize_nf4", "fuse", "gae", "linear_logprob", "lora_linear"]


def __getattr__(name: str) -> Any:
    if name == "fuse":  # slow to import, since it imports peft and transformers
        from csrlhf_kit.kernels.fusion import fuse

        return fuse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
