"""A policy as a plain function from prompts to answers, for `red_team.py`, `multi_turn.py` and the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from csrlhf_kit.data.chat import end_tokens, fit_prompts
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import Quantization, freeze, is_packed, load_base, load_tokenizer, with_adapter
from csrlhf_kit.models.places import adapter_folder, base_of, check_base, find_base, numbers_of
from csrlhf_kit.models.rollout import Episodes, in_batches, response_texts, sample

Answer = Callable[[Sequence[Any]], list[str]]
"""Prompts (texts, or lists of chat messages) -> one answer each."""


def load_policy(
    base: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str = "float32",
    quantization: Quantization = "none",
) -> PreTrainedModel:
    """The frozen base with a policy's adapter: merged in if the base is in float32, else kept on top of it.

    Raises UserError if the base cannot be read, or `adapter` holds no PEFT adapter for it.
    """
    model = load_base(base, dtype=dtype, quantization=quantization)
    if adapter is None:
        return model
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(f"{adapter} is no policy: expected a PEFT adapter (adapter_config.json)")
    check_base(Path(adapter), base)
    tuned = with_adapter(model, adapter)
    exact = dtype == "float32" and not is_packed(model)
    return freeze(tuned.merge_and_unload() if exact else tuned)


def policy_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    max_length: int = 512,
) -> Answer:
    """A function that samples one answer to each prompt.

    Each call has its own seed, so that asking again gives another answer, and leaves torch's global generator
    unchanged. max_length: longest prompt in tokens; the number of prompts that are cut is printed.
    """
    calls = 0

    def sample_batch(ids: Tensor, mask: Tensor) -> Episodes:
        return sample(
            model, ids.to(model.device), mask.to(model.device),
            eos_token_id=end_tokens(tokenizer, model.generation_config), pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens, temperature=temperature,
        )  # fmt: skip

    def answer(prompts: Sequence[Any]) -> list[str]:
        nonlocal calls
        calls += 1
        texts = [""] * len(prompts)
        if not prompts:
            return texts
        fitted = fit_prompts(tokenizer, prompts, max_length=max_length, tell=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1_000_003 + calls)
            for rows, episodes in in_batches(
                sample_batch, tokenizer, fitted, batch_size=batch_size, max_length=max_length
            ):
                for row, text in zip(rows.tolist(), response_texts(tokenizer, episodes), strict=True):
                    texts[row] = text.strip()
        return texts

    return answer


def stored_policy(
    base: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str = "float32",
    quantization: Quantization = "none",
    **options: Any,
) -> Answer:
    """`load_policy`, then `policy_answers` with the sampling options `options`. Raises as `load_policy`."""
    model = load_policy(base, adapter, dtype=dtype, quantization=quantization)
    return policy_answers(model, load_tokenizer(base), **options)


def answer_of(run: Path | None, config: Any) -> Answer:
    """The policy in a run's folder as a function; `run` None: the base alone.

    config: has base, dtype and quantization (None: as in the run), max_new_tokens, temperature and seed. Raises
    UserError if there is no policy, or nothing says which base it has.
    """
    adapter = adapter_folder(run) if run is not None else None
    if adapter is None and not config.base:
        raise UserError("nothing says which base to load: expected a run's folder, or --base")
    base = find_base(config.base) if adapter is None else base_of(adapter, config.base)
    return stored_policy(
        base, adapter, **numbers_of(run, config.dtype, config.quantization),
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed,
    )  # fmt: skip
