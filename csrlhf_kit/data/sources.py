"""From a name to checked records: the shipped world, a local file, a hub data set, or a mixture of them.

`read_records(source, kind)` reads everything. A source is

- `shipped`: the toy world under `data_folder()`;
- a file: `.jsonl`, `.json` (an array, or one object per line), `.csv`, `.parquet`;
- a folder: one that `csrlhf make-data` wrote, or one that `datasets.load_dataset` or `load_from_disk` can read;
- a hub id: `owner/name`, `owner/name/config`, either with `@split`;
- a mixture: `source:amount,source:amount`, where an amount up to 1 is the fraction of that source's
  prompts and a whole number above 1 is a number of records.

The table's layout is recognised by its columns (schemas.py). An error in a row names file, line, field and what
was expected; dropped rows are counted by reason. Rows without an answer or a label are dropped too, if their share
is at most `MOST_UNUSABLE`. Builds on tables.py, schemas.py and splits.py.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csrlhf_kit.data.records import (
    RECORD_KINDS,
    LabelledResponse,
    PreferencePair,
    Prompt,
    Record,
    UnusableRow,
    abbreviated,
    quoted,
    to_row,
)
from csrlhf_kit.data.schemas import UNUSABLE_TRANSCRIPT, RowDropped, Schema, known_schemas, recognise
from csrlhf_kit.data.splits import SPLITS, split_key, take
from csrlhf_kit.data.tables import FILE_SUFFIXES, PlacedRow, read_file, read_hub
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic

SHIPPED_STEMS = {LabelledResponse: "labels", PreferencePair: "preferences", Prompt: "prompts"}
"""The shipped world's files are `<stem>_<split>.jsonl`."""

MOST_UNUSABLE = 0.01
"""The largest share of rows that may lack an answer or a label; they are left out."""

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
_LOCAL = ("data", "runs", "models", "checkpoints", "out", "output", "outputs")  # no owners on the hub
_EXPECTED = (
    "expected `shipped`, a .jsonl, .json, .csv or .parquet file, a folder, "
    "a hub id `owner/name[/config][@split]`, or a mixture `source:amount,source:amount`"
)


@dataclass(frozen=True)
class Loaded:
    """The records of a source, with a report on how they were read."""

    records: list
    """The records kept, in the source's order."""
    report: dict[str, Any] = field(default_factory=dict)
    """`source`, `kind`, `schema`, `rows` read, `kept` records, `dropped` records by reason, `notes`; for a
    mixture also `parts`, the reports of its sources."""
    splits: dict[str, str] = field(default_factory=dict)
    """The source's splits, name -> the source that reads it, the one that was read first; empty if it has none."""


def data_folder() -> Path:
    """The folder of the shipped data and base: CSRLHF_DATA if it is set, else `shipped/` in the package (where a
    wheel puts it, see setup.py), else `data/` beside the package, as in the repository.
    """
    if named := os.environ.get("CSRLHF_DATA"):
        return Path(named).expanduser()
    package = Path(__file__).resolve().parents[1]
    held = package / "shipped"
    return held if held.is_dir() else package.parent / "data"


def may_be_on_hub(name: str) -> bool:
    """Whether a name that is no file or folder may be a hub id, `owner/name...`: `owner` must not be a folder here,
    nor a usual name of folders. Other names are mistyped paths, about which the hub is never asked.
    """
    owner = name.partition("/")[0]
    return _HUB_ID.fullmatch(name) is not None and owner not in _LOCAL and not os.path.isdir(owner)


def read_records(
    source: str | Path, kind: type, *, split: str = "train", seed: int = 0, strict: bool = False
) -> Loaded:
    """Read `source` as records of one kind.

    Rows are converted if need be: a pair is also two labelled responses (if it has labels) and a prompt; a labelled
    response is also a prompt.

    Dropped and counted: pairs, read for their labels, whose "safer" response is the unsafe one; repeated records
    (prompts and labelled responses with the same text; if the labels of one response differ, the majority wins,
    and ties are dropped); HH-RLHF transcripts that diverge early or do not end in an answer; up to 1% of rows that
    lack an answer or a label.

    Args:
        source: See the first lines of this file.
        kind: `Prompt`, `LabelledResponse` or `PreferencePair`.
        split: `train`, `validation` or `test`: selects a shipped file, a hub's split, or rows of a file whose
            `split` column has several values; `val`, `valid` and `dev` mean validation. A file or data set
            with a single split is read whole, whatever its name.
        seed: Which prompts a mixture's fractions keep.
        strict: Refuse a source with any row that lacks an answer or a label.

    Raises:
        UserError: there is no such source, it cannot be read or its layout is unknown, a row is malformed, it
            cannot become that kind, or no record is left.
    """
    if kind not in RECORD_KINDS:
        names = ", ".join(known.__name__ for known in RECORD_KINDS)
        raise UserError(f"record kind: found {abbreviated(kind)}, expected one of {names}")
    source = str(source)
    parts = mixture_parts(source)
    if not parts:
        return _read_one(source, kind, split, strict)
    return join(source, kind, [read_part(part, kind, split, seed=seed, strict=strict) for part in parts])


def read_part(
    part: tuple[str, float], kind: type, split: str, *, seed: int = 0, strict: bool = False
) -> Loaded:
    """Read one (source, amount) of a mixture, and keep as many of its records as the amount says."""
    name, amount = part
    loaded = _read_one(name, kind, split, strict)
    if amount == 1:
        return loaded
    if split != "train" and amount > 1:  # the number is of training records; other splits may have fewer
        amount = min(amount, len(loaded.records))
    chosen = take(loaded.records, amount, seed=seed, name=name)
    return replace(loaded, records=chosen, report={**loaded.report, "amount": part[1], "taken": len(chosen)})


def join(source: str, kind: type, loaded: Sequence[Loaded]) -> Loaded:
    """Join the sources of a mixture, without repeated records, and their reports."""
    kept, dropped = _without_repetitions([record for part in loaded for record in part.records])
    report = {
        "source": source,
        "kind": kind.__name__,
        "rows": sum(part.report["rows"] for part in loaded),
        "kept": len(kept),
        "dropped": dict(sum((Counter(part.report["dropped"]) for part in loaded), dropped)),
        "parts": [part.report for part in loaded],
    }
    return Loaded(kept, report)


def write_records(path: str | Path, records: Iterable[Record]) -> Path:
    """Write records as JSONL with their field names, atomically; `read_records` reads it back."""
    lines = [json.dumps(to_row(record), ensure_ascii=False) + "\n" for record in records]
    return write_atomic(path, "".join(lines))


def mixture_parts(source: str) -> list[tuple[str, float]]:
    """The (source, amount) pairs of a mixture; empty if `source` is no mixture.

    Without any valid amount, it is a mixture only if one part exists, since the name of a missing file may contain
    a comma or colon. Raises UserError for a part without a valid amount.
    """
    if os.path.exists(source):
        return []
    pieces = [piece.strip() for piece in source.split(",")]
    tried = [found[1] for piece in pieces if (found := re.search(r":([^/\\:]*)$", piece))]
    meant = any(map(_amount, tried)) or (len(pieces) > 1 and any(map(is_there, pieces)))
    if not meant and (not tried or Path(source).suffix.lower() in FILE_SUFFIXES):
        return []
    parts, name = [], ""
    for piece in source.split(","):
        name += piece
        before, _, text = name.strip().rpartition(":")
        amount = _amount(text) if before else 0.0
        if not amount:
            name += ","  # the comma may be part of the name
            continue
        if "," in before and not is_there(before):
            break
        parts.append((before, amount))
        name = ""
    if name:
        raise UserError(
            f"mixture `{source}`: found `{name.split(',')[0].strip()}`, expected `source:amount` with an amount "
            "above 0: a fraction up to 1, or a whole number of records"
        )
    return parts


def is_there(source: str) -> bool:
    """Whether the source exists on this machine, so that it is read without a hub."""
    return source == "shipped" or os.path.exists(source)


def _amount(text: str) -> float:
    """The amount that `text` spells; 0 if it is no valid amount."""
    try:
        amount = float(text)
    except ValueError:
        return 0.0
    return amount if 0 < amount <= 1 or (amount > 1 and amount.is_integer()) else 0.0


def notes_of(*reports: Mapping[str, Any]) -> str:
    """The notes of all reports as lines to print, each note once; empty if there are none."""
    parts = [part for report in reports for part in report.get("parts", [report])]
    lines = [f"{part['source']}: {note}\n" for part in parts for note in part["notes"]]
    return "".join(dict.fromkeys(lines))


# --- one source -----------------------------------------------------------------------------------------


def _read_one(source: str, kind: type, split: str, strict: bool) -> Loaded:
    folder, notes, splits = source, [], []
    if source == "shipped":
        folder = str(data_folder() / "world")
        if not os.path.isdir(folder):
            raise UserError(
                f"shipped data: {folder} is not there, expected the folder that `csrlhf make-data` writes; set "
                "CSRLHF_DATA to the folder above it, which is `data` in the kit's repository"
            )
    # os.path answers False where Path.is_file would raise (a name too long for the file system).
    files = {name: os.path.join(folder, f"{SHIPPED_STEMS[kind]}_{name}.jsonl") for name in (split, *SPLITS)}
    hub_id = _HUB_ID.fullmatch(source)
    if os.path.isfile(files[split]) or source == "shipped":
        place, rows = read_file(Path(files[split]))
        splits = [name for name, file in files.items() if os.path.isfile(file)]
    elif os.path.isfile(source) or Path(source).suffix.lower() in FILE_SUFFIXES:
        place, rows = read_file(Path(source))
    elif os.path.isdir(source):
        place, rows, notes, splits = read_hub(source, None, split)
    elif may_be_on_hub(source):
        place, rows, notes, splits = read_hub(hub_id["id"], hub_id["config"], hub_id["split"] or split)
    else:
        raise UserError(f"source `{source}`: found no such file or folder, {_EXPECTED}")
    schema = _recognise(place, rows, kind)
    records, dropped, more = _convert(place, rows, kind, schema, strict)
    notes = [*notes, *more]
    if len(splits) < 2:  # otherwise the rows are of one split already
        records, splits, more = _of_split(place, records, split, splits)
        dropped["other_splits"] += more
    named = {record.split for record in records if record.split.strip()}
    if len(named) == 1 and split_key(*named) not in {split_key(split), *map(split_key, splits[:1])}:
        notes.append(f"every row is of split {quoted(named.pop())}, where `{split}` was asked for")
    kept, repeated = _without_repetitions(records)
    dropped += repeated
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"{place}: found no usable record for split `{split}` ({reasons}), expected at least one"
        )
    report = {
        "source": source,
        "kind": kind.__name__,
        "schema": schema.name,
        "rows": len(rows),
        "kept": len(kept),
        "dropped": dict(+dropped),
        "notes": [*schema.notes, *notes],
    }
    bare = source.partition("@")[0] + "@" if hub_id and not os.path.exists(source) else ""
    return Loaded(kept, report, {name: bare + name if bare else source for name in splits})


def _recognise(place: str, rows: list[PlacedRow], kind: type) -> Schema:
    """The rows' layout. Raises UserError if it is unknown, or its rows cannot become `kind`."""
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    schema = recognise(columns)
    if not rows:
        raise UserError(f"{place}: found no rows, expected at least one")
    if schema is None:
        found = quoted(", ".join(map(str, columns)) or "none", 300).strip("`")
        raise UserError(f"{place}: found the columns {found}, expected those of one of: {known_schemas()}")
    if kind not in schema.makes:
        raise UserError(f"{place}: {schema.name} cannot be read as {kind.__name__}: {schema.lacks}")
    return schema


def _convert(
    place: str, rows: list[PlacedRow], kind: type, schema: Schema, strict: bool
) -> tuple[list[Record], Counter, list[str]]:
    """The records of all rows, the number dropped by reason, and notes for the report."""
    records, dropped, unusable = [], Counter(), []
    per_row = 2 if kind is LabelledResponse and PreferencePair in schema.makes else 1
    for where, row in rows:
        try:
            missing = [f"`{name}`" for name in sorted(schema.columns - row.keys())]
            if missing:
                names = ", ".join(missing)
                raise UnusableRow(f"field {names}: missing, expected in every row of {schema.name}")
            made = schema.makes[kind](row)
            named = row.get("split")
            if isinstance(named, str) and named.strip():  # also in layouts without such a field
                made = [record if record.split else replace(record, split=named) for record in made]
            records += made
        except RowDropped as reason:
            dropped[str(reason)] += per_row
        except UnusableRow as error:
            unusable.append((where, error))
            dropped["unusable_rows"] += per_row
        except UserError as error:
            raise UserError(f"{place}, {where}: {error}") from None
    notes = []
    if unusable:
        (where, error), count = unusable[0], len(unusable)
        if strict or count > MOST_UNUSABLE * len(rows):
            more = f" (and {count - 1:,} more of {len(rows):,} rows lack something)" if count > 1 else ""
            raise UserError(f"{place}, {where}: {error}{more}")
        others = "".join(f", {where}" for where, _ in unusable[1:3]) + (", ..." if count > 3 else "")
        notes.append(f"{count:,} of {len(rows):,} rows are unusable and left out: {where} ({error}){others}")
    if dropped[UNUSABLE_TRANSCRIPT]:
        count = dropped[UNUSABLE_TRANSCRIPT]
        notes.append(
            f"{count:,} of {len(rows):,} transcripts are left out: they part early, or do not end in an answer"
        )
    return records, dropped, notes


def _of_split(
    place: str, records: list[Record], split: str, named: list[str]
) -> tuple[list[Record], list[str], int]:
    """The records of one split if the rows name several, the names of all splits, and the number of other records.

    Beside rows that name a split, rows that name none are for training.
    """
    names = dict.fromkeys(record.split for record in records)
    keys = {split_key(name) or "train" for name in names}
    if len(keys) < 2 or not keys.intersection(SPLITS):
        return records, named, 0
    inside = [record for record in records if (split_key(record.split) or "train") == split_key(split)]
    if not inside:
        found = ", ".join(quoted(name or "train") for name in names)
        raise UserError(f"{place}: found rows of the splits {found}, expected some of `{split}`")
    names = sorted((name or "train" for name in names), key=lambda name: split_key(name) != split_key(split))
    return inside, names, len(records) - len(inside)


def _without_repetitions(records: list[Record]) -> tuple[list[Record], Counter]:
    """Drop repeated records; the majority decides if one response has several labels (as in BeaverTails).

    Prompts are repeated if their text is, labelled responses if prompt and response are, pairs only as a whole: two
    annotators may disagree about a pair, and both judgements are data.
    """

    def key(record: Record) -> Any:
        if isinstance(record, Prompt):
            return record.prompt
        if isinstance(record, LabelledResponse):
            return record.prompt, record.response
        return record

    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    kept, dropped = [], Counter()
    for group in groups.values():
        winners = group
        if isinstance(group[0], LabelledResponse):
            balance = sum(1 if record.is_safe else -1 for record in group)
            winners = [record for record in group if balance and record.is_safe == (balance > 0)]
        kept += winners[:1]
        conflicting = len(group) - len(winners)
        dropped += Counter(conflicting_labels=conflicting, duplicates=len(winners[1:]))
    return kept, dropped
