"""`csrlhf suggest-penalty`: the penalty to train with (`theory.suggest`), from a file of scored answers."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from csrlhf_kit.data.tables import read_file
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_file
from csrlhf_kit.theory.reweighting import Resample
from csrlhf_kit.theory.suggest import suggest_penalty


@dataclass
class SuggestPenaltyConfig:
    """Estimate the penalty before training, from scored samples of the reference model."""

    scores: Path
    """JSONL, CSV or Parquet with columns prompt, reward, cost: one row per sampled response."""
    beta: float
    """KL weight of the planned training, in the unit of the reward."""
    threshold: float
    """Largest mean cost allowed, in the unit of the cost."""
    normalised: bool = False
    """Set this if the trainer divides by 1 + multiplier and keeps its KL weight (Safe RLHF's PPO, and the kit's)."""
    resample: Resample = "prompts"
    """What the bootstrap resamples: prompts if they are a sample of many, responses if the prompts are all there are."""
    confidence: float = 0.95
    """Confidence of the interval."""
    bootstrap: int = 1000
    """Number of bootstrap replicates."""
    seed: int = 0
    """Seed for the bootstrap."""
    output: Path | None = None
    """File for the suggestion (JSON); None: print only."""


def run_suggest_penalty(config: SuggestPenaltyConfig) -> dict:
    """Read the scores, print the suggestion, return it as a dictionary, and write it to `config.output` if given.

    If the interval has no upper end, `high` is None.
    """
    check_file(config.output, "--output")
    reward, cost = read_scores(config.scores)
    suggestion = suggest_penalty(
        reward, cost, beta=config.beta, threshold=config.threshold, normalised=config.normalised,
        resample=config.resample, confidence=config.confidence, bootstrap=config.bootstrap,
        seed=config.seed,
    )  # fmt: skip
    print(suggestion)
    low, high = suggestion.interval
    result = asdict(suggestion) | {"interval": {"low": low, "high": high if np.isfinite(high) else None}}
    if config.output:
        write_atomic(config.output, json.dumps(result, indent=2) + "\n")
    return result


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(reward, cost), each (prompts, samples), nan-padded, from rows of prompt, reward and cost.

    Prompts are in the order of their first rows. Raises UserError with file, line and field.
    """
    name, rows = read_file(Path(path))
    by_prompt: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place, row in rows:
        for field in ("prompt", "reward", "cost"):
            if row.get(field) in (None, ""):
                raise UserError(
                    f"{name}, {place}: field `{field}` is missing, expected prompt, reward and cost"
                )
        scores = []
        for field in ("reward", "cost"):
            try:
                scores.append(float(row[field]))
            except (TypeError, ValueError, OverflowError):
                scores.append(np.nan)
            if not np.isfinite(scores[-1]):
                raise UserError(f"{name}, {place}: {field} is {row[field]!r}, expected a finite number")
        by_prompt[str(row["prompt"])].append((scores[0], scores[1]))
    table = np.full((2, len(by_prompt), max(map(len, by_prompt.values()))), np.nan)
    for x, scored in enumerate(by_prompt.values()):
        if len(scored) < 2:
            raise UserError(
                f"{name}: prompt {list(by_prompt)[x]!r:.80} has one sample, expected at least two"
            )
        table[:, x, : len(scored)] = np.array(scored).T
    return table[0], table[1]
