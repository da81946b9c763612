"""Kernels for the heavy steps: a torch reference and a Triton kernel under one name, chosen by device."""

from __future__ import annotations

from csrlhf_kit.kernels.gae import gae
from csrlhf_kit.kernels.logprob import linear_logprob

__all__ = ["gae", "linear_logprob"]
