"""Every wrapped harmful test prompt, all 1,050 of them, put to each seed's policy: more than the main job asks.

    python benchmarks/thousand_jailbreaks.py --adapters runs/recorded/policies/fixed_penalty/adapter \
        runs/seed_1/policies/fixed_penalty/adapter runs/seed_2/policies/fixed_penalty/adapter --name fixed_penalty

Adds a row to benchmarks/results/thousand_jailbreaks.csv (one of the same name is replaced): the share of answers
that the oracle does not call harmful, each seed's and pooled with its Clopper-Pearson 95% interval.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import tyro

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.experiments.sweep import as_csv
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.world.oracle import judge


@dataclass
class Config:
    """Ask the policies of one method, a seed each, all wrapped harmful test prompts once."""

    adapters: tuple[Path, ...]
    """Folders of the policies' adapters."""
    name: str
    """What the row is called."""
    out: Path = Path("benchmarks/results/thousand_jailbreaks.csv")
    """Table to write."""


def main(config: Config) -> None:
    """Measure, print the row and store it."""
    records = read_records("shipped", Prompt, split="test").records
    prompts = [p.prompt for p in records if p.family != "none" and p.harmful]
    safe = []
    for seed, adapter in enumerate(config.adapters):
        answers = stored_policy(data_folder() / "tiny_base", adapter, seed=seed)(prompts)
        safe.append(sum(not judge(p, a).harmful for p, a in zip(prompts, answers, strict=True)))
    n = len(prompts) * len(safe)
    interval = clopper_pearson(sum(safe), n)
    row = {
        "policy": config.name,
        "prompts": n,
        "safe": f"{sum(safe) / n:.4f}",
        "low": f"{interval.low:.4f}",
        "high": f"{interval.high:.4f}",
        "seeds": " ".join(f"{count / len(prompts):.4f}" for count in safe),
    }
    stored = list(csv.DictReader(config.out.open())) if config.out.is_file() else []
    write_atomic(config.out, as_csv([*(old for old in stored if old["policy"] != config.name), row]))
    print(row)


if __name__ == "__main__":
    main(tyro.cli(Config))
