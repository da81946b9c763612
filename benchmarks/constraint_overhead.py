"""What a constraint costs in a PPO step, beyond unconstrained PPO: seconds of its own calls against a whole step.

    python benchmarks/constraint_overhead.py

Writes benchmarks/results/constraint_overhead.csv. All times are CPU seconds of one thread, which other
processes do not change. A step runs the workload of `python benchmarks/ppo_step.py`; the constraint's calls are those that
PPO makes in one step (observe, shape, shape_rewards, combine, stats, and extra_loss with its backward pass for
each micro-batch), on tensors of that step's size, less what the same calls take with `Unconstrained`.
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.ppo_step import EOS, PAD, BenchPPOConfig, random_prompts, random_roles
from csrlhf_kit.files import write_atomic
from csrlhf_kit.training.constraints import CONSTRAINTS, Constraint, FixedPenalty, Unconstrained
from csrlhf_kit.training.constraints.per_group import PerGroup
from csrlhf_kit.training.ppo import PPOConfig, ppo_step

GROUPS = tuple(f"category {i}" for i in range(14))


@dataclass
class Config:
    """The overhead of every constraint."""

    shape: Literal["peer", "tiny"] = "peer"
    """The model of the step, as in `python benchmarks/ppo_step.py`."""
    steps: int = 5
    """Steps to time, after one that does not count."""
    repeats: int = 200
    """Times that each constraint's calls are timed."""
    out: Path | None = Path("benchmarks/results/constraint_overhead.csv")
    """Table to write."""


def made() -> dict[str, Constraint]:
    """Every constraint by name, with one for each of 14 groups last."""
    constraints = {name: kind(threshold=0.1) for name, kind in CONSTRAINTS.items()}
    inner = {group: FixedPenalty(threshold=0.1) for group in ("", *GROUPS)}
    return constraints | {"per_group (14)": PerGroup(constraints=inner)}


def step_seconds(config: Config) -> float:
    """Median CPU seconds of an unconstrained PPO step."""
    bench = BenchPPOConfig(shape=config.shape)
    roles = random_roles(bench)
    ppo = PPOConfig(
        batch_size=bench.batch_size, minibatch_size=bench.minibatch_size, microbatch_size=bench.minibatch_size,
        epochs=bench.epochs, target_kl=None, max_new_tokens=bench.new_tokens,
    )  # fmt: skip
    optimizers = {
        role: torch.optim.AdamW(roles.trainable(role), lr=1e-5, fused=True) for role in ("policy", "critic")
    }
    tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)
    generator = torch.Generator().manual_seed(0)
    taken = []
    for _ in range(config.steps + 1):
        encoded = random_prompts(bench, roles.lm_head.weight.shape[0], generator)
        start = time.process_time()
        ppo_step(roles, tokenizer, [""] * bench.batch_size, encoded, optimizers, Unconstrained(), ppo)
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def calls(
    constraint: Constraint, *, batch: int, length: int, minibatch: int, epochs: int
) -> Callable[[], None]:
    """What PPO asks of a constraint in one step, as a function to time."""
    generator = torch.Generator().manual_seed(0)
    reward, cost = torch.randn(2, batch, length, generator=generator)
    rewards, costs = torch.randn(batch, generator=generator), torch.rand(batch, generator=generator)
    response_mask = torch.rand(minibatch, length, generator=generator) < 0.5
    groups = [GROUPS[i % len(GROUPS)] for i in range(batch)]

    def run() -> None:
        constraint.observe(costs, groups)
        constraint.shape_rewards(rewards, costs)
        constraint.shape(costs)
        constraint.combine(reward, cost)
        constraint.stats()
        for _ in range(epochs * (batch // minibatch)):
            ratio = torch.ones(minibatch, length, requires_grad=True)
            loss = constraint.extra_loss(ratio, cost[:minibatch], response_mask)
            if loss is not None:
                loss.backward()

    return run


def measure(config: Config) -> list[dict[str, str | float]]:
    """Rows of the table: method, microseconds of its calls beyond `Unconstrained`'s, share of a step in percent."""
    torch.set_num_threads(1)
    bench = BenchPPOConfig(shape=config.shape)
    size = {
        "batch": bench.batch_size, "length": bench.prompt_tokens[1] + bench.new_tokens,
        "minibatch": bench.minibatch_size, "epochs": bench.epochs,
    }  # fmt: skip
    step = step_seconds(config)
    runs = {name: calls(constraint, **size) for name, constraint in made().items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(config.repeats):  # taking turns
        for name, run in runs.items():
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        {
            "method": name,
            "microseconds": round(1e6 * (middle[name] - middle["ppo"]), 1),
            "step_milliseconds": round(1e3 * step, 1),
            "share_percent": round(100 * (middle[name] - middle["ppo"]) / step, 4),
        }
        for name in runs
    ]


def main(config: Config) -> list[dict[str, str | float]]:
    rows = measure(config)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    print(text.getvalue())
    if config.out is not None:
        write_atomic(config.out, text.getvalue())
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
