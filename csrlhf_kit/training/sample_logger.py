"""Log a policy's answers to a few prompts while it trains, to a file in the run's folder that `watch` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from csrlhf_kit import distributed, files
from csrlhf_kit.data.chat import encode_prompts, fit_prompts
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import response_texts, sample_episodes, score_episodes

SAMPLES = 3  # number of prompts, evenly spaced among the training prompts
EVERY = 4  # steps between samples; the first step is sampled too


def sample_logger(
    folder: str | Path,
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    every: int = EVERY,
    max_new_tokens: int = 32,
    max_prompt_length: int = 512,
) -> Callable[[Mapping[str, Any]], None]:
    """An `on_step` for `train_ppo`: every `every` steps, append the greedy answers to a few prompts.

    Each goes to `samples.jsonl` in `folder` with its learned reward and cost (logits). No random number is drawn,
    so that a run is the same, bit for bit, with it and without. Of several processes only the first one writes.
    """
    count = min(SAMPLES, len(prompts))
    prompts = [prompts[place * len(prompts) // count] for place in range(count)]
    prompts = fit_prompts(tokenizer, prompts, max_length=max_prompt_length)  # as the policy sees them
    encoded = encode_prompts(tokenizer, prompts, max_length=max_prompt_length)
    noise = torch.zeros(len(prompts), max_new_tokens, dtype=torch.float64)  # greedy: not read, so not drawn

    def on_step(row: Mapping[str, Any]) -> None:
        step = int(row["step"])
        if (step % every and step > 1) or not distributed.is_main():
            return
        episodes = sample_episodes(
            roles, tokenizer, encoded["input_ids"], encoded["attention_mask"],
            max_new_tokens=max_new_tokens, temperature=0, noise=noise.to(roles.device),
        )  # fmt: skip
        texts = response_texts(tokenizer, episodes)
        scored = score_episodes(
            roles, tokenizer, prompts, episodes, temperature=1.0, policy=False, critic=False
        )
        for prompt, text, reward, cost in zip(
            prompts, texts, scored.reward.tolist(), scored.cost.tolist(), strict=True
        ):
            said = {"step": step, "prompt": prompt, "text": text, "reward": reward, "cost": cost}
            files.append(Path(folder) / "samples.jsonl", said)

    return on_step
