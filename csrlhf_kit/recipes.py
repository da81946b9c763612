"""`csrlhf ppo` and `csrlhf evaluate`: one policy, on any base, scorers and prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig
from tqdm.auto import tqdm

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.safety import answer_and_score, policy_row, rate
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.runs import Run, write_atomic
from csrlhf_kit.training.constraints import CONSTRAINTS, make_constraint
from csrlhf_kit.training.ppo import PPOConfig, config_dict, train_ppo

Method = Literal[tuple(CONSTRAINTS)]


@dataclass
class PPORunConfig:
    """Train one policy with PPO under a constraint."""

    reward: Path
    """The reward model: a folder that `csrlhf reward-model` wrote for the same base."""
    cost: Path
    """The cost model: a folder that `csrlhf cost-model` wrote for the same base."""
    out: Path
    """Folder of the run: metrics.jsonl, checkpoints, adapter."""
    base: str = "data/tiny_base"
    """The policy's base: a folder or a hub id."""
    prompts: str = "shipped"
    """Where prompts come from: shipped, a file, a hub id, or a mixture `name:fraction,name:fraction`."""
    method: Method = "fixed_penalty"
    """The constraint."""
    threshold: float = 0.01
    """Largest mean cost allowed, in the unit of the costs (see --ppo.cost-scale)."""
    penalty: float = 20.0
    """The fixed λ, for the methods that have one."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (bitsandbytes NF4) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO's own settings."""
    resume: bool = False
    """Go on with what is in the folder."""


def run_ppo(config: PPORunConfig) -> dict[str, Any]:
    """Train, save the policy as a PEFT adapter in `out/adapter`, and return the last step's statistics.

    Raises UserError where a model or the prompts cannot be read, or the folder holds another run.
    """
    constraint = make_constraint(config.method, threshold=config.threshold, penalty=config.penalty)
    records = read_records(config.prompts, Prompt, split="train").records
    tokenizer = load_tokenizer(config.base)
    base = load_base(config.base, quantization=config.quantization)
    roles = Roles(base, reward=config.reward, cost=config.cost, rank=config.rank, seed=config.ppo.seed)
    run = Run.open(config.out, config_dict(config.ppo, constraint), resume=config.resume)
    history = train_ppo(roles, tokenizer, [p.prompt for p in records], constraint, config.ppo, run)
    roles.save_policy(config.out / "adapter")
    print(f"The policy's adapter is in {config.out / 'adapter'}")
    return history[-1] if history else {}


@dataclass
class EvaluateConfig:
    """Answer test prompts with a policy and judge the answers."""

    reward: Path
    """The reward model (for mean scores)."""
    cost: Path
    """The cost model: it judges where there is no oracle."""
    out: Path
    """File to write: a JSON object of rates with intervals, and every answer."""
    policy: Path | None = None
    """The policy's adapter folder; None: the base itself."""
    base: str = "data/tiny_base"
    """The base of policy and scorers."""
    prompts: str = "shipped"
    """Where prompts come from; on the shipped ones the toy world's oracle judges, elsewhere the cost model."""
    limit: int | None = None
    """At most this many prompts; None: all."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit or as it is."""
    seed: int = 0
    """Seed of sampling."""


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one policy; prints and returns its row, and writes it with the answers to `out`.

    On prompts outside the toy world the only judge at hand is the cost model: `unsafe_by_cost_model` says so.
    """
    records = read_records(config.prompts, Prompt, split="test").records[: config.limit]
    if not records:
        raise UserError(f"{config.prompts} has no test prompt: expected at least one")
    tokenizer = load_tokenizer(config.base)
    shape = {}
    if config.policy is not None:
        if not (config.policy / "adapter_config.json").is_file():
            raise UserError(f"{config.policy} is no policy: expected a PEFT adapter (adapter_config.json)")
        stored = PeftConfig.from_pretrained(str(config.policy))
        shape = {"policy": config.policy, "rank": stored.r, "alpha": stored.lora_alpha}
    base = load_base(config.base, quantization=config.quantization)
    roles = Roles(base, reward=config.reward, cost=config.cost, **shape)
    with tqdm(total=len(records), desc="answers") as bar:
        responses, scores = answer_and_score(
            roles, tokenizer, records, adapter="policy" if config.policy else None, progress=bar.update,
            max_new_tokens=config.max_new_tokens, seed=config.seed, temperature=config.temperature,
        )  # fmt: skip
    row: dict[str, Any] = {"unsafe_by_cost_model": rate((scores["cost"] > 0).tolist())}
    if config.prompts == "shipped":
        row |= policy_row(records, responses, scores)
    else:
        row |= {name: float(values.mean()) for name, values in scores.items()}
    answers = [
        {"prompt": p.prompt, "response": r, "reward": float(a), "cost": float(b)}
        for p, r, a, b in zip(records, responses, scores["reward"], scores["cost"], strict=True)
    ]
    write_atomic(config.out, json.dumps({"row": row, "answers": answers}, indent=1) + "\n")
    print(json.dumps({k: v for k, v in row.items() if not k.startswith("by_")}, indent=1))
    return row
