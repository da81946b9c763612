"""`csrlhf arena RUN ...`: policies that are there already, set against each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.ratings import arena
from csrlhf_kit.evaluation.safety import evaluation_prompts
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_file


@dataclass
class ArenaConfig:
    """Elo ratings, win rates and 2x2 tables of the policies of finished runs."""

    runs: tuple[Path, ...]
    """Folders of `csrlhf run` or `csrlhf sweep`; runs of one policy are its seeds."""
    out: Path
    """File to write."""
    anchor: str = "sft"
    """The policy with rating 0."""
    seed: int = 0
    """Seed of the bootstrap."""


def stored_answers(run: Path) -> tuple[list[Prompt], dict[str, list[list[str]]]]:
    """The test prompts of a finished run, and policy -> runs -> answers; a sweep's cells are grouped by seed.

    Raises UserError where the folder holds no finished run.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        stages = {file.stem: json.loads(file.read_text()) for file in sorted((run / "stages").glob("*.json"))}
        prompts = evaluation_prompts(config["evaluate"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} holds no finished run: expected config.json and stages of one") from error
    answers: dict[str, list[list[str]]] = {}
    for name, stage in stages.items():
        if isinstance(stage, dict) and "responses" in stage:
            policy = name.partition("-seed_")[0]
            answers.setdefault(policy, []).append(stage["responses"])
    if not answers:
        raise UserError(f"{run} has no policy that has answered: expected a finished run")
    return prompts, answers


def run_arena(config: ArenaConfig) -> dict[str, Any]:
    """Set the policies of all runs against each other; prints the ratings and returns everything.

    Raises UserError where a folder is no finished run, or the runs answered different prompts.
    """
    check_file(config.out)
    prompts: list[Prompt] = []
    answers: dict[str, list[list[str]]] = {}
    for run in config.runs:
        asked, own = stored_answers(run)
        if prompts and asked != prompts:
            raise UserError(f"{run} answered other prompts than {config.runs[0]}: expected the same")
        prompts = asked
        for name, texts in own.items():
            answers.setdefault(name, []).extend(texts)
    result = {"anchor": config.anchor, **arena(prompts, answers, anchor=config.anchor, seed=config.seed)}
    write_atomic(config.out, json.dumps(result, indent=1) + "\n")
    for kind in ("helpfulness", "harmlessness"):
        print(f"{kind}: Elo points above {config.anchor}, with 95% intervals")
        for name, r in sorted(result[kind]["ratings"].items(), key=lambda item: -item[1]["elo"]):
            print(f"  {name:28} {r['elo']:8.0f}  [{r['low']:.0f}, {r['high']:.0f}]")
    return result
