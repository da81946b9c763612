"""`csrlhf arena`: compare policies by a person's votes, or by the oracle's judgement of runs' stored answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csrlhf_kit import files
from csrlhf_kit.data.records import Prompt
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import answer_of
from csrlhf_kit.evaluation.ratings import rate_policies
from csrlhf_kit.evaluation.safety import evaluation_prompts
from csrlhf_kit.evaluation.terminal import prompt_of, questions, visible
from csrlhf_kit.evaluation.votes import VOTES, Duel, elo, standings, tally
from csrlhf_kit.files import read_json, write_atomic
from csrlhf_kit.outputs import check_file
from csrlhf_kit.recipes.options import ArenaConfig


def stored_answers(run: Path) -> tuple[list[Prompt], dict[tuple[str, int], list[str]]]:
    """The test prompts of a finished run, and (policy, seed) -> answers; a sweep's seeds are runs of one policy.

    Raises UserError if the folder holds no finished run.
    """
    try:
        config = read_json(run / "config.json")
        stages = {file.stem: json.loads(file.read_text()) for file in sorted((run / "stages").glob("*.json"))}
        prompts = evaluation_prompts(config["evaluate"], config.get("judged_on", "test"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} holds no finished run: expected config.json and stages of one") from error
    answers = {}
    for stem, stage in stages.items():
        if isinstance(stage, dict) and "responses" in stage:
            name, _, seed = stem.partition("-seed_")
            answers[name, int(seed or config.get("seed", 0))] = stage["responses"]
    if not answers:
        raise UserError(f"{run} has no policy that has answered: expected a finished run")
    return prompts, answers


def run_arena(config: ArenaConfig) -> dict[str, Any]:
    """`run_duel` or `rate_runs`, by the options. Raises UserError unless the options are for exactly one of them."""
    if bool(config.duel) == bool(config.runs) or len(set(config.duel)) == 1:
        raise UserError(
            "arena needs two runs to talk to: expected RUN_A RUN_B; or finished ones to rate: --runs"
        )
    return run_duel(config) if config.duel else rate_runs(config)


def run_duel(config: ArenaConfig) -> dict[str, Any]:
    """Show two answers to each request on random sides, take votes, and print the ratings at the end.

    Returns name -> (Elo points, votes), from all votes on these runs in the file. Raises as `answer_of`.
    """
    out = config.out or config.duel[0].parent / "votes.jsonl"
    check_file(out)
    answers = {str(run): answer_of(run, config) for run in config.duel}
    policies = {name: lambda turns, answer=answer: answer([turns]) for name, answer in answers.items()}
    duel = Duel(policies, out, config.seed)
    if earlier := tally(files.read(out), list(policies))[1].sum() // 2:
        print(f"{out} holds {earlier} votes on these already: they count.")
    for line in questions(prompt_of("you: ")):
        duel.fresh()
        list(duel.ask(line))  # until both answers are complete
        left, right = (visible(turns[-1]["content"]) for turns in duel.turns)
        print(f"1: {left}\n2: {right}\n")
        if (key := next(questions(prompt_of("better (1, 2, =, 0): ")), "")) in VOTES:
            duel.vote(key)
    print(*standings(duel), f"The votes are in {out}", sep="\n")
    return elo(files.read(out), list(policies))


def rate_runs(config: ArenaConfig) -> dict[str, Any]:
    """Compare the policies of all runs by their stored answers, judged by the oracle; print and write the ratings.

    Raises UserError where a folder is no finished run, prompts differ, or a policy and seed has answered twice.
    """
    out = config.out or config.runs[0].parent / "arena.json"
    check_file(out)
    prompts: list[Prompt] = []
    answers: dict[str, dict[int, list[str]]] = {}
    for run in config.runs:
        read, own = stored_answers(run)
        if prompts and read != prompts:
            raise UserError(f"{run} answered other prompts than {config.runs[0]}: expected the same")
        prompts = read
        for (name, seed), texts in own.items():
            if answers.setdefault(name, {}).setdefault(seed, texts) != texts:
                raise UserError(f"{run}: {name}, seed {seed}, is in an earlier run, too: expected it once")
    result = {
        "anchor": config.anchor,
        **rate_policies(prompts, answers, anchor=config.anchor, seed=config.seed),
    }
    write_atomic(out, json.dumps(result, indent=1) + "\n")
    for kind in ("helpfulness", "harmlessness"):
        print(f"{kind}: Elo points above {config.anchor}, with 95% intervals")
        for name, r in sorted(result[kind]["ratings"].items(), key=lambda item: -item[1]["elo"]):
            print(f"  {name:28} {r['elo']:8.0f}  [{r['low']:.0f}, {r['high']:.0f}]")
    return result
