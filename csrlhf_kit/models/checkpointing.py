"""Activation checkpointing: keep only the input of each layer, and recompute the rest in the backward pass.

With many adapters on one base, two things could silently go wrong. A layer recomputed with another adapter would give
wrong gradients, so each layer remembers its adapter. And transformers checkpoints a layer only in training mode,
which would also switch dropout on and drop the key-value cache of `generate`, so a layer (without its children)
is in training mode only during a forward pass with gradients. Builds on roles.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles


def checkpoint_activations(roles: Roles) -> None:
    """Make every pass of `roles` with gradients keep one state per layer (Chen et al. 2016, arXiv 1604.06174).

    Raises UserError for an architecture that transformers cannot checkpoint.
    """
    layers: list[Any] = [m for m in roles.trunk.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(roles.trunk).__name__} has no layers that can be checkpointed: expected one with such layers, or "
            "--no-gradient-checkpointing"
        )

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), again_under(roles, active(roles))

    options = {"use_reentrant": False, "context_fn": contexts}
    roles.trunk.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    roles.trunk.disable_input_require_grads()  # only the older, reentrant form needs them
    roles.lean = None  # it keeps more, as it is for models so small that memory does not matter

    def enter(*_: object) -> None:
        for layer in layers:
            layer.training = torch.is_grad_enabled()

    def leave(*_: object) -> None:
        for layer in layers:
            layer.training = False

    for layer in layers:
        layer._gradient_checkpointing_func = partial(evaluated, layer, layer._gradient_checkpointing_func)
    roles.trunk.register_forward_pre_hook(enter)
    roles.trunk.register_forward_hook(leave, always_call=True)


def evaluated(layer: nn.Module, checkpoint: Callable[..., Any], *given: Any) -> Any:
    """Call `checkpoint` with the layer in evaluation mode, since some layers apply dropout by their own flag, which
    would be set in the forward pass but not when recomputing.
    """
    layer.training = False
    return checkpoint(*given)


def active(roles: Roles) -> str | None:
    """The active adapter; None if all are off."""
    layer = roles._layers[0]
    return None if layer._disable_adapters else layer._active_adapter[0]


@contextlib.contextmanager
def again_under(roles: Roles, adapter: str | None) -> Iterator[None]:
    """Activate `adapter` within the block, and the former one after it."""
    before = active(roles)
    roles.activate(adapter)
    try:
        yield
    finally:
        roles.activate(before)
