"""What a policy answers while it trains, left in the run's folder for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from csrlhf_kit import journal
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.training.rollout import respond


def sample_logger(
    folder: str | Path,
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    every: int = 5,
    max_new_tokens: int = 32,
) -> Callable[[Mapping[str, Any]], None]:
    """An `on_step` for `train_ppo`: after every so many steps, append the greedy answers to `prompts`.

    They go to `samples.jsonl` in the run's folder, where `watch` finds them. Training draws the same random
    numbers with it as without.
    """

    def on_step(row: Mapping[str, Any]) -> None:
        step = int(row["step"])
        if step % every:
            return
        with torch.random.fork_rng():
            texts = respond(roles, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=0)
        for prompt, text in zip(prompts, texts, strict=True):
            journal.append(Path(folder) / "samples.jsonl", {"step": step, "prompt": prompt, "text": text})

    return on_step
