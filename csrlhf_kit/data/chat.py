"""From a prompt and a response to token ids: one chat format for every model, one padding rule for each use.

A dialogue is the tokens of the rendered prompt, then of the response, then the token that closes an assistant's
turn. Prompt and response are tokenised separately, so that the ids which a policy continues (`encode_prompts`) are
exactly the first ids of what a reward or cost model scores (`encode_dialogues`). If a dialogue is too long, its
text is cut, never the template around it.

Prompts are padded on the left, because generation continues at the right edge; dialogues on the right, because
a score is read at the last real token. Only the attention mask says which tokens are real: many tokenizers pad
with their end token, so comparing ids with the pad id would mask real ends.

A prompt is a request as text or, after several turns, the whole conversation as chat messages, oldest first
(`{"role": "user" | "assistant", "content": ...}`). A prompt or response may spell a control token ("<|im_end|>",
as jailbreaks like to). Such text is encoded as text; only the template writes control tokens.

This is the only file of `csrlhf_kit.data` that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from csrlhf_kit.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Turns = str | Sequence[dict[str, str]]
"""One request as text, or all messages so far; the last one is the user's."""
T = TypeVar("T", bound=Turns)

PLAIN_FORMAT = "User:\n{prompt}\n\nAssistant:\n"
"""Replaces the chat template of a tokenizer that has none. It ends in a line break, so that no tokenizer merges
the end of the prompt with the start of the response."""


# --- how an answer ends ---


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a response in training: the chat template's, else eos, else sep; UserError if none."""
    for end in (_end_of_turn(tokenizer), tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        if end is not None:
            return end
    name = tokenizer.name_or_path or type(tokenizer).__name__
    raise UserError(f"tokenizer {name}: found neither an eos nor a sep token, expected one to end responses")


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """All tokens that end an answer: `end_token`, the tokenizer's eos, and those of the model's generation config."""
    known = generation.eos_token_id
    ends = [end_token(tokenizer), tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes after an assistant's message; None if it writes none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    answer = "Certainly."
    turns = [{"role": "user", "content": "Can you?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # the template does not allow an assistant's turn, and may fail in any way
        return None
    _, written, rest = text.rpartition(answer)
    ids = tokenizer(rest.strip(), add_special_tokens=False)["input_ids"] if written else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


# --- token ids ---


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turns], *, max_length: int
) -> dict[str, torch.Tensor]:
    """Encode prompts for generation, LEFT padded, cut as `fit_prompts` cuts them.

    tokenizer: any `transformers` tokenizer. prompts: requests or conversations, without template. max_length: the
    most tokens per row.
    Returns `input_ids` and `attention_mask`, both long, (batch, longest row). Raises UserError if `max_length`
    leaves no room for text in the template, or the template refuses a prompt.
    """
    rows = [ids for _, ids, _ in _fit(tokenizer, prompts, max_length)]
    return _pad(rows, _pad_id(tokenizer), side="left")


def fit_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[T], *, max_length: int, tell: bool = False
) -> list[T]:
    """The prompts as `encode_prompts` encodes them: those with more than `max_length` tokens are cut.

    The template, with opening token and headers, and a system prompt are never cut. A conversation loses its oldest
    exchanges and, if that is not enough, the beginning of its last request. tell: print how many are cut.
    Raises UserError as `encode_prompts` does.
    """
    rows = _fit(tokenizer, prompts, max_length)
    if tell:
        tell_cut(sum(cut > 0 for _, _, cut in rows), len(rows), max_length)
    return [prompt for prompt, _, _ in rows]


def tell_cut(count: int, total: int, max_length: int, what: str = "prompts") -> None:
    """Print how many of `total` prompts (or other texts: `what`) are cut, if any."""
    if count:
        print(
            f"{count} of {total} {what} have more than {max_length} tokens: their requests lose their beginning"
        )


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turns], responses: list[str], *, max_length: int
) -> dict[str, torch.Tensor]:
    """Encode dialogues for scoring or supervised training, RIGHT padded, each closed by `end_token`.

    If a row has more than `max_length` tokens, its prompt is cut as `fit_prompts` cuts it; if the response alone
    is too long, it loses its first tokens too.

    tokenizer: any `transformers` tokenizer. prompts: requests or conversations, without template. responses: one
    response per prompt. max_length: the most tokens per row.
    Returns `input_ids` and `attention_mask`, (batch, longest row), and `cut`, (batch,): 0 if nothing is cut, 1 if
    the prompt is cut, 2 if nothing of the request is left; all long. Raises UserError if the lists differ in
    length, the tokenizer has no end token, `max_length` is too small, or the template refuses a prompt.
    """
    if len(prompts) != len(responses):
        raise UserError(f"found {len(prompts)} prompts and {len(responses)} responses, expected as many")
    end = end_token(tokenizer)
    tails = [[*ids, end] for ids in _text_ids(tokenizer, responses)]
    fitted = _fit(tokenizer, prompts, max_length, [len(tail) for tail in tails])
    rows = [[*ids, *tail[len(ids) - max_length :]] for (_, ids, _), tail in zip(fitted, tails, strict=True)]
    cut = torch.tensor([cut for _, _, cut in fitted], dtype=torch.long)
    return _pad(rows, _pad_id(tokenizer), side="right") | {"cut": cut}


# --- cutting ---


def cut_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    encode: Callable[[list[str]], list[int]],
    room: int,
) -> tuple[list[str], list[int]]:
    """Cut `texts` at their beginnings, the first text first, until encode(texts) has at most `room` ids.

    Returns the rest of the texts, and their ids: more than `room` only if empty texts have more.
    """
    texts = list(texts)
    ids = encode(texts)
    for index in range(len(texts)):
        while texts[index] and len(ids) > room:
            texts[index] = _without_first(tokenizer, texts[index], len(ids) - room)
            ids = encode(texts)
    return texts, ids


def _without_first(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """`text` without its first `count` tokens, and at least one character shorter."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False,
        return_offsets_mapping=tokenizer.is_fast,
    )  # fmt: skip
    total = len(encoded["input_ids"])
    if count >= total:
        return ""
    place = encoded["offset_mapping"][count][0] if tokenizer.is_fast else len(text) * count // total
    return text[max(place, 1) :]


def _fit(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[T],
    max_length: int,
    tails: Sequence[int] | None = None,
) -> list[tuple[T, list[int], int]]:
    """(prompt cut to `max_length` minus `tails` tokens, its ids, how it was cut) of each prompt.

    tails: the number of tokens after each prompt. For how it was cut, see `encode_dialogues`.
    """
    rows, least = [], 1 if tails is None else 2  # a token of the request, or of the response and its end
    tails = [0] * len(prompts) if tails is None else tails
    for prompt, ids, tail in zip(prompts, _prompt_ids(tokenizer, prompts), tails, strict=True):
        cut = 0
        if len(ids) + tail > max_length:
            prompt, ids, left = _cut(tokenizer, prompt, max_length - tail)
            cut = 1 if left else 2
            if not left and len(ids) + least > max_length:
                raise UserError(
                    f"max_length: found {max_length}, expected at least {len(ids) + least} tokens, since the chat "
                    f"template and a system prompt, which are not cut, have {len(ids)}"
                )
        rows.append((prompt, ids, cut))
    return rows


def _cut(tokenizer: PreTrainedTokenizerBase, prompt: Turns, room: int) -> tuple[Any, list[int], bool]:
    """A prompt cut to `room` tokens, its ids, and whether anything of the request is left."""
    messages = _messages(prompt)
    requests = [place for place, message in enumerate(messages) if message["role"] == "user"] or [0]
    head = messages[: requests[0]]

    def with_texts(texts: list[str]) -> list[dict[str, str]]:
        kept = messages[len(messages) - len(texts) :]
        return [*head, *({**message, "content": text} for message, text in zip(kept, texts, strict=True))]

    for first in requests:
        texts = [message["content"] for message in messages[first:]]
        ids = _prompt_ids(tokenizer, [with_texts(texts)])[0]
        if len(ids) <= room:
            break
    texts, ids = cut_texts(
        tokenizer, texts, lambda texts: _prompt_ids(tokenizer, [with_texts(texts)])[0], room
    )
    return texts[0] if isinstance(prompt, str) else with_texts(texts), ids, bool(texts[0].strip())


# --- from messages to text and ids ---


def _messages(prompt: Turns) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _plain(prompt: Turns) -> str:
    """The prompt without a chat template: each exchange in `PLAIN_FORMAT`, answers followed by a blank line."""
    return "".join(
        PLAIN_FORMAT.format(prompt=message["content"])
        if message["role"] == "user"
        else f"{message['content']}\n\n"
        for message in _messages(prompt)
    )


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turns]) -> list[list[int]]:
    """Ids of each rendered prompt, the opening token included."""
    if not prompts:
        return []
    if tokenizer.chat_template:
        return _template_ids(tokenizer, [_messages(prompt) for prompt in prompts])
    opening = _opening_ids(tokenizer)
    return [[*opening, *ids] for ids in _text_ids(tokenizer, [_plain(prompt) for prompt in prompts])]


def _template_ids(tokenizer: PreTrainedTokenizerBase, turns: list[list[dict[str, str]]]) -> list[list[int]]:
    """Ids of conversations in the chat template, with generation prompt. UserError if the template refuses one."""
    try:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True
        )["input_ids"]
    except Exception as error:  # a template is a program of others
        if len(turns) > 1:
            for each in turns:  # the first that fails alone is named
                _template_ids(tokenizer, [each])
            raise
        roles = ", ".join(str(message.get("role")) for message in turns[0])
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} refuses turns of {roles} ({error}): "
            "expected turns that it allows"
        ) from error


def _text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of plain texts: no special tokens added, control tokens encoded as text."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The bos or cls token that the tokenizer itself puts first, if any."""
    openers = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    first = tokenizer("a")["input_ids"][:1]
    return first if openers.issuperset(first) else []


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_token(tokenizer)


def _pad(rows: list[list[int]], pad_id: int, *, side: str) -> dict[str, torch.Tensor]:
    length = max(map(len, rows), default=0)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)  # (batch, length)
    attention_mask = torch.zeros_like(input_ids)  # (batch, length)
    for index, row in enumerate(rows):
        real = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        input_ids[index, real] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, real] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
