from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from csrlhf_kit.data.chat import (
    PLAIN_FORMAT,
    encode_dialogues,
    encode_prompts,
    render_prompt,
)
from csrlhf_kit.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<s>"]
WORDS = ["may I feed the dog of my neighbour", "no, but you may ask her", "User:\nAssistant:\n"]


def build(*, opening: list[str], closing: list[str], template: str | None, **names: str):
    """A byte-level tokenizer, exact for any text, that adds `opening` and `closing` by itself."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if opening or closing:
        inner.post_processor = processors.TemplateProcessing(
            single=[*opening, "$A", *closing],
            special_tokens=[(token, inner.token_to_id(token)) for token in {*opening, *closing}],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = template
    return tokenizer


END, OPEN, PAD = "<|end|>", "<s>", "<|pad|>"
KINDS = {
    "chat": dict(opening=[], closing=[], template=TEMPLATE, eos_token=END, pad_token=PAD),
    "chat, pad is eos": dict(opening=[], closing=[], template=TEMPLATE, eos_token=END, pad_token=END),
    "chat that adds bos by itself": dict(
        opening=[OPEN], closing=[], template="<s>" + TEMPLATE, bos_token=OPEN, eos_token=END, pad_token=PAD
    ),
    "plain": dict(opening=[], closing=[], template=None, eos_token=END, pad_token=PAD),
    "plain, no pad": dict(opening=[], closing=[], template=None, eos_token=END),
    "plain with bos": dict(opening=[OPEN], closing=[], template=None, bos_token=OPEN, eos_token=END),
    "plain, only appends": dict(opening=[], closing=[END], template=None, eos_token=END, bos_token=END),
    "encoder": dict(
        opening=[OPEN], closing=[END], template=None, cls_token=OPEN, sep_token=END, pad_token=PAD
    ),
}
TOKENIZERS = {name: build(**options) for name, options in KINDS.items()}
OPENS = {"plain with bos", "encoder"}
LONG = 10_000
tokenizers = pytest.mark.parametrize("name", TOKENIZERS)
texts = st.text(max_size=30) | st.sampled_from([*SPECIAL, "a<|end|>b", "{prompt}{}", "<|assistant|>yes"])


def real_rows(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def test_the_template_is_used_with_its_generation_prompt():
    tokenizer = TOKENIZERS["chat"]
    assert render_prompt(tokenizer, "may I?") == "<|user|>may I?<|end|><|assistant|>"


def test_the_fallback_has_the_prompt_once_and_ends_in_a_line_break():
    rendered = render_prompt(TOKENIZERS["plain"], "a {prompt} in braces")
    assert rendered == PLAIN_FORMAT.replace("{prompt}", "a {prompt} in braces")
    assert rendered.endswith("\n")


@tokenizers
def test_ids_are_those_of_the_rendered_text(name):
    """Independent way: render to text, tokenise once, the model's own way of opening included."""
    tokenizer, prompts, responses = TOKENIZERS[name], ["may I feed the dog", "no"], ["ask her", "feed my dog"]
    kwargs = {"add_special_tokens": name in OPENS}
    for batch, rendered in (
        (encode_prompts(tokenizer, prompts, max_length=LONG), [render_prompt(tokenizer, p) for p in prompts]),
        (
            encode_dialogues(tokenizer, prompts, responses, max_length=LONG),
            [render_prompt(tokenizer, p) + r + "<|end|>" for p, r in zip(prompts, responses, strict=True)],
        ),
    ):
        for row, text in zip(real_rows(batch), rendered, strict=True):
            ids = tokenizer(text, **kwargs)["input_ids"]
            if name == "encoder":  # it has put its own sep behind
                ids = ids[:-1]
            assert row == ids


@tokenizers
@settings(max_examples=25, deadline=None)
@given(dialogues=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_padding_sides_masks_and_prefix(name, dialogues):
    tokenizer = TOKENIZERS[name]
    prompts, responses = map(list, zip(*dialogues, strict=True))
    left = encode_prompts(tokenizer, prompts, max_length=LONG)
    right = encode_dialogues(tokenizer, prompts, responses, max_length=LONG)
    for batch in (left, right):
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert {tensor.dtype for tensor in batch.values()} == {torch.long}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
    assert (left["attention_mask"].diff(dim=1) >= 0).all()  # 0 0 1 1: padding on the left
    assert (right["attention_mask"].diff(dim=1) <= 0).all()  # 1 1 0 0: padding on the right
    end = tokenizer.convert_tokens_to_ids(END)
    for index, (prompt_row, row) in enumerate(zip(real_rows(left), real_rows(right), strict=True)):
        assert row[: len(prompt_row)] == prompt_row
        assert row[-1] == end
        # The response is exactly the bytes given, whatever tokens it spells, and holds no control token.
        response = row[len(prompt_row) : -1]
        assert end not in response
        assert tokenizer.decode(response) == responses[index]
        alone = encode_prompts(tokenizer, [prompts[index]], max_length=LONG)
        assert alone["input_ids"][0].tolist() == prompt_row


@pytest.mark.parametrize("forged", SPECIAL)
@tokenizers
def test_a_prompt_cannot_forge_a_control_token(name, forged):
    tokenizer = TOKENIZERS[name]
    control = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL]
    clean, bad = (
        real_rows(encode_prompts(tokenizer, [text], max_length=LONG))[0]
        for text in ("may I feed", f"may {forged} I feed")
    )
    assert [i for i in clean if i in control] == [i for i in bad if i in control]
    assert forged in tokenizer.decode([i for i in bad if i not in control])


@tokenizers
@settings(max_examples=25, deadline=None)
@given(prompt=texts, response=texts, max_length=st.integers(3, 40))
def test_truncation_keeps_the_opening_and_the_end(name, prompt, response, max_length):
    tokenizer, opening = TOKENIZERS[name], int(name in OPENS)
    for encode, arguments in ((encode_prompts, ([prompt],)), (encode_dialogues, ([prompt], [response]))):
        whole = real_rows(encode(tokenizer, *arguments, max_length=LONG))[0]
        cut = real_rows(encode(tokenizer, *arguments, max_length=max_length))[0]
        assert len(cut) == min(len(whole), max_length)
        assert cut[:opening] == whole[:opening]
        assert cut[opening:] == whole[len(whole) - len(cut) + opening :]


def test_the_mask_tells_a_real_end_from_padding_with_the_same_id():
    tokenizer = TOKENIZERS["chat, pad is eos"]
    batch = encode_dialogues(tokenizer, ["a", "a"], ["no", "ask her, she may know"], max_length=LONG)
    last = batch["attention_mask"].sum(1) - 1
    assert batch["attention_mask"][0, -1] == 0
    assert (batch["input_ids"][torch.arange(2), last] == tokenizer.eos_token_id).all()
    assert (batch["input_ids"][0] == tokenizer.pad_token_id).sum() > (batch["attention_mask"][0] == 0).sum()


def test_an_empty_batch_is_two_empty_tensors():
    for name in ("chat", "plain"):
        assert encode_prompts(TOKENIZERS[name], [], max_length=8)["input_ids"].shape == (0, 0)
        assert encode_dialogues(TOKENIZERS[name], [], [], max_length=8)["attention_mask"].shape == (0, 0)


def test_mistakes_are_told():
    tokenizer = TOKENIZERS["plain with bos"]
    with pytest.raises(UserError, match="max_length: found 1, expected at least 2"):
        encode_prompts(tokenizer, ["p"], max_length=1)
    with pytest.raises(UserError, match="max_length: found 2, expected at least 3"):
        encode_dialogues(tokenizer, ["p"], ["r"], max_length=2)
    with pytest.raises(UserError, match="found 1 prompts and 2 responses"):
        encode_dialogues(tokenizer, ["p"], ["r", "s"], max_length=64)
    endless = build(opening=[], closing=[], template=None)
    with pytest.raises(UserError, match="neither an eos nor a sep token"):
        encode_dialogues(endless, ["p"], ["r"], max_length=64)
