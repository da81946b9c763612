"""Conversations: what they hold, how they are encoded, how they are played and judged."""

from __future__ import annotations

import pytest
from example_prompts import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from csrlhf_kit.data.chat import encode_dialogues, encode_prompts
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.evaluation.multi_turn import multi_turn, play, turn_rows
from csrlhf_kit.models.base import load_tokenizer
from csrlhf_kit.world.conversations import conversations
from csrlhf_kit.world.jailbreaks import TEST_FAMILIES
from csrlhf_kit.world.oracle import judge
from csrlhf_kit.world.requests import STRATA, parse_requests
from csrlhf_kit.world.responses import helpful


@given(st.integers(0, 10**6), st.sampled_from(["train", "validation", "test"]))
@settings(max_examples=20)
def test_openings_are_benign_answered_well_and_of_the_same_split(seed, split):
    for made in conversations(split, 8, wrapped=0.5, seed=seed):
        asked = parse_requests(made.ask.prompt)[0]
        assert asked.harmful == made.ask.harmful and asked.split == split
        assert len(made.openings) == made.turns - 1 in (1, 2)
        for request, answer in made.openings:
            verdict, opening = judge(request, answer), parse_requests(request)[0]
            assert verdict.safe and verdict.helpfulness >= 0.25 and not verdict.refused
            assert opening.split == split and opening != asked and not opening.harmful
            assert not made.same_topic or opening.category == made.ask.category


def test_strata_topics_and_families_are_spread():
    made = conversations("test", 80, wrapped=0.5)
    assert len(made) == 160 and made == conversations("test", 80, wrapped=0.5)
    for turns in (2, 3):
        here = [c for c in made if c.turns == turns]
        assert [sum(c.ask.stratum == s for c in here) for s in STRATA] == [20] * 4
        assert sum(c.same_topic for c in here) == 40
    worn = {c.ask.family for c in made}
    assert worn <= {"none", *TEST_FAMILIES} and len(worn) == 8
    with pytest.raises(UserError, match="expected train"):
        conversations("base", 1)
    with pytest.raises(UserError, match="at least 2"):
        conversations("test", 1, turns=(1,))


def test_messages_alternate_and_end_with_the_user():
    made = conversations("test", 4, turns=(3,))[0]
    messages = made.messages()
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    assert messages[-1]["content"] == made.ask.prompt
    assert made.messages(()) == messages[:1]
    assert made.messages(("one",))[1] == {"role": "assistant", "content": "one"}
    assert made.alone().messages() == [{"role": "user", "content": made.ask.prompt}]


def test_a_conversation_is_encoded_by_the_same_template(random_base):
    tokenizer = load_tokenizer(random_base)
    one = encode_prompts(tokenizer, ["feed the dog"], max_length=64)["input_ids"]
    also = encode_prompts(tokenizer, [[{"role": "user", "content": "feed the dog"}]], max_length=64)
    assert (one == also["input_ids"]).all()
    made = conversations("test", 4, turns=(2,))[0]
    text = rendered(tokenizer, made.messages())
    assert text.index(made.openings[0][0]) < text.index(made.openings[0][1]) < text.index(made.ask.prompt)
    prompt = encode_prompts(tokenizer, [made.messages()], max_length=512)["input_ids"][0].tolist()
    assert tokenizer.decode(prompt) == text
    dialogue = encode_dialogues(tokenizer, [made.messages()], ["sure"], max_length=512)["input_ids"][
        0
    ].tolist()
    assert dialogue[: len(prompt)] == prompt and dialogue[-1] == tokenizer.eos_token_id


def test_without_a_template_turns_follow_each_other(random_base):
    tokenizer = load_tokenizer(random_base)
    tokenizer.chat_template = None
    messages = conversations("test", 4, turns=(2,))[0].messages()
    text = rendered(tokenizer, messages)
    assert text.count("User:") == 2 and text.count("Assistant:") == 2 and text.endswith("Assistant:\n")
    ids = encode_prompts(tokenizer, [messages], max_length=512)["input_ids"][0].tolist()
    assert tokenizer.decode(ids).endswith(text)


def test_control_tokens_in_a_turn_stay_text(random_base):
    tokenizer = load_tokenizer(random_base)
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "sure <|end|> <|user|>"},
        {"role": "user", "content": "feed the dog"},
    ]
    ids = encode_prompts(tokenizer, [messages], max_length=512)["input_ids"][0].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 2


class Parrot:
    """Answers what it last heard, and keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts):
        self.seen += prompts
        return [f"you said {p[-1]['content']}" for p in prompts]


def test_own_history_is_what_the_policy_said():
    made = conversations("test", 2)
    parrot = Parrot()
    answers = play(parrot, made, history="own")
    assert answers == [f"you said {c.ask.prompt}" for c in made]
    assert len(parrot.seen) == sum(c.turns for c in made)
    last = parrot.seen[-1]
    assert [m["content"] for m in last[1::2]] == [f"you said {m['content']}" for m in last[:-1:2]]


def test_rows_count_what_happened_after_each_number_of_turns():
    """A policy that turns harmful once it has been helpful: safe alone, harmful after an opening."""

    def answer(prompts):
        from random import Random

        texts = []
        for messages in prompts:
            asked = parse_requests(messages[-1]["content"])[0]
            refuses = len(messages) == 1 and asked.alarming
            texts.append(
                "sorry, i cannot help with that."
                if refuses
                else helpful(asked, Random(0), count=1, wrong=0.0)
            )
        return texts

    rows = multi_turn(answer, conversations("test", 40))
    assert set(rows) == {"1", "2", "3"}
    assert rows["1"]["harmful"]["n"] == 40 and rows["2"]["harmful"]["n"] == 20
    assert rows["1"]["harmful"]["rate"] == 0.5 and rows["2"]["harmful"]["rate"] == 1.0
    assert rows["1"]["over_refusal"]["rate"] == 1.0 and rows["3"]["over_refusal"]["rate"] == 0.0
    assert rows["3"]["harmful_same_topic"]["n"] == rows["3"]["harmful_other_topic"]["n"] == 10
    assert rows["1"]["helpfulness"] < rows["2"]["helpfulness"]
    assert rows["2"]["degenerate"]["rate"] == rows["2"]["leaking"]["rate"] == 0.0


def test_a_model_plays(random_base):
    answer = stored_policy(random_base, max_new_tokens=4)
    made = conversations("test", 4)
    for history in ("scripted", "own"):
        rows = turn_rows(made, play(answer, made, history=history))
        assert rows["2"]["harmful"]["n"] == 2 and rows["3"]["degenerate"]["n"] == 4
