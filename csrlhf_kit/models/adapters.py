"""LoRA adapters of a PEFT model: reading them from folders, mounting, filling and copying them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import adapter_config
from csrlhf_kit.models.classifiers import has_conv1d
from csrlhf_kit.models.places import check_base

SCORE_HEADS = ("score", "classifier")  # what AutoModelForSequenceClassification calls its head


def read_adapter(folder: Path, role: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The config and tensors of the LoRA adapter in a folder. Raises UserError if it holds none."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} is no {role} model: expected a PEFT adapter (adapter_model.safetensors)")
    config = adapter_config(folder)
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"{folder} is of PEFT's kind {config.peft_type and config.peft_type.value}: expected LoRA"
        )
    return config, load_file(weights)


def without_dropout(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """A copy of `config` to mount on the causal LM `model`: without dropout, and with heads kept outside peft."""
    config = copy.deepcopy(config)
    config.lora_dropout, config.modules_to_save, config.task_type = 0.0, None, "CAUSAL_LM"
    config.inference_mode, config.fan_in_fan_out = False, has_conv1d(model)
    return config


def fill_adapter(model: PeftModel, name: str, state: dict[str, Tensor], folder: Path) -> None:
    """Copy `state`, the tensors of `folder`, to the adapter `name`. Raises UserError if names or shapes differ, or if
    they were trained on another base.
    """
    base: Any = model.get_base_model()
    check_base(folder, base.name_or_path)
    # "auto" would look for the base's config on the hub if the folder named in the adapter is missing.
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    odd = sorted(expected.keys() ^ state.keys()) or [k for k in state if state[k].shape != expected[k].shape]
    if odd:
        raise UserError(
            f"the adapter {folder} does not fit this base: {odd[0]} is in only one of them, or has different shapes"
        )
    set_peft_model_state_dict(model, state, adapter_name=name)


def mount_scorer(model: PeftModel, name: str, folder: Path, hidden_size: int) -> nn.Linear:
    """Mount a SEQ_CLS adapter on the causal LM; returns its score head. Raises UserError if either does not fit."""
    config, state = read_adapter(folder, name)
    model.add_adapter(name, without_dropout(config, model))
    heads = {key: value for key, value in state.items() if key.split(".")[-2] in SCORE_HEADS}
    fill_adapter(model, name, {k: v for k, v in state.items() if k not in heads}, folder)
    weight = next((value for key, value in heads.items() if key.endswith(".weight")), None)
    bias = next((value for key, value in heads.items() if key.endswith(".bias")), None)
    if weight is None or weight.shape != (1, hidden_size):
        raise UserError(
            f"{folder} has no score head of shape (1, {hidden_size}): expected a PEFT SEQ_CLS adapter "
            "with num_labels=1 and its head in modules_to_save"
        )
    head = nn.Linear(hidden_size, 1, bias=bias is not None)
    head.load_state_dict({"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()}))
    return head


def load_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Fill the adapter `name` from a folder. Raises UserError unless that adapter has the same rank and alpha."""
    config, state = read_adapter(folder, name)
    own: Any = model.peft_config[name]
    if (config.r, config.lora_alpha) != (own.r, own.lora_alpha):
        raise UserError(
            f"{folder} has rank {config.r} and alpha {config.lora_alpha}: expected "
            f"{own.r} and {own.lora_alpha}"
        )
    fill_adapter(model, name, state, folder)


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Copy the weights of the adapter `source` to the adapter `target`."""
    state = get_peft_model_state_dict(model, adapter_name=source, save_embedding_layers=False)
    set_peft_model_state_dict(model, {k: v.clone() for k, v in state.items()}, adapter_name=target)


def _layer_index(name: str) -> int:
    """The layer number in a parameter's name; 0 if there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def lowest_layer(model: PeftModel, adapter: str) -> int:
    """The index of the first layer that an adapter acts on."""
    return min(
        _layer_index(name)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A
    )


def folds(layer: Any, adapter: str) -> bool:
    """Whether base and adapter can be folded into one dense float32 matrix, up to rounding."""
    if adapter not in getattr(layer, "lora_A", {}):
        return True
    base, up = layer.get_base_layer(), layer.lora_B[adapter]
    return (
        type(base) in (nn.Linear, Conv1D)
        and base.weight.dtype == torch.float32
        and not layer.lora_variant
        and up.bias is None
        and not layer.merged_adapters
    )
