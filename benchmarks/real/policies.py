"""PPO under each constraint on the real base, by the kit's own parts, and what each policy answers to the test.

Reward and cost model read the bare request, not the jailbreak around it: people graded answers to bare requests, and
who wraps a request knows it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.answers import start_rows
from benchmarks.real.config import PID, RealConfig
from benchmarks.real.prompts import Asked
from benchmarks.real.scorers import quietly, read_prompts
from csrlhf_kit.data.sources import write_records
from csrlhf_kit.evaluation.safety import answer_and_score
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.open_scorer import text_scorer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import MAX_PROMPT, in_batches, response_texts, sample_episodes
from csrlhf_kit.models.scorers import TextScorer
from csrlhf_kit.recipes.experiments.head_to_head import train_policy
from csrlhf_kit.recipes.sft import run_sft
from csrlhf_kit.runs import CURVE
from csrlhf_kit.training.configs import SFTConfig
from csrlhf_kit.training.constraints import CONSTRAINTS, Constraint, make_constraint
from csrlhf_kit.training.critic import fit_critic, load_critic, save_critic

BATCH = 32  # answers sampled at once outside of training


def constraint_of(method: str, config: RealConfig) -> Constraint:
    """The constraint of a method: the kit's constants, but for dual ascent's, which the toy world's search chose."""
    if method == "pid_lagrangian":
        return CONSTRAINTS[method](threshold=config.threshold, **PID)
    return make_constraint(method, threshold=config.threshold, penalty=config.penalty)


def reads_requests(score: TextScorer, asked: Sequence[Asked]) -> TextScorer:
    """The scorer, given each request in place of the text that the policy was asked with."""
    requests = {each.text: each.request for each in asked}
    return lambda prompts, responses: score([requests.get(p, p) for p in prompts], responses)


def nothing(prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
    """A scorer for where no score is asked for."""
    return torch.zeros(len(prompts))


def load_roles(
    config: RealConfig, asked: Sequence[Asked], *, base: str | Path = "", scored: bool = True
) -> tuple[Roles, Any]:
    """The start (or `base`) under its roles, and its tokenizer. scored: with the reward and the cost model of the run."""
    base = base or config.path("models", "start")
    scorers = dict.fromkeys(("reward", "cost"), nothing)
    if scored:
        scorers = {
            name: reads_requests(text_scorer(config.path("models", name)), asked)
            for name in ("reward", "cost")
        }
    roles = Roles(
        load_base(base), **scorers, rank=config.rank, alpha=2 * config.rank, layers=config.layers,
        critic_from=None, seed=config.seed,
    )  # fmt: skip
    return roles, load_tokenizer(base)


def train_start(config: RealConfig, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fine-tune the base to refuse half of the harmful requests, by `csrlhf sft`; its report. answers: the base's."""
    file = config.path("rows", "start.jsonl")
    write_records(file, start_rows(answers, each=config.taught, seed=config.seed))
    settings = SFTConfig(
        base=config.base, data=str(file), seed=config.seed, epochs=2.0, batch_size=8, learning_rate=5e-4,
        max_length=config.max_length, rank=config.rank // 2, alpha=config.rank, progress=False,
    )  # fmt: skip
    return quietly(config, "start", lambda out: run_sft(replace(settings, out=out)))


def sampled_answers(config: RealConfig, base: str | Path) -> list[dict[str, Any]]:
    """A model's answers to bare training requests: rows with `request`, `response`, `ended`, `stratum`."""
    asked = [each for each in read_prompts(config, "train") if each.stratum != "wrapped"]
    benign = [each for each in asked if each.stratum != "harmful"]
    harmful = [each for each in asked if each.stratum == "harmful"]
    asked = [*benign, *harmful][
        : config.answers
    ]  # benign ones first: they are the cost model's harmless rows too
    roles, tokenizer = load_roles(config, asked, base=base, scored=False)
    rows: list[dict[str, Any]] = [{}] * len(asked)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for places, episodes in in_batches(
            lambda ids, mask: sample_episodes(
                roles, tokenizer, ids, mask,
                adapter=None, max_new_tokens=config.ppo.max_new_tokens, temperature=config.temperature,
            ),
            tokenizer, [each.text for each in asked], batch_size=BATCH, max_length=MAX_PROMPT,
        ):  # fmt: skip
            texts = response_texts(tokenizer, episodes)
            for place, text, ended in zip(places.tolist(), texts, episodes.ended.tolist(), strict=True):
                each = asked[place]
                rows[place] = {
                    "request": each.request,
                    "response": text.strip(),
                    "ended": ended,
                    "stratum": each.stratum,
                }
    return rows


def train_critic(config: RealConfig) -> dict[str, Any]:
    """Fit the critic that every method starts from."""
    asked = read_prompts(config, "train")
    roles, tokenizer = load_roles(config, asked)
    texts = [each.text for each in asked]
    losses = fit_critic(
        roles, tokenizer, texts, config.ppo, config.critic, rollout_size=config.ppo.batch_size
    )
    save_critic(roles, config.path("models", "critic.safetensors"))
    return {"losses": [{"reward": reward, "cost": cost} for reward, cost in losses]}


def train_and_answer(name: str, config: RealConfig) -> dict[str, Any]:
    """Train the policy of a method (none for `base` and `start`), and answer the test prompts with it.

    Returns its curve, its multiplier at the end, its seconds, and for each test prompt the answer and the learned
    scores. A stopped training goes on at its last step.
    """
    asked = {split: read_prompts(config, split) for split in ("train", "test")}
    trains = name in config.methods
    base = config.base if name == "base" else ""
    roles, tokenizer = load_roles(config, [*asked["train"], *asked["test"]], base=base)
    started, history, multiplier = time.perf_counter(), [], 0.0
    if trains:
        constraint = constraint_of(name, config)
        load_critic(roles, config.path("models", "critic.safetensors"))
        texts = [each.text for each in asked["train"]]
        folder = config.path("policies", name)
        history = train_policy(folder, roles, tokenizer, texts, constraint, config.ppo)
        multiplier = constraint.multiplier
    trained = time.perf_counter() - started
    answers, scores = answer_and_score(
        roles, tokenizer, [each.prompt for each in asked["test"]],
        adapter="policy" if trains else None, max_new_tokens=config.ppo.max_new_tokens,
        seed=config.seed, temperature=config.temperature, batch_size=BATCH,
    )  # fmt: skip
    timed = {"score": "time/score", "rollout": "time/rollout", "update": "time/update"}
    kept = CURVE | timed | {"ended": "objective/ended", "length": "objective/length"}
    return {
        "multiplier": multiplier,
        "seconds": {"training": trained, "answers": time.perf_counter() - started - trained},
        "curve": [{short: row[long] for short, long in kept.items() if long in row} for row in history],
        "answers": answers,
        "scores": {key: value.double().numpy().round(4).tolist() for key, value in scores.items()},
    }
