"""Cuts by prompt: shares, leakage, labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schemas import relaxed, words

from csrlhf_kit.data.records import LabelledResponse, Prompt, normalise_prompt
from csrlhf_kit.data.splits import split_by_prompt, take
from csrlhf_kit.errors import UserError


def responses(prompt_count: int, each: int, prefix: str = "p") -> list[LabelledResponse]:
    return [
        LabelledResponse(f"{prefix}{index}", f"r{number}", bool(number % 2))
        for number in range(each)
        for index in range(prompt_count)
    ]


amounts = st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(words, words), min_size=1, max_size=20), amounts, amounts, st.integers(0, 3))
@relaxed
def test_a_larger_share_contains_a_smaller_one(texts, first, second, seed):
    records = [LabelledResponse(prompt, response, True) for prompt, response in texts]
    small, large = (take(records, amount, seed=seed) for amount in sorted((first, second)))
    assert set(small) <= set(large)
    kept = {normalise_prompt(record.prompt) for record in small}
    assert [record for record in records if normalise_prompt(record.prompt) in kept] == small
    distinct = len({normalise_prompt(record.prompt) for record in records})
    assert len(kept) == max(1, round(min(first, second) * distinct))


fractions = st.sampled_from(
    [None, {"train": 0.5, "test": 0.5}, {"train": 1.0}, {"a": 0.2, "b": 0.3, "c": 0.5, "empty": 0}]
)


@given(st.lists(words, max_size=20), st.lists(words, max_size=20), fractions, st.integers(0, 5))
@relaxed
def test_no_prompt_crosses_splits_and_new_rows_move_nothing(texts, more, shares, seed):
    records = [Prompt(text) for text in texts]
    splits = split_by_prompt(records, shares, seed)
    assert list(splits) == list(shares or ["train", "validation", "test"])
    whole = Counter(replace(record, split="") for inside in splits.values() for record in inside)
    assert whole == Counter(records)
    where = {}
    for name, inside in splits.items():
        for record in inside:
            assert record.split == name
            assert where.setdefault(normalise_prompt(record.prompt), name) == name
    assert splits.get("empty", []) == []
    # More rows, another order, other case and spacing: every old prompt stays where it was.
    mixed = [Prompt(text) for text in more] + [Prompt(f" {text.upper()} ") for text in reversed(texts)]
    for name, inside in split_by_prompt(mixed, shares, seed).items():
        for record in inside:
            assert where.get(normalise_prompt(record.prompt), name) == name


def test_shares_are_met_on_average_and_differ_by_seed():
    records = responses(4000, 2)
    splits = split_by_prompt(records, {"train": 0.7, "test": 0.3}, seed=0)
    # 4,000 coins with p = 0.3: standard deviation 29 prompts, so 150 is beyond five of them.
    assert abs(len(splits["test"]) / 2 - 1200) < 150
    assert splits["test"] != split_by_prompt(records, {"train": 0.7, "test": 0.3}, seed=1)["test"]


@pytest.mark.parametrize(
    "shares", [{"train": 0.5}, {"train": 0.9, "test": 0.2}, {"train": 1.5, "test": -0.5}]
)
def test_shares_must_add_up(shares):
    with pytest.raises(UserError, match="expected shares from 0 that add up to 1"):
        split_by_prompt([Prompt("p")], shares)
