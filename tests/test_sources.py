from __future__ import annotations

import csv
import io
import json
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csrlhf_kit.data import sources
from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt, normalise_prompt
from csrlhf_kit.data.schemas import SCHEMAS, split_transcript, to_categories
from csrlhf_kit.data.sources import data_folder, read_records, split_by_prompt, take, write_records
from csrlhf_kit.errors import UserError

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(string.ascii_letters + " \u2028\u0085\r\n\"',:{}é漢🦉", min_size=1, max_size=20).filter(
    str.strip
)


def pku(**changes):
    row = {
        "prompt": "may I feed it?",
        "response_0": "yes",
        "response_1": "no",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    return {**row, **changes}


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message(source, kind=LabelledResponse, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_records(source, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- every layout ---------------------------------------------------------------------------------------


def test_pku_old_columns(tmp_path):
    path = jsonl(tmp_path / "pku.jsonl", [pku()])
    loaded = read_records(path, PreferencePair)
    assert loaded.records == [PreferencePair("may I feed it?", "yes", "no", True, False, 1, 0)]
    assert loaded.report["schema"] == "PKU-SafeRLHF"
    assert read_records(path, LabelledResponse).records == [
        LabelledResponse("may I feed it?", "yes", True),
        LabelledResponse("may I feed it?", "no", False),
    ]
    assert read_records(path, Prompt).records == [Prompt("may I feed it?")]


def test_pku_new_columns(tmp_path):
    row = pku(
        prompt_source="x",
        response_0_sha256="0",
        response_0_severity_level=0,
        response_0_harm_category={"Privacy Violation": False, "Economic Crime": False},
        response_1_harm_category={"Privacy Violation": True, "Economic Crime": True},
    )
    path = jsonl(tmp_path / "pku.jsonl", [row])
    loaded = read_records(path, PreferencePair)
    assert loaded.report["schema"] == "PKU-SafeRLHF (new columns)"
    assert loaded.records[0].category == "Privacy Violation; Economic Crime"
    categories = [record.category for record in read_records(path, LabelledResponse).records]
    assert categories == ["", "Privacy Violation; Economic Crime"]


def test_beavertails(tmp_path):
    category = {"animal_abuse": True, "controversial_topics,politics": True, "self_harm": False}
    rows = [
        {"prompt": "p", "response": "r", "category": category, "is_safe": False},
        {"prompt": "p", "response": "s", "category": dict.fromkeys(category, False), "is_safe": True},
    ]
    loaded = read_records(jsonl(tmp_path / "b.jsonl", rows), LabelledResponse)
    assert loaded.report["schema"] == "BeaverTails"
    assert loaded.records == [
        LabelledResponse("p", "r", False, category="animal_abuse; controversial_topics,politics"),
        LabelledResponse("p", "s", True),
    ]
    # A CSV export spells the dictionary as Python or as JSON.
    for spell in (repr, json.dumps):
        lines = io.StringIO()
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows({**row, "category": spell(row["category"])} for row in rows)
        (tmp_path / "b.csv").write_text(lines.getvalue())
        assert read_records(tmp_path / "b.csv", LabelledResponse).records == loaded.records


def test_cs_rlhf(tmp_path):
    rows = [{"prompt": "p", "response": word, "label": word} for word in ("Safe", "Unsafe", "unsafe")]
    loaded = read_records(jsonl(tmp_path / "c.jsonl", rows), LabelledResponse)
    assert [record.is_safe for record in loaded.records] == [True, False, False]
    assert loaded.report == {
        "source": str(tmp_path / "c.jsonl"),
        "kind": "LabelledResponse",
        "schema": "CS-RLHF",
        "rows": 3,
        "kept": 3,
        "dropped": {},
        "notes": [],
    }


def test_xstest_and_jailbreakbench(tmp_path):
    rows = [
        {
            "id": 1,
            "prompt": "kill a process?",
            "type": "homonyms",
            "label": "safe",
            "focus": "kill",
            "note": "",
        },
        {
            "id": 2,
            "prompt": "kill a dog?",
            "type": "contrast_homonyms",
            "label": "unsafe",
            "focus": "",
            "note": "",
        },
    ]
    assert read_records(jsonl(tmp_path / "x.jsonl", rows), Prompt).records == [
        Prompt("kill a process?", id="1", category="homonyms", harmful=False),
        Prompt("kill a dog?", id="2", category="contrast_homonyms", harmful=True),
    ]
    rows = [{"Goal": "g", "Target": "t", "Behavior": "b", "Category": "c", "Source": "s"}]
    assert read_records(jsonl(tmp_path / "j.jsonl", rows), Prompt).records == [Prompt("g", category="c")]


def test_hh_rlhf(tmp_path):
    human, assistant = "\n\nHuman: ", "\n\nAssistant: "
    long = f"{human}hi{assistant}hello{human}and now?"
    rows = [
        {"chosen": f"{human}why?{assistant}because", "rejected": f"{human}why?{assistant}go away"},
        {"chosen": f"{long}{assistant}sleep", "rejected": f"{long}{assistant}no\n\nidea"},
        {"chosen": f"{long}{assistant}sleep", "rejected": f"{human}hi{assistant}what"},  # diverges early
        {"chosen": f"{human}why?{assistant}because", "rejected": f"{human}why?\n\nAssistant:"},  # no answer
    ]
    loaded = read_records(jsonl(tmp_path / "h.jsonl", rows), PreferencePair)
    kept = "Human: hi\n\nAssistant: hello\n\nHuman: and now?"
    assert loaded.records == [
        PreferencePair("why?", "because", "go away", None, None, 0, 0),
        PreferencePair(kept, "sleep", "no\n\nidea", None, None, 0, 0),
    ]
    assert loaded.report["dropped"] == {"unusable_transcripts": 2}
    assert "one judgement" in loaded.report["notes"][0]
    assert [record.prompt for record in read_records(tmp_path / "h.jsonl", Prompt).records] == ["why?", kept]
    assert "label neither safe or unsafe" in message(tmp_path / "h.jsonl", LabelledResponse)


@given(
    st.lists(
        st.text("Human:Astis\n ?", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=6
    ).filter(lambda turns: len(turns) % 2 == 0 and not any("Human:" in t or "Assistant:" in t for t in turns))
)
@relaxed
def test_a_transcript_splits_at_its_last_answer(turns):
    text = "".join(f"\n\n{'Assistant' if index % 2 else 'Human'}: {turn}" for index, turn in enumerate(turns))
    prompt, response = split_transcript(text, "chosen")
    assert response == turns[-1]
    if len(turns) == 2:
        assert prompt == turns[0]
    else:
        assert f"\n\n{prompt}\n\nAssistant: {response}" == text


@pytest.mark.parametrize(
    "text", ["", "hello", "\n\nHuman: hi", "\n\nAssistant: hi", "\n\nHuman: \n\nAssistant: x", 3]
)
def test_what_is_no_transcript_is_refused(text):
    with pytest.raises(UserError, match=r"field `chosen`: found .* expected a transcript"):
        split_transcript(text, "chosen")


def test_what_cannot_become_what(tmp_path):
    labels = jsonl(tmp_path / "l.jsonl", [{"prompt": "p", "response": "r", "label": "Safe"}])
    assert message(labels, PreferencePair) == (
        f"{labels}: CS-RLHF cannot be read as PreferencePair: its rows hold one response each, "
        "and a preference compares two responses to one prompt"
    )
    prompts = jsonl(tmp_path / "p.jsonl", [{"prompt": "p"}])
    for kind in (LabelledResponse, PreferencePair):
        assert "prompts without responses" in message(prompts, kind)
    assert "found <class 'int'>, expected one of Prompt, LabelledResponse" in message(prompts, int)


def test_an_unknown_layout_lists_what_was_found_and_what_is_known(tmp_path):
    for row in ({"question": "q", "answer": "a"}, {"prompt": "p", "completion": "c"}):
        told = message(jsonl(tmp_path / "u.jsonl", [row]), Prompt)
        assert f"found the columns {', '.join(row)}, expected" in told
        assert all(schema.name in told for schema in SCHEMAS)


# --- counting and dropping ------------------------------------------------------------------------------


def test_conflicts_and_repetitions_are_counted_and_dropped(tmp_path):
    rows = [pku(), pku(), pku(better_response_id=0), pku(safer_response_id=1), pku(prompt="other")]
    path = jsonl(tmp_path / "p.jsonl", rows)
    loaded = read_records(path, PreferencePair)
    assert loaded.report["dropped"] == {"conflicting_labels": 1, "duplicates": 1}
    assert [record.better_response_id for record in loaded.records] == [1, 0, 1]
    assert loaded.report["rows"] == 5 == loaded.report["kept"] + 2
    loaded = read_records(path, LabelledResponse)
    assert len(loaded.records) == 4
    assert loaded.report["dropped"] == {"conflicting_labels": 2, "duplicates": 4}
    loaded = read_records(path, Prompt)
    assert [record.prompt for record in loaded.records] == ["may I feed it?", "other"]
    assert loaded.report["dropped"] == {"duplicates": 3}


def test_the_majority_settles_repeated_labels_and_ties_are_dropped(tmp_path):
    votes = {"a": "SSU", "b": "UUSU", "c": "SU", "d": "S"}
    rows = [
        {"prompt": "p", "response": name, "label": "Safe" if vote == "S" else "Unsafe"}
        for name, given_votes in votes.items()
        for vote in given_votes
    ]
    loaded = read_records(jsonl(tmp_path / "v.jsonl", rows), LabelledResponse)
    assert {record.response: record.is_safe for record in loaded.records} == {
        "a": True,
        "b": False,
        "d": True,
    }
    assert loaded.report["dropped"] == {"conflicting_labels": 1 + 1 + 2, "duplicates": 1 + 2}
    assert loaded.report["rows"] == loaded.report["kept"] + sum(loaded.report["dropped"].values())


def test_nothing_left_is_told(tmp_path):
    told = message(jsonl(tmp_path / "p.jsonl", [pku(safer_response_id=1)]), PreferencePair)
    assert "found no usable record for split `train` (1 conflicting_labels)" in told


# --- formats and their mistakes -------------------------------------------------------------------------

labelled = st.builds(
    LabelledResponse,
    words,
    words,
    st.booleans(),
    category=words,
    kind=words,
    harmful=st.none() | st.booleans(),
    helpfulness=st.none() | st.floats(0, 1),
    split=st.just("train"),
)
pairs = st.builds(
    PreferencePair,
    words,
    words,
    words,
    st.none() | st.booleans(),
    st.booleans(),
    *[st.integers(0, 1)] * 2,
    words,
).filter(lambda pair: not pair.has_label_conflict)
prompts = st.builds(Prompt, words, words, words, family=words, harmful=st.none() | st.booleans())


def by_text(record):
    return record.prompt, getattr(record, "response", ""), getattr(record, "response_0", "")


@given(
    st.lists(labelled, min_size=1, max_size=6, unique_by=by_text)
    | st.lists(pairs, min_size=1, max_size=6, unique_by=by_text)
    | st.lists(prompts, min_size=1, max_size=6, unique_by=by_text)
)
@relaxed
def test_every_format_gives_back_what_was_written(tmp_path, records):
    import pandas

    path = write_records(tmp_path / "r.jsonl", records)
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=1))
    pandas.DataFrame(rows).to_parquet(tmp_path / "r.parquet")
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "r.csv").write_bytes(lines.getvalue().encode("utf-8-sig"))
    for suffix in ("jsonl", "json", "csv", "parquet"):
        loaded = read_records(tmp_path / f"r.{suffix}", type(records[0]))
        assert loaded.records == records
        assert loaded.report["dropped"] == {}
        assert loaded.report["rows"] == loaded.report["kept"] == len(records)


def test_writing_is_whole_or_nothing(tmp_path):
    path = write_records(tmp_path / "r.jsonl", [Prompt("first")])
    with pytest.raises(AttributeError):
        write_records(path, (record.missing for record in [Prompt("second")]))
    assert read_records(path, Prompt).records == [Prompt("first")]
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"prompt": "p", "response": "r", "label": "Safe"}
BAD_LINES = st.one_of(
    st.sampled_from(sorted(GOOD)).map(lambda name: {key: GOOD[key] for key in GOOD if key != name}),
    st.tuples(
        st.sampled_from(["prompt", "response"]), st.sampled_from(["", "  ", None, 3, True, ["x"], {}])
    ).map(lambda change: {**GOOD, change[0]: change[1]}),
    st.sampled_from(["", "safety", None, 0, 1, True, False, 0.5, ["Safe"]]).map(
        lambda x: {**GOOD, "label": x}
    ),
).map(json.dumps)
BROKEN_LINES = st.one_of(
    st.integers(1, len(json.dumps(GOOD)) - 1).map(lambda end: json.dumps(GOOD)[:end]),
    st.sampled_from(["null", "3", '"text"', "[]", "[" * 100_000, "{} {}"]),
)


@given(before=st.integers(0, 4), after=st.integers(0, 3), bad=BAD_LINES | BROKEN_LINES, blank=st.booleans())
@relaxed
def test_any_malformed_line_is_refused_with_its_number(tmp_path, before, after, bad, blank):
    good = [json.dumps({**GOOD, "response": f"r{index}"}) for index in range(before + after + 1)]
    lines = [*good[:before], *([""] if blank else []), bad, *good[before:]]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(lines))
    told = message(path)
    assert told.startswith(
        (f"{path}, line {before + blank + 1}:", f"{path}, line {before + blank + 1}, column ")
    )
    assert "expected" in told or "cannot be read" in told


@given(
    rows=st.lists(st.tuples(words, words), min_size=1, max_size=5),
    bad=st.sampled_from(["label", "prompt", "cells"]),
    data=st.data(),
)
@relaxed
def test_csv_lines_are_counted_through_line_breaks_in_cells(tmp_path, rows, bad, data):
    index = data.draw(st.integers(0, len(rows) - 1))
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["prompt", "response", "label"])
    for number, (prompt, response) in enumerate(rows):
        row = [prompt, response, "Safe"]
        if number == index:
            start = len(lines.getvalue())
            row = {"label": [prompt, response, "?"], "prompt": ["", response, "Safe"], "cells": row[:2]}[bad]
        writer.writerow(row)
    text = lines.getvalue()
    (tmp_path / "m.csv").write_bytes(text.encode())
    # Independent count: Python's universal newlines, where a line ends at \r\n, \n or \r.
    line = len(io.StringIO(text[:start], newline=None).read().split("\n"))
    told = message(tmp_path / "m.csv")
    assert told.startswith(f"{tmp_path / 'm.csv'}, line {line}: ")
    assert {
        "label": "field `label`: found '?'",
        "prompt": "field `prompt`",
        "cells": "found 2 cells, expected 3",
    }[bad] in told


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("e.jsonl", b"", "the file is empty"),
        ("e.jsonl", b"\n \n", "the file is empty"),
        ("e.json", b"[]", "found no rows"),
        ("e.csv", b"", "the file is empty"),
        ("e.csv", b"prompt,response,label\n", "found no rows"),
        ("e.parquet", b"", "the file is empty"),
        (
            "u.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xff"}\n',
            ", line 2: found byte 0xff, expected UTF-8",
        ),
        ("u.csv", b"prompt\n\n\xe9t\xe9\n", ", line 3: found byte 0xe9, expected UTF-8"),
        ("b.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', ", line 2, column 12: found broken JSON"),
        ("b.json", b'[{"prompt": "a"}, 7]', ", element 2: found 7, expected a JSON object"),
        ("n.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", ", line 1: found JSON that cannot be read"),
        (
            "s.jsonl",
            b'{"prompt": "\\ud800"}',
            ", line 1: field `prompt`: found '\\ud800', expected valid Unicode",
        ),
        ("q.csv", b'prompt\na\n"b\nc', ", line 3: found broken CSV"),
        ("d.csv", b"prompt,prompt\na,b\n", ", line 1: found the column `prompt` twice"),
        ("t.parquet", b"PAR1 and then nothing", "found no readable Parquet"),
        ("x.txt", b"hello", "found suffix `.txt`, expected one of .jsonl"),
    ],
)
def test_each_broken_file_is_told_in_one_sentence(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    told = message(path, Prompt)
    assert told.startswith(str(path))
    assert expected in told


def test_a_truncated_parquet_file_is_told(tmp_path):
    import pandas

    path = tmp_path / "t.parquet"
    pandas.DataFrame([GOOD] * 100).to_parquet(path)
    whole = path.read_bytes()
    for end in (10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:end])
        assert "found no readable Parquet" in message(path)
    pandas.DataFrame([GOOD, {**GOOD, "label": None}]).to_parquet(path)
    assert ", row 2: field `label`: found None" in message(path)


def test_sources_that_are_not_there(tmp_path):
    assert message(tmp_path / "none.jsonl").endswith("none.jsonl: cannot be read (No such file or directory)")
    for source in ("", "nonsense", "x" * 5000, "a/b/c/d", "bad\0name"):
        assert message(source).startswith(
            f"source `{source}`: found no such file or folder, expected `shipped`"
        )


# --- values that formats spell differently --------------------------------------------------------------


@pytest.mark.parametrize(
    ("safe", "values"),
    [
        (True, [True, 1, "True", "true", "1", "Safe", " safe "]),
        (False, [False, 0, "False", "0", "Unsafe", "UNSAFE"]),
    ],
)
def test_spellings_of_is_safe(tmp_path, safe, values):
    rows = [{"prompt": "p", "response": repr(value), "is_safe": value} for value in values]
    path = jsonl(tmp_path / "s.jsonl", rows)
    expected = [LabelledResponse("p", repr(value), safe) for value in values]
    assert read_records(path, LabelledResponse).records == expected


@pytest.mark.parametrize("value", ["", None, 2, -1, 0.0, 1.0, "yes", "unknown", [], {"safe": True}])
def test_what_is_no_spelling_of_is_safe(tmp_path, value):
    path = jsonl(tmp_path / "s.jsonl", [{"prompt": "p", "response": "r", "is_safe": value}])
    assert message(path).startswith(
        f"{path}, line 1: field `is_safe`: found {value!r}, expected true or false"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("better_response_id", True),
        ("better_response_id", 0.0),
        ("safer_response_id", 2),
        ("safer_response_id", "x"),
        ("is_response_0_safe", None),
        ("is_response_1_safe", "maybe"),
        ("prompt", 5),
        ("response_1", " "),
    ],
)
def test_wrong_pku_values(tmp_path, name, value):
    path = jsonl(tmp_path / "p.jsonl", [pku(), pku(**{name: value})])
    assert message(path, PreferencePair).startswith(
        f"{path}, line 2: field `{name}`: found {value!r}, expected "
    )


@pytest.mark.parametrize(
    "value",
    ["{[]: 1}", "{1: True}", '{"a": 1}', "{'a': None}", "{" * 10_000, "{", 3, ["a"], {"a": "no"}, True],
)
def test_what_is_no_category(value):
    with pytest.raises(UserError, match=r"field `category`: found .* expected text, or a dictionary"):
        to_categories(value, "category")


def test_wrong_values_are_named_by_their_own_column(tmp_path):
    xstest = {"prompt": "p", "type": 3, "label": "safe"}
    assert "line 1: field `type`: found 3" in message(jsonl(tmp_path / "x.jsonl", [xstest]), Prompt)
    goal = {"Goal": "", "Category": "c"}
    assert "line 1: field `Goal`: found ''" in message(jsonl(tmp_path / "g.jsonl", [goal]), Prompt)
    beaver = {"prompt": "p", "response": "r", "is_safe": True, "category": {"theft": "no"}}
    assert "line 1: field `category`: found {'theft'" in message(jsonl(tmp_path / "b.jsonl", [beaver]))
    pair = PreferencePair("p", "a", "b", True, None, 0, 0)
    path = write_records(tmp_path / "n.jsonl", [pair])
    assert read_records(path, PreferencePair).records == [pair]
    assert "line 1: field `is_response_1_safe`: found None" in message(path)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["Safe", "{[]: 1}", "{1: True}", "{'a': True}", '{"a": 1}', "{" * 300, "\n\nHuman: a\n\nAssistant: b"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.booleans() | st.none(), max_size=2),
)
TYPICAL = {
    **pku(),
    **dict.fromkeys(("chosen", "rejected"), "\n\nHuman: a\n\nAssistant: b"),
    **dict.fromkeys(("is_safe", "harmful"), True),
    **dict.fromkeys(("response", "category", "stratum", "split", "kind", "family", "type"), "text"),
    **dict.fromkeys(("Goal", "Category", "extra"), "text"),
    **{f"{side}harm_category": {"theft": True} for side in ("", "response_0_", "response_1_")},
    "label": "Safe",
}
LAYOUTS = [*(sorted(schema.columns) for schema in SCHEMAS), ["prompt", "extra"]]


@settings(relaxed, max_examples=100)
@given(st.sampled_from(LAYOUTS), st.sampled_from([Prompt, LabelledResponse, PreferencePair]), st.data())
def test_any_row_is_read_or_refused_and_never_crashes(tmp_path, columns, kind, data):
    row = {name: TYPICAL[name] for name in columns}
    for name in data.draw(st.lists(st.sampled_from(columns), min_size=1, max_size=2)):
        row[name] = data.draw(ODD)
    (tmp_path / "odd.json").write_text(json.dumps([row]))
    try:
        loaded = read_records(tmp_path / "odd.json", kind)
    except UserError as error:
        assert str(error).startswith(str(tmp_path / "odd.json"))
    else:
        assert all(type(record) is kind for record in loaded.records)
        assert loaded.report["kept"] == len(loaded.records) > 0


# --- shipped world, folders, hub ------------------------------------------------------------------------


def world(folder: Path) -> Path:
    for split in ("train", "test"):
        write_records(
            folder / f"labels_{split}.jsonl",
            [LabelledResponse(split, "r", True, kind="refusal", split=split)],
        )
        write_records(folder / f"prompts_{split}.jsonl", [Prompt(split, harmful=True, split=split)])
        write_records(
            folder / f"preferences_{split}.jsonl", [PreferencePair(split, "a", "b", True, True, 0, 1)]
        )
    return folder


def test_the_shipped_world_is_read_by_kind_and_split(tmp_path, monkeypatch):
    world(tmp_path / "world")
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    for split in ("train", "test"):
        assert read_records("shipped", Prompt, split=split).records == [
            Prompt(split, harmful=True, split=split)
        ]
        (response,) = read_records("shipped", LabelledResponse, split=split).records
        assert (response.prompt, response.kind) == (split, "refusal")
        (pair,) = read_records(tmp_path / "world", PreferencePair, split=split).records
        assert pair.prompt == split
    assert message("shipped", Prompt, split="dev").endswith("cannot be read (No such file or directory)")
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path / "elsewhere"))
    assert "expected the folder that `csrlhf make-data` writes" in message("shipped")
    monkeypatch.delenv("CSRLHF_DATA")
    assert data_folder() == Path(sources.__file__).parents[2] / "data"


def test_a_file_with_several_splits_is_filtered_and_one_with_one_is_not(tmp_path):
    records = [Prompt(f"p{index}", split=split) for index, split in enumerate(["train", "test", "test"])]
    path = write_records(tmp_path / "p.jsonl", records)
    loaded = read_records(path, Prompt, split="test")
    assert (loaded.records, loaded.report["dropped"]) == (records[1:], {"other_splits": 1})
    assert "no usable record for split `validation`" in message(path, Prompt, split="validation")
    loaded = read_records(write_records(path, records[1:]), Prompt, split="train")
    assert loaded.records == records[1:]
    assert loaded.report["notes"] == ["every row is of split `test`, where `train` was asked for"]


def test_a_local_folder_goes_through_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    category = {"theft": True, "self_harm": False}
    row = {"prompt": "p", "response": "r", "category": category, "is_safe": False}
    jsonl(folder / "train.jsonl", [row])
    jsonl(folder / "test.jsonl", [{**row, "response": "t", "is_safe": True}])
    assert read_records(folder, LabelledResponse).records == [LabelledResponse("p", "r", False, "theft")]
    (record,) = read_records(folder, LabelledResponse, split="test").records
    assert record.response == "t"
    assert "found the splits train, test, expected `dev`" in message(folder, split="dev")


def test_hub_ids_are_handed_to_datasets(monkeypatch):
    import datasets

    calls = []
    table = {
        "330k_train": datasets.Dataset.from_list([pku(prompt="big")]),
        "30k_train": datasets.Dataset.from_list([pku(), pku(better_response_id=7)]),
    }

    def load_dataset(*arguments):
        calls.append(arguments)
        return datasets.DatasetDict(table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_records("owner/set@330k_train", PreferencePair).records[0].prompt == "big"
    told = message("owner/set/config", PreferencePair)
    assert told.startswith("owner/set/config: found the splits 330k_train, 30k_train, expected `train`")
    told = message("owner/set@30k_train", PreferencePair)
    assert told.startswith("owner/set (30k_train), row 2: field `better_response_id`: found 7")
    del table["30k_train"]
    loaded = read_records("owner/set", Prompt, split="test")
    assert loaded.records == [Prompt("big")]
    assert loaded.report["notes"] == [
        "read the only split there is, `330k_train`, where `test` was asked for"
    ]
    assert calls == [("owner/set", None), ("owner/set", "config"), ("owner/set", None), ("owner/set", None)]


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    import datasets

    def load_dataset(*_):
        raise ConnectionError("Couldn't reach the Hub\nwith a traceback of many lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert message("owner/set") == (
        "owner/set: `datasets` could not load it (ConnectionError: Couldn't reach the Hub), "
        "expected a data set that this machine can reach"
    )


# --- mixtures and splits --------------------------------------------------------------------------------


def responses(prompt_count: int, each: int, prefix: str = "p") -> list[LabelledResponse]:
    return [
        LabelledResponse(f"{prefix}{index}", f"r{number}", bool(number % 2))
        for number in range(each)
        for index in range(prompt_count)
    ]


def test_a_mixture_takes_a_share_of_the_prompts_with_all_their_rows(tmp_path):
    one = write_records(tmp_path / "one.jsonl", responses(40, 3, "one"))
    two = write_records(tmp_path / "two.jsonl", responses(50, 2, "two"))
    mixture = f"{one}:0.25, {two}:7"
    loaded = read_records(mixture, LabelledResponse, seed=1)
    counts = Counter(record.prompt for record in loaded.records if record.prompt.startswith("one"))
    assert len(counts) == 10
    assert set(counts.values()) == {3}
    assert sum(record.prompt.startswith("two") for record in loaded.records) == 7
    assert loaded.report["kept"] == len(loaded.records) == 37
    assert [part["taken"] for part in loaded.report["parts"]] == [30, 7]
    assert loaded.report["rows"] == 40 * 3 + 50 * 2
    assert read_records(mixture, LabelledResponse, seed=1).records == loaded.records
    assert read_records(mixture, LabelledResponse, seed=2).records != loaded.records


def test_the_same_record_from_two_sources_counts_once(tmp_path):
    one = write_records(tmp_path / "one.jsonl", responses(10, 2))
    loaded = read_records(f"{one}:1,{one}:0.5", LabelledResponse)
    assert loaded.records == responses(10, 2)
    assert loaded.report["dropped"] == {"duplicates": 10}


@pytest.mark.parametrize("amount", ["0", "-1", "1.5", "nan", "inf", "x", ""])
def test_wrong_amounts(tmp_path, amount):
    path = write_records(tmp_path / "one.jsonl", responses(3, 1))
    assert f"found `{path}:{amount}`, expected `source:amount`" in message(f"{path}:{amount}")
    assert f"found `{path}`, expected `source:amount`" in message(f"{path},{path}:0.5")
    assert message(f"{path}:4").endswith("found 3 records, expected at least the 4 asked for")


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
