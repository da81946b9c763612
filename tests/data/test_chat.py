from __future__ import annotations

import pytest
import torch
from example_prompts import rendered
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from csrlhf_kit.data.chat import (
    PLAIN_FORMAT,
    encode_dialogues,
    encode_prompts,
    fit_prompts,
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
    ids = encode_prompts(TOKENIZERS["chat"], ["may I?"], max_length=LONG)["input_ids"][0]
    assert TOKENIZERS["chat"].decode(ids) == "<|user|>may I?<|end|><|assistant|>"


def test_the_fallback_has_the_prompt_once_and_ends_in_a_line_break():
    ids = encode_prompts(TOKENIZERS["plain"], ["a {prompt} in braces"], max_length=LONG)["input_ids"][0]
    text = TOKENIZERS["plain"].decode(ids)
    assert text == PLAIN_FORMAT.replace("{prompt}", "a {prompt} in braces") and text.endswith("\n")


@tokenizers
def test_ids_are_those_of_the_rendered_text(name):
    """Independent way: render to text, tokenise once, the model's own way of opening included."""
    tokenizer, prompts, responses = TOKENIZERS[name], ["may I feed the dog", "no"], ["ask her", "feed my dog"]
    kwargs = {"add_special_tokens": name in OPENS}
    for batch, texts in (
        (encode_prompts(tokenizer, prompts, max_length=LONG), [rendered(tokenizer, p) for p in prompts]),
        (
            encode_dialogues(tokenizer, prompts, responses, max_length=LONG),
            [rendered(tokenizer, p) + r + "<|end|>" for p, r in zip(prompts, responses, strict=True)],
        ),
    ):
        for row, text in zip(real_rows(batch), texts, strict=True):
            ids = tokenizer(text, **kwargs)["input_ids"]
            if name == "encoder":  # it has put its own sep behind
                ids = ids[:-1]
            assert row == ids


@tokenizers
@settings(max_examples=25)
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
@settings(max_examples=25)
@given(prompt=texts, response=texts, room=st.integers(5, 30))
def test_what_is_cut_is_the_request_and_the_template_stays(name, prompt, response, room):
    tokenizer = TOKENIZERS[name]
    control = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    head, tail = rendered(tokenizer, "\x00").split("\x00")
    frame = encode_prompts(tokenizer, ["a"], max_length=LONG)["input_ids"].shape[1] - 1
    for encode, arguments in ((encode_prompts, ([prompt],)), (encode_dialogues, ([prompt], [response]))):
        whole = real_rows(encode(tokenizer, *arguments, max_length=LONG))[0]
        size = (
            frame
            + room
            + (len(whole) - len(real_rows(encode_prompts(tokenizer, [prompt], max_length=LONG))[0]))
        )
        cut = real_rows(encode(tokenizer, *arguments, max_length=size))[0]
        if len(whole) <= size:
            assert cut == whole
            continue
        assert size - 4 < len(cut) <= size  # a character has at most four tokens
        assert [i for i in cut if i in control] == [i for i in whole if i in control]
        text = tokenizer.decode(cut).removeprefix(OPEN if name in OPENS else "")
        left = text[len(head) :].split(tail)[0]
        assert text.startswith(head) and tail in text
        assert left and prompt.endswith(left)


@pytest.mark.parametrize("side", ["left", "right"])
@tokenizers
def test_a_response_that_leaves_no_room_loses_its_first_tokens(name, side):
    tokenizer = TOKENIZERS[name]
    tokenizer.truncation_side = side  # a habit of the tokenizer's, which changes nothing
    whole = encode_dialogues(tokenizer, ["may I", "no"], ["feed the dog " * 9, "no"], max_length=LONG)
    frame = encode_prompts(tokenizer, ["a"], max_length=LONG)["input_ids"].shape[1] - 1
    batch = encode_dialogues(tokenizer, ["may I", "no"], ["feed the dog " * 9, "no"], max_length=frame + 9)
    first, second = real_rows(batch)
    assert batch["cut"].tolist() == [2, 0] and whole["cut"].tolist() == [0, 0]
    assert first[:frame] == real_rows(encode_prompts(tokenizer, [""], max_length=LONG))[0]
    assert first[frame:] == real_rows(whole)[0][-9:] and second == real_rows(whole)[1]


TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "may I feed the dog"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "may I ask her, the neighbour"},
]


@pytest.mark.parametrize("name", ["chat", "plain with bos"])
def test_a_conversation_loses_its_oldest_exchanges_and_then_the_request_its_beginning(name, capsys):
    tokenizer = TOKENIZERS[name]
    last = [TURNS[0], TURNS[3]]
    room = encode_prompts(tokenizer, [last], max_length=LONG)["input_ids"].shape[1]
    fitted = fit_prompts(tokenizer, [TURNS, "no"], max_length=room + 1, tell=True)
    assert fitted == [last, "no"]
    assert "1 of 2 prompts have more than" in capsys.readouterr().out
    (head, request), *_ = fit_prompts(tokenizer, [TURNS], max_length=room - 3)
    assert head == TURNS[0] and TURNS[3]["content"].endswith(request["content"]) and request != TURNS[3]
    assert fit_prompts(tokenizer, [TURNS], max_length=LONG, tell=True) == [TURNS]
    assert capsys.readouterr().out == ""


def test_a_tokenizer_without_offsets_is_cut_as_well():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    (left,) = fit_prompts(tokenizer, ["abc " * 20 + "the end"], max_length=40)
    ids = encode_prompts(tokenizer, [left], max_length=40)["input_ids"]
    assert left.endswith("the end") and ids.shape == (1, 40)


@pytest.mark.parametrize(
    ("turns", "why"),
    [(TURNS[:2], "no system role"), ([TURNS[1], TURNS[1]], "turns must alternate")],
)
def test_a_template_that_refuses_gives_a_sentence(turns, why):
    picky = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}"
        + TEMPLATE.removeprefix("{% for m in messages %}")
    )
    tokenizer = build(opening=[], closing=[], template=picky, eos_token=END, pad_token=PAD)
    roles = ", ".join(turn["role"] for turn in turns)
    for ask in (
        lambda: encode_prompts(tokenizer, [turns], max_length=LONG),
        lambda: encode_prompts(tokenizer, ["no", turns, TURNS[1:]], max_length=LONG),
        lambda: encode_dialogues(tokenizer, ["no", turns], ["a", "b"], max_length=LONG),
    ):
        with pytest.raises(UserError, match=rf"refuses turns of {roles} \({why}"):
            ask()


def test_a_template_that_fails_gives_a_sentence():
    tokenizer = build(opening=[], closing=[], template="{{ 1 / 0 }}", eos_token=END, pad_token=PAD)
    with pytest.raises(UserError, match=r"refuses turns of user \(division by zero\)"):
        encode_prompts(tokenizer, ["may I?"], max_length=LONG)


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
    least = encode_prompts(tokenizer, ["p"], max_length=LONG)["input_ids"].shape[1]
    with pytest.raises(UserError, match=f"max_length: found {least - 1}, expected at least {least} "):
        encode_prompts(tokenizer, ["p"], max_length=least - 1)
    with pytest.raises(UserError, match=f"max_length: found {least}, expected at least {least + 1} "):
        encode_dialogues(tokenizer, ["p"], ["r"], max_length=least)
    with pytest.raises(UserError, match="found 1 prompts and 2 responses"):
        encode_dialogues(tokenizer, ["p"], ["r", "s"], max_length=64)
    endless = build(opening=[], closing=[], template=None)
    with pytest.raises(UserError, match="neither an eos nor a sep token"):
        encode_dialogues(endless, ["p"], ["r"], max_length=64)
