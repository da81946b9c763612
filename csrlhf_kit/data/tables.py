"""Raw rows from files and from the hub, each with its place ("line 7"); schemas.py interprets them.

Whatever cannot be read (broken JSON, a truncated Parquet file, bytes that are not UTF-8, a hub out of reach)
raises UserError with one sentence.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from csrlhf_kit.data.records import abbreviated, quoted
from csrlhf_kit.data.splits import find_split, split_key
from csrlhf_kit.errors import UserError

Row = dict[str, Any]
PlacedRow = tuple[str, Row]

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_file(path: Path) -> tuple[str, list[PlacedRow]]:
    """The file's name and its rows, each with its place ("line 7"). Raises UserError if it cannot be read."""
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path}: found suffix `{path.suffix}`, expected one of {', '.join(FILE_SUFFIXES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise UserError(f"{path}: the file is empty, expected at least one row")
    return str(path), readers[suffix](path, data)


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: found byte 0x{data[error.start]:02x}, expected UTF-8 text"
        ) from None


def _parse_json(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        at = f"{path}, line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{at}: found broken JSON ({error.msg}), expected a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {line}: found JSON that cannot be read ({error})") from None


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object whose names all differ; json itself would keep the last value of a name without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {quoted(max(names, key=names.count))} twice in one object")
    return row


def _object(path: Path, where: str, value: Any) -> PlacedRow:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}, {where}: found {abbreviated(value)}, expected a JSON object with named fields"
        )
    return where, value


def _read_jsonl(path: Path, data: bytes) -> list[PlacedRow]:
    # Split at \n alone: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    lines = enumerate(_decode(path, data).split("\n"), start=1)
    return [
        _object(path, f"line {number}", _parse_json(path, line, number))
        for number, line in lines
        if line.strip()
    ]


def _read_json(path: Path, data: bytes) -> list[PlacedRow]:
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _read_jsonl(path, data)
    values = _parse_json(path, _decode(path, data), 1)
    return [_object(path, f"element {number}", value) for number, value in enumerate(values, start=1)]


def _read_csv(path: Path, data: bytes) -> list[PlacedRow]:
    csv.field_size_limit(2**31 - 1)  # by default a cell of 131,073 characters is an error
    reader = csv.reader(io.StringIO(_decode(path, data), newline=""), strict=True)
    rows, header, line = [], None, 1
    try:
        for cells in reader:
            if header is None:
                header = cells
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    found = f"found the column {quoted(twice[0])} twice, expected every name once"
                    raise UserError(f"{path}, line 1: {found}")
            elif cells:
                if len(cells) != len(header):
                    found = f"found {len(cells)} cells, expected {len(header)}, one for each column"
                    raise UserError(f"{path}, line {line}: {found}")
                rows.append((f"line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: found broken CSV ({error}), expected a quoted table") from None
    return rows


def _read_parquet(path: Path, data: bytes) -> list[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except Exception as error:  # pyarrow's own errors, invalid UTF-8, dates that Python cannot represent
        raise UserError(
            f"{path}: found no readable Parquet ({_first_line(error)}), expected a whole file"
        ) from None
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def read_hub(name: str, config: str | None, split: str) -> tuple[str, list[PlacedRow], list[str], list[str]]:
    """The rows of one split of a hub data set, or of a local folder with the hub's layout or from `save_to_disk`.

    Returns where they come from, the rows, notes for the report, and the names of all splits, the one read first.
    Raises UserError if the data set cannot be loaded, or has several splits and none of that name.
    """
    import datasets

    datasets.disable_progress_bars()  # they would fill stderr
    place = name if config is None else f"{name}/{config}"
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
        if isinstance(found, datasets.Dataset):
            found = {str(found.split or "train"): found}
        names = list(found)
        chosen = find_split(names, split) or (names[0] if len(names) == 1 else None)
        rows = found[chosen].to_list() if chosen else []
    except Exception as error:  # the hub's client raises what its HTTP and file libraries raise
        raise UserError(
            f"{place}: `datasets` could not load it ({type(error).__name__}: {_first_line(error)}), "
            "expected a data set that this machine can reach"
        ) from None
    if chosen is None:
        raise UserError(
            f"{place}: found the splits {', '.join(names)}, expected `{split}` or a source with `@split`"
        )
    notes = []
    if split_key(chosen) != split_key(split):
        notes.append(f"read the only split there is, `{chosen}`, where `{split}` was asked for")
    placed = [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
    return f"{place} ({chosen})", placed, notes, [chosen, *(other for other in names if other != chosen)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
