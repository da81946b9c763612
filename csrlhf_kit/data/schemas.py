"""The table layouts that the kit can read, recognised by their columns, and how their rows become records.

| schema | recognised by | becomes |
|---|---|---|
| the kit's own | the record's field names | that record |
| PKU-SafeRLHF, old and new | two responses, two judgements | pairs, labelled responses, prompts |
| HH-RLHF | `chosen`, `rejected` transcripts | pairs, prompts |
| BeaverTails | `category` (14 booleans), `is_safe` | labelled responses, prompts |
| CS-RLHF | `label` Safe or Unsafe | labelled responses, prompts |
| XSTest | `type`, `label` safe or unsafe | prompts |
| JailbreakBench | `Goal`, `Category` | prompts |

Sources: arXiv 2406.15513 (PKU-SafeRLHF), 2204.05862 (HH-RLHF), 2307.04657 (BeaverTails),
2510.03520 (CS-RLHF), 2308.01263 (XSTest), 2404.01318 (JailbreakBench).

`SCHEMAS` is that table in code: a new layout is one more entry. The functions here see one row at a time;
`csrlhf_kit.data.sources` adds the file and the line to the errors they raise. Builds on records.py.
"""

from __future__ import annotations

import ast
import contextlib
import json
import warnings
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

from csrlhf_kit.data.records import (
    LabelledResponse,
    PreferencePair,
    Prompt,
    Record,
    from_row,
    is_missing,
    refuse,
)
from csrlhf_kit.data.tables import Row


class RowDropped(Exception):
    """A well-formed row that is of no use for learning; the message is the reason, by which reports count it."""


CONFLICT = "conflicting_labels"
"""Reason: the "safer" response is labelled unsafe, and the other one safe."""
UNUSABLE_TRANSCRIPT = "unusable_transcripts"
"""Reason: HH-RLHF's two transcripts diverge before the last turn, or do not end in an answer."""


# --- single values: JSON has types, CSV has only text ---------------------------------------------------


# pandas makes 1.0 of an integer in a column that has gaps.
_IDS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
_FLAGS = {word: bool(number) for word, number in _IDS.items()}
_FLAGS |= {"true": True, "yes": True, "false": False, "no": False}


def to_flag(value: Any, name: str) -> bool:
    """A boolean from true/false, yes/no, 0/1 or 0.0/1.0, also as text in any case; others raise UserError."""
    return _choose(value, name, _FLAGS, expected="true or false (or yes, no, 0, 1)")


def to_safety(value: Any, name: str) -> bool:
    """True for safe: from the words Safe and Unsafe, or as `to_flag` reads it."""
    words = {**_FLAGS, "safe": True, "unsafe": False}
    return _choose(value, name, words, expected='true or false (or yes, no, 0, 1, "Safe", "Unsafe")')


def to_label(value: Any, name: str) -> bool:
    """True for Safe, False for Unsafe. A number is refused: data sets disagree on what 1 means."""
    return _choose(value, name, {"safe": True, "unsafe": False}, expected='"Safe" or "Unsafe"')


def to_id(value: Any, name: str) -> int:
    """A response's id, 0 or 1, from a number or text; others raise UserError."""
    if isinstance(value, bool):
        refuse(name, value, "0 or 1")
    return _choose(value, name, _IDS, expected="0 or 1")


def to_number(value: Any, name: str) -> float:
    """A number from text that spells one, else UserError; other values are returned as they are."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            refuse(name, value, "a number")
    return value


def to_categories(value: Any, name: str) -> str:
    """The true names of a dictionary of booleans (BeaverTails, PKU-SafeRLHF), joined by "; ".

    Text is returned as it is, unless it spells such a dictionary, as in a CSV export. Others raise UserError.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                with warnings.catch_warnings(action="ignore"):  # about odd backslashes
                    value = parse(value)
                break
    if is_missing(value):
        return ""
    named = isinstance(value, dict) and all(isinstance(category, str) for category in value)
    if named and all(isinstance(flag, bool) for flag in value.values()):
        return "; ".join(category for category, flag in value.items() if flag)
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        refuse(name, value, "text, or a dictionary of category names to booleans")
    return value


def _choose(value: Any, name: str, words: dict[str, Any], *, expected: str) -> Any:
    if isinstance(value, int | float) and value not in (0, 1):  # str() of a huge integer raises
        refuse(name, value, expected)
    key = str(value).strip().casefold() if isinstance(value, str | int | float) else None
    if key not in words:
        refuse(name, value, expected)
    return words[key]


# --- the kit's own layout -------------------------------------------------------------------------------

_NOT_TEXT: dict[str, Callable[[Any, str], Any]] = {
    "is_safe": to_safety,
    "harmful": to_flag,
    "is_response_0_safe": to_safety,
    "is_response_1_safe": to_safety,
    "better_response_id": to_id,
    "safer_response_id": to_id,
    "helpfulness": to_number,
}


def own_record(kind: type, row: Row) -> Record:
    """A record from a row with its field names. Null, or an empty cell that is not text, means "not given"."""
    values = {}
    for field in fields(kind):
        if field.name not in row:
            continue
        value, parse = row[field.name], _NOT_TEXT.get(field.name)
        nullable = field.default is not MISSING or field.name in ("is_response_0_safe", "is_response_1_safe")
        if nullable and is_missing(value) and (parse or not isinstance(value, str)):
            values[field.name] = None if field.default is MISSING else field.default
        else:
            values[field.name] = parse(value, field.name) if parse else value
    return from_row(kind, values)


def _own_labelled(row: Row) -> list[Record]:
    return [own_record(LabelledResponse, row)]


def _own_pair(row: Row) -> list[Record]:
    return [_checked(own_record(PreferencePair, row))]


def _own_pair_prompt(row: Row) -> list[Record]:
    pair = own_record(PreferencePair, row)
    return [Prompt(pair.prompt, category=pair.category, stratum=pair.stratum, split=pair.split)]


def _own_pair_responses(row: Row) -> list[Record]:
    pair = _own_pair(row)[0]
    return _responses(pair, (pair.category, pair.category))


def _checked(pair: PreferencePair) -> PreferencePair:
    if pair.has_label_conflict:
        raise RowDropped(CONFLICT)
    return pair


def _responses(pair: PreferencePair, categories: tuple[str, str]) -> list[Record]:
    """The two sides of a pair as responses with absolute labels."""
    for index, flag in enumerate(pair.safety):
        if flag is None:
            refuse(
                f"is_response_{index}_safe", flag, "true or false, to read a pair as two labelled responses"
            )
    return [
        LabelledResponse(
            pair.prompt, response, flag, category=category, stratum=pair.stratum, split=pair.split
        )
        for response, flag, category in zip(pair.responses, pair.safety, categories, strict=True)
    ]


# --- published layouts ----------------------------------------------------------------------------------


def _pku_categories(row: Row) -> tuple[str, str]:
    names = ("response_0_harm_category", "response_1_harm_category")
    return tuple(to_categories(row.get(name), name) for name in names)


def _pku_pair(row: Row) -> list[Record]:
    both = [name for text in _pku_categories(row) for name in text.split("; ") if name]
    pair = PreferencePair(
        prompt=row["prompt"],
        response_0=row["response_0"],
        response_1=row["response_1"],
        is_response_0_safe=to_safety(row["is_response_0_safe"], "is_response_0_safe"),
        is_response_1_safe=to_safety(row["is_response_1_safe"], "is_response_1_safe"),
        better_response_id=to_id(row["better_response_id"], "better_response_id"),
        safer_response_id=to_id(row["safer_response_id"], "safer_response_id"),
        category="; ".join(dict.fromkeys(both)),
    )
    return [_checked(pair)]


def _pku_responses(row: Row) -> list[Record]:
    return _responses(_pku_pair(row)[0], _pku_categories(row))


def _pku_prompt(row: Row) -> list[Record]:
    return [Prompt(row["prompt"])]


def split_transcript(text: Any, name: str) -> tuple[str, str]:
    """An HH-RLHF transcript as (prompt, response), split at the last assistant turn.

    A single question loses its "Human:" mark; in a longer dialogue, the earlier turns stay in the prompt as
    text, with their marks.

    Raises RowDropped if there is no question or no answer, or the last turn is the human's. Raises UserError if
    the text has no marked turns at all.
    """
    human, assistant = "\n\nHuman:", "\n\nAssistant:"
    if not isinstance(text, str) or (human not in text and assistant not in text):
        refuse(name, text, "a transcript of `Human:` and `Assistant:` turns, each after an empty line")
    before, _, response = text.rpartition(assistant)
    turns = before.count(human) + before.count(assistant)
    prompt = before.removeprefix(human) if turns == 1 else before
    answered = prompt.strip() and response.strip() and human not in response
    if not answered or not text.startswith(human):
        raise RowDropped(UNUSABLE_TRANSCRIPT)
    return prompt.strip(), response.strip()


def _hh_pair(row: Row) -> list[Record]:
    prompt, chosen = split_transcript(row["chosen"], "chosen")
    other_prompt, rejected = split_transcript(row["rejected"], "rejected")
    if prompt != other_prompt:
        raise RowDropped(UNUSABLE_TRANSCRIPT)
    # The only judgement is one overall preference: it stands for both, as the schema's `notes` say.
    return [PreferencePair(prompt, chosen, rejected, None, None, better_response_id=0, safer_response_id=0)]


def _hh_prompt(row: Row) -> list[Record]:
    return [Prompt(split_transcript(row["chosen"], "chosen")[0])]


def _beavertails(row: Row) -> list[Record]:
    name = "category" if "category" in row else "harm_category"
    is_safe = to_safety(row["is_safe"], "is_safe")
    category = to_categories(row.get(name), name)
    return [LabelledResponse(row["prompt"], row["response"], is_safe, category=category)]


def _cs_rlhf(row: Row) -> list[Record]:
    return [LabelledResponse(row["prompt"], row["response"], to_label(row["label"], "label"))]


def _xstest(row: Row) -> list[Record]:
    harmful = not to_label(row["label"], "label")
    name = "" if is_missing(row.get("id")) else str(row["id"])
    return [Prompt(row["prompt"], id=name, category=_text(row, "type", ""), harmful=harmful)]


def _jailbreakbench(row: Row) -> list[Record]:
    return [Prompt(_text(row, "Goal"), category=_text(row, "Category", ""))]


def _text(row: Row, name: str, default: str | None = None) -> str:
    """Text from a column whose name is no field of the record, so that errors name the column."""
    if is_missing(row[name]) and default is not None:
        return default
    if not isinstance(row[name], str) or not row[name].strip():
        refuse(name, row[name], "text that is not empty")
    return row[name]


def _own_prompt(row: Row) -> list[Record]:
    return [own_record(Prompt, row)]


def _prompt_of(make: Callable[[Row], list[Record]], row: Row) -> list[Record]:
    """The request of a labelled response, with what the row says about it."""
    record = make(row)[0]
    names = ("prompt", "category", "stratum", "family", "harmful", "split")
    return [Prompt(**{name: getattr(record, name) for name in names})]


# --- the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """One table layout: how it is recognised, and which records its rows can become."""

    name: str
    """Its name in messages and reports."""
    columns: frozenset[str]
    """The columns that every row must have."""
    makes: dict[type, Callable[[Row], list[Record]]]
    """For each kind of record, the function from a row to its records."""
    lacks: str = ""
    """Why it cannot become other kinds."""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""


_ONE_RESPONSE = "its rows hold one response each, and a preference compares two responses to one prompt"
_NO_RESPONSE = "its rows hold prompts without responses"
_ONE_JUDGEMENT = "its rows prefer one response to another and label neither safe or unsafe"


def _labelled(name: str, columns: str, make: Callable[[Row], list[Record]]) -> Schema:
    makes = {LabelledResponse: make, Prompt: partial(_prompt_of, make)}
    return Schema(name, frozenset(columns.split()), makes, _ONE_RESPONSE)


_PAIR = (
    "prompt response_0 response_1 is_response_0_safe is_response_1_safe better_response_id safer_response_id"
)
_PKU = {PreferencePair: _pku_pair, LabelledResponse: _pku_responses, Prompt: _pku_prompt}
_OWN_PROMPT = {Prompt: _own_prompt}
_OWN_PAIR = {PreferencePair: _own_pair, LabelledResponse: _own_pair_responses, Prompt: _own_pair_prompt}

SCHEMAS: tuple[Schema, ...] = (
    Schema("kit preference pairs", frozenset([*_PAIR.split(), "category", "stratum", "split"]), _OWN_PAIR),
    Schema(
        "PKU-SafeRLHF (new columns)",
        frozenset([*_PAIR.split(), "response_0_harm_category", "response_1_harm_category"]),
        _PKU,
    ),
    Schema("PKU-SafeRLHF", frozenset(_PAIR.split()), _PKU),
    Schema(
        "HH-RLHF",
        frozenset({"chosen", "rejected"}),
        {PreferencePair: _hh_pair, Prompt: _hh_prompt},
        _ONE_JUDGEMENT,
        ("HH-RLHF has one judgement per pair: the chosen response is read as the better and the safer one",),
    ),
    _labelled("kit labelled responses", "prompt response is_safe kind stratum", _own_labelled),
    _labelled("BeaverTails", "prompt response is_safe category", _beavertails),
    _labelled("PKU-SafeRLHF-QA", "prompt response is_safe harm_category", _beavertails),
    _labelled("labelled responses", "prompt response is_safe", _own_labelled),
    _labelled("CS-RLHF", "prompt response label", _cs_rlhf),
    Schema("XSTest", frozenset({"prompt", "type", "label"}), {Prompt: _xstest}, _NO_RESPONSE),
    Schema("JailbreakBench", frozenset({"Goal", "Category"}), {Prompt: _jailbreakbench}, _NO_RESPONSE),
    Schema("kit prompts", frozenset({"prompt", "stratum", "family", "harmful"}), _OWN_PROMPT, _NO_RESPONSE),
    Schema("prompts", frozenset({"prompt"}), _OWN_PROMPT, _NO_RESPONSE),
)
"""Every layout, those with most columns first: the first whose columns are all present is taken."""

_BESIDE_PROMPT = {field.name for field in fields(Prompt)} | {"category_id", "source", "target"}


def recognise(columns: Collection[str]) -> Schema | None:
    """The first schema whose columns are all in `columns`, or None.

    If only `prompt` is recognised, all other columns must be ones that go with prompts: a table of prompts and
    unlabelled completions is refused rather than half read.
    """
    for schema in SCHEMAS:
        if schema.columns.issubset(columns):
            return None if schema.name == "prompts" and not _BESIDE_PROMPT.issuperset(columns) else schema
    return None


def known_schemas() -> str:
    """The schemas and their columns, as an error message lists them."""
    return "; ".join(f"{schema.name} ({', '.join(sorted(schema.columns))})" for schema in SCHEMAS)
