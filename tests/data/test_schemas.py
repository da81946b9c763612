"""Every layout that the kit reads, and the values that formats spell differently."""

from __future__ import annotations

import csv
import io
import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.schemas import SCHEMAS, split_transcript, to_categories
from csrlhf_kit.data.sources import notes_of, read_records, write_records
from csrlhf_kit.errors import UserError

relaxed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("text", ["", "hello", "Human: hi", 3, None])
def test_what_is_no_transcript_is_refused(text):
    with pytest.raises(UserError, match=r"field `chosen`: found .* expected a transcript"):
        split_transcript(text, "chosen")


H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.mark.parametrize(
    "text",
    [
        f"{H} is tea hot?{A} Mostly.{H} thanks",
        f"{H} a{A} b{H} c{A} d{H}",
        f"{H} nobody answers",
        f"{H} a{A} b{H} c",
        f"{H} a{A}  ",
        f"{A} hi",
        f"{H} {A} x",
    ],
)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_transcript_that_does_not_end_in_an_answer_is_counted(tmp_path, text, side):
    good = {"chosen": f"{H} a{A} b", "rejected": f"{H} a{A} c"}
    path = jsonl(tmp_path / "hh.jsonl", [good, {**good, side: text}])
    loaded = read_records(path, PreferencePair, strict=True)
    assert loaded.records == [PreferencePair("a", "b", "c", None, None, 0, 0)]
    assert loaded.report["dropped"] == {"unusable_transcripts": 1}
    assert notes_of(loaded.report).endswith(
        f"{path}: 1 of 2 transcripts are left out: they part early, or do not end in an answer\n"
    )
    assert [record.prompt for record in read_records(path, Prompt).records] == ["a"]


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


# --- values that formats spell differently --------------------------------------------------------------


@pytest.mark.parametrize(
    ("safe", "values"),
    [
        (True, [True, 1, 1.0, "True", "true", "1", "1.0", "Safe", " safe ", "yes", "YES"]),
        (False, [False, 0, 0.0, "False", "0", "0.0", "Unsafe", "UNSAFE", "no"]),
    ],
)
def test_spellings_of_is_safe(tmp_path, safe, values):
    rows = [{"prompt": "p", "response": repr(value), "is_safe": value} for value in values]
    path = jsonl(tmp_path / "s.jsonl", rows)
    expected = [LabelledResponse("p", repr(value), safe) for value in values]
    assert read_records(path, LabelledResponse).records == expected


@pytest.mark.parametrize("value", ["", None, 2, -1, 0.5, 1.5, 10**40, "maybe", "2.0", [], {"safe": True}])
def test_what_is_no_spelling_of_is_safe(tmp_path, value):
    path = jsonl(tmp_path / "s.jsonl", [{"prompt": "p", "response": "r", "is_safe": value}])
    assert message(path).startswith(
        f"{path}, line 1: field `is_safe`: found {value!r}, expected true or false"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("better_response_id", True),
        ("better_response_id", 0.5),
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


def test_what_pandas_makes_of_gaps_is_read(tmp_path):
    """Integers with gaps are floats, and a gap in an optional field is NaN."""
    import pandas

    row = {"prompt": "a", "response": "b", "is_safe": 1.0, "kind": float("nan"), "stratum": None}
    row |= {
        "harmful": float("nan"),
        "split": float("nan"),
        "helpfulness": float("nan"),
    }
    expected = [LabelledResponse("a", "b", True)]
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        table = pandas.DataFrame([row, {**row, "prompt": "c", "is_safe": float("nan")}])[:1]
        if name.endswith("jsonl"):
            (tmp_path / name).write_text(json.dumps(row))
        else:
            getattr(table, f"to_{name[2:]}")(tmp_path / name, index=False)
        assert read_records(tmp_path / name, LabelledResponse).records == expected
    pair = pku(
        is_response_0_safe=1.0, is_response_1_safe="no", better_response_id=1.0, safer_response_id="0.0"
    )
    assert read_records(jsonl(tmp_path / "q.jsonl", [pair]), PreferencePair).records == [
        PreferencePair("may I feed it?", "yes", "no", True, False, 1, 0)
    ]
    xstest = {"prompt": "p", "type": float("nan"), "label": "safe", "id": 1}
    assert read_records(jsonl(tmp_path / "x.jsonl", [xstest]), Prompt).records[0].category == ""


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
