"""Splits: which names mean train, validation and test, and how records without splits are split by prompt.

Each prompt's split follows from its own hash, so that adding rows never moves the others. Builds on records.py.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from csrlhf_kit.data.records import PreferencePair, Record, normalise_prompt
from csrlhf_kit.errors import UserError

SPLITS = ("train", "validation", "test")
_OTHER_WORDS = {  # as `datasets` reads the names of files
    "training": "train",
    **dict.fromkeys(("valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join([*SPLITS, *_OTHER_WORDS])})(?![a-z])")


# --- names ----------------------------------------------------------------------------------------------


def split_key(name: str) -> str:
    """The name in lower case with the kit's word for the split: `30k_Val` becomes `30k_validation`."""
    return _WORD.sub(lambda word: _OTHER_WORDS.get(word[0], word[0]), name.strip().casefold())


def find_split(names: Iterable[str], asked: str) -> str | None:
    """The name among `names` that is `asked`, else the first that means the same split, else None."""
    named = list(names)
    alike = [name for name in named if split_key(name) == split_key(asked)]
    return asked if asked in named else next(iter(alike), None)


def companion(names: Iterable[str], read: str, split: str) -> str | None:
    """The validation or test split of the training split `read`: `30k_test` of `30k_train`; else None."""
    key = split_key(read)
    return find_split(names, key.replace("train", split, 1)) if "train" in key else None


# --- cuts -----------------------------------------------------------------------------------------------


def split_by_prompt(
    records: Sequence[Record], fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, list[Record]]:
    """Split records so that no prompt is in two splits, and new rows never move old prompts.

    A prompt's split depends only on its text and the seed: its hash is a point in [0, 1), an interval that the
    fractions, in their order, divide. So shares are met on average, not exactly. Prompts that differ only in
    case or spacing are one prompt.

    records: records of any kind. fractions: name of the split -> share of the prompts, adding up to 1; by default
    80% train, 10% validation, 10% test. seed: seed of the hash.
    Returns the records by split, in their order, with `split` set. Raises UserError if the fractions are negative
    or do not add up to 1.
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
    """The records of a share of the prompts (`amount` up to 1), or `amount` records, chosen by hash.

    A seed fixes the order of choice, so that a larger amount contains a smaller one.

    Raises UserError if there are fewer than `amount` records; `name` says where.
    """
    points = {record.prompt: _point(record.prompt, seed) for record in records}
    ranked = sorted(set(points.values()))
    if amount <= 1:
        chosen = set(ranked[: max(1, round(amount * len(ranked)))])
        return [record for record in records if points[record.prompt] in chosen]
    if amount > len(records):
        raise UserError(f"{name}: found {len(records)} records, expected at least the {amount:.0f} asked for")
    order = sorted(range(len(records)), key=lambda index: (points[records[index].prompt], index))
    return [records[index] for index in sorted(order[: int(amount)])]


def _point(prompt: str, seed: int) -> float:
    """A number in [0, 1) for the prompt: the first 53 bits of a hash of the seed and the normalised text."""
    digest = hashlib.blake2b(f"{seed}\0{normalise_prompt(prompt)}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


# --- both labels in every split -------------------------------------------------------------------------


def labels_of(record: Record) -> tuple[bool | None, ...]:
    """The safety labels of a record; (None,) if its kind has none."""
    return record.safety if isinstance(record, PreferencePair) else (getattr(record, "is_safe", None),)


def share_labels(splits: dict[str, list[Record]], drawn: Iterable[str], seed: int) -> None:
    """Move a few prompts, in place, if a split in `drawn` (made at random) lacks a label that others have.

    The few rows with a rare label may all fall into one split. Training comes first: it gets back one prompt of
    each label it lacks. Then test, then validation get a tenth of the label's prompts, at least one, while
    training keeps one. A split without records lacks every label.
    """
    drawn = [name for name in ("test", "validation") if name in drawn]
    for target, giver in [("train", name) for name in reversed(drawn)] + [(name, "train") for name in drawn]:
        there = {label for record in splits[target] for label in labels_of(record)}
        if there.issuperset(label for record in splits[giver] for label in labels_of(record)):
            continue
        prompts = defaultdict(list)
        for record in splits[giver]:
            prompts[normalise_prompt(record.prompt)].append(record)
        labels = {prompt: {x for r in rows for x in labels_of(r)} for prompt, rows in prompts.items()}
        left = Counter(label for held in labels.values() for label in held)
        moved: dict[str, None] = {}  # an ordered set of prompts
        for label in sorted(left.keys() - there, key=str):
            wanted = 1 if target == "train" else max(1, round(0.1 * left[label]))
            wanted -= sum(label in labels[prompt] for prompt in moved)
            for prompt in sorted((p for p in prompts if label in labels[p]), key=lambda p: _point(p, seed)):
                keeps = target == "train" or all(left[held] > 1 for held in labels[prompt])
                if wanted > 0 and keeps and prompt not in moved:
                    moved[prompt] = None
                    left.subtract(labels[prompt])
                    wanted -= 1
        for prompt in moved:
            splits[target] += [replace(record, split=target) for record in prompts[prompt]]
        splits[giver] = [r for r in splits[giver] if normalise_prompt(r.prompt) not in moved]
