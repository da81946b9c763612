"""The parts of scorers: transformers' configurations and sequence classifiers, and helpers for their layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_model


def load_classifier(base: str | Path, *, config: Any, **options: Any) -> Any:
    """`AutoModelForSequenceClassification` of a base. Raises UserError as `load_model` does."""
    return load_model(AutoModelForSequenceClassification, base, config=config, **options)


def is_decoder(config: Any) -> bool:
    """Whether an architecture is a causal language model, and not also a masked one, like BERT."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def fitting_length(config: Any, max_length: int) -> int:
    """`max_length`, or the longest input (tokens) that an encoder's position embeddings allow, if that is less."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and not is_decoder(config):
        # RoBERTa and its kin have 514 rows for 512 tokens: two are spent on padding.
        return min(max_length, positions - 2 if positions % 8 == 2 else positions)
    return max_length


def set_dropout(config: Any, probability: float) -> None:
    """Set every dropout probability of a model configuration, in place."""
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if name.endswith(("dropout", "dropout_prob", "_pdrop")) and isinstance(value, int | float):
            setattr(text, name, probability)


def linear_names(model: Any, fresh: Sequence[str]) -> list[str]:
    """Last names (`q_proj`, `dense` ...) of the backbone's linear layers but `fresh`: LoRA's `target_modules`."""
    backbone = getattr(model, model.base_model_prefix)
    names = {
        name.rpartition(".")[2]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    return sorted(names - set(fresh))


def has_conv1d(model: nn.Module) -> bool:
    """Whether linear layers are GPT-2's `Conv1D` with weights (in, out): LoRA's `fan_in_fan_out`."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def fresh_modules(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Modules without weights in the base (`missing`): they are trained whole, as LoRA has nothing to adapt there."""
    prefix = f"{model.base_model_prefix}."
    names = {key.rpartition(".")[0] if key.startswith(prefix) else key.partition(".")[0] for key in missing}
    # peft itself adds modules whose names end in one of these; named again, they would be wrapped twice.
    return sorted(name for name in names if not name.endswith(("classifier", "score")))


def output_layer(model: nn.Module) -> nn.Linear:
    """The score head: the last linear layer with one output that is in use. Raises UserError if there is none."""
    layers = [
        module
        for name, module in model.named_modules()
        # PEFT keeps the head's initial values under `original_module`, which is not in use.
        if isinstance(module, nn.Linear) and module.out_features == 1 and "original_module" not in name
    ]
    if not layers:
        raise UserError(
            f"{type(model).__name__}: found no linear layer with one output, expected a score head"
        )
    return layers[-1]


def last_layers(count: int, layers: int | None) -> list[int] | None:
    """Indices of the last `layers` of `count` layers for peft; None means all. Raises UserError if out of range."""
    if layers is None:
        return None
    if not 0 < layers <= count:
        raise UserError(f"layers is {layers}: expected 1 to {count}, or none for all")
    return list(range(count - layers, count))


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, or of trainable parameters only."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, and its report that the head is new and the base's own head unused."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
