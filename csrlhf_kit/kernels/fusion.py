"""Make the LoRA layers of a PEFT model run `lora_linear`, in place, and undo it. Imports peft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.linear4bit import mend_4bit
from csrlhf_kit.kernels.lora import lora_linear
from csrlhf_kit.kernels.nf4 import is_quantised, read_params4bit

# On a GPU, bitsandbytes multiplies so few tokens by packed weights directly, so decoding is left to it.
DECODE_TOKENS = 16
_Layer: Any = object  # the mixin reads what is in the layer that it is mixed into


class _FusedForward(_Layer):
    """Mixed into a PEFT layer: the usual case of training runs fused, all others run PEFT's own forward."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        adapter = self._plain_adapter(x, args, kwargs)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base, dtype = self.base_layer, x.dtype
        weight = base.weight
        if is_quantised(weight):
            weight = read_params4bit(weight)
            if not base.compute_type_is_set:  # as bitsandbytes does on its first call
                base.set_compute_type(x)
                base.compute_type_is_set = True
            x = x.to(base.compute_dtype or dtype)
        y = lora_linear(
            x, weight, self.lora_A[adapter].weight, self.lora_B[adapter].weight, bias=base.bias,
            scaling=self.scaling[adapter],
        )  # fmt: skip
        return y if torch.is_autocast_enabled(x.device.type) else y.to(dtype)

    def _plain_adapter(self, x: Tensor, args: tuple, kwargs: dict) -> str | None:
        """The one adapter to run fused; None to run PEFT's own forward instead.

        The latter is for adapters off or merged, none or several active, `adapter_names`, a variant such as DoRA,
        LoRA with a bias or dropout, a trained base, hooks on the base, or decoding from packed weights on a GPU.
        """
        if (
            self._disable_adapters
            or self.merged_adapters
            or args
            or any(v is not None for v in kwargs.values())
        ):
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant or self.lora_B[active[0]].bias is not None:
            return None
        if not isinstance(self.lora_dropout[active[0]], nn.Identity):
            return None
        base = self.base_layer
        if base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks:
            return None
        decoding = x.is_cuda and not torch.is_grad_enabled() and x.numel() <= DECODE_TOKENS * x.shape[-1]
        return None if decoding and is_quantised(base.weight) else active[0]


class FusedLinear(_FusedForward, lora.Linear):
    """PEFT's LoRA layer over a dense `nn.Linear`, computed by `lora_linear`."""


_FUSED: dict[type, type] = {lora.Linear: FusedLinear}

if hasattr(lora, "Linear4bit"):  # PEFT has it if bitsandbytes is installed

    class FusedLinear4bit(_FusedForward, lora.Linear4bit):
        """PEFT's LoRA layer over a bitsandbytes `Linear4bit` in NF4, computed by `lora_linear`."""

    _FUSED[lora.Linear4bit] = FusedLinear4bit


@dataclass
class Fused:
    """The result of `fuse`; leaving a `with` block calls `undo`."""

    layers: dict[str, Any] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)  # layer name: why it is not fused
    _classes: dict[str, type] = field(default_factory=dict)

    def undo(self) -> None:
        """Give the layers their PEFT class back."""
        for name, layer in self.layers.items():
            layer.__class__ = self._classes[name]
        self.layers, self._classes = {}, {}

    def __enter__(self) -> Fused:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def fuse(model: nn.Module) -> Fused:
    """Make the LoRA layers of a PEFT model (Qwen2/2.5/3, Llama, Mistral ...) run `lora_linear`.

    Only the layers' class changes, to a subclass: parameters, names and state dict stay as they are, so that
    saving, `set_adapter`, `disable_adapter`, `merge_and_unload` and gradient checkpointing work as before.
    Dense and bitsandbytes NF4 bases are fused; other layers (DoRA and other variants, 8 bit, embeddings ...)
    are not, and are listed with the reason in the result's `left_alone`. 4-bit layers are changed by `mend_4bit`,
    which `undo` does not reverse.
    Raises UserError, and changes nothing, for a model without LoRA layers, or one that bitsandbytes has already
    repacked for AVX512 inference.
    """
    found: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, lora.LoraLayer)}
    if not found:
        raise UserError("fuse found no LoRA layer: expected a PEFT model with a LoRA adapter.")
    result = Fused()
    for name, layer in found.items():
        base = layer.get_base_layer()
        reason = _why_not(layer)
        if reason is None:
            result.layers[name], result._classes[name] = layer, type(layer)
            if is_quantised(base.weight):
                read_params4bit(base.weight)  # refuses repacked weights before anything is changed
        else:
            result.left_alone[name] = reason
    mend_4bit(model)
    for layer in result.layers.values():
        layer.__class__ = _FUSED[type(layer)]
    return result


def _why_not(layer: Any) -> str | None:
    """Why a LoRA layer cannot be fused; None if it can."""
    base = layer.base_layer
    if isinstance(layer, _FusedForward):
        return "already fused"
    if type(layer) not in _FUSED:
        return f"{type(layer).__name__} layers are not fused"
    if layer.lora_variant:
        return f"adapter variant {type(next(iter(layer.lora_variant.values()))).__name__}"
    if any(module.bias is not None for module in layer.lora_B.values()):
        return "LoRA with a bias"
    if not all(isinstance(module, nn.Identity) for module in layer.lora_dropout.values()):
        return "LoRA with dropout"
    if is_quantised(base.weight):
        kind = base.weight.quant_state.quant_type
        return None if kind == "nf4" else f"quantised as {kind}"
    if type(base) is not nn.Linear:
        return f"base layer {type(base).__name__}"
    return "offloaded weight" if base.weight.is_meta else None
