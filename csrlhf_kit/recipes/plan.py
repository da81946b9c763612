"""`csrlhf plan`: predict how much memory a PPO run will take, by role and phase.

This is arithmetic on the model's configuration; no weights are loaded. What fits on a CPU is checked against
PyTorch's profiler there (`tests/recipes/test_plan.py`). For a GPU the figures are predictions that have not been
measured yet.

A forward pass keeps these numbers per token and layer for its backward pass (h hidden, i intermediate, q and kv the
widths of queries and of keys or values, r rank): two float32 copies of h from the norms; h before and q after
attention, h before the MLP; q, 2 kv and q within attention; 4 i in the gated MLP; r for each adapted product. With
gradient checkpointing it keeps only h per layer, and one layer's share exists at a time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_file
from csrlhf_kit.training.optimizers import BYTES_PER_PARAMETER, OptimizerName

GIB = 2**30
CARDS = (8, 12, 16, 24, 80)  # GiB
CONTEXT = 0.6 * GIB  # CUDA's context and cuBLAS' workspaces; assumed, not measured
SLACK = 1.05  # what the caching allocator cannot use between blocks; assumed, too
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per number: 4 bits, 8-bit and float32 scales
LOGPROB_CHUNK = {"cpu": 3 << 19, "cuda": 1 << 27}  # of kernels.logprob, which would load PyTorch
LOGPROB_ROWS = 64  # of the same
WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes of a number
TRAINED, SCORED_ROLES = ("policy", "critic"), ("reward", "cost")


def _known(kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool):
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip


# The presets' bases by their published configurations, with transformers' names, so that a plan needs no network.
KNOWN: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _known("qwen2", 896, 4864, 24, 14, 2, 151_936, True),
    "qwen2.5-1.5b": _known("qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
    "qwen2.5-7b": _known("qwen2", 3584, 18_944, 28, 28, 4, 152_064, False),
    "llama-3.1-8b": _known("llama", 4096, 14_336, 32, 32, 8, 128_256, False),
}


@dataclass
class PlanConfig:
    """Predict the peak memory of a PPO run."""

    base: str = "qwen2.5-7b"
    """A folder, a hub id, or one of qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, llama-3.1-8b."""
    quantization: Literal["none", "nf4"] = "nf4"
    """The base in 4 bit (nf4), or as it is."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of dense weights and of the computation."""
    rank: int = 16
    """Rank of every adapter."""
    layers: int | None = None
    """The policy's adapter acts on this many of the last layers; None: all."""
    scorer_layers: int | None = None
    """The adapters of reward, cost and critic act on this many of the last layers; None: all."""
    batch: int = 16
    """Episodes per rollout."""
    microbatch: int = 4
    """Episodes per forward and backward pass."""
    prompt_tokens: int = 256
    """Longest prompt, in tokens."""
    new_tokens: int = 256
    """Longest answer, in tokens."""
    gradient_checkpointing: bool = True
    """Keep one state per layer and recompute the rest in the backward pass."""
    optimizer: OptimizerName = "adamw"
    """adamw, adamw_8bit or paged_adamw_8bit, as in `csrlhf ppo`."""
    device: Literal["cuda", "cpu"] = "cuda"
    """The device of the run."""
    out: Path | None = None
    """File for the prediction (JSON); None: print only."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on."""

    hidden: int
    inner: int
    queries: int  # heads x head size
    keys: int  # key-value heads x head size
    heads: int
    layers: int
    vocabulary: int
    linear: int  # parameters in the layers' linear maps, which NF4 packs
    other: int  # all others: embeddings, norms, biases, head
    largest: int  # parameters of the largest linear map
    adapter: int  # parameters of a LoRA adapter of rank 1 on all linear maps
    adapted: int  # linear maps a layer


def known_shape(name: str) -> Shape:
    """The shape of one of `KNOWN`, by arithmetic and without importing PyTorch."""
    known = KNOWN[name]
    h, i, layers = known["hidden_size"], known["intermediate_size"], known["num_hidden_layers"]
    heads, vocabulary = known["num_attention_heads"], known["vocab_size"]
    kv = h // heads * known["num_key_value_heads"]
    maps = [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]  # q, k, v, o, gate, up, down
    biases = h + 2 * kv if known["model_type"] == "qwen2" else 0  # of q, k and v
    embeddings = vocabulary * h * (1 if known["tie_word_embeddings"] else 2)
    return Shape(
        hidden=h, inner=i, queries=h, keys=kv, heads=heads, layers=layers, vocabulary=vocabulary,
        linear=layers * sum(m * n for m, n in maps), other=embeddings + layers * (2 * h + biases) + h,
        largest=h * i, adapter=layers * sum(m + n for m, n in maps), adapted=len(maps),
    )  # fmt: skip


def shape_of(config: Any) -> Shape:
    """Count a causal LM's parameters by building it without memory (PyTorch's meta device)."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    trunk = model.base_model
    maps = [m for m in trunk.modules() if isinstance(m, nn.Linear)]
    linear = sum(m.weight.numel() for m in maps)
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        hidden=config.hidden_size, inner=config.intermediate_size, queries=heads * size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * size, heads=heads, layers=layers,
        vocabulary=config.vocab_size, linear=linear, other=sum(p.numel() for p in model.parameters()) - linear,
        largest=max(m.weight.numel() for m in maps), adapter=sum(m.in_features + m.out_features for m in maps),
        adapted=len(maps) // layers,
    )  # fmt: skip


def kept_per_token(shape: Shape, width: int, rank: int) -> float:
    """Bytes per token that one layer keeps for its backward pass; width: bytes per number."""
    norms = 2 * 4 * shape.hidden
    inputs = shape.hidden + shape.queries + shape.hidden + shape.inner  # of qkv, o, gate and up, down
    attention = 2 * shape.queries + 2 * shape.keys  # q, k, v and what comes out
    gate = 3 * shape.inner  # gate, its silu, up
    return norms + width * (inputs + attention + gate + shape.adapted * rank) + 4 * shape.heads


def predict(shape: Shape, config: PlanConfig) -> dict[str, dict[str, float]]:
    """Bytes of `roles` (what stays, by part), `phases` (what each adds at its peak), and `peak` (the total)."""
    width = WIDTHS[config.dtype]
    nf4 = config.quantization == "nf4"
    acted = {role: config.scorer_layers or shape.layers for role in (*SCORED_ROLES, "critic")}
    acted["policy"] = config.layers or shape.layers
    adapter = {role: shape.adapter * config.rank * count / shape.layers for role, count in acted.items()}
    roles = {
        "base (policy's and reference's trunk)": shape.other * width
        + shape.linear * (NF4_BYTES if nf4 else width),
        **{f"{role}: adapter": 4.0 * adapter[role] for role in (*TRAINED, *SCORED_ROLES)},
        **{f"{role}: moments": BYTES_PER_PARAMETER[config.optimizer] * adapter[role] for role in TRAINED},
        "heads of reward, cost and values": 4.0 * 4 * (shape.hidden + 1),
    }
    length = config.prompt_tokens + config.new_tokens
    tokens = config.microbatch * length
    unpacked = shape.largest * width if nf4 else 0.0  # one linear map at a time
    layer = kept_per_token(shape, width, config.rank)
    answer = config.microbatch * config.new_tokens
    chunk = max(LOGPROB_CHUNK[config.device], LOGPROB_ROWS * shape.vocabulary)
    elements = min(chunk, answer * shape.vocabulary)
    logits = elements * (4.0 + (width if width < 4 else 4.0)) + 2 * 4.0 * answer * shape.hidden
    saved, again = layer * tokens, 0.0  # for each layer from the first adapted one upwards
    if config.gradient_checkpointing:  # the input of each layer, and the one layer being recomputed
        saved, again = width * shape.hidden * tokens, layer * tokens
    backward = again + tokens * width * 2 * shape.inner + unpacked  # and the gradients within one MLP
    gradients = {role: 4.0 * adapter[role] for role in TRAINED}
    episodes = config.batch * length * (8 + 1 + 1 + 4 * (3 + 2) + 4 * (2 + 4 + 2))
    kept = {role: episodes + gradients[role] + saved * acted[role] for role in TRAINED}
    cache = 2 * shape.layers * shape.keys * width * config.batch * length
    prefill = config.batch * config.prompt_tokens * width * (2 * shape.hidden + 3 * shape.inner)
    merged = 4.0 * shape.linear if not nf4 and width == 4 else 0.0  # the policy merged for sampling
    picking = config.batch * shape.vocabulary * (width + 4 + 4 + 8)
    forward = tokens * width * (2 * shape.hidden + 3 * shape.inner)
    phases = {
        "rollout": merged + cache + max(prefill + unpacked, picking),
        "score": episodes + forward + unpacked + logits,
        "update the policy": kept["policy"] + max(logits, backward),
        "update the critic": kept["critic"] + backward,
    }
    fixed, slack = (CONTEXT, SLACK) if config.device == "cuda" else (0.0, 1.0)
    peak = fixed + slack * (sum(roles.values()) + max(phases.values()))
    return {"roles": roles, "phases": phases, "peak": {"bytes": peak}}


def six_models(shape: Shape) -> dict[str, float]:
    """Bytes of Safe RLHF's six separate models of this size in bf16, and of the training state of three of them.

    The models: actor, reference, reward, cost, two critics. The training state: bf16 gradients, float32 master
    weights, and Adam's two moments. Activations are not counted.
    """
    parameters = shape.linear + shape.other
    return {"weights": 6 * 2.0 * parameters, "training state of three": 3 * (4.0 + 8.0 + 2.0) * parameters}


def run_plan(config: PlanConfig) -> dict[str, Any]:
    """Print and return the prediction. Raises UserError if the configuration cannot be read, or sizes are invalid."""
    check_file(config.out)
    if config.base in KNOWN:
        shape = known_shape(config.base)
    else:
        from csrlhf_kit.models.base import load_config

        shape = shape_of(load_config(config.base))
    for count in (config.layers, config.scorer_layers):
        if count is not None and not 0 < count <= shape.layers:
            raise UserError(f"layers is {count}: expected 1 to {shape.layers}, or none for all")
    told = predict(shape, config)
    peak = told["peak"]["bytes"]
    result = {
        "config": json.loads(json.dumps(asdict(config), default=str)), "shape": asdict(shape), **told,
        "fits": {f"{size} GiB": peak <= size * GIB for size in CARDS}, "six_models": six_models(shape),
        "measured": False,
    }  # fmt: skip
    print(report(config, result))
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1) + "\n")
    return result


def report(config: PlanConfig, result: dict[str, Any]) -> str:
    """The prediction as a table in GiB."""
    shape = result["shape"]
    billions = (shape["linear"] + shape["other"]) / 1e9
    lines = [
        f"{config.base}: {billions:.2f} billion parameters, {config.quantization} {config.dtype}, rank {config.rank}, "
        f"{config.batch} episodes x ({config.prompt_tokens} + {config.new_tokens}) tokens in micro-batches of "
        f"{config.microbatch}",
        f"{'GiB, predicted, not measured':44} {config.device}",
    ]
    for title, part in (("stays", result["roles"]), ("added at the peak of", result["phases"])):
        lines += [f"{title}"] + [f"  {name:42} {size / GIB:8.3f}" for name, size in part.items()]
    lines.append(f"{'peak':44} {result['peak']['bytes'] / GIB:8.3f}")
    if config.device == "cuda":
        fitting = [name for name, fits in result["fits"].items() if fits]
        lines.append(f"fits into: {', '.join(fitting) if fitting else 'none of ' + str(CARDS) + ' GiB'}")
    six = result["six_models"]
    lines.append(
        f"six separate bf16 models, as Safe RLHF keeps them: {six['weights'] / GIB:.1f} GiB of weights, and "
        f"{six['training state of three'] / GIB:.1f} GiB to train three of them fully with AdamW"
    )
    return "\n".join(lines)
