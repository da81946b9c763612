"""Constrained alignment without reinforcement learning: one loss, and five ways to choose its pairs.

A policy pi defines an implicit reward beta log(pi / pi_ref), up to a constant per prompt. Fitting *that* to
preferences by the Bradley-Terry model gives the optimal policy without PPO (DPO, Rafailov et al. 2023, arXiv
2305.18290):

    loss = -log sigmoid(beta (h_w - h_l) - offset),  h = log pi(y|x) - log pi_ref(y|x)

| method | winner | beta | offset | reference |
|---|---|---|---|---|
| `dpo_safer`, `dpo_better` | by that label | beta | 0 | base |
| `safedpo` (Kim et al. 2025, arXiv 2505.20065) | better, unless it alone is unsafe | beta | Delta (u_l - u_w) | base |
| `sacpo` (Wachi et al. 2024, arXiv 2404.11049) | better, then safer | beta, then beta / lambda | 0 | base, then the first step's policy |
| `mocan` (Huang et al. 2024, arXiv 2405.19544) | drawn by r - lambda* c | beta | 0 | base |

u is 1 for an unsafe response, 0 for a safe one. Only `mocan` has a threshold: lambda* minimises the
one-dimensional dual of the constrained problem, on scored answers of the base, before any training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import by_length
from csrlhf_kit.runs import Run
from csrlhf_kit.training.configs import METHODS, DirectConfig
from csrlhf_kit.training.dialogues import Dialogues, encode_responses, sequence_log_probs
from csrlhf_kit.training.dpo_pairs import (
    Offline,
    Ranked,
    by_label,
    one_shot_multiplier,
    pseudo_pairs,
    safedpo_order,
)
from csrlhf_kit.training.optimizers import load_moments, moments

# --- the loss ---


def preference_loss(margins: Tensor, *, beta: float, offsets: Tensor | float = 0.0) -> Tensor:
    """Mean of -log sigmoid(beta * margin - offset) over the batch, a scalar.

    margins: (batch,), h_w - h_l, the difference of each pair's sequence log-ratios to the reference, in nats.
    offsets: (batch,) or one number.
    Source: DPO, arXiv 2305.18290, equation 7; the offset is SafeDPO's.
    """
    return -F.logsigmoid(beta * margins - offsets).mean()


# --- training ---


class EncodedPairs(NamedTuple):
    """Winners and losers as tokens, with their log-probabilities under the reference."""

    winners: Dialogues
    losers: Dialogues
    reference: Tensor  # (pairs,), log pi_ref(winner) - log pi_ref(loser), nats
    offsets: Tensor  # (pairs,)


def encode_pairs(
    roles: Roles, tokenizer: Any, ranked: Sequence[Ranked], *, reference: str | None, max_length: int
) -> EncodedPairs:
    """Tokenise the pairs and evaluate the reference (an adapter's name; None: the base) on them, once.

    Raises UserError if there is no pair, or a response leaves no room for its prompt.
    """
    if not ranked:
        raise UserError("there is no pair to learn from: expected at least one")
    prompts = [pair.prompt for pair in ranked]
    winners, losers = (
        encode_responses(tokenizer, prompts, [getattr(pair, side) for pair in ranked], max_length=max_length)
        for side in ("winner", "loser")
    )
    gap = sequence_log_probs(roles, winners, adapter=reference)
    gap = gap - sequence_log_probs(roles, losers, adapter=reference)
    return EncodedPairs(winners, losers, gap, torch.tensor([float(pair.offset) for pair in ranked]))


def margins_of(roles: Roles, pairs: EncodedPairs, rows: Tensor) -> Tensor:
    """h_w - h_l in nats of the pairs with indices `rows`, (rows,), with gradients to the policy."""
    sides = []
    for side in (pairs.winners, pairs.losers):
        sides.append(roles.log_probs(*side.take(rows).to(roles.device))[0].sum(1))
    return sides[0] - sides[1] - pairs.reference[rows].to(roles.device)


def fit_pairs(
    roles: Roles, pairs: EncodedPairs, *, beta: float, config: DirectConfig, run: Run | None = None
) -> list[dict[str, float]]:
    """Minimise the loss over the policy of `roles` (in place); returns one row of metrics per step.

    run: an open run folder for metrics and checkpoints; a stopped run continues there, bit for bit.
    Rows: loss, accuracy (share of pairs with a positive margin), margin (mean, nats), grad_norm.
    Raises UserError if the loss is no longer finite.
    """
    parameters = roles.trainable("policy")
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    count = len(pairs.reference)
    per_epoch = -(-count // config.batch_size)
    steps, first = config.epochs * per_epoch, 0
    history: list[dict[str, float]] = []
    if run is not None and (stored := run.load()) is not None:
        _restore(stored.tensors, roles, optimizer)
        first, history = stored.step, run.history()
    with tqdm(total=steps, initial=first, desc="preferences", unit="step") as bar:
        for step in range(first, steps):
            warm = max(steps // 10, 1)
            rate = min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
            optimizer.param_groups[0]["lr"] = config.learning_rate * rate
            epoch, place = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = torch.randperm(count, generator=generator)
            rows = order[place * config.batch_size : (place + 1) * config.batch_size]
            row = {"step": step + 1, **_step(roles, pairs, rows, optimizer, beta, config)}
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"training diverged in step {step + 1} (the loss is {row['loss']}): expected a smaller "
                    f"learning_rate (it was {config.learning_rate:g})"
                )
            history.append(row)
            if run is not None:
                run.log(row)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
                    run.save(step + 1, _snapshot(roles, optimizer), {})
            bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.2f}", refresh=False)
            bar.update()
    return history


def _step(
    roles: Roles,
    pairs: EncodedPairs,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    beta: float,
    config: DirectConfig,
) -> dict[str, float]:
    total, right, gained = 0.0, 0, 0.0
    longest = torch.maximum(pairs.winners.mask.sum(1), pairs.losers.mask.sum(1))
    mask = torch.arange(int(longest.max())) < longest.unsqueeze(1)
    for part, _ in by_length(mask, rows, config.microbatch_size):
        margins = margins_of(roles, pairs, part)
        offsets = pairs.offsets[part].to(margins.device)
        loss = preference_loss(margins, beta=beta, offsets=offsets) * (len(part) / len(rows))
        loss.backward()
        total += float(loss.detach())
        right += int((margins > 0).sum())
        gained += float(margins.detach().sum())
    norm = torch.nn.utils.clip_grad_norm_(roles.trainable("policy"), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": total,
        "accuracy": right / len(rows),
        "margin": gained / len(rows),
        "grad_norm": float(norm),
    }


def _snapshot(roles: Roles, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The policy and Adam's moments; the order of pairs follows from seed and step."""
    tensors = {f"policy.{i}": p.detach() for i, p in enumerate(roles.trainable("policy"))}
    return tensors | {f"moments.{name}": value for name, value in moments(optimizer).items()}


def _restore(tensors: dict[str, Tensor], roles: Roles, optimizer: torch.optim.Optimizer) -> None:
    stored = {k.removeprefix("moments."): v for k, v in tensors.items() if k.startswith("moments.")}
    load_moments(optimizer, stored)
    with torch.no_grad():
        for index, parameter in enumerate(roles.trainable("policy")):
            parameter.copy_(tensors[f"policy.{index}"])


def train_direct(
    method: str,
    roles: Roles,
    tokenizer: Any,
    pairs: Sequence[PreferencePair],
    config: DirectConfig,
    folder: Path | None = None,
    *,
    offline: Offline | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Train the policy of `roles` (in place) by one of `METHODS`; returns its metrics and its multiplier.

    pairs: human judgements, for all but `mocan`, which reads `offline` instead. folder: the run's folder (with
    one inside for each step of `sacpo`); a run that was stopped continues. The multiplier is lambda* for
    `mocan`, beta / safety_beta for `sacpo` (the lambda of its second step), and 0 for the others.

    Raises UserError for an unknown method, missing labels, and settings that differ on resume.
    """
    steps: list[tuple[list[Ranked], float, str | None]]
    if method == "mocan":
        if offline is None:
            raise UserError("mocan: expected scored answers of the base (offline)")
        multiplier = one_shot_multiplier(
            offline.reward, offline.cost,
            beta=config.beta, threshold=config.threshold, maximum=config.max_multiplier,
        )  # fmt: skip
        steps = [(pseudo_pairs(offline, multiplier, seed=config.seed), config.beta, None)]
    elif method == "sacpo":
        multiplier = config.beta / config.safety_beta
        steps = [
            (by_label(pairs, "better"), config.beta, None),
            (by_label(pairs, "safer"), config.safety_beta, "policy"),
        ]
    elif method in METHODS:
        multiplier = 0.0
        ranked = (
            safedpo_order(pairs, config.offset)
            if method == "safedpo"
            else by_label(pairs, "safer" if method == "dpo_safer" else "better")
        )
        steps = [(ranked, config.beta, None)]
    else:
        raise UserError(f"method {method!r} is unknown: expected one of {', '.join(METHODS)}")
    steps = [(ranked[: config.pairs], beta, reference) for ranked, beta, reference in steps]
    roles.eval()  # no dropout: the margin must compare policies, not noise
    history = []
    for number, (ranked, beta, reference) in enumerate(steps, 1):
        run = None
        if folder is not None:
            asked = {"method": method, "step": number, "pairs": len(ranked), **asdict(config)}
            run = Run.open(Path(folder) / f"step-{number}", asked, resume=True)
        encoded = encode_pairs(roles, tokenizer, ranked, reference=reference, max_length=config.max_length)
        history += fit_pairs(roles, encoded, beta=beta, config=config, run=run)
    return history, multiplier
