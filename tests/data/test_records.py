from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrlhf_kit.data.records import (
    LabelledResponse,
    PreferencePair,
    Prompt,
    from_row,
    normalise_prompt,
    to_row,
)
from csrlhf_kit.errors import UserError

text = st.text(max_size=40)
filled = st.text(min_size=1, max_size=40).filter(str.strip)
maybe = st.none() | st.booleans()

prompts = st.builds(Prompt, filled, text, text, text, text, maybe, text)
labelled = st.builds(
    LabelledResponse,
    filled,
    filled,
    st.booleans(),
    category=text,
    stratum=text,
    kind=text,
    family=text,
    harmful=maybe,
    helpfulness=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 1),
    split=text,
)
ids = st.integers(0, 1)
pairs = st.builds(PreferencePair, filled, filled, filled, maybe, maybe, ids, ids, text, text, text)

PAIR = PreferencePair("p", "a", "b", True, False, 0, 0)
RESPONSE = LabelledResponse("p", "r", True)


@given(prompts | labelled | pairs)
def test_a_record_survives_its_row_and_json(record):
    row = json.loads(json.dumps(to_row(record)))
    assert from_row(type(record), row) == record
    assert list(row) == [field.name for field in dataclasses.fields(record)]


def test_records_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIR.prompt = "other"
    assert len({PAIR, dataclasses.replace(PAIR), RESPONSE, Prompt("p"), Prompt("p")}) == 3


@pytest.mark.parametrize(
    ("record", "name", "value", "expected"),
    [
        (Prompt("p"), "prompt", "", "text that is not empty"),
        (Prompt("p"), "prompt", " \n\t", "text that is not empty"),
        (Prompt("p"), "prompt", None, "text that is not empty"),
        (Prompt("p"), "prompt", "half \ud800", "valid Unicode"),
        (Prompt("p"), "id", 7, "expected text"),
        (Prompt("p"), "family", None, "expected text"),
        (Prompt("p"), "harmful", 1, "true, false or null"),
        (Prompt("p"), "harmful", "yes", "true, false or null"),
        (RESPONSE, "response", "", "text that is not empty"),
        (RESPONSE, "is_safe", None, "true or false"),
        (RESPONSE, "is_safe", "Safe", "true or false"),
        (RESPONSE, "helpfulness", math.nan, "a finite number"),
        (RESPONSE, "helpfulness", math.inf, "a finite number"),
        (RESPONSE, "helpfulness", "0.5", "a finite number"),
        (RESPONSE, "helpfulness", True, "a finite number"),
        (PAIR, "response_1", "  ", "text that is not empty"),
        (PAIR, "is_response_0_safe", 0, "true, false or null"),
        (PAIR, "better_response_id", 2, "0 or 1"),
        (PAIR, "better_response_id", True, "0 or 1"),
        (PAIR, "safer_response_id", -1, "0 or 1"),
        (PAIR, "safer_response_id", 1.0, "0 or 1"),
        (PAIR, "safer_response_id", None, "0 or 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(record, name, value, expected):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(record, **{name: value})
    assert str(caught.value).startswith(f"field `{name}`: found ")
    assert expected in str(caught.value)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UserError) as caught:
        Prompt("p", id=["x" * 10_000])
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("kind", [Prompt, LabelledResponse, PreferencePair])
def test_missing_fields_are_all_named(kind):
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    with pytest.raises(UserError) as caught:
        from_row(kind, {"unknown": 1})
    assert all(f"`{name}`" in str(caught.value) for name in required)


def test_unknown_keys_are_ignored():
    assert from_row(Prompt, {"prompt": "p", "sha256": "0"}) == Prompt("p")


@pytest.mark.parametrize("safer", [0, 1])
@pytest.mark.parametrize("first", [None, False, True])
@pytest.mark.parametrize("second", [None, False, True])
def test_a_conflict_is_an_unsafe_response_called_safer_than_a_safe_one(first, second, safer):
    pair = PreferencePair("p", "a", "b", first, second, 0, safer)
    expected = (first, second, safer) in {(False, True, 0), (True, False, 1)}
    assert pair.has_label_conflict is expected
    assert pair.responses == ("a", "b")
    assert pair.safety == (first, second)


@given(st.text())
def test_normalising_is_idempotent_and_ignores_case_and_spacing(prompt):
    once = normalise_prompt(prompt)
    assert normalise_prompt(once) == once
    assert normalise_prompt(f"  {prompt}\n") == once
    assert normalise_prompt("Kill\u00a0the  PROCESS") == normalise_prompt("kill the process")
    assert normalise_prompt("kill the processes") != normalise_prompt("kill the process")
