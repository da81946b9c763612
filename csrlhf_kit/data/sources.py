"""From a name to checked records: shipped world, local file, hub data set, or a mixture of them.

`read_records(source, kind)` is the one door. A source is

- `shipped`: the toy world under `data_folder()`;
- a file: `.jsonl`, `.json` (an array, or one object a line), `.csv`, `.parquet`;
- a folder: one that `csrlhf make-data` wrote, or one that `datasets.load_dataset` can read;
- a hub id: `owner/name`, `owner/name/config`, either with `@split`;
- a mixture: `source:amount,source:amount`, where an amount up to 1 is the fraction of that source's
  prompts and a whole number above 1 is a number of records.

The table's layout is recognised by its columns (`csrlhf_kit.data.schemas`). Everything that is wrong with a
row is told with file, line, field and what was expected; everything that is dropped is counted by reason.
"""

from __future__ import annotations

import hashlib
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
    normalise_prompt,
    shown,
    to_row,
)
from csrlhf_kit.data.schemas import RowDropped, known_schemas, recognise
from csrlhf_kit.data.tables import FILE_SUFFIXES, PlacedRow, read_file, read_hub
from csrlhf_kit.errors import UserError
from csrlhf_kit.runs import write_atomic

SHIPPED_STEMS = {LabelledResponse: "labels", PreferencePair: "preferences", Prompt: "prompts"}
"""The shipped world's files are `<stem>_<split>.jsonl`."""

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
_EXPECTED = (
    "expected `shipped`, a .jsonl, .json, .csv or .parquet file, a folder, "
    "a hub id `owner/name[/config][@split]`, or a mixture `source:amount,source:amount`"
)


@dataclass(frozen=True)
class Loaded:
    """What a source held."""

    records: list
    """The records kept, in the source's order."""
    report: dict[str, Any] = field(default_factory=dict)
    """`source`, `kind`, `schema`, `rows` read, `kept` records, `dropped` records by reason, `notes`; and for
    a mixture `parts`, the reports of its sources."""


def data_folder() -> Path:
    """The shipped data: the environment variable CSRLHF_DATA, else `data/` beside the package."""
    return Path(os.environ.get("CSRLHF_DATA") or Path(__file__).resolve().parents[2] / "data")


def read_records(source: str | Path, kind: type, *, split: str = "train", seed: int = 0) -> Loaded:
    """Read `source` as records of one kind.

    Asked for a kind that its rows can be turned into, a source turns them: a pair is also two labelled
    responses (where it has labels) and a prompt; a labelled response is also a prompt.

    Dropped and counted: pairs whose "safer" response is the unsafe one, of those that are read for their
    labels; repeated records (for prompts and labelled responses by their text; where repeated labels of one
    response differ the majority wins, and ties are dropped); HH-RLHF transcripts that diverge early.

    Args:
        source: See the module's first lines.
        kind: `Prompt`, `LabelledResponse` or `PreferencePair`.
        split: `train`, `validation` or `test`: which of the shipped files, of the hub's splits, or of the
            rows of a file whose `split` column names several. A file or data set with one split is read
            whole, whatever the split's name.
        seed: Which prompts a mixture's fractions keep.

    Raises:
        UserError: the source is not there, cannot be read or is not understood, a row is malformed, the kind
            cannot be had from it, or nothing is left.
    """
    if kind not in RECORD_KINDS:
        names = ", ".join(known.__name__ for known in RECORD_KINDS)
        raise UserError(f"record kind: found {shown(kind)}, expected one of {names}")
    source = str(source)
    parts = _mixture_parts(source)
    if not parts:
        return _read_one(source, kind, split)
    loaded, records = [], []
    for name, amount in parts:
        part = _read_one(name, kind, split)
        chosen = take(part.records, amount, seed=seed, name=name)
        loaded.append(Loaded(chosen, {**part.report, "amount": amount, "taken": len(chosen)}))
        records += chosen
    kept, dropped = _without_repetitions(records)
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
    """Write records as JSONL in their own field names, whole or not at all; `read_records` reads it back."""
    lines = [json.dumps(to_row(record), ensure_ascii=False) + "\n" for record in records]
    return write_atomic(path, "".join(lines))


def split_by_prompt(
    records: Sequence[Record], fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, list[Record]]:
    """Split records so that no prompt is in two splits, and so that new rows never move old prompts.

    A prompt's split follows from its own text and the seed alone: its hash is a point in [0, 1), and the
    fractions, in their order, cut that interval. Shares are therefore met on average, not exactly.
    Prompts that differ only in case or spacing are one prompt.

    Args:
        records: Records of any kind.
        fractions: Share of the prompts by name of the split, adding up to 1; by default 80% train,
            10% validation, 10% test.
        seed: Another seed is another split.

    Returns:
        The records by split, in their order, with `split` set.

    Raises:
        UserError: the fractions are negative or do not add up to 1.
    """
    fractions = fractions or {"train": 0.8, "validation": 0.1, "test": 0.1}
    if not all(share >= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise UserError(f"fractions: found {dict(fractions)}, expected shares from 0 that add up to 1")
    splits: dict[str, list[Record]] = {name: [] for name in fractions}
    last = [name for name, share in fractions.items() if share > 0][-1]
    for record in records:
        point, edge, chosen = _point(record.prompt, seed), 0.0, last
        for name, share in fractions.items():
            edge += share
            if point < edge:
                chosen = name
                break
        splits[chosen].append(replace(record, split=chosen))
    return splits


def take(records: list[Record], amount: float, *, seed: int = 0, name: str = "source") -> list[Record]:
    """A share of the prompts with all their records (`amount` up to 1), or `amount` records, by hash order.

    The same seed always ranks the prompts alike, so that a larger amount contains a smaller one.

    Raises:
        UserError: more records are asked for than there are.
    """
    points = {record.prompt: _point(record.prompt, seed) for record in records}
    ranked = sorted(set(points.values()))
    if amount <= 1:
        chosen = set(ranked[: max(1, round(amount * len(ranked)))])
        return [record for record in records if points[record.prompt] in chosen]
    if amount > len(records):
        raise UserError(f"{name}: found {len(records)} records, expected at least the {amount:g} asked for")
    order = sorted(range(len(records)), key=lambda index: (points[records[index].prompt], index))
    return [records[index] for index in sorted(order[: int(amount)])]


def _point(prompt: str, seed: int) -> float:
    """Where the prompt falls in [0, 1): the first 53 bits of a hash of the seed and the normalised text."""
    digest = hashlib.blake2b(f"{seed}\0{normalise_prompt(prompt)}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _mixture_parts(source: str) -> list[tuple[str, float]]:
    """The (source, amount) pairs of a mixture; empty where `source` is no mixture."""
    if os.path.exists(source) or not re.search(r",|:[^/\\:,]*$", source):
        return []
    parts = []
    for part in source.split(","):
        name, colon, text = part.strip().rpartition(":")
        try:
            amount = float(text) if colon else float("nan")
        except ValueError:
            amount = float("nan")
        if not name or not (0 < amount <= 1 or (amount > 1 and amount.is_integer())):
            raise UserError(
                f"mixture `{source}`: found `{part.strip()}`, expected `source:amount` with an amount "
                "above 0: a fraction up to 1, or a whole number of records"
            )
        parts.append((name, amount))
    return parts


# --- one source -----------------------------------------------------------------------------------------


def _read_one(source: str, kind: type, split: str) -> Loaded:
    folder, notes = source, []
    if source == "shipped":
        folder = str(data_folder() / "world")
        if not os.path.isdir(folder):
            raise UserError(
                f"shipped data: {folder} is not there, expected the folder that `csrlhf make-data` writes "
                "(CSRLHF_DATA names the folder above it)"
            )
    # os.path answers False where Path.is_file would raise (a name too long for the file system).
    written = os.path.join(folder, f"{SHIPPED_STEMS[kind]}_{split}.jsonl")
    hub_id = _HUB_ID.fullmatch(source)
    if os.path.isfile(written) or source == "shipped":
        place, rows = read_file(Path(written))
    elif os.path.isfile(source) or Path(source).suffix in FILE_SUFFIXES:
        place, rows = read_file(Path(source))
    elif os.path.isdir(source):
        place, rows, notes = read_hub(source, None, split)
    elif hub_id:
        place, rows, notes = read_hub(hub_id["id"], hub_id["config"], hub_id["split"] or split)
    else:
        raise UserError(f"source `{source}`: found no such file or folder, {_EXPECTED}")
    return _to_records(source, place, rows, kind, split, notes)


def _to_records(
    source: str, place: str, rows: list[PlacedRow], kind: type, split: str, notes: list[str]
) -> Loaded:
    """Recognise the layout, convert each row, drop what has to be dropped, and count."""
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    schema = recognise(columns)
    if not rows:
        raise UserError(f"{place}: found no rows, expected at least one")
    if schema is None:
        found = ", ".join(map(str, columns)) or "none"
        raise UserError(f"{place}: found the columns {found}, expected those of one of: {known_schemas()}")
    if kind not in schema.makes:
        raise UserError(f"{place}: {schema.name} cannot be read as {kind.__name__}: {schema.lacks}")
    records, dropped = [], Counter()
    per_row = 2 if kind is LabelledResponse and PreferencePair in schema.makes else 1
    for where, row in rows:
        missing = sorted(schema.columns - row.keys())
        if missing:
            names = ", ".join(f"`{name}`" for name in missing)
            raise UserError(
                f"{place}, {where}: field {names}: missing, expected in every row of {schema.name}"
            )
        try:
            records += schema.makes[kind](row)
        except RowDropped as reason:
            dropped[str(reason)] += per_row
        except UserError as error:
            raise UserError(f"{place}, {where}: {error}") from None
    named = {record.split for record in records}
    if len(named) > 1:
        inside = [record for record in records if record.split == split]
        dropped["other_splits"] += len(records) - len(inside)
        records = inside
    elif named - {"", split}:
        notes = [*notes, f"every row is of split `{named.pop()}`, where `{split}` was asked for"]
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
        "dropped": dict(dropped),
        "notes": [*notes, *schema.notes],
    }
    return Loaded(kept, report)


def _without_repetitions(records: list[Record]) -> tuple[list[Record], Counter]:
    """Drop repeated records; settle repeated labels of one response by majority (BeaverTails has several).

    Prompts repeat by their text, labelled responses by prompt and response, pairs only as a whole: two
    annotators may well disagree about one pair, and both judgements are data.
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
