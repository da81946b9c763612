"""From which scorer should the critic start? Fits it to the base's answers from each, on a finished run's scorers.

    python benchmarks/critic_start.py --run runs/recorded

Writes benchmarks/results/critic_start.csv: mean squared errors / 2 a token on validation prompts, of reward
and cost, beside half the variance of the targets (a critic that knows nothing but the mean).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.runs import seed_everything
from csrlhf_kit.training.critic import CriticConfig, base_episodes, fit_critic, returns
from csrlhf_kit.training.ppo import PPOConfig


@dataclass
class Config:
    """Compare the critic's starts."""

    run: Path = Path("runs/recorded")
    """A finished `csrlhf run`: its reward and cost models are used."""
    out: Path = Path("benchmarks/results/critic_start.csv")
    """Table to write."""
    prompts: int = 600
    """Validation prompts."""
    seed: int = 0
    """Seed of answers and fits."""


def prompts_of(split: str) -> list[str]:
    return [p.prompt for p in read_records("shipped", Prompt, split=split).records]


def measure(start: str | None, config: Config) -> dict[str, float | str]:
    """One row: the fitted critic's errors on answers that it has not seen."""
    base, models = data_folder() / "tiny_base", config.run / "models"
    tokenizer, ppo = load_tokenizer(base), PPOConfig(seed=config.seed)
    roles = Roles(
        load_base(base),
        reward=models / "reward",
        cost=models / "semantic",
        critic_from=start,
        seed=config.seed,
    )
    fit_critic(roles, tokenizer, prompts_of("train"), ppo, CriticConfig())
    seed_everything(config.seed + 1)
    errors, first, targets = [], [], []
    every = prompts_of("validation")
    for batch in base_episodes(roles, tokenizer, every[:: max(1, len(every) // config.prompts)], ppo):
        wanted = returns(batch, ppo)
        squared = (batch.values - wanted).square() / 2
        rows = torch.arange(len(batch.ids))
        errors.append(squared[batch.response_mask])
        first.append(squared[rows, batch.response_mask.long().argmax(1)])
        targets.append(wanted[batch.response_mask])
    error, at_first = torch.cat(errors).mean(0).tolist(), torch.cat(first).mean(0).tolist()
    spread = (torch.cat(targets).var(0) / 2).tolist()
    row: dict[str, float | str] = {"start": str(start)}
    for i, name in enumerate(("reward", "cost")):
        row |= {name: error[i], f"{name}_at_first_token": at_first[i], f"{name}_half_variance": spread[i]}
    return row


def main(config: Config) -> None:
    rows = [measure(start, config) for start in (None, "reward", "cost")]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else f"{v:.4f}" for k, v in row.items()} for row in rows)
    write_atomic(config.out, table.getvalue())
    print(table.getvalue())


if __name__ == "__main__":
    main(tyro.cli(Config))
