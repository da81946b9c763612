"""A Llama-family decoder's forward and backward pass without wasted work: an optimisation that you may skip.

Its reference is the Hugging Face model, which it equals up to float rounding. It is for small dense models on a
CPU, where padding, separate low-rank products and one module call per product cost more than the model itself.

- Tokens are packed, (tokens, hidden); padding exists in attention only.
- The last layer runs only at the positions that are read: those of the answer, or the last token.
- LoRA is folded into the weights, W' = W + s B A, again for each pass, so that no copy is ever out of date. This
  takes 2 r in out operations, the pass 2 tokens in out. Backward computes dA and dB from low-rank products,

      dB = s dy^T (x A^T)      dA = (s dy B)^T x      dx = dy W'

  and never the gradient of the frozen W.
- q, k and v are one product, and so are gate and up.

For a pass with gradients, one folded copy of the layers' weights is kept until backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from csrlhf_kit.kernels.cpu_trunk_ops import Folded, Gate, Norm, RotateAndPad, Unpad, swap
from csrlhf_kit.kernels.masks import position_ids

MODEL_TYPES = ("llama", "mistral", "qwen2")
LARGEST = 200_000_000  # parameters; larger models have not been measured, and the copies cost memory


def fits(base: Any) -> bool:
    """Whether `Trunk` can replace this model: by family, size, dense float32 weights, on a CPU."""
    config, trunk = base.config, base.base_model
    parameters = list(base.parameters())
    return (
        config.model_type in MODEL_TYPES
        and config.hidden_act == "silu"
        and not getattr(trunk, "has_sliding_layers", getattr(config, "sliding_window", None) is not None)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        and sum(p.numel() for p in parameters) <= LARGEST
        and all(_plain(module) for layer in trunk.layers for module in _linears(layer))
    )


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj]  # fmt: skip


def _plain(module: Any) -> bool:
    """Whether a module is a dense linear layer, with plain LoRA adapters or none."""
    base = getattr(module, "base_layer", module)
    ups = getattr(module, "lora_B", {})
    return (
        type(base) is nn.Linear
        and not getattr(module, "lora_variant", {})
        and not getattr(module, "merged_adapters", [])
        and all(up.bias is None for up in ups.values())
    )


# --- weights ---


class Projection(NamedTuple):
    """Linear layers with the same input, joined into one, with their adapters folded in."""

    weight: Tensor  # (sum of outputs, inputs)
    bias: Tensor | None  # (sum of outputs,)
    places: list[tuple[slice, float]]  # rows and scaling of each trained adapter
    adapters: list[Tensor]  # A (rank, inputs) and B (outputs, rank) of each trained adapter, in turn

    def __call__(self, x: Tensor) -> Tensor:
        if self.adapters and torch.is_grad_enabled():
            return Folded.apply(x, self.weight, self.bias, self.places, *self.adapters)
        return linear(x, self.weight, self.bias)


@torch.no_grad()
def fold(modules: Sequence[Any], adapter: str | None) -> Projection:
    """One `Projection` of linear or LoRA layers with `adapter` active (None: the base only)."""
    bases = [getattr(module, "base_layer", module) for module in modules]
    if len(bases) == 1 and adapter not in getattr(modules[0], "lora_A", {}):
        return Projection(bases[0].weight, bases[0].bias, [], [])  # frozen: no copy
    sizes = [base.out_features for base in bases]
    weight = bases[0].weight.new_empty(sum(sizes), bases[0].in_features)
    places, adapters, start = [], [], 0
    for module, base, size in zip(modules, bases, sizes, strict=True):
        rows = slice(start, start := start + size)
        if adapter not in getattr(module, "lora_A", {}):
            weight[rows] = base.weight
            continue
        down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        scaling = module.scaling[adapter]
        torch.addmm(base.weight, up, down, alpha=scaling, out=weight[rows])
        if down.requires_grad:
            places.append((rows, scaling))
            adapters += [down, up]
    bias = None
    if any(base.bias is not None for base in bases):
        bias = torch.cat(
            [weight.new_zeros(n) if b.bias is None else b.bias for b, n in zip(bases, sizes, strict=True)]
        )
    return Projection(weight, bias, places, adapters)


class TrunkLayer(NamedTuple):
    """The weights of one decoder layer."""

    query: Projection | None  # separate if it reads fewer positions than key and value do
    attend: Projection  # query (unless separate), key and value
    out: Projection
    gate_up: Projection
    down: Projection
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]  # weight and epsilon, before attention and MLP


class Layout(NamedTuple):
    """Packed tokens and their positions."""

    ids: Tensor  # (tokens,)
    at: Tensor  # (tokens,), index among batch * width, rows padded on the right
    shape: tuple[int, int]  # batch, width
    rotary: tuple[Tensor, Tensor]  # cos and signed sin, (tokens, 1, head size)


class Reading(NamedTuple):
    """The tokens whose last states are read."""

    tokens: Tensor  # (read,), indices into the packed tokens
    at: Tensor  # (read,), index among batch * most
    most: int  # largest number of tokens read in one row
    mask: Tensor  # (batch, 1, most, width), true where a read token may attend


class Trunk:
    """The transformer below the language-model head of a (PEFT-wrapped) causal LM, for any of its adapters."""

    def __init__(self, base: Any) -> None:
        self.model, config = base.base_model, base.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def layers(
        self, adapter: str | None, *, split_last: bool = True, first: int = 0, stop: int | None = None
    ) -> list[TrunkLayer]:
        """Layers `first` to `stop` with `adapter` folded in; split_last: with a separate query in the last."""
        folded = []
        for index, layer in list(enumerate(self.model.layers))[first:stop]:
            q, k, v, o, gate, up, down = _linears(layer)
            apart = split_last and index + 1 == len(self.model.layers)
            before, after = layer.input_layernorm, layer.post_attention_layernorm
            folded.append(
                TrunkLayer(
                    query=fold([q], adapter) if apart else None,
                    attend=fold([k, v] if apart else [q, k, v], adapter),
                    out=fold([o], adapter),
                    gate_up=fold([gate, up], adapter),
                    down=fold([down], adapter),
                    norms=((before.weight, before.variance_epsilon), (after.weight, after.variance_epsilon)),
                )
            )
        return folded

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor,
        adapter: str | None,
        read: Tensor,
        *,
        shared_states: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """Last hidden states (read tokens, hidden) under `adapter` where `read` is true, row by row.

        ids, mask, read: (batch, length); each row's real tokens (mask) are contiguous, padding on either side.
        shared_states: (batch, length, hidden), what `shared_states` returned for layer `first`, if known.
        """
        if not bool(read.any()):
            return self.model.norm.weight.new_zeros(0, self.model.norm.weight.shape[0])
        layout, first = self.layout(ids, mask), first if shared_states is not None else 0
        x = self.model.embed_tokens(layout.ids) if shared_states is None else shared_states[mask.bool()]
        x, _ = self.run(self.layers(adapter, first=first), layout, self.reading(layout, mask, read), x)
        return self.final_norm(x)

    @torch.no_grad()
    def shared_states(self, ids: Tensor, mask: Tensor, adapter: str | None, first: int) -> Tensor:
        """The input of layer `first` under `adapter`: (batch, length, hidden), zero at padding."""
        layout = self.layout(ids, mask)
        layers = self.layers(adapter, split_last=False, stop=first)
        x, _ = self.run(layers, layout, None, self.model.embed_tokens(layout.ids))
        return x.new_zeros(*ids.shape, x.shape[1]).masked_scatter(mask.bool().unsqueeze(-1), x)

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's last norm of states x (tokens, hidden)."""
        return Norm.apply(x, self.model.norm.weight, self.model.norm.variance_epsilon)

    def layout(self, ids: Tensor, mask: Tensor) -> Layout:
        """Pack rows of token ids (batch, length) by their mask."""
        mask = mask.bool()
        rows, _ = mask.nonzero(as_tuple=True)
        positions = position_ids(mask)[mask]
        width = int(positions.max()) + 1
        return Layout(ids[mask], rows * width + positions, (mask.shape[0], width), self.rotary(positions))

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (tokens, 1, head size) of the model's own rotary embedding; the first half of sin negated."""
        probe = self.model.norm.weight
        cos, sin = (part[0].unsqueeze(1) for part in self.model.rotary_emb(probe, positions.unsqueeze(0)))
        half = sin.shape[-1] // 2
        return cos, torch.cat((-sin[..., :half], sin[..., half:]), -1)

    @staticmethod
    def reading(layout: Layout, mask: Tensor, read: Tensor) -> Reading:
        batch, width = layout.shape
        tokens = read[mask.bool()].nonzero().squeeze(1)
        rows = torch.div(layout.at[tokens], width, rounding_mode="floor")
        positions = layout.at[tokens] - rows * width
        slots = (read.long().cumsum(1) - 1)[read]
        most = int(slots.max()) + 1
        at = rows * most + slots
        until = positions.new_zeros(batch * most)  # an unused slot attends to the first token
        until[at] = positions
        mask = torch.arange(width) <= until.view(batch, 1, most, 1)
        return Reading(tokens, at, most, mask)

    def run(
        self,
        layers: Sequence[TrunkLayer],
        layout: Layout,
        reading: Reading | None,
        x: Tensor,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """States of the tokens x (tokens, hidden) after `layers`, and with `keep` each layer's keys and values.
        After a layer with a separate query, which must be the last, only the tokens of `reading` are left.
        """
        batch, width = layout.shape
        kept = []
        both = 2 * self.kv_heads * self.head_size
        for layer in layers:
            h = Norm.apply(x, *layer.norms[0])
            if layer.query is None:
                rows = RotateAndPad.apply(
                    layer.attend(h), *layout.rotary, self.heads + self.kv_heads, layout.at, batch * width
                )
                q, kv = rows.split((rows.shape[1] - both, both), 1)
                q = q.view(batch, width, self.heads, self.head_size).transpose(1, 2)
                seen, at, chosen = None, layout.at, x
            else:
                assert reading is not None
                kv = RotateAndPad.apply(
                    layer.attend(h), *layout.rotary, self.kv_heads, layout.at, batch * width
                )
                rotary = tuple(part[reading.tokens] for part in layout.rotary)
                q = layer.query(h[reading.tokens])
                q = RotateAndPad.apply(q, *rotary, self.heads, reading.at, batch * reading.most)
                q = q.view(batch, reading.most, self.heads, self.head_size).transpose(1, 2)
                seen, at, chosen = reading.mask, reading.at, x[reading.tokens]
            if keep:
                kept.append(kv)
            k, v = kv.view(batch, width, 2, self.kv_heads, self.head_size).permute(2, 0, 3, 1, 4)
            attended = self.attend(q, k, v, seen).transpose(1, 2).reshape(-1, self.heads * self.head_size)
            x = chosen + layer.out(Unpad.apply(attended, at))
            h = Norm.apply(x, *layer.norms[1])
            x = x + layer.down(Gate.apply(layer.gate_up(h)))
        return x, kept

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (batch, heads, queries, head size); without a mask, each query sees the keys up to its own."""
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
        )


class TrunkDecoder:
    """A `Decoder` on a `Trunk`: folds the weights once, and allocates keys and values once.

    head: the language-model head. Use it only as long as no adapter changes.
    """

    def __init__(self, trunk: Trunk, head: nn.Linear, adapter: str | None) -> None:
        self.trunk, self.head, self.adapter = trunk, head, adapter

    def start(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        trunk, mask = self.trunk, mask.bool()
        layers = trunk.layers(self.adapter)
        layout = trunk.layout(ids, mask)
        (batch, width), lengths = layout.shape, mask.sum(1)
        last = mask & (position_ids(mask) == lengths.unsqueeze(1) - 1)
        x = trunk.model.embed_tokens(layout.ids)
        x, kept = trunk.run(layers, layout, trunk.reading(layout, mask, last), x, keep=True)
        x = trunk.final_norm(x)
        self.layers = [*layers[:-1], *trunk.layers(self.adapter, split_last=False, first=len(layers) - 1)]
        self.cache = x.new_zeros(len(kept), batch, width + room, kept[0].shape[1])
        for memory, kv in zip(self.cache, kept, strict=True):
            memory[:, :width] = kv.view(batch, width, -1)
        self.length, self.used = lengths, width
        self.seen = torch.arange(width + room) < lengths.unsqueeze(1)
        return linear(x, self.head.weight, self.head.bias)

    def step(self, tokens: Tensor) -> Tensor:
        trunk, batch = self.trunk, len(tokens)
        heads, kv_heads, size = trunk.heads, trunk.kv_heads, trunk.head_size
        cos, sin = trunk.rotary(self.length)
        self.seen.scatter_(1, self.length.unsqueeze(1), True)
        self.used += 1
        at = torch.arange(batch) * self.cache.shape[2] + self.length
        seen = self.seen[:, None, None, : self.used]
        x = trunk.model.embed_tokens(tokens)
        for layer, memory in zip(self.layers, self.cache, strict=True):
            qkv = layer.attend(Norm.apply(x, *layer.norms[0])).view(batch, heads + 2 * kv_heads, size)
            rotated = qkv[:, : heads + kv_heads]
            rotated = (rotated * cos).addcmul_(swap(rotated), sin)
            new = torch.cat((rotated[:, heads:], qkv[:, heads + kv_heads :]), 1).view(batch, -1)
            memory.view(-1, new.shape[1]).index_copy_(0, at, new)
            kv = memory[:, : self.used].view(batch, self.used, 2, kv_heads, size)
            k, v = kv.permute(2, 0, 3, 1, 4)
            attended = trunk.attend(rotated[:, :heads].unsqueeze(2), k, v, seen)
            x = x + layer.out(attended.reshape(batch, -1))
            x = x + layer.down(Gate.apply(layer.gate_up(Norm.apply(x, *layer.norms[1]))))
        self.length = self.length + 1
        x = trunk.final_norm(x)
        return linear(x, self.head.weight, self.head.bias)

    def keep(self, rows: Tensor) -> None:
        self.cache = self.cache[:, rows]
        self.length, self.seen = self.length[rows], self.seen[rows]
        self.used = int(self.length.max())
