"""Trade time for memory: keep only what enters each layer, and compute the rest again in the backward pass.

Two things could go wrong with many adapters on one base, silently. A layer that is computed again under another
adapter than the first time would give wrong gradients: here each layer remembers its adapter. And transformers
checkpoints a layer only "in training", which would also switch dropout on and drop the key-value cache of
`generate`: here a layer is in training, without its children, for as long as a forward pass with gradients
takes.
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
    """Make every differentiated pass of `roles` keep one state a layer (Chen et al. 2016, arXiv 1604.06174).

    Raises UserError for an architecture that transformers cannot checkpoint.
    """
    layers = [m for m in roles.trunk.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(roles.trunk).__name__} has no layers that can be checkpointed: expected one that has, or "
            "--no-gradient-checkpointing"
        )

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), again_under(roles, active(roles))

    options = {"use_reentrant": False, "context_fn": contexts}
    roles.trunk.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    roles.trunk.disable_input_require_grads()  # which only the older, reentrant form needs
    roles.lean = None  # keeps more, and is for models so small that memory is no matter

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
    """`checkpoint` of a layer that is in training no longer: some drop out by their own flag, and would do so in the
    forward pass alone.
    """
    layer.training = False
    return checkpoint(*given)


def active(roles: Roles) -> str | None:
    """The adapter in use; None where all are off."""
    layer = roles._layers[0]
    return None if layer._disable_adapters else layer._active_adapter[0]


@contextlib.contextmanager
def again_under(roles: Roles, adapter: str | None) -> Iterator[None]:
    """`adapter` is the one in use within the block, and the former one after it."""
    before = active(roles)
    roles.activate(adapter)
    try:
        yield
    finally:
        roles.activate(before)
