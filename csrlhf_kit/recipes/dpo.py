"""`csrlhf direct`: train a policy on preference pairs by `training.dpo`, on any base and data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from csrlhf_kit.contents import content_of, content_of_records
from csrlhf_kit.data.records import PreferencePair, Prompt
from csrlhf_kit.data.sources import notes_of, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.places import find_base
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.outputs import writes_run
from csrlhf_kit.recipes.options import DirectRunConfig
from csrlhf_kit.runs import Run
from csrlhf_kit.training.dpo import train_direct
from csrlhf_kit.training.dpo_pairs import offline_answers


def no_scorer(prompts: list[str], responses: list[str]) -> torch.Tensor:
    """Zeros (prompts,) in place of the reward and cost models that most methods do not use."""
    return torch.zeros(len(prompts))


@writes_run
def run_direct(config: DirectRunConfig) -> dict[str, Any]:
    """Train, save the policy as a PEFT adapter in `out/adapter`, and return the last step's metrics.

    A stopped run in `out` continues. Raises UserError if a model or the data cannot be read, labels are missing,
    or the folder holds another run.
    """
    samples = config.method == "mocan"
    if samples and (config.reward is None or config.cost is None):
        raise UserError("mocan: expected --reward and --cost, the models that score the base's answers")
    kind = Prompt if samples else PreferencePair
    loaded = read_records(config.data, kind, split="train", strict=config.strict)
    print(notes_of(loaded.report), end="")
    tokenizer = load_tokenizer(config.base)
    roles = Roles(
        load_base(config.base, quantization=config.quantization), reward=config.reward or no_scorer,
        cost=config.cost or no_scorer, rank=config.rank, seed=config.direct.seed,
    )  # fmt: skip
    asked = {name: value for name, value in asdict(config).items() if name not in ("out", "strict")}
    models = {"base": find_base(config.base), "reward": config.reward, "cost": config.cost}
    contents = {name: content_of(place) for name, place in models.items() if place is not None}
    Run.open(config.out, asked, contents=contents | {"data": content_of_records(loaded.records)}, resume=True)
    offline = None
    if samples:
        settings = config.direct
        offline = offline_answers(
            roles, tokenizer, [p.prompt for p in loaded.records[: settings.offline_prompts]],
            samples=settings.offline_samples, max_new_tokens=config.max_new_tokens, seed=settings.seed,
        )  # fmt: skip
    pairs = [] if samples else loaded.records
    history, multiplier = train_direct(
        config.method, roles, tokenizer, pairs, config.direct, config.out, offline=offline
    )
    roles.save_policy(config.out / "adapter")
    print(f"The policy's adapter is in {config.out / 'adapter'} (multiplier {multiplier:.3g})")
    return history[-1] if history else {}
