"""One constrained PPO step on a randomly initialised base of a 7B's shape, on the GPU at hand: memory and speed.

    python benchmarks/gpu_ppo.py                      # Qwen2.5-7B, NF4, r = 16, 16 episodes x (256 + 256) tokens
    python benchmarks/gpu_ppo.py --base qwen2.5-1.5b --quantization none

All six roles are there: policy, reference, reward, cost, and both critics. No answer ends early, so each step is the
same work. Prints, and writes to `benchmarks/results/`, the peak memory of the step beside what `csrlhf plan` said,
and tokens a second of rollout, scoring and update. Weights are random, so nothing is downloaded. Exit status 1 where
the peak exceeds 16 GiB at the defaults, or the plan is off by more than a tenth; 3 without a GPU.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tyro
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from csrlhf_kit.bench.measure import device_name, versions
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import DTYPES, freeze
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.plan import GIB, KNOWN, PlanConfig, predict, shape_of, six_models
from csrlhf_kit.runs import seed_everything, write_atomic
from csrlhf_kit.training.constraints import FixedPenalty
from csrlhf_kit.training.optimizers import make_optimizer
from csrlhf_kit.training.ppo import PPOConfig, ppo_step

MOST = 16 * GIB  # the promise, at the defaults


@dataclass
class GPUStepConfig(PlanConfig):
    """Measure a PPO step; sizes as `csrlhf plan` has them."""

    steps: int = 3
    """Steps to measure, after one that is not."""
    static_cache: bool = False
    """Sample with a cache of fixed size and CUDA graphs."""
    six: bool = False
    """Also try the weights alone of six separate bf16 models, as Safe RLHF keeps them."""
    out: Path | None = None
    """File for the result; None: one of this machine's name in benchmarks/results."""


def random_base(config: Any, *, dtype: str, quantization: str, device: torch.device) -> PreTrainedModel:
    """A causal LM of this configuration with random weights, filled (and packed) one tensor at a time, so that no
    dense copy of the whole exists anywhere.
    """
    number = DTYPES[dtype]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=number)
    trunk = model.base_model
    if quantization == "nf4":
        from bitsandbytes.nn import Linear4bit, Params4bit

        for parent in list(trunk.modules()):
            for name, old in list(parent.named_children()):
                if type(old) is nn.Linear:
                    new = Linear4bit(
                        old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=number,
                        compress_statistics=True, quant_type="nf4", device="meta",
                    )  # fmt: skip
                    dense = torch.randn(old.weight.shape, dtype=number) * 0.02
                    new.weight = Params4bit(
                        dense, requires_grad=False, compress_statistics=True, quant_type="nf4"
                    )
                    if old.bias is not None:
                        new.bias = nn.Parameter(
                            torch.zeros(old.out_features, dtype=number), requires_grad=False
                        )
                    setattr(parent, name, new.to(device))
        model.is_loaded_in_4bit = True  # peft asks
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if old.is_meta:
                filled = torch.ones(old.shape, dtype=number, device=device)
                setattr(module, name, nn.Parameter(filled if old.dim() == 1 else filled.normal_(0.0, 0.02)))
    trunk.rotary_emb = type(trunk.rotary_emb)(config=config).to(device)  # its buffers were never filled
    model.tie_weights()
    return freeze(model)


def random_scorer(config: Any, rank: int, folder: Path) -> Path:
    """A reward or cost model of this shape as a PEFT SEQ_CLS adapter with random weights."""
    options = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    with torch.device("meta"):
        model = PeftModel(
            AutoModelForCausalLM.from_config(config), LoraConfig(**options, task_type="CAUSAL_LM")
        )
    state = {k: torch.randn(v.shape) * 0.02 for k, v in get_peft_model_state_dict(model).items()}
    state["base_model.model.score.weight"] = torch.randn(1, config.hidden_size) * 0.02
    folder.mkdir(parents=True)
    named = model.peft_config["default"].target_modules  # "all-linear" spelt out
    shape = LoraConfig(**options | {"target_modules": named}, task_type="SEQ_CLS", modules_to_save=["score"])
    shape.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def measure(config: GPUStepConfig, model_config: Any, device: torch.device) -> dict[str, Any]:
    """Bytes at the peak of a step (None on a CPU) and the median seconds of its parts."""
    torch.manual_seed(0)
    base = random_base(model_config, dtype=config.dtype, quantization=config.quantization, device=device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorers = {n: random_scorer(model_config, config.rank, Path(folder) / n) for n in ("reward", "cost")}
        roles = Roles(
            base, **scorers, rank=config.rank, alpha=2 * config.rank, static_cache=config.static_cache
        )
    if config.gradient_checkpointing:
        checkpoint_activations(roles)
    ppo = PPOConfig(
        batch_size=config.batch, minibatch_size=config.batch, microbatch_size=config.microbatch,
        max_new_tokens=config.new_tokens, target_kl=None,
    )  # fmt: skip
    optimizers = {
        role: make_optimizer(
            config.optimizer, roles.trainable(role), learning_rate=1e-6, betas=(0.9, 0.95), weight_decay=0.0
        )
        for role in ("policy", "critic")
    }
    constraint = FixedPenalty(threshold=0.1)
    tokenizer = SimpleNamespace(
        eos_token_id=-1, pad_token_id=0
    )  # the scorers read ids; nothing ends an answer
    seed_everything(0)
    rows, peaks = [], []
    for step in range(config.steps + 1):
        ids = torch.randint(2, model_config.vocab_size, (config.batch, config.prompt_tokens))
        encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        stats = ppo_step(roles, tokenizer, [""] * config.batch, encoded, optimizers, constraint, ppo)
        if step > 0:
            rows.append({name: stats[f"time/{name}"] for name in ("rollout", "score", "update")})
            if device.type == "cuda":
                free, total = torch.cuda.mem_get_info(device)
                peaks.append(
                    {
                        "allocated": torch.cuda.max_memory_allocated(device),
                        "reserved": torch.cuda.max_memory_reserved(device),
                        "card": total - free,
                    }
                )
    middle = {name: float(torch.tensor([row[name] for row in rows]).median()) for name in rows[0]}
    answered = config.batch * config.new_tokens
    read = config.batch * (config.prompt_tokens + config.new_tokens)
    return {
        "peak": {name: max(p[name] for p in peaks) for name in peaks[0]} if peaks else None,
        "seconds": middle,
        "tokens_per_second": {
            "rollout": answered / middle["rollout"], "score": read / middle["score"], "update": read / middle["update"],
        },
        "finite": all(v == v for v in stats.values()),
    }  # fmt: skip


def six_fit(model_config: Any, device: torch.device) -> dict[str, Any]:
    """Whether the weights of six separate bf16 models fit at all; their activations and Adam's state are not tried."""
    models = []
    try:
        for _ in range(6):
            models.append(random_base(model_config, dtype="bfloat16", quantization="none", device=device))
    except torch.OutOfMemoryError:
        return {"models_that_fit": len(models)}
    return {"models_that_fit": 6, "allocated": torch.cuda.max_memory_allocated(device)}


def verdicts(config: GPUStepConfig, measured: dict[str, Any], predicted: float) -> dict[str, bool]:
    """What was promised, and whether it holds. The plan is of the whole card, context included."""
    held = {"plan within 10%": abs(predicted / measured["peak"]["card"] - 1) <= 0.1}
    if config.base == "qwen2.5-7b" and config.quantization == "nf4":
        held["peak at most 16 GiB"] = measured["peak"]["card"] <= MOST
    return held


def main(config: GPUStepConfig) -> int:
    if not torch.cuda.is_available():
        print("gpu_ppo needs a GPU and PyTorch sees none here: nothing was measured, nothing was written.")
        return 3
    if config.base not in KNOWN:
        raise UserError(f"base is {config.base}: expected one of {', '.join(KNOWN)}")
    device, model_config = torch.device("cuda"), KNOWN[config.base]
    shape = shape_of(model_config)
    predicted = predict(shape, config)
    measured = measure(config, model_config, device)
    held = verdicts(config, measured, predicted["peak"]["bytes"])
    result = {
        "device": device_name(device), "versions": versions(), "measured": measured, "predicted": predicted,
        "config": json.loads(json.dumps(asdict(config), default=str)), "verdicts": held,
        "six_models": six_models(shape),
    }  # fmt: skip
    if config.six:
        torch.cuda.empty_cache()
        result["six_models"] |= six_fit(model_config, device)
    print(f"{config.base}, {config.quantization}, on {result['device']}")
    print(f"peak, GiB: {measured['peak']['card'] / GIB:.2f} (plan: {predicted['peak']['bytes'] / GIB:.2f})")
    print("tokens a second: " + ", ".join(f"{n} {v:.0f}" for n, v in measured["tokens_per_second"].items()))
    for claim, holds in held.items():
        print(f"{'ok' if holds else 'FAIL':5}{claim}")
    name = re.sub(r"[^a-z0-9]+", "-", f"{config.base} {config.quantization} {result['device']}".lower())
    out = config.out or Path("benchmarks/results") / f"gpu-ppo-{name}.json"
    print(f"Written: {write_atomic(out, json.dumps(result, indent=1) + chr(10))}")
    return int(not all(held.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(GPUStepConfig)))
    except UserError as error:
        sys.exit(f"gpu_ppo: {error}")
