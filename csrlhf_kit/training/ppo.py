"""PPO for language models under a cost constraint, on one frozen base with adapters.

A step, top to bottom: sample answers; score them (policy, reference, values, reward, cost); let the
constraint look at the costs; turn scores into advantages; take clipped gradient steps on the policy and on
the critic.

Sources: PPO, Schulman et al. 2017, arXiv 1707.06347; RLHF with a per-token KL, Ziegler et al. 2019, arXiv
1909.08593; reward and cost streams, Safe RLHF, Dai et al. 2023, arXiv 2310.12773. Metric names follow the
field's custom.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csrlhf_kit import processes
from csrlhf_kit.data.chat import encode_prompts
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.runs import Run, random_state, restore_random_state, seed_everything
from csrlhf_kit.training.advantages import advantages_and_returns, token_rewards, whiten
from csrlhf_kit.training.constraint import Constraint
from csrlhf_kit.training.dialogues import encode_responses, imitation_backward
from csrlhf_kit.training.optimizers import OptimizerName, make_optimizer, moments
from csrlhf_kit.training.rollout import (
    Trajectory,
    by_length,
    sample_episodes,
    sampling_noise,
    score_episodes,
)


@dataclass
class PPOConfig:
    """Settings of PPO; the constraint has its own."""

    steps: int = 60
    """Number of PPO steps: one batch of fresh episodes each."""
    batch_size: int = 64
    """Episodes a step."""
    samples_per_prompt: int = 1
    """Answers to each prompt of a batch; a constraint on every prompt needs a few."""
    epochs: int = 1
    """Passes over each batch of episodes."""
    minibatch_size: int = 32
    """Episodes behind one optimiser step, drawn at random."""
    microbatch_size: int = 32
    """Episodes of one forward and backward pass: similar lengths, gradients summed over the mini-batch."""
    learning_rate: float = 1e-3
    """Policy's Adam step size."""
    critic_learning_rate: float = 1e-3
    """Critic's Adam step size."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of both learning rates after the warm-up; linear and cosine end at a tenth."""
    critic_warmup: int = 0
    """First steps in which only the critic learns: a policy that starts on unknown values learns noise."""
    warmup_steps: int = 0
    """Steps over which both learning rates rise linearly."""
    kl_coefficient: float = 0.02
    """beta: weight of the KL to the reference, per nat."""
    clip: float = 0.2
    """Clip range of the policy's probability ratio."""
    value_clip: float = 5.0
    """Largest move of a value away from its old one that still lowers the value loss."""
    score_clip: float = 50.0
    """Scores (and costs on the logit scale) are clipped to plus or minus this."""
    cost_scale: Literal["probability", "logit"] = "probability"
    """Cost of an episode: sigmoid of the cost logit, so that a threshold reads as a rate, or the logit
    itself.
    """
    missing_eos_penalty: float = 1.0
    """Taken off the reward of an answer that is cut at `max_new_tokens` without EOS."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation (no relation to the multiplier)."""
    whiten_advantages: bool = True
    """Whiten the combined advantages over the whole batch, mean removed."""
    target_kl: float | None = 0.1
    """Policy updates of a step stop once the approximate KL to the sampling policy exceeds this; None for
    never.
    """
    max_grad_norm: float = 1.0
    """Largest gradient norm, for policy and critic apart."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    ptx: float = 0.0
    """Weight of the supervised loss on demonstrations (nats a token) in every policy update; 0: none."""
    temperature: float = 1.0
    """Sampling temperature, in every log-probability too."""
    max_new_tokens: int = 32
    """Longest answer in tokens, EOS included."""
    max_prompt_length: int = 512
    """Longest prompt in tokens; longer ones lose their beginning."""
    checkpoint_every: int = 1
    """Steps between checkpoints, where a run's folder is given; the last step is always stored."""
    seed: int = 0
    """Seed of sampling, shuffling and the order of prompts."""

    def __post_init__(self) -> None:
        positive = (
            "batch_size",
            "epochs",
            "minibatch_size",
            "microbatch_size",
            "max_new_tokens",
            "temperature",
        )
        for name in (*positive, "clip", "value_clip", "score_clip", "max_grad_norm", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: expected a positive number")
        if self.samples_per_prompt < 1 or self.batch_size % self.samples_per_prompt:
            raise UserError(
                f"samples_per_prompt is {self.samples_per_prompt}: expected a divisor of batch_size "
                f"({self.batch_size})"
            )
        if not self.ptx >= 0:
            raise UserError(f"ptx is {self.ptx}: expected a number >= 0")
        if self.target_kl is not None and not self.target_kl > 0:
            raise UserError(f"target_kl is {self.target_kl}: expected a positive number, or none")
        for name, known in (
            ("schedule", ("constant", "linear", "cosine")),
            ("cost_scale", ("probability", "logit")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(known)}")


# --- losses: pure functions on tensors ---


def policy_loss(ratio: Tensor, advantages: Tensor, actions: Tensor, clip: float) -> Tensor:
    """Sum over action tokens of -min(ratio A, clip(ratio) A) (Schulman et al. 2017, eq. 7). All (batch,
    length).
    """
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return (torch.maximum(-ratio * advantages, -clipped * advantages) * actions).sum()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, actions: Tensor, clip: float) -> Tensor:
    """Clipped squared errors / 2, summed over action tokens: (2,) from three (batch, length, 2) and a mask.

    Positions that are no action do not count, whatever stands there.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * torch.where(actions.unsqueeze(-1), errors, 0.0).sum((0, 1))


def approximate_kl(log_ratio: Tensor, actions: Tensor) -> Tensor:
    """Sum over action tokens of ratio - 1 - log ratio: KL(old || new) without bias, and never negative."""
    return torch.where(actions, log_ratio.exp() - 1.0 - log_ratio, 0.0).sum()


def cosine_to_a_tenth(progress: float) -> float:
    """1 at progress 0, a tenth at 1, along half a cosine."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def learning_rate_factor(step: int, config: PPOConfig) -> float:
    """Multiple of the learning rates at `step` (from 0): a function of the step alone, so there is nothing
    to store.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        return 1.0 - 0.9 * progress
    if config.schedule == "cosine":
        return cosine_to_a_tenth(progress)
    return 1.0


def prompt_rows(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which prompts step `step` (from 0) uses: fresh permutations end to end, a function of step and seed
    alone.
    """
    rows: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        if not rows or offset == 0:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            permutation = torch.randperm(count, generator=generator).tolist()
        rows.append(permutation[offset])
    return rows


# --- one step ---


def episode_costs(logits: Tensor, config: PPOConfig) -> Tensor:
    """Costs (batch,) of cost logits, on the scale that the threshold is on."""
    if config.cost_scale == "probability":
        return logits.sigmoid()
    return logits.clamp(-config.score_clip, config.score_clip)


def episode_rewards(trajectory: Trajectory, config: PPOConfig) -> Tensor:
    """Rewards (batch,): clipped score, less the penalty where the answer was cut before EOS."""
    clipped = trajectory.reward.clamp(-config.score_clip, config.score_clip)
    return clipped - config.missing_eos_penalty * (~trajectory.ended)


class Batch(NamedTuple):
    """What the update reads, all about one batch of episodes."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length)
    actions: Tensor  # (batch, length)
    log_probs: Tensor  # (batch, length), before the update
    values: Tensor  # (batch, length, 2), before the update
    advantages: Tensor  # (batch, length), combined and whitened
    cost_advantages: Tensor  # (batch, length)
    returns: Tensor  # (batch, length, 2), of reward and cost
    below: Tensor | None = None  # (batch, length, hidden), what the adapted layers start from, if known

    def take(self, rows: Tensor, longest: int) -> Batch:
        """Some rows, trimmed to the longest of them."""
        return Batch(*(None if tensor is None else tensor[rows, :longest] for tensor in self))


def estimate(
    trajectory: Trajectory,
    constraint: Constraint,
    config: PPOConfig,
    *,
    groups: Sequence[str] | None = None,
) -> tuple[Batch, float]:
    """Advantages and value targets of a batch of episodes, and the factor by which whitening scaled them.

    The constraint observes the batch's costs here, and the group (batch,) of each episode's prompt.
    """
    costs = episode_costs(trajectory.cost, config)
    constraint.observe(costs, groups)
    log_ratios = trajectory.log_probs - trajectory.reference_log_probs
    beta, actions = config.kl_coefficient, trajectory.actions
    rewards = constraint.shape_rewards(episode_rewards(trajectory, config), costs)
    token_scores = token_rewards(rewards, log_ratios, actions, beta)
    cost_kl = -beta if constraint.kl_in_costs else 0.0
    token_costs = token_rewards(constraint.shape(costs), log_ratios, actions, cost_kl)
    (reward_advantages, cost_advantages), returns = advantages_and_returns(
        token_scores, token_costs, trajectory.values, actions, gamma=config.gamma, lam=config.gae_lambda
    )
    advantages, scale = constraint.combine(reward_advantages, cost_advantages), 1.0
    if config.whiten_advantages:
        advantages, factor = whiten(advantages, actions)
        scale = float(factor)
    kept = (trajectory.ids, trajectory.mask, actions, trajectory.log_probs, trajectory.values)
    return Batch(*kept, advantages, cost_advantages, returns.movedim(0, -1), trajectory.below), scale


def policy_backward(
    roles: Roles, batch: Batch, tokens: Tensor, scale: float, constraint: Constraint, config: PPOConfig
) -> Tensor:
    """Add the gradient of one micro-batch's policy loss; `tokens` counts the whole mini-batch's actions.

    Returns (loss, approximate KL, clipped share, entropy, max |log ratio|), the first four as parts of the
    mean.
    """
    log_probs, entropy = roles.log_probs(
        batch.ids, batch.mask, batch.actions, temperature=config.temperature, below=batch.below
    )
    log_ratio = torch.where(batch.actions, log_probs - batch.log_probs, 0.0)
    ratio = log_ratio.exp()
    loss = policy_loss(ratio, batch.advantages, batch.actions, config.clip) / tokens
    extra = constraint.extra_loss(ratio, batch.cost_advantages, batch.actions)
    if extra is not None:  # a mean over episodes, while the loss above is one over tokens, and whitened
        loss = loss + extra * scale * batch.ids.shape[0] / tokens
    loss.backward()
    with torch.no_grad():
        kl = approximate_kl(log_ratio, batch.actions) / tokens
        clipped = (((ratio - 1.0).abs() > config.clip) & batch.actions).sum() / tokens
        return torch.stack([loss.detach(), kl, clipped, entropy.sum() / tokens, log_ratio.abs().max()])


def critic_backward(roles: Roles, batch: Batch, tokens: Tensor, config: PPOConfig) -> Tensor:
    """Add the gradient of one micro-batch's value losses; returns (reward's, cost's) parts of the mean."""
    values = roles.values(batch.ids, batch.mask, batch.actions, batch.below)
    losses = value_loss(values, batch.values, batch.returns, batch.actions, config.value_clip) / tokens
    losses.sum().backward()
    return losses.detach()


def update(
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    trajectory: Trajectory,
    constraint: Constraint,
    config: PPOConfig,
    *,
    critic_only: bool = False,
    groups: Sequence[str] | None = None,
    imitate: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Turn one batch of episodes into gradient steps on policy and critic; return what happened.

    groups: the group (batch,) of each episode's prompt. imitate: adds a supervised gradient to the policy's,
    once an update, and returns its loss.

    Losses are means over a mini-batch's action tokens, however it is split into micro-batches. Once the
    approximate KL of a mini-batch exceeds `target_kl`, the policy rests until the next step; the critic goes
    on, since its targets stay valid.
    """
    batch, scale = estimate(trajectory, constraint, config, groups=groups)
    policy_rows, critic_rows, imitation = [], [], []
    largest_first, stopped = 0.0, critic_only
    for _ in range(config.epochs):
        for rows in torch.randperm(batch.ids.shape[0]).to(batch.ids.device).split(config.minibatch_size):
            tokens = batch.actions[rows].sum()
            own = processes.share(rows)
            parts = [batch.take(*chunk) for chunk in by_length(batch.mask, own, config.microbatch_size)]
            if not stopped:
                args = (tokens, scale, constraint, config)
                stats = torch.stack([policy_backward(roles, part, *args) for part in parts])
                loss, kl, clipped, entropy, _ = processes.summed(stats.sum(0)).tolist()
                if not policy_rows:
                    largest_first = float(processes.largest(stats[:, 4].max()))
                stopped = config.target_kl is not None and kl > config.target_kl
                if stopped:
                    optimizers["policy"].zero_grad(set_to_none=True)
                elif imitate is not None:
                    imitation.append(imitate())
                norm = 0.0 if stopped else _descend(optimizers["policy"], config.max_grad_norm)
                policy_rows.append((loss, kl, clipped, entropy, norm))
            losses = sum(critic_backward(roles, part, tokens, config) for part in parts)
            critic_rows.append(processes.summed(losses).tolist())
            _descend(optimizers["critic"], config.max_grad_norm)
    names = ("policy/loss", "policy/approxkl", "policy/clipfrac", "policy/entropy", "policy/grad_norm")
    policy_means = torch.tensor(policy_rows or [[0.0] * len(names)], dtype=torch.float64).mean(0).tolist()
    value_losses = torch.tensor(critic_rows, dtype=torch.float64).mean(0).tolist()
    return {
        **dict(zip(names, policy_means, strict=True)),
        "val/reward_loss": value_losses[0],
        "val/cost_loss": value_losses[1],
        "policy/max_log_ratio_first": largest_first,
        "policy/updates": sum(row[-1] > 0 for row in policy_rows),
        "policy/stopped": float(stopped and not critic_only),
        **({"policy/ptx_loss": math.fsum(imitation) / len(imitation)} if imitation else {}),
    }


def _descend(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Sum the processes' gradients, clip their norm, take one step; return the norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


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
    """One PPO step on `prompts` (encoded: left-padded `input_ids` and `attention_mask`); returns its
    statistics.

    Of several processes, each answers and scores its share of the prompts; then all of them know all episodes.
    """
    clocks = [_clocks()]
    own = processes.share(torch.arange(len(prompts)))
    episodes = sample_episodes(
        roles,
        tokenizer,
        encoded["input_ids"][own],
        encoded["attention_mask"][own],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        noise=sampling_noise(len(prompts), config.max_new_tokens, roles.device)[own.to(roles.device)],
    )
    clocks.append(_clocks())
    trajectory = score_episodes(
        roles,
        tokenizer,
        [prompts[row] for row in own.tolist()],
        episodes,
        temperature=config.temperature,
        chunk_size=config.microbatch_size,
    )
    trajectory = Trajectory(*processes.gathered(trajectory))
    clocks.append(_clocks())
    updated = update(
        roles, optimizers, trajectory, constraint, config,
        critic_only=critic_only, groups=groups, imitate=imitate,
    )  # fmt: skip
    log_ratios = (trajectory.log_probs - trajectory.reference_log_probs) * trajectory.actions
    return {
        "objective/kl": float(log_ratios.sum(1).mean()),
        "objective/reward": float(trajectory.reward.mean()),
        "objective/cost": float(episode_costs(trajectory.cost, config).mean()),
        "objective/harmful": float((trajectory.cost > 0).float().mean()),
        "objective/length": float(trajectory.actions.sum(1).float().mean()),
        "objective/ended": float(trajectory.ended.float().mean()),
        **{f"constraint/{name}": value for name, value in constraint.stats().items()},
        **updated,
        **_times(clocks),
    }


def _clocks() -> tuple[float, float]:
    """Seconds on the wall's clock, and those that this process computed: they differ on a shared machine."""
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
    """Train the policy of `roles` (in place) on `prompts` (requests as text); return one row of statistics a
    step.

    run: an open folder; each step is logged and stored there, and if it holds a checkpoint, training goes on
    from it with the result that an unbroken run would have had (bit for bit on the same machine).
    on_step: called with each new row.
    groups: the group of each prompt, for a constraint that tells them apart; None: each prompt is its own.
    demonstrations: what the policy imitates beside the reward, where `config.ptx` is above 0.
    optimizer: in which numbers AdamW keeps its moments.

    Of several processes (see `csrlhf_kit.processes`) each calls this with the same arguments; batches are shared,
    and the first one writes.

    Raises UserError where there is no prompt, or where training has diverged (a loss that is not a number).
    """
    if not prompts:
        raise UserError("there is no prompt to train on: expected at least one")
    if config.ptx > 0 and not demonstrations:
        raise UserError(f"ptx is {config.ptx}: expected demonstrations to imitate")
    processes.check_divisible(batch_size=config.batch_size, minibatch_size=config.minibatch_size)
    groups = prompts if groups is None else groups
    seed_everything(config.seed)  # every process draws the same numbers, and uses its share
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
            weight = config.ptx / processes.count()  # each process adds the same gradient
            return imitation_backward(roles, shown, drawn, weight, microbatch_size=config.microbatch_size)

    history: list[dict[str, float]] = []
    first = 0
    if run is not None and (checkpoint := run.load()) is not None:
        _restore(checkpoint.tensors, checkpoint.state, roles, optimizers, constraint)
        first, history = checkpoint.step, run.history()
    processes.wait()  # before one of them writes to what another still reads
    name = type(constraint).__name__
    with tqdm(
        total=config.steps, initial=first, desc=name, unit="step", disable=not processes.is_main()
    ) as bar:
        for step in range(first, config.steps):
            for role, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = rates[role] * learning_rate_factor(step, config)
            each = config.samples_per_prompt
            rows = prompt_rows(len(prompts), config.batch_size // each, step, config.seed)
            rows = [row for row in rows for _ in range(each)]
            batch = {name: tensor[rows] for name, tensor in encoded.items()}
            texts = [prompts[row] for row in rows]
            stats = ppo_step(
                roles,
                tokenizer,
                texts,
                batch,
                optimizers,
                constraint,
                config,
                critic_only=step < config.critic_warmup,
                groups=[groups[row] for row in rows],
                imitate=imitate,
            )
            if not math.isfinite(
                stats["val/reward_loss"] + stats.get("policy/loss", 0.0) + stats["objective/kl"]
            ):
                raise UserError(
                    f"training diverged in step {step + 1} (a loss is not a finite number): "
                    "expected a smaller learning_rate, or a larger kl_coefficient"
                )
            row = {"step": step + 1, **stats}
            history.append(row)
            if run is not None and processes.is_main():
                run.log(row)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                    run.save(step + 1, *_snapshot(roles, optimizers, constraint))
            bar.set_postfix(
                harm=f"{row['objective/harmful']:.2f}",
                reward=f"{row['objective/reward']:.2f}",
                kl=f"{row['objective/kl']:.2f}",
                multiplier=f"{row['constraint/multiplier']:.2f}",
                refresh=False,
            )
            bar.update()
            if on_step is not None:
                on_step(row)
    return history


def _snapshot(
    roles: Roles, optimizers: dict[str, torch.optim.Optimizer], constraint: Constraint
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a step changes, as (tensors, JSON values)."""
    tensors, generators = random_state()
    tensors |= {f"roles.{name}": tensor for name, tensor in roles.trained_state().items()}
    for role, optimizer in optimizers.items():
        for index, state in moments(optimizer).items():
            tensors |= {f"optimizer.{role}.{index}.{name}": value for name, value in state.items()}
    return tensors, {"generators": generators, "constraint": constraint.state_dict()}


def _restore(
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    constraint: Constraint,
) -> None:
    """Undo of `_snapshot`."""
    prefix = "roles."
    roles.load_trained_state({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for role, optimizer in optimizers.items():
        states: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{role}."):
                index, name = key.removeprefix(f"optimizer.{role}.").split(".")
                count = value.dim() == 0 and not value.is_floating_point()  # bitsandbytes' step is a number
                states.setdefault(int(index), {})[name] = value.item() if count else value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    constraint.load_state_dict(state["constraint"])
    restore_random_state(tensors, state["generators"])


def config_dict(config: PPOConfig, constraint: Constraint) -> dict[str, Any]:
    """What a run's folder stores to tell whether it may be resumed: PPO's settings and the constraint's."""
    return {**asdict(config), "constraint": constraint.settings()}
