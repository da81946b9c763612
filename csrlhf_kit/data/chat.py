"""From a prompt and a response to token ids: one chat format for every model, one padding rule for each use.

A dialogue is the tokens of the rendered prompt, then the tokens of the response, then the end token. Prompt
and response are tokenised apart, so that the ids which a policy continues (`encode_prompts`) are exactly the
first ids of what a reward or cost model scores (`encode_dialogues`).

Prompts are padded on the left, because generation continues at the right edge; dialogues on the right,
because a score is read at the last real token. The attention mask is the only truth about which tokens are
real: many tokenizers pad with their end token, so comparing ids with the pad id would mask real ends.

A prompt is a request as text, or, after some turns, the whole conversation as chat messages, oldest first
(`{"role": "user" | "assistant", "content": ...}`).

A prompt or a response may spell a control token ("<|im_end|>", a favourite of jailbreaks). Such text is
encoded as text; only the template writes control tokens.

This is the only file of `csrlhf_kit.data` that imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from csrlhf_kit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = str | Sequence[dict[str, str]]
"""One request as text, or all messages so far; the last one is the user's."""

PLAIN_FORMAT = "User:\n{prompt}\n\nAssistant:\n"
"""What stands in for a chat template where the tokenizer has none. It ends in a line break, so that no
tokenizer merges the end of the prompt with the start of the response."""


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Turns) -> str:
    """The prompt as text that a response continues: chat template with generation prompt, or `PLAIN_FORMAT`.

    To get ids, use `encode_prompts`. Tokenising this text yourself needs `add_special_tokens=False` where
    the tokenizer has a chat template (which writes them itself), and lets a prompt forge control tokens.
    """
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(_messages(prompt), tokenize=False, add_generation_prompt=True)
    return _plain(prompt)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Turns], *, max_length: int
) -> dict[str, torch.Tensor]:
    """Encode prompts for generation, LEFT padded.

    A prompt of more than `max_length` tokens loses its first ones (after the opening token, if any), so that
    the end of the question and the generation prompt stay.

    Args:
        tokenizer: Any `transformers` tokenizer.
        prompts: The bare requests, or conversations, without template.
        max_length: The most tokens a row may have.

    Returns:
        `input_ids` and `attention_mask`, both long, (batch, longest row).

    Raises:
        UserError: `max_length` leaves no room for any token of the prompt.
    """
    opening = _opening_ids(tokenizer)
    _check_length(max_length, len(opening) + 1)
    rows = [_keep_end(opening, ids, max_length) for ids in _prompt_ids(tokenizer, prompts)]
    return _pad(rows, _pad_id(tokenizer), side="left")


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Turns], responses: list[str], *, max_length: int
) -> dict[str, torch.Tensor]:
    """Encode finished dialogues for scoring or for supervised training, RIGHT padded, each ending in eos.

    A row of more than `max_length` tokens loses its first ones (after the opening token, if any): the
    prompt goes first, and the response's end and eos always stay. Encoders without eos end in sep.

    Args:
        tokenizer: Any `transformers` tokenizer.
        prompts: The bare requests, or conversations, without template.
        responses: One response for each prompt.
        max_length: The most tokens a row may have.

    Returns:
        `input_ids` and `attention_mask`, both long, (batch, longest row).

    Raises:
        UserError: the lists differ in length, the tokenizer has neither eos nor sep, or `max_length`
            is too small.
    """
    if len(prompts) != len(responses):
        raise UserError(f"found {len(prompts)} prompts and {len(responses)} responses, expected as many")
    opening = _opening_ids(tokenizer)
    end = _end_token(tokenizer)
    _check_length(max_length, len(opening) + 2)
    rows = [
        _keep_end(opening, [*prompt_ids, *response_ids, end], max_length)
        for prompt_ids, response_ids in zip(
            _prompt_ids(tokenizer, prompts), _text_ids(tokenizer, responses), strict=True
        )
    ]
    return _pad(rows, _pad_id(tokenizer), side="right")


def _messages(prompt: Turns) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _plain(prompt: Turns) -> str:
    """What stands in for a chat template: each exchange in `PLAIN_FORMAT`, answers followed by a blank line."""
    return "".join(
        PLAIN_FORMAT.format(prompt=message["content"])
        if message["role"] == "user"
        else f"{message['content']}\n\n"
        for message in _messages(prompt)
    )


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[Turns]) -> list[list[int]]:
    """Ids of each rendered prompt; without a template, less the opening token."""
    if not prompts:
        return []
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(
            [_messages(prompt) for prompt in prompts],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=True,
        )["input_ids"]
    return _text_ids(tokenizer, [_plain(prompt) for prompt in prompts])


def _text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of plain text: nothing added, control tokens spelt out."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The bos or cls token that the tokenizer itself would put first; none where the template writes it."""
    if tokenizer.chat_template:
        return []
    openers = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    first = tokenizer("a")["input_ids"][:1]
    return first if openers.issuperset(first) else []


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    if tokenizer.sep_token_id is not None:
        return tokenizer.sep_token_id
    name = tokenizer.name_or_path or type(tokenizer).__name__
    raise UserError(
        f"tokenizer {name}: found neither an eos nor a sep token, expected one to end responses with"
    )


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else _end_token(tokenizer)


def _check_length(max_length: int, least: int) -> None:
    if max_length < least:
        raise UserError(f"max_length: found {max_length}, expected at least {least} tokens")


def _keep_end(opening: list[int], ids: list[int], max_length: int) -> list[int]:
    room = max_length - len(opening)
    return [*opening, *ids[-room:]]


def _pad(rows: list[list[int]], pad_id: int, *, side: str) -> dict[str, torch.Tensor]:
    length = max(map(len, rows), default=0)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)  # (batch, length)
    attention_mask = torch.zeros_like(input_ids)  # (batch, length)
    for index, row in enumerate(rows):
        real = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        input_ids[index, real] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, real] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
