"""One cell of a comparison: a method, its settings and a seed, trained and judged like every other.

Whatever the method (a constraint in PPO, or a loss on preferences), it starts from the same base, scorers and
critic, learns from the same shipped data, and is judged on the same prompts by the same oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError, check_numbers
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.recipes.experiments.configs import RunConfig
from csrlhf_kit.recipes.experiments.head_to_head import (
    Trained,
    load_roles,
    train_and_judge,
    train_policy,
    training_prompts,
)
from csrlhf_kit.recipes.experiments.plans import CELL_METHODS, Cell
from csrlhf_kit.training.configs import METHODS as DIRECT
from csrlhf_kit.training.constraints import CONSTRAINTS, Constraint, FixedPenalty, RewardShaping
from csrlhf_kit.training.constraints.per_group import PerGroup
from csrlhf_kit.training.critic import load_critic
from csrlhf_kit.training.dpo import DirectConfig, train_direct
from csrlhf_kit.training.dpo_pairs import Offline, offline_answers
from csrlhf_kit.training.ppo import PPOConfig

# Categories for which `per_category` allows less: an example of thresholds by context, not a recommendation.
STRICT = (
    "child_abuse",
    "drug_abuse,weapons,banned_substance",
    "self_harm",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)


def check_cell(cell: Cell, config: RunConfig, direct: DirectConfig) -> None:
    """Raise UserError if a cell's method or settings are unknown or not allowed; called before any training."""
    try:
        if cell.method in DIRECT:
            direct_settings(cell, config, direct)
        elif cell.method != "sft":
            check_numbers(cell_constraint(cell, config))
            ppo_settings(cell, config)
    except TypeError as error:  # text where a number belongs
        raise UserError(f"{cell.name}: {error}, expected settings of the right kind") from None


def cell_constraint(cell: Cell, config: RunConfig) -> Constraint:
    """The constraint of a PPO cell: the run's threshold, published constants, and the cell's own settings.

    `per_category` is one `FixedPenalty` per category, with `strict` times the threshold for those in `STRICT`.
    Raises UserError for an unknown method.
    """
    given = {"threshold": config.threshold}
    given |= {name: value for name, value in cell.settings if not name.startswith("ppo.")}
    if cell.method == "per_category":
        strict = given.pop("strict", 0.5)
        _check_names(cell.method, given, FixedPenalty)
        tight = {**given, "threshold": strict * given["threshold"]}
        return PerGroup(
            constraints={"": FixedPenalty(**given)} | {group: FixedPenalty(**tight) for group in STRICT}
        )
    if cell.method not in CONSTRAINTS:
        raise UserError(f"method {cell.method!r} is unknown: expected one of {', '.join(CELL_METHODS)}")
    _check_names(cell.method, given, CONSTRAINTS[cell.method])
    return CONSTRAINTS[cell.method](**given)


def ppo_settings(cell: Cell, config: RunConfig) -> PPOConfig:
    """PPO's settings in a cell."""
    given = {k.removeprefix("ppo."): v for k, v in cell.settings if k.startswith("ppo.")}
    _check_names("ppo", given, PPOConfig)
    return replace(config.ppo, seed=cell.seed, **given)


def direct_settings(cell: Cell, config: RunConfig, direct: DirectConfig) -> DirectConfig:
    """A preference-only method's settings in a cell: the run's threshold and the cell's own settings."""
    given = dict(cell.settings)
    _check_names(cell.method, given, DirectConfig)
    return replace(direct, **{"threshold": config.threshold, "seed": cell.seed, **given})


def _check_names(method: str, given: Mapping[str, Any], kind: type) -> None:
    known = [spec.name for spec in fields(kind) if spec.init]
    for name in given:
        if name not in known:
            raise UserError(f"{method} has no setting {name!r}: expected one of {', '.join(known)}")


def offline_stage(config: RunConfig, direct: DirectConfig) -> dict[str, Any]:
    """The base's scored answers to training prompts, for `mocan`, as JSON values."""
    roles, tokenizer = load_roles(config)
    prompts = training_prompts()
    chosen = np.random.default_rng(config.seed).permutation(len(prompts))[: direct.offline_prompts]
    found = offline_answers(
        roles, tokenizer, [prompts[i] for i in chosen],
        samples=direct.offline_samples, max_new_tokens=config.ppo.max_new_tokens, seed=config.seed,
    )  # fmt: skip
    return found._asdict() | {"reward": found.reward.tolist(), "cost": found.cost.tolist()}


def train_cell(
    cell: Cell, config: RunConfig, direct: DirectConfig, offline: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train a cell's policy (none for `sft`), answer the test prompts, and return {"policy", "curve", "responses"}.

    Scorers and critic are read from `config.out`; the policy's run is in `policies/<name>` there, and continues if
    it was stopped. offline: the result of `offline_stage`, for `mocan`.
    """
    train = partial(_train, cell, config, direct, offline)
    return train_and_judge(replace(config, seed=cell.seed), None if cell.method == "sft" else train)


@torch.no_grad()
def shift_reward_values(roles: Roles, weight: float) -> None:
    """Turn a critic of (r, c) into one of (r - weight * c, c), in place: values are expectations, thus linear."""
    for tensor in (roles.value_head.weight, roles.value_head.bias):
        tensor[0] -= weight * tensor[1]


def _train(
    cell: Cell,
    config: RunConfig,
    direct: DirectConfig,
    offline: Mapping[str, Any] | None,
    roles: Roles,
    tokenizer: Any,
) -> Trained:
    folder = config.out / "policies" / cell.name
    if cell.method in DIRECT:
        settings = direct_settings(cell, config, direct)
        pairs = read_records("shipped", PreferencePair, split="train").records
        answers = None
        if offline is not None:
            scores = {name: np.array(offline[name]) for name in ("reward", "cost")}
            answers = Offline(**{**offline, **scores})
        history, multiplier = train_direct(
            cell.method, roles, tokenizer, pairs, settings, folder, offline=answers
        )
        roles.save_policy(folder / "adapter")
        return history, multiplier
    constraint, ppo = cell_constraint(cell, config), ppo_settings(cell, config)
    load_critic(roles, config.out / "models" / "critic.safetensors")
    if isinstance(constraint, RewardShaping):
        shift_reward_values(roles, constraint.weight)
    prompts = read_records("shipped", Prompt, split="train").records
    shown: list[LabelledResponse] = []
    if ppo.ptx > 0:
        labels = read_records("shipped", LabelledResponse, split="train").records
        shown = [record for record in labels if record.is_safe]
    history = train_policy(
        folder, roles, tokenizer, [p.prompt for p in prompts], constraint, ppo,
        groups=[p.category for p in prompts] if cell.method == "per_category" else None,
        demonstrations=shown,
    )  # fmt: skip
    return history, constraint.multiplier
