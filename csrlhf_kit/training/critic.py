"""Fit the critic to the base before PPO starts, by regression on the base's own scored answers.

A policy gradient is as noisy as its baseline is bad. An untrained critic predicts the same value for harmful
and benign prompts, so the first steps of a strongly penalised policy teach it to refuse everything. A value is
E[score | prompt and answer so far], and the base's scored answers, cheap and the same for every method, are
samples of it. So the critic is fitted once, and every method starts from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from csrlhf_kit import distributed
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.kernels.masks import last_true
from csrlhf_kit.models.base import loading
from csrlhf_kit.models.places import fingerprint
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Trajectory, by_length, in_batches, sample_episodes, score_episodes
from csrlhf_kit.runs import seed_everything
from csrlhf_kit.training.configs import CriticConfig, PPOConfig
from csrlhf_kit.training.ppo import cosine_to_a_tenth
from csrlhf_kit.training.ppo_update import episode_costs, episode_rewards, value_loss


def base_episodes(
    roles: Roles, tokenizer: Any, prompts: Sequence[str], config: PPOConfig, *, batch_size: int = 128
) -> list[Trajectory]:
    """Sample the base's answers to `prompts` and score them, in batches of similar prompt length."""
    sample_batch = partial(
        sample_episodes, roles, tokenizer,
        adapter=None, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
    )  # fmt: skip
    return [
        score_episodes(
            roles, tokenizer, [prompts[row] for row in rows.tolist()], episodes,
            temperature=config.temperature, chunk_size=config.microbatch_size,
        )
        for rows, episodes in in_batches(
            sample_batch, tokenizer, prompts,
            batch_size=batch_size, max_length=config.max_prompt_length, longest_first=False,
        )
    ]  # fmt: skip


def returns(trajectory: Trajectory, config: PPOConfig) -> Tensor:
    """Value targets (batch, length, 2) for reward and cost: the episode's final score, discounted.

    There is no KL term, since the base is the reference.
    """
    scores = torch.stack([episode_rewards(trajectory, config), episode_costs(trajectory.cost, config)], -1)
    columns = torch.arange(trajectory.ids.shape[1], device=scores.device)
    last = last_true(trajectory.response_mask).unsqueeze(1)
    discount = config.gamma ** (last - columns).clamp_min(0)  # (batch, length)
    return discount.unsqueeze(-1) * scores.unsqueeze(1)


def fit_critic(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    ppo: PPOConfig,
    config: CriticConfig,
    *,
    rollout_size: int = 128,
) -> list[tuple[float, float]]:
    """Fit the critic of `roles` (in place) to the base's answers; returns (reward, cost) losses for each epoch.

    prompts: requests as text; the first `config.episodes` of a seeded shuffle are used. Losses are means per
    token of squared errors / 2, each taken before its batch's step. rollout_size: answers sampled at once.
    Raises UserError if there is no prompt.
    """
    if not prompts:
        raise UserError("there is no prompt to fit the critic on: expected at least one")
    seed_everything(ppo.seed)
    chosen = torch.randperm(len(prompts))[: config.episodes].tolist()
    batches = base_episodes(roles, tokenizer, [prompts[i] for i in chosen], ppo, batch_size=rollout_size)
    targets = [returns(batch, ppo) for batch in batches]
    places = torch.tensor([(b, row) for b, batch in enumerate(batches) for row in range(len(batch.ids))])
    optimizer = torch.optim.AdamW(roles.trainable("critic"), lr=config.learning_rate, weight_decay=0.0)
    steps = config.epochs * sum(-(-len(batch.ids) // config.batch_size) for batch in batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: cosine_to_a_tenth(i / steps))
    history = []
    for _ in tqdm(range(config.epochs), desc="critic", unit="epoch", **distributed.bar()):
        total, tokens = torch.zeros(2), 0
        # Episodes of one sampling batch stay together: their prompts have similar lengths.
        for rows in _minibatches(places, config.batch_size):
            batch, index = batches[int(rows[0, 0])], rows[:, 1].to(roles.device)
            count = batch.response_mask[index].sum()
            for part, longest in by_length(batch.mask, index, ppo.microbatch_size):
                states = None if batch.shared_states is None else batch.shared_states[part, :longest]
                values = roles.values(
                    batch.ids[part, :longest], batch.mask[part, :longest], shared_states=states
                )
                wanted = targets[int(rows[0, 0])][part, :longest]
                learnt = batch.response_mask[part, :longest]
                losses = value_loss(values, values.detach(), wanted, learnt, math.inf)
                (losses.sum() / count).backward()
                total += losses.detach().cpu()
            tokens += int(count)
            torch.nn.utils.clip_grad_norm_(roles.trainable("critic"), ppo.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        history.append(tuple((total / tokens).tolist()))
    return history


def _minibatches(places: Tensor, size: int) -> list[Tensor]:
    """Random mini-batches of (batch, row) pairs (rows, 2), each within one sampling batch, in random order."""
    parts = []
    for b in places[:, 0].unique():
        own = places[places[:, 0] == b]
        parts += own[torch.randperm(len(own))].split(size)
    return [parts[i] for i in torch.randperm(len(parts))]


def save_critic(roles: Roles, file: str | Path) -> None:
    """Write the critic's adapter and head to `file` (safetensors), with a fingerprint of its base."""
    state = {k: v.contiguous() for k, v in roles.trained_state().items() if ".policy." not in k}
    base = fingerprint(roles.model.get_base_model().name_or_path)
    write_atomic(Path(file), save(state, metadata={"base": base} if base else None))


def load_critic(roles: Roles, file: str | Path) -> None:
    """Read what `save_critic` wrote into `roles`. Raises UserError if it is missing or of another base."""
    if not Path(file).is_file():
        raise UserError(f"{file} is no critic: expected a file that `save_critic` has written")
    with loading(file, "a critic"), safe_open(file, "pt") as stored:
        base = (stored.metadata() or {}).get("base")
        state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if base and base != (fingerprint(roles.model.get_base_model().name_or_path) or base):
        raise UserError(f"{file} is the critic of another base, whose weights differ: expected a new folder")
    own = roles.trained_state()
    roles.load_trained_state({k: v for k, v in own.items() if ".policy." in k} | state)
