"""What a scorer is made of: transformers' configurations and sequence classifiers, and their parts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
)

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import LESS_MEMORY, why_not_loaded


def load_config(base: str | Path) -> Any:
    """The configuration of a folder or hub id, or a `UserError` that says what is missing."""
    base = os.fspath(base)
    if Path(base).exists() and not (Path(base) / "config.json").exists():
        raise UserError(f"base model {base}: found no config.json there, expected a saved transformers model")
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"base model {base}: neither a folder here nor a model that can be fetched from the hub "
            f"({why_not_loaded(error)}), expected one of them"
        ) from error


def load_classifier(base: str | Path, *, config: Any, **options: Any) -> Any:
    """`AutoModelForSequenceClassification` of a folder or hub id, with the reason for a failure in a sentence."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            os.fspath(base),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU has no room for {base}: {LESS_MEMORY}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"base model {base}: its weights do not load as a sequence classifier ({why_not_loaded(error)}), "
            "expected a safetensors model of an architecture that has one"
        ) from error


def is_decoder(config: Any) -> bool:
    """Whether an architecture is a causal language model (and not one that also fills masks, like BERT)."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def fitting_length(config: Any, max_length: int) -> int:
    """`max_length`, or the longest input that learnt position embeddings allow, whichever is less."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and not is_decoder(config):
        # RoBERTa and its kin have 514 rows for 512 tokens: two are spent on padding.
        return min(max_length, positions - 2 if positions % 8 == 2 else positions)
    return max_length


def set_dropout(config: Any, probability: float) -> None:
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if name.endswith(("dropout", "dropout_prob", "_pdrop")) and isinstance(value, int | float):
            setattr(text, name, probability)


def linear_names(model: nn.Module, fresh: Sequence[str]) -> list[str]:
    """Last names (`q_proj`, `dense` ...) of the backbone's linear maps, as LoRA's `target_modules`."""
    backbone = getattr(model, model.base_model_prefix)
    names = {
        name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)
    }
    return sorted(names - set(fresh))


def fresh_modules(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Modules that the base had no weights for: LoRA has nothing to adapt there, they are trained whole."""
    prefix = f"{model.base_model_prefix}."
    names = {key.rpartition(".")[0] if key.startswith(prefix) else key.partition(".")[0] for key in missing}
    # peft adds every module whose name ends in one of these two; named twice, it would be wrapped twice.
    return sorted(name for name in names if not name.endswith(("classifier", "score")))


def last_layers(count: int, layers: int | None) -> list[int] | None:
    """The indices of the last `layers` of `count` layers, as peft reads them; None: all."""
    if layers is None:
        return None
    if not 0 < layers <= count:
        raise UserError(f"layers is {layers}: expected 1 to {count}, or none for all")
    return list(range(count - layers, count))


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, or only of those that training moves."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, and its report that the head is new and the base's own head unused."""
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
