"""`csrlhf run`: learned costs, then unconstrained, Lagrangian, linear- and fixed-penalty PPO, judged by the oracle.

Each finished stage is one file, written whole and not made again, so that `csrlhf run --resume` continues where it
was stopped; PPO itself resumes at the interrupted step.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.cost_models import keyword_row, scorer_row
from csrlhf_kit.evaluation.safety import answer_and_score, evaluation_prompts, judge_all, policy_row
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import load_scorer
from csrlhf_kit.outputs import writes_run
from csrlhf_kit.recipes.experiments.configs import RunConfig
from csrlhf_kit.recipes.experiments.stages import run_stages
from csrlhf_kit.runs import Run, versions
from csrlhf_kit.theory.suggest import best_reward, suggest_penalty
from csrlhf_kit.training.configs import PPOConfig
from csrlhf_kit.training.constraints import Constraint, make_constraint
from csrlhf_kit.training.critic import fit_critic, load_critic, save_critic
from csrlhf_kit.training.ppo import config_dict, train_ppo
from csrlhf_kit.training.reward_modeling import Objective, ScorerConfig, train_scorer
from csrlhf_kit.training.sample_logger import sample_logger

FRONTIER_PROMPTS, FRONTIER_SAMPLES = 100, 32
SCORERS = {"semantic": "semantic", "bradley_terry": "safe_rlhf", "reward": "reward"}


def constraint_for(method: str, config: RunConfig) -> Constraint:
    """The constraint with a method's name, at this run's threshold and penalty."""
    return make_constraint(method, threshold=config.threshold, penalty=config.penalty)


def scorer_settings(config: RunConfig, objective: Objective, out: Path) -> ScorerConfig:
    """How this run trains a scorer."""
    return ScorerConfig(
        base=str(config.base_path()),
        out=str(out),
        objective=objective,
        layers=config.scorer_layers,
        epochs=config.scorer_epochs,
        seed=config.seed,
        progress=False,
    )


def train_cost_model(name: str, config: RunConfig) -> dict[str, Any]:
    """Train one scorer; a cost model is then measured on the test labels and pairs."""
    kind = LabelledResponse if name == "semantic" else PreferencePair
    data = {split: read_records("shipped", kind, split=split).records for split in ("train", "validation")}
    folder = config.out / "models" / name
    train_scorer(scorer_settings(config, SCORERS[name], folder), data["train"], data["validation"])
    return {} if name == "reward" else scorer_row(load_scorer(folder, merge=True))


def load_roles(
    config: RunConfig, *, reward: Path | None = None, cost: Path | None = None, policy: Path | None = None
) -> tuple[Roles, Any]:
    """The base under its roles, and its tokenizer.

    reward, cost: the scorers' folders; None: this run's own. policy: the folder of the adapter that the policy
    starts from; None: the base.
    """
    base, models = config.base_path(), config.out / "models"
    roles = Roles(
        load_base(base),
        reward=reward or models / "reward",
        cost=cost or models / config.cost_model,
        policy=policy,
        layers=config.policy_layers,
        seed=config.seed,
    )
    return roles, load_tokenizer(base)


def training_prompts() -> list[str]:
    """The shipped training prompts as text; half are wrapped, in families that the test split does not have."""
    return [p.prompt for p in read_records("shipped", Prompt, split="train").records]


def train_critic(config: RunConfig) -> dict[str, Any]:
    """Fit the critic that each method starts from to the base's answers; return its losses per epoch."""
    roles, tokenizer = load_roles(config)
    ppo = replace(config.ppo, seed=config.seed)
    losses = fit_critic(roles, tokenizer, training_prompts(), ppo, config.critic)
    save_critic(roles, config.out / "models" / "critic.safetensors")
    return {"losses": [{"reward": reward, "cost": cost} for reward, cost in losses]}


def evaluate_policy(
    roles: Roles, tokenizer: Any, config: RunConfig, *, adapter: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Answer the test prompts with an adapter, or None: the base; return the oracle's row and the answers."""
    prompts = evaluation_prompts(config.evaluate, config.judged_on)
    responses, scores = answer_and_score(
        roles,
        tokenizer,
        prompts,
        adapter=adapter,
        max_new_tokens=config.ppo.max_new_tokens,
        seed=config.seed,
    )
    return policy_row(prompts, responses, scores), responses


def train_policy(
    folder: Path, roles: Roles, tokenizer: Any, prompts: Sequence[str], constraint: Constraint, ppo: PPOConfig,
    **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """PPO under a constraint, its run in `folder` and its adapter below it; a run that was stopped there goes on.

    options: further arguments of `train_ppo`. Returns the metrics of each step.
    """
    run = Run.open(folder, config_dict(ppo, constraint), resume=True)
    history = train_ppo(roles, tokenizer, prompts, constraint, ppo, run, **options)
    roles.save_policy(folder / "adapter")
    return history


Trained = tuple[list[dict[str, Any]], float]
"""The metrics of each training step, and the multiplier that training ended with."""


def train_and_judge(config: RunConfig, train: Callable[[Roles, Any], Trained] | None) -> dict[str, Any]:
    """Let `train` train the policy of (roles, tokenizer), or None: judge the base; answer the test prompts.

    Returns the policy's row, its training curve and its answers.
    """
    roles, tokenizer = load_roles(config)
    started = time.perf_counter()
    history, multiplier = train(roles, tokenizer) if train else ([], 0.0)
    seconds = time.perf_counter() - started
    row, responses = evaluate_policy(roles, tokenizer, config, adapter="policy" if train else None)
    row |= {"multiplier": multiplier, "seconds": seconds}
    return {"policy": row, "curve": history, "responses": responses}


def train_method(method: str, config: RunConfig) -> dict[str, Any]:
    """Train and judge the policy of a method, or the base for `sft`."""

    def train(roles: Roles, tokenizer: Any) -> Trained:
        ppo, folder, prompts = (
            replace(config.ppo, seed=config.seed),
            config.out / "policies" / method,
            training_prompts(),
        )
        load_critic(roles, config.out / "models" / "critic.safetensors")
        constraint = constraint_for(method, config)
        lengths = {"max_new_tokens": ppo.max_new_tokens, "max_prompt_length": ppo.max_prompt_length}
        said = sample_logger(folder, roles, tokenizer, prompts, **lengths)
        return train_policy(
            folder, roles, tokenizer, prompts, constraint, ppo, on_step=said
        ), constraint.multiplier

    return train_and_judge(config, None if method == "sft" else train)


def stage_needs(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Every stage and the stages that it reads, in the order of preference: the longest come first."""
    scorers = ("reward", config.cost_model)
    return {
        "reward": (),
        "semantic": (),
        "critic": scorers,
        "bradley_terry": (),
        **dict.fromkeys(config.methods, (*scorers, "critic")),
        "frontier": scorers,
        "sft": scorers,
        "keyword": (),
    }


def run_stage(name: str, config: RunConfig) -> None:
    """Make one stage and store it; called in a worker process with a single thread."""
    if name == "keyword":
        result = keyword_row()
    elif name in SCORERS:
        result = train_cost_model(name, config)
    elif name == "critic":
        result = train_critic(config)
    elif name == "frontier":
        result = measure_frontier(config)
    else:
        result = train_method(name, config)
    write_atomic(config.stage_path(name), json.dumps(result, indent=1, default=_number) + "\n")


def measure_frontier(config: RunConfig) -> dict[str, Any]:
    """The best tilts of the base, from its own scored answers to plain test prompts, before any training.

    Thirty-two answers per prompt, reweighted by `suggest_penalty` with the KL weight and the normalised update of
    this run's PPO. The scores are stored: policies are compared with them at their own cost and KL.
    """
    roles, tokenizer = load_roles(config)
    plain = [p for p in evaluation_prompts(config.evaluate, config.judged_on) if p.family == "none"]
    chosen = Random(config.seed).sample(plain, min(FRONTIER_PROMPTS, len(plain)))
    _, scores = answer_and_score(
        roles,
        tokenizer,
        [p for p in chosen for _ in range(FRONTIER_SAMPLES)],
        adapter=None,
        max_new_tokens=config.ppo.max_new_tokens,
        seed=config.seed,
    )
    reward = scores["reward"].double().numpy().reshape(-1, FRONTIER_SAMPLES)
    cost = scores["cost"].double().sigmoid().numpy().reshape(-1, FRONTIER_SAMPLES)
    told = {"threshold": config.threshold, "prompts": len(chosen), "samples": FRONTIER_SAMPLES}
    told |= {"scores": {"reward": reward.tolist(), "cost": cost.tolist()}}
    try:
        found = suggest_penalty(
            reward,
            cost,
            beta=config.ppo.kl_coefficient,
            threshold=config.threshold,
            normalised=True,
            seed=config.seed,
        )
    except UserError as error:  # the samples are not enough at this threshold; the report says so
        return told | {"points": [], "warning": str(error)}
    return told | {
        "points": [asdict(point) for point in found.frontier],
        "multiplier": found.multiplier,
        "interval": list(found.interval),
        "recommended": found.recommended,
        "rule": found.rule,
        "warnings": found.warnings,
    }


def pick_samples(prompts: Sequence[Prompt], answers: dict[str, list[str]], seed: int) -> list[dict[str, Any]]:
    """A dozen prompts with every policy's answer and the oracle's verdict: two per stratum, four jailbreaks."""
    rng = Random(seed)
    chosen: list[int] = []
    for stratum in ("plain", "benign_alarming", "overt", "covert"):
        chosen += rng.sample(
            [i for i, p in enumerate(prompts) if p.stratum == stratum and p.family == "none"], 2
        )
    chosen += rng.sample([i for i, p in enumerate(prompts) if p.family != "none"], 4)
    samples = []
    for i in chosen:
        p, responses = prompts[i], {}
        for name, texts in answers.items():
            verdict = judge_all([p], [texts[i]])[0]
            told = {"harmful": verdict.harmful, "helpfulness": verdict.helpfulness}
            responses[name] = {"text": texts[i], **told}
        told = {"prompt": p.prompt, "stratum": p.stratum, "family": p.family, "harmful": p.harmful}
        samples.append({**told, "responses": responses})
    return samples


@writes_run
def run_experiment(config: RunConfig) -> dict[str, Any]:
    """Run the whole head-to-head; returns what it wrote to `results.json`.

    Raises UserError if the folder holds another run, or the shipped data or the base is missing.
    """
    config.base_path()  # a missing base is an error before any training
    for method in config.methods:
        constraint_for(method, config)
    prompts = evaluation_prompts(config.evaluate, config.judged_on)
    settings = config.settings()
    Run.open(config.out, settings, contents=config.contents(), resume=config.resume)
    seconds = run_stages(stage_needs(config), config, run_stage)
    costs = {name: config.read_stage(name) for name in ("semantic", "bradley_terry", "keyword")}
    done = {name: config.read_stage(name) for name in ("sft", *config.methods)}
    frontier = config.read_stage("frontier")
    scores = {name: np.array(values) for name, values in frontier["scores"].items()}
    frontier["scores"] = {name: values.round(3).tolist() for name, values in scores.items()}
    for name in config.methods:
        row = done[name]["policy"]
        with contextlib.suppress(UserError):  # no tilt of the samples has so low a cost and KL
            row["shortfall"] = best_reward(**scores, at_cost=row["cost"], at_kl=row["kl"]) - row["reward"]
    results = {
        "config": json.loads(json.dumps(settings, default=str)),
        "seed": config.seed,
        "versions": versions(),
        "wall_seconds": seconds,
        "cost_models": costs,
        "policies": {name: part["policy"] for name, part in done.items()},
        **({"frontier": frontier} if frontier["points"] else {}),
        "curves": {name: part["curve"] for name, part in done.items() if part["curve"]},
        "samples": pick_samples(
            prompts, {name: part["responses"] for name, part in done.items()}, config.seed
        ),
    }
    write_atomic(config.out / "results.json", compact_lists(json.dumps(results, indent=1, default=_number)))
    return results


def compact_lists(text: str) -> str:
    """JSON text with each list of numbers on one line."""
    one_line = lambda found: re.sub(r"\s+", " ", found[0])  # noqa: E731
    return re.sub(r"\[[-\d.eE,\s]+\]", one_line, text) + "\n"


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
