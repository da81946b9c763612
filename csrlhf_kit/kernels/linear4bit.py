"""bitsandbytes' 4-bit layers on a CPU: never repacked, and unpacked correctly for every width.

Two things go wrong on CPUs with AVX512. With AVX512-BF16, a `Linear4bit` is repacked in place in its first forward
pass without gradients; a later pass with gradients, as in PPO, then gives zero gradients below it. And
bitsandbytes (0.50) reads the scales of a row from row * (in // block) on, which is wrong if `in` is no multiple of
the block, since blocks then extend beyond the ends of rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.lora import lora_linear
from csrlhf_kit.kernels.nf4 import read_params4bit

CAUTION = (
    "Rows of this 4-bit base are no multiple of the block of weights that share a scale. On CPUs with AVX512, "
    "bitsandbytes (0.50) unpacks such rows wrongly: plain transformers gives other scores there than the kit does."
)
_Layer: Any = object  # the mixin reads what is in the layer that it is mixed into


class _UnpackedHere(_Layer):
    """Mixed into a `Linear4bit`: on a CPU, `dequantize_nf4` unpacks its weight."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        rows = x.to(self.compute_dtype or x.dtype)  # (..., in)
        down, up = rows.new_empty(0, self.in_features), rows.new_empty(self.out_features, 0)  # LoRA of rank 0
        return lora_linear(rows, read_params4bit(self.weight), down, up, bias=self.bias).to(x.dtype)


@cache
def _unpacked_here(layer: type) -> type:
    return type(layer.__name__, (_UnpackedHere, layer), {})


def mend_4bit(model: nn.Module) -> None:
    """Switch repacking off in all 4-bit layers, and let the kit unpack those whose rows are no multiple of the block.

    Raises UserError for one of the latter on a CPU if it is not NF4: its weights would be read wrongly.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False
        weight = layer.weight
        if layer.in_features % weight.blocksize == 0 or isinstance(layer, _UnpackedHere):
            continue
        if weight.quant_type == "nf4":
            layer.__class__ = _unpacked_here(layer.__class__)
        elif weight.device.type == "cpu":
            raise UserError(
                f"{name} is quantised as {weight.quant_type}, in blocks of {weight.blocksize} that do not fit its "
                f"rows of {layer.in_features}: some CPUs read that wrongly, expected nf4 or a GPU"
            )


def unpacks_here(model: nn.Module) -> bool:
    """Whether `model` has 4-bit layers that plain transformers may read wrongly on a CPU with AVX512."""
    return any(isinstance(layer, _UnpackedHere) for layer in model.modules())
