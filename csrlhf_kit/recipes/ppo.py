"""`csrlhf ppo`: train one policy by `training.ppo`, on any base, scorers and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from csrlhf_kit import distributed
from csrlhf_kit.contents import content_of, content_of_records
from csrlhf_kit.data.chat import fit_prompts
from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import notes_of, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.open_scorer import open_scorers
from csrlhf_kit.models.places import FORMERLY, SHIPPED, find_base, run_settings
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.outputs import writes_run
from csrlhf_kit.recipes.options import PPORunConfig
from csrlhf_kit.runs import Run
from csrlhf_kit.training.constraints import make_constraint
from csrlhf_kit.training.critic import fit_critic, load_critic, save_critic
from csrlhf_kit.training.ppo import config_dict, train_ppo
from csrlhf_kit.training.sample_logger import sample_logger

TRACKERS = tuple(LOGGER_TYPE_TO_CLASS)
# Settings that a resumed run must have in common with the first.
INPUTS = (
    "base", "reward", "cost", "cost_sign", "prompts", "dtype", "quantization", "rank", "layers",
    "optimizer",
)  # fmt: skip


@writes_run
def run_ppo(config: PPORunConfig) -> dict[str, Any]:
    """Train, save the policy as a PEFT adapter in `out/adapter`, and return the last step's metrics.

    Raises UserError if a model or the prompts cannot be read, or the folder holds another run.
    """
    constraint = make_constraint(config.method, threshold=config.threshold, penalty=config.penalty)
    distributed.on_main(lambda: _check_new(config))  # before anything is loaded
    loaded = read_records(config.prompts, Prompt, split="train", strict=config.strict)
    print(notes_of(loaded.report), end="")
    scorers = open_scorers(config)
    tokenizer = load_tokenizer(config.base)
    prompts = [p.prompt for p in loaded.records]
    prompts = fit_prompts(tokenizer, prompts, max_length=config.ppo.max_prompt_length, tell=True)
    base = load_base(config.base, dtype=config.dtype, quantization=config.quantization)
    roles = Roles(
        base, **scorers, rank=config.rank, alpha=2 * config.rank, layers=config.layers, seed=config.ppo.seed,
        sampler=config.rollout,
    )  # fmt: skip
    if config.gradient_checkpointing:
        checkpoint_activations(roles)
    asked = {name: getattr(config, name) for name in INPUTS} | config_dict(config.ppo, constraint)
    asked["critic"] = asdict(config.critic)
    if config.base == SHIPPED and run_settings(config.out).get("base") == FORMERLY:
        asked["base"] = FORMERLY
    models = {"base": find_base(config.base), "reward": config.reward, "cost": config.cost}
    contents = {name: content_of(place) for name, place in models.items()}
    contents["prompts"] = content_of_records(loaded.records)
    run = distributed.on_main(lambda: Run.open(config.out, asked, contents=contents, resume=config.resume))
    run = run or Run(config.out)
    if config.critic.episodes > 0:
        _start_critic(roles, tokenizer, prompts, config)
    said = sample_logger(
        config.out, roles, tokenizer, prompts,
        max_new_tokens=config.ppo.max_new_tokens, max_prompt_length=config.ppo.max_prompt_length,
    )  # fmt: skip
    with tracker(config.track, config.out, asked) as track:
        history = train_ppo(
            roles, tokenizer, prompts, constraint, config.ppo, run,
            lambda row: [call(row) for call in (said, track) if call is not None], optimizer=config.optimizer,
        )  # fmt: skip
    distributed.on_main(lambda: roles.save_policy(config.out / "adapter"))
    print(f"The policy's adapter is in {config.out / 'adapter'}")
    return history[-1] if history else {}


def _check_new(config: PPORunConfig) -> None:
    if (config.out / "config.json").is_file() and not config.resume:
        raise UserError(f"{config.out} already holds a run: expected a new folder, or --resume to go on")


def _start_critic(roles: Roles, tokenizer: Any, prompts: list[str], config: PPORunConfig) -> None:
    """Fit the critic to the base, or read the one of a stopped run; the same in every process."""
    file = config.out / "critic.safetensors"
    fitted = file.is_file()
    distributed.wait()  # until every process has looked for it: the first one is about to write it
    if not fitted:
        size = min(128, config.ppo.batch_size)  # as many as the later rollouts have memory for
        fit_critic(roles, tokenizer, prompts, config.ppo, config.critic, rollout_size=size)
        distributed.on_main(lambda: save_critic(roles, file))
    load_critic(roles, file)


@contextmanager
def tracker(
    name: str, folder: Path, settings: dict[str, Any]
) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """Yields a function that sends a row of metrics to one of Accelerate's trackers; None for the name `none`.

    Raises UserError for a tracker that Accelerate does not know, or that is not installed.
    """
    if name == "none":
        yield None
        return
    chosen = filter_trackers([name], str(folder)) if name in TRACKERS else []
    if not chosen:
        raise UserError(
            f"tracker {name!r} is unknown or not installed: expected one of {', '.join(TRACKERS)}, or none"
        )
    accelerator = Accelerator(
        log_with=chosen, project_dir=str(folder), cpu=distributed.device().type == "cpu"
    )
    plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
    accelerator.init_trackers("csrlhf", plain)
    try:
        yield lambda row: accelerator.log(row, step=int(row["step"]))
    finally:
        for each in accelerator.trackers:  # `end_training` would also end the process group
            each.finish()
