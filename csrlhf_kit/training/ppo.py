"""PPO for language models under a cost constraint, on one frozen base with adapters.

A step: sample answers; score them (policy, reference, values, reward, cost); show the costs to the constraint;
turn scores into advantages; take clipped gradient steps on policy and critic (the last three: `ppo_update.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csrlhf_kit import distributed
from csrlhf_kit.data.chat import encode_prompts
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Trajectory, sample_episodes, sampling_noise, score_episodes
from csrlhf_kit.runs import Run, postfix, random_state, restore_random_state, seed_everything
from csrlhf_kit.training.configs import PPOConfig
from csrlhf_kit.training.constraints.base import Constraint
from csrlhf_kit.training.dialogues import encode_responses, imitation_backward
from csrlhf_kit.training.optimizers import OptimizerName, load_moments, make_optimizer, moments
from csrlhf_kit.training.ppo_update import episode_costs, update


def cosine_to_a_tenth(progress: float) -> float:
    """1 at progress 0, a tenth at 1, along half a cosine."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def learning_rate_factor(step: int, config: PPOConfig) -> float:
    """Factor of the learning rates at `step` (from 0). It depends on the step only, so checkpoints do not hold it."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        return 1.0 - 0.9 * progress
    if config.schedule == "cosine":
        return cosine_to_a_tenth(progress)
    return 1.0


def prompt_rows(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the prompts for step `step` (from 0): a new permutation per pass, from step and seed alone."""
    rows: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        if not rows or offset == 0:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            permutation = torch.randperm(count, generator=generator).tolist()
        rows.append(permutation[offset])
    return rows


# --- one step ---


def ppo_step(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    encoded: dict[str, Tensor],
    optimizers: dict[str, torch.optim.Optimizer],
    constraint: Constraint,
    config: PPOConfig,
    *,
    critic_only: bool = False,
    groups: Sequence[str] | None = None,
    imitate: Callable[[], float] | None = None,
) -> dict[str, float]:
    """One PPO step on `prompts` (encoded: left-padded `input_ids` and `attention_mask`); returns its metrics.

    Each of several processes answers and scores its share of the prompts; then they exchange all episodes.
    """
    clocks = [_clocks()]
    own = distributed.share(torch.arange(len(prompts)))
    episodes = sample_episodes(
        roles, tokenizer, encoded["input_ids"][own], encoded["attention_mask"][own],
        max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        noise=sampling_noise(len(prompts), config.max_new_tokens, roles.device)[own.to(roles.device)],
    )  # fmt: skip
    clocks.append(_clocks())
    trajectory = score_episodes(
        roles, tokenizer, [prompts[row] for row in own.tolist()], episodes, temperature=config.temperature,
        chunk_size=config.microbatch_size,
    )  # fmt: skip
    trajectory = Trajectory._make(distributed.gathered(trajectory))
    clocks.append(_clocks())
    updated = update(
        roles, optimizers, trajectory, constraint, config,
        critic_only=critic_only, groups=groups, imitate=imitate,
    )  # fmt: skip
    log_ratios = (trajectory.log_probs - trajectory.reference_log_probs) * trajectory.response_mask
    return {
        "objective/kl": float(log_ratios.sum(1).mean()),
        "objective/reward": float(trajectory.reward.mean()),
        "objective/cost": float(episode_costs(trajectory.cost, config).mean()),
        "objective/harmful": float((trajectory.cost > 0).float().mean()),
        "objective/length": float(trajectory.response_mask.sum(1).float().mean()),
        "objective/ended": float(trajectory.ended.float().mean()),
        **{f"constraint/{name}": value for name, value in constraint.stats().items()},
        **updated,
        **_times(clocks),
    }


def _clocks() -> tuple[float, float]:
    """(wall-clock seconds, CPU seconds of this process); they differ on a shared machine."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # so that GPU work counts towards the part that started it
    return time.perf_counter(), time.process_time()


def _times(clocks: list[tuple[float, float]]) -> dict[str, float]:
    """Seconds of each part of a step, from the clocks before, between and after them."""
    parts = {}
    for name, before, after in zip(
        ("rollout", "score", "update"), clocks, [*clocks[1:], _clocks()], strict=True
    ):
        parts[f"time/{name}"] = after[0] - before[0]
        parts[f"time/cpu_{name}"] = after[1] - before[1]
    return parts


# --- the whole run ---


def train_ppo(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    constraint: Constraint,
    config: PPOConfig,
    run: Run | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    *,
    groups: Sequence[str] | None = None,
    demonstrations: Sequence[LabelledResponse] = (),
    optimizer: OptimizerName = "adamw",
) -> list[dict[str, float]]:
    """Train the policy of `roles` (in place) on `prompts` (requests as text); return a row of metrics per step.

    run: an open run folder for metrics and checkpoints; if it holds a checkpoint, training continues from it
    with the result of an unbroken run (bit for bit on the same machine).
    on_step: called with each new row.
    groups: the group of each prompt, for constraints that distinguish them; None: each prompt is its own group.
    demonstrations: what the policy also imitates, if `config.ptx` is above 0.
    optimizer: the form of AdamW, see `make_optimizer`.

    Several processes (see `csrlhf_kit.distributed`) all call this with the same arguments; they share each batch,
    and the first one writes.

    Raises UserError if there is no prompt, or if training diverges (a loss that is not finite).
    """
    if not prompts:
        raise UserError("there is no prompt to train on: expected at least one")
    if config.ptx > 0 and not demonstrations:
        raise UserError(f"ptx is {config.ptx}: expected demonstrations to imitate")
    distributed.check_divisible(batch_size=config.batch_size, minibatch_size=config.minibatch_size)
    groups = prompts if groups is None else groups
    seed_everything(config.seed)  # every process draws the same numbers and uses its share
    roles.eval()  # no dropout anywhere: the ratio must compare policies, not noise
    optimizers = {
        role: make_optimizer(
            optimizer,
            roles.trainable(role),
            learning_rate=rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        for role, rate in (("policy", config.learning_rate), ("critic", config.critic_learning_rate))
    }
    rates = {role: optimizer.param_groups[0]["lr"] for role, optimizer in optimizers.items()}
    encoded = encode_prompts(tokenizer, list(prompts), max_length=config.max_prompt_length)
    imitate = None
    if config.ptx > 0:
        shown = encode_responses(
            tokenizer, [d.prompt for d in demonstrations], [d.response for d in demonstrations]
        )

        def imitate() -> float:  # draws from torch's generator, which checkpoints hold
            drawn = torch.randint(len(shown.ids), (config.minibatch_size,))
            weight = config.ptx / distributed.count()  # each process adds the same gradient
            return imitation_backward(roles, shown, drawn, weight, microbatch_size=config.microbatch_size)

    history: list[dict[str, float]] = []
    first = 0
    if run is not None and (checkpoint := run.load()) is not None:
        _restore(checkpoint.tensors, checkpoint.state, roles, optimizers, constraint)
        first, history = checkpoint.step, run.history()
    distributed.wait()  # until every process has read the folder: the first one is about to write to it
    name = type(constraint).__name__
    with tqdm(total=config.steps, initial=first, desc=name, unit="step", **distributed.bar()) as bar:
        for step in range(first, config.steps):
            for role, stepped in optimizers.items():
                stepped.param_groups[0]["lr"] = rates[role] * learning_rate_factor(step, config)
            each = config.samples_per_prompt
            rows = prompt_rows(len(prompts), config.batch_size // each, step, config.seed)
            rows = [row for row in rows for _ in range(each)]
            batch = {name: tensor[rows] for name, tensor in encoded.items()}
            texts = [prompts[row] for row in rows]
            stats = ppo_step(
                roles, tokenizer, texts, batch, optimizers, constraint, config,
                critic_only=step < config.critic_warmup, groups=[groups[row] for row in rows],
                imitate=imitate,
            )  # fmt: skip
            if not math.isfinite(
                stats["val/reward_loss"] + stats.get("policy/loss", 0.0) + stats["objective/kl"]
            ):
                raise UserError(
                    f"training diverged in step {step + 1} (a loss is not a finite number): "
                    "expected a smaller learning_rate, or a larger kl_coefficient"
                )
            row = {"step": step + 1, **stats}
            history.append(row)
            if run is not None and distributed.is_main():
                run.log(row)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                    run.save(step + 1, *_snapshot(roles, optimizers, constraint))
            bar.set_postfix(postfix(row), refresh=False)
            bar.update()
            if on_step is not None:
                on_step(row)
    return history


def _snapshot(
    roles: Roles, optimizers: dict[str, torch.optim.Optimizer], constraint: Constraint
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a step changes: (tensors, JSON values)."""
    tensors, generators = random_state()
    tensors |= {f"roles.{name}": tensor for name, tensor in roles.trained_state().items()}
    for role, optimizer in optimizers.items():
        tensors |= {f"optimizer.{role}.{name}": value for name, value in moments(optimizer).items()}
    return tensors, {"generators": generators, "constraint": constraint.state_dict()}


def _restore(
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    constraint: Constraint,
) -> None:
    """Put back what `_snapshot` returned."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}

    roles.load_trained_state(under("roles."))
    for role, optimizer in optimizers.items():
        load_moments(optimizer, under(f"optimizer.{role}."))
    constraint.load_state_dict(state["constraint"])
    restore_random_state(tensors, state["generators"])


def config_dict(config: PPOConfig, constraint: Constraint) -> dict[str, Any]:
    """The settings of PPO and of the constraint, which must be the same when a run is resumed."""
    return {**asdict(config), "constraint": constraint.settings()}
