"""Whatever a file holds: records, or one sentence. A thousand spoilt rows of each layout in each kind of file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from test_schemas import pku

from csrlhf_kit.data.schemas import SCHEMAS, Schema
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError

LINES = 1000
ROWS = {
    "jsonl": 1,
    "csv": 1,
    "parquet": 10,
}  # of one file; a column of Parquet has one type, and its files are slow
TYPICAL = {
    **pku(),
    **dict.fromkeys(("chosen", "rejected"), "\n\nHuman: a\n\nAssistant: b"),
    **dict.fromkeys(("is_safe", "harmful"), True),
    **dict.fromkeys(("response", "category", "stratum", "split", "kind", "family", "type"), "text"),
    **dict.fromkeys(("Goal", "Category", "helpfulness"), "0.5"),
    **{f"{side}harm_category": {"theft": True} for side in ("", "response_0_", "response_1_")},
    "label": "Safe",
}
DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 0.0, 1.0, 0.5, -0.0, float("nan"), float("inf"), 1e308, 2**63 - 1, 10**400),
    *("", " ", "\t\n", "\0", "\x1b[2J", "\ud800", "\udc00\ud800", "\u2028", "\ufeff", "a\r\nb", "é漢🦉"),
    *("Safe", " UNSAFE ", "yes", "no", "maybe", "true", "1", "1.0", "0.0", "nan", "inf", "1e999", "None", "null"),
    *("{", "{}", "{" * 300, "{[]: 1}", "{1: True}", "{'a': True}", '{"a": 1}', "{'a': None}", "{'\\d': 1}", "[1"),
    *("{'a': 0x" + "f" * 5000 + "}", "{'a': " + "9" * 5000 + "}", "{'a': " + "(" * 500, "{**{}}", "{x}"),
    *("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "Human: a"),
    *("train", "val", "Dev", "te\nst", [], {}, [1, "a", None], DEEP, {"a": True}, {"a": None}, {"a": {"b": [0.5]}}),
]  # fmt: skip


def spoilt_row(schema: Schema, draw: Random) -> dict[str, Any]:
    """A good row of the layout of which up to two fields hold something odd, are not there, or are new."""
    row = {name: TYPICAL[name] for name in sorted(schema.columns)}
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([*row, draw.choice(["split", "helpfulness", "harmful", "id", "", "a\nb", "é"])])
        row[name] = draw.choice(ODD)
        if draw.random() < 0.1:
            del row[name]
    return row


def spoilt_text(text: str, draw: Random) -> bytes:
    """The text as bytes, and in one case of three cut, doubled, or in another encoding."""
    data = text.encode("utf-8", "surrogatepass")
    at = draw.randrange(len(data) + 1)
    other = [
        lambda: data[:at],
        lambda: data[:at] + draw.choice([b"\xff", b"\x80", b"\0", b'"', b"\n", b"\r", b",", b"\\", b"}"]) + data[at:],
        lambda: text.encode("utf-16", "surrogatepass"),
        lambda: text.encode("latin-1", "replace"),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: b"\n \r\n" + data + b"\n\n\t\n",
        lambda: data.rstrip(b"\n") + data,
        lambda: data.replace(b"true", b"NaN").replace(b"1", b"9" * 5000),
        lambda: data.replace(b'"prompt"', b'"prompt": 1, "prompt"', 1),
    ]  # fmt: skip
    return draw.choice(other)() if draw.random() < 1 / 3 else data


def as_jsonl(row: dict[str, Any], draw: Random) -> bytes:
    return spoilt_text(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n", draw)


def as_csv(row: dict[str, Any], draw: Random) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([list(row), ["" if value is None else value for value in row.values()]])
    return spoilt_text(lines.getvalue(), draw)


TYPES = [
    pyarrow.array([b"\xff"]),
    pyarrow.array([b"\xff"], pyarrow.binary()).view(pyarrow.string()),  # no UTF-8
    pyarrow.array([Decimal("1.5")]),
    pyarrow.array([date(1, 1, 1)]),
    pyarrow.array([2**62], pyarrow.timestamp("s")),  # a year that Python has not
    pyarrow.array([1], pyarrow.timestamp("us", "Nowhere/Land")),
    pyarrow.array([1], pyarrow.duration("ns")),
    pyarrow.array(["Safe"]).dictionary_encode(),
    pyarrow.array([[("a", True)]], pyarrow.map_(pyarrow.string(), pyarrow.bool_())),
    pyarrow.nulls(1),
]


def _odd_column(draw: Random) -> pyarrow.Array:
    return pyarrow.concat_arrays([draw.choice(TYPES)] * ROWS["parquet"])


def as_parquet(row: dict[str, Any], draw: Random) -> bytes:
    columns = {}
    for name, value in row.items():
        try:
            columns[name] = pyarrow.array([value] * ROWS["parquet"])
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, RecursionError):
            columns[name] = _odd_column(draw)
    if columns and draw.random() < 0.5:
        columns[draw.choice(list(columns))] = _odd_column(draw)
    names = [*columns, draw.choice(list(columns))] if columns and draw.random() < 0.1 else list(columns)
    sink = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table([columns[name] for name in names], names=names), sink)
    except (pyarrow.ArrowException, UnicodeEncodeError):  # a struct without fields; lists too deep
        return b"PAR1"
    data = sink.getvalue()
    return data[: draw.randrange(len(data))] if draw.random() < 0.1 else data


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name.replace(" ", "-"))
def test_any_row_is_read_or_refused_in_a_sentence(tmp_path: Path, schema: Schema, write: Callable) -> None:
    draw = Random(f"{schema.name} {write.__name__}")
    read = 0
    suffix = write.__name__.removeprefix("as_")
    path = tmp_path / f"odd.{suffix}"
    files = LINES // ROWS[suffix]
    for _ in range(files):
        data = write(spoilt_row(schema, draw), draw)
        path.write_bytes(data)
        kind = draw.choice(list(schema.makes))
        try:
            loaded = read_records(path, kind)
        except UserError as error:
            told = str(error)
            assert told.startswith(str(path)) and "\n" not in told and len(told) < 2500, data[:500]
        else:
            assert all(type(record) is kind for record in loaded.records)
            assert loaded.report["kept"] == len(loaded.records) > 0
            assert not any("\n" in note for note in loaded.report["notes"]), data[:500]
            read += 1
    assert 0 < read < files  # neither is everything refused, nor nothing
