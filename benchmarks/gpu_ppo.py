"""One constrained PPO step on a randomly initialised base of a 7B's shape, on the GPU at hand: memory and speed.

    python benchmarks/gpu_ppo.py --dry-run            # every line of it once, at a tiny shape, on any machine
    python benchmarks/gpu_ppo.py                      # Qwen2.5-7B, NF4, r = 16, 16 episodes x (256 + 256) tokens
    python benchmarks/gpu_ppo.py --six                # and rollout and scoring with six separate bf16 models
    python benchmarks/gpu_ppo.py --base qwen2.5-1.5b --quantization none

All six roles are there: policy, reference, reward, cost, and both critics. No answer ends early, so each step is the
same work. Prints, and writes to `benchmarks/results/`, the peak memory of the step beside what `csrlhf plan` said,
and tokens a second of rollout, scoring and update. Weights are random, so nothing is downloaded. Exit status 1 where
the peak exceeds 16 GiB at the defaults, or the plan is off by more than a tenth; 3 without a GPU. Should a Triton
kernel fail on this GPU, the step is measured again without them, and the result says so.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import tyro
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.measure import device_name, synchronise, versions
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.kernels import backend
from csrlhf_kit.models import Sampler
from csrlhf_kit.models.base import DTYPES, freeze
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.classifiers import last_layers, linear_names
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import sample
from csrlhf_kit.recipes.plan import GIB, KNOWN, PlanConfig, predict, shape_of, six_models
from csrlhf_kit.runs import seed_everything
from csrlhf_kit.training.constraints import FixedPenalty
from csrlhf_kit.training.optimizers import make_optimizer
from csrlhf_kit.training.ppo import PPOConfig, ppo_step

MOST = 16 * GIB  # the promise, at the defaults
TINY = Qwen2Config(  # of a dry run
    hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=300, tie_word_embeddings=False,
)  # fmt: skip


@dataclass
class GPUStepConfig(PlanConfig):
    """Measure a PPO step; sizes as `csrlhf plan` has them."""

    steps: int = 3
    """Steps to measure, after one that is not."""
    rollout: Sampler = "loop"
    """How answers are sampled: loop or static (a cache of fixed size, compiled)."""
    kernels: Literal["auto", "torch"] = "auto"
    """auto: Triton's where it is installed; torch: none of ours."""
    six: bool = False
    """Also roll out and score with six separate bf16 models, as Safe RLHF keeps them, where they fit."""
    dry_run: bool = False
    """A tiny shape on whatever is here, to see that everything runs: no figure of it means anything."""
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
                    dense = torch.randn(old.weight.shape, dtype=number, device=device) * 0.02
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


def random_scorer(config: Any, rank: int, layers: int | None, folder: Path) -> Path:
    """A reward or cost model of this shape as a PEFT SEQ_CLS adapter with random weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        options = {
            "r": rank, "lora_alpha": 2 * rank, "target_modules": linear_names(model, ()),
            "layers_to_transform": last_layers(config.num_hidden_layers, layers),
        }  # fmt: skip
        model = PeftModel(model, LoraConfig(**options, task_type="CAUSAL_LM"))
    state = {k: torch.randn(v.shape) * 0.02 for k, v in get_peft_model_state_dict(model).items()}
    state["base_model.model.score.weight"] = torch.randn(1, config.hidden_size) * 0.02
    folder.mkdir(parents=True)
    LoraConfig(**options, task_type="SEQ_CLS", modules_to_save=["score"]).save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def measure(config: GPUStepConfig, model_config: Any, device: torch.device) -> dict[str, Any]:
    """Bytes at the peak of a step (None on a CPU), and the median seconds and tokens a second of its parts."""
    torch.manual_seed(0)
    base = random_base(model_config, dtype=config.dtype, quantization=config.quantization, device=device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = (model_config, config.rank, config.scorer_layers)
        scorers = {name: random_scorer(*shape, Path(folder) / name) for name in ("reward", "cost")}
        roles = Roles(
            base,
            **scorers,
            rank=config.rank,
            alpha=2 * config.rank,
            layers=config.layers,
            sampler=config.rollout,
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
    roles.model.generation_config.eos_token_id = None
    seed_everything(0)
    rows, peaks = [], []
    _clean(device)  # of what loading has left in the allocator
    for step in range(config.steps + 1):
        ids = torch.randint(2, model_config.vocab_size, (config.batch, config.prompt_tokens))
        encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        _forget_peak(device)
        stats = ppo_step(roles, tokenizer, [""] * config.batch, encoded, optimizers, constraint, ppo)
        if step > 0:
            rows.append({name: stats[f"time/{name}"] for name in ("rollout", "score", "update")})
            peaks.append(_peak(device))
    middle = {name: float(torch.tensor([row[name] for row in rows]).median()) for name in rows[0]}
    return {
        "peak": {name: max(p[name] for p in peaks) for name in peaks[0]} if peaks[0] else None,
        "seconds": middle,
        "tokens_per_second": _rates(config, middle),
        "finite": all(v == v for v in stats.values()),
    }


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> dict[str, int] | None:
    """Bytes: most in tensors, most that the allocator held, and what is taken of the card, context included."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)  # the allocator gives nothing back: this is a peak, too
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
        "card": total - free,
    }


def _rates(config: GPUStepConfig, seconds: dict[str, float]) -> dict[str, float]:
    """Tokens a second: of answers in the rollout, of prompts and answers elsewhere."""
    answered = config.batch * config.new_tokens
    read = config.batch * (config.prompt_tokens + config.new_tokens)
    return {name: (answered if name == "rollout" else read) / taken for name, taken in seconds.items()}


def _clean(device: torch.device) -> None:
    gc.collect()  # modules refer to each other in circles
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def measure_six(config: GPUStepConfig, model_config: Any, device: torch.device) -> dict[str, Any]:
    """Rollout and scoring with six separate bf16 models as Safe RLHF keeps them: actor and reference give their
    logits, reward and cost model and both critics their last states.

    Their update, full fine-tuning of three of them, is left to arithmetic (`six_models`): what AdamW keeps for three
    models of 7 billion parameters is more than any card holds.
    """
    models: list[PreTrainedModel] = []
    _forget_peak(device)
    try:
        for _ in range(6):
            models.append(random_base(model_config, dtype="bfloat16", quantization="none", device=device))
        ids = torch.randint(2, model_config.vocab_size, (config.batch, config.prompt_tokens), device=device)
        clock = time.perf_counter()
        episodes = sample(
            models[0],
            ids,
            torch.ones_like(ids),
            eos_token_id=-1,
            pad_token_id=0,
            max_new_tokens=config.new_tokens,
        )
        synchronise(device)
        seconds = {"rollout": time.perf_counter() - clock}
        clock = time.perf_counter()
        for part in episodes.ids.split(config.microbatch):
            for model in models[:2]:
                logits = model(input_ids=part, use_cache=False, logits_to_keep=config.new_tokens + 1).logits[
                    :, :-1
                ]
                logits.float().log_softmax(-1).gather(-1, part[:, -config.new_tokens :].unsqueeze(-1))
            for model in models[2:]:
                model.base_model(input_ids=part, use_cache=False)
        synchronise(device)
        seconds["score"] = time.perf_counter() - clock
    except torch.OutOfMemoryError:
        return {"models_that_fit": len(models), "fits": False}
    rates = _rates(config, seconds)
    return {
        "models_that_fit": 6,
        "fits": True,
        "peak": _peak(device),
        "seconds": seconds,
        "tokens_per_second": rates,
    }


def verdicts(config: GPUStepConfig, measured: dict[str, Any], predicted: float) -> dict[str, bool]:
    """What was promised, and whether it holds. The plan is of the whole card, context included."""
    held = {"plan within 10%": abs(predicted / measured["peak"]["card"] - 1) <= 0.1}
    if config.base == "qwen2.5-7b" and config.quantization == "nf4":
        held["peak at most 16 GiB"] = measured["peak"]["card"] <= MOST
    return held


def main(config: GPUStepConfig) -> int:
    if config.base not in KNOWN:
        raise UserError(f"base is {config.base}: expected one of {', '.join(KNOWN)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model_config = AutoConfig.for_model(**KNOWN[config.base])
    if config.dry_run:
        model_config = TINY
        small = {"rank": 2, "batch": 2, "microbatch": 1, "prompt_tokens": 4, "new_tokens": 3, "steps": 1}
        config = replace(config, **small, six=True)
    elif device.type == "cpu":
        print("gpu_ppo needs a GPU and PyTorch sees none here: nothing was measured, nothing was written.")
        return 3
    shape, failure = shape_of(model_config), None
    predicted = predict(shape, config)
    try:
        with backend(config.kernels):
            measured = measure(config, model_config, device)
    except Exception as error:  # whatever a compiler or a driver may raise: the rest can still be measured
        if config.kernels == "torch" or isinstance(error, torch.OutOfMemoryError):
            raise
        failure = f"{type(error).__name__}: {error}"
        print(f"FAIL with Triton's kernels, once more without: {failure}")
    if failure is not None:  # outside of the block above, whose exception holds the memory
        _clean(device)
        with backend("torch"):
            measured = measure(config, model_config, device)
    result = {
        "device": device_name(device), "versions": versions(), "measured": measured, "predicted": predicted,
        "config": json.loads(json.dumps(asdict(config), default=str)), "kernels_failed": failure,
        "six_models": six_models(shape),
    }  # fmt: skip
    held: dict[str, bool] = {"kernels run": failure is None, "every figure is finite": measured["finite"]}
    print(f"{'tiny' if config.dry_run else config.base}, {config.quantization}, on {result['device']}")
    if measured["peak"]:
        held |= {} if config.dry_run else verdicts(config, measured, predicted["peak"]["bytes"])
        print(
            "GiB: "
            + ", ".join(f"{name} {size / GIB:.2f}" for name, size in measured["peak"].items())
            + f", plan {predicted['peak']['bytes'] / GIB:.2f}"
        )
    print("tokens a second: " + ", ".join(f"{n} {v:.0f}" for n, v in measured["tokens_per_second"].items()))
    if config.six:
        _clean(device)
        result["six_models"] |= measure_six(config, model_config, device)
        print(f"six separate bf16 models: {json.dumps(result['six_models'])}")
    for claim, holds in held.items():
        print(f"{'ok' if holds else 'FAIL':5}{claim}")
    result["verdicts"] = held
    name = re.sub(r"[^a-z0-9]+", "-", f"{config.base} {config.quantization} {result['device']}".lower())
    out = config.out or Path("benchmarks/results") / f"gpu-ppo-{name}.json"
    if not config.dry_run or config.out:
        print(f"Written: {write_atomic(out, json.dumps(result, indent=1) + chr(10))}")
    return int(not all(held.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(GPUStepConfig)))
    except UserError as error:
        sys.exit(f"gpu_ppo: {error}")
