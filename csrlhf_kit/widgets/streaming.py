"""A policy whose answer comes token by token, for `arena`. Builds on models/ (decoding, rollout)
and evaluation/answers.py. It imports torch, so other files of widgets/ import it only when they need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from csrlhf_kit.data.chat import encode_prompts, end_tokens
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import load_policy
from csrlhf_kit.evaluation.votes import Talk
from csrlhf_kit.models.base import load_tokenizer
from csrlhf_kit.models.decoding import CachedForward
from csrlhf_kit.models.places import base_of, numbers_of
from csrlhf_kit.models.rollout import pick


def streaming(
    model: Any,
    tokenizer: Any,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    max_length: int = 512,
    seed: int = 0,
) -> Talk:
    """`model` as a function from chat messages to the pieces of its answer's text, one per token or fewer.

    The pieces join to the text that all tokens decode to: a character that takes several tokens is given with the
    last of them. temperature: 0 is greedy. max_length: longest prompt in tokens. seed: of a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = end_tokens(tokenizer, model.generation_config)

    @torch.no_grad()
    def talk(messages: list[dict[str, str]]) -> Iterator[str]:
        encoded = encode_prompts(tokenizer, [messages], max_length=max_length)
        decoder, tokens, told = CachedForward(model), [], ""
        logits = decoder.start(
            encoded["input_ids"].to(model.device),
            encoded["attention_mask"].to(model.device),
            max_new_tokens - 1,
        )
        for place in range(max_new_tokens):
            noise = torch.rand(1, generator=generator, dtype=torch.float64).to(logits.device)
            chosen = pick(logits, noise, temperature)
            if int(chosen) in ends:
                break
            tokens.append(int(chosen))
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if text.startswith(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(told) :]
                told = text
            if place + 1 < max_new_tokens:
                logits = decoder.step(chosen)
        rest = tokenizer.decode(tokens, skip_special_tokens=True)
        if rest.startswith(told) and rest != told:
            yield rest[len(told) :]

    return talk


def policies_of(run: str | Path, **options: Any) -> dict[str, Talk]:
    """A run's trained policies and, as `sft`, its base: name -> a function as `streaming` returns it.

    run: the folder of `csrlhf run`, whose policies have their methods' names, or of `csrlhf ppo`, whose policy has
    the folder's name. The base is the one that the run's config names. options: see `streaming`.

    Raises UserError if the folder holds no policy, or its base cannot be read.
    """
    run = Path(run)
    adapters = {path.parent.name: path for path in sorted(run.glob("policies/*/adapter"))}
    if not adapters and (run / "adapter").is_dir():
        adapters = {run.name: run / "adapter"}
    if not adapters:
        raise UserError(
            f"{run}: found neither policies/*/adapter nor adapter; the folder of a finished run was expected"
        )
    base = base_of(next(iter(adapters.values())))
    numbers, tokenizer = numbers_of(run, None, None), load_tokenizer(base)
    models = {"sft": None, **adapters}
    return {
        name: streaming(load_policy(base, adapter, **numbers), tokenizer, **options)
        for name, adapter in models.items()
    }
