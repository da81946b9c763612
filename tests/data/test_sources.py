"""Sources: files and their mistakes, the shipped world, folders, the hub, mixtures; what is dropped is counted."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schemas import jsonl, message, pku, relaxed, words

from csrlhf_kit.data import sources
from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import data_folder, notes_of, read_records, write_records

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
        (
            "d.jsonl",
            b'{"prompt": "a"}\n{"prompt": "a", "harmful": true, "harmful": false}\n',
            ", line 2: found JSON that cannot be read (the name `harmful` twice in one object)",
        ),
        ("d.json", b'[{"prompt": "a", "x": {"b": 1, "b": 2}}]', "(the name `b` twice in one object)"),
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


def test_a_cell_of_any_length_is_read(tmp_path):
    long = "word " * 40_000
    (tmp_path / "big.csv").write_text(f'prompt,response,is_safe\nhello,"{long}",true\n')
    (record,) = read_records(tmp_path / "big.csv", LabelledResponse).records
    assert record.response == long


EMPTY = [{"response": ""}, {"response": None}, {"prompt": " "}, {"label": None}, {"response": "\ud800"}]


@pytest.mark.parametrize("empty", EMPTY)
def test_up_to_one_row_in_a_hundred_may_lack_something(tmp_path, empty):
    rows = [{**GOOD, "response": f"r{index}"} for index in range(400)]
    for index in (7, 70, 300, 399):
        rows[index] |= empty
    path = jsonl(tmp_path / "r.jsonl", rows)
    loaded = read_records(path, LabelledResponse)
    assert (len(loaded.records), loaded.report["dropped"]) == (396, {"unusable_rows": 4})
    (name,) = empty
    told = notes_of(loaded.report, loaded.report)
    assert told.startswith(f"{path}: 4 of 400 rows are unusable and left out: line 8 (field `{name}`: found ")
    assert told.endswith("), line 71, line 301, ...\n")
    assert told.count("\n") == 1
    assert message(path, strict=True).startswith(f"{path}, line 8: field `{name}`: found ")
    rows[0] |= empty
    assert message(jsonl(path, rows)).endswith("(and 4 more of 400 rows lack something)")
    # A value that is wrong, and not missing, says that the file is not what it seems.
    rows = [{**GOOD, "response": f"r{index}"} for index in range(399)] + [{**GOOD, "label": "maybe"}]
    assert "line 400: field `label`: found 'maybe'" in message(jsonl(path, rows))


def test_a_field_left_out_is_as_good_as_empty(tmp_path):
    path = tmp_path / "r.jsonl"
    jsonl(
        path, [{**GOOD, "response": f"r{index}"} for index in range(200)] + [{"prompt": "p", "label": "Safe"}]
    )
    assert read_records(path, LabelledResponse).report["dropped"] == {"unusable_rows": 1}
    assert "line 201: field `response`: missing" in message(path, strict=True)


def test_a_suffix_may_be_in_capitals(tmp_path):
    (tmp_path / "P.CSV").write_text("prompt\nmay I\n")
    assert read_records(tmp_path / "P.CSV", Prompt).records == [Prompt("may I")]


def test_sources_that_are_not_there(tmp_path):
    for name in ("a,b.jsonl", "a:b.csv", "a,b:c.json"):
        assert message(tmp_path / name).endswith(f"{name}: cannot be read (No such file or directory)")
    assert message(tmp_path / "a,b").endswith(sources._EXPECTED)
    assert message(tmp_path / "none.jsonl").endswith("none.jsonl: cannot be read (No such file or directory)")
    for source in ("", "nonsense", "x" * 5000, "a/b/c/d", "bad\0name"):
        assert message(source).startswith(
            f"source `{source}`: found no such file or folder, expected `shipped`"
        )


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
    told = message(path, Prompt, split="validation")
    assert told.endswith("found rows of the splits `train`, `test`, expected some of `validation`")
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


def test_a_name_in_a_mixture_may_hold_a_comma(tmp_path):
    one = write_records(tmp_path / "one, two.jsonl", responses(4, 2))
    assert read_records(f"{one}:1", LabelledResponse).records == responses(4, 2)
    assert len(read_records(f"{one}:2,{one}:3", LabelledResponse).records) == 3


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
