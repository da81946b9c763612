"""Prompts as text, computed apart from the package: what `encode_prompts` must give the ids of."""

from __future__ import annotations

from typing import Any

from csrlhf_kit.data.chat import PLAIN_FORMAT


def rendered(tokenizer: Any, prompt: str | list[dict[str, str]]) -> str:
    """A request or conversation in the tokenizer's chat template, or in `PLAIN_FORMAT` if it has none."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return "".join(
        PLAIN_FORMAT.format(prompt=turn["content"]) if turn["role"] == "user" else turn["content"] + "\n\n"
        for turn in turns
    )
