"""Train, validation and test records of a source: its own splits, else a tenth of the training prompts for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from csrlhf_kit.data.records import normalise_prompt
from csrlhf_kit.data.sources import Loaded, join, mixture_parts, read_part, read_records
from csrlhf_kit.data.splits import SPLITS, companion, share_labels, split_by_prompt
from csrlhf_kit.errors import UserError

SHARE = 0.1  # share of the training prompts that become a split which the source lacks


def source_splits(
    source: str,
    kind: type,
    *,
    test_source: str = "",
    seed: int = 0,
    strict: bool = False,
    places: Mapping[str, str] | None = None,
) -> tuple[dict[str, list], dict[str, Any]]:
    """Records by split: the source's own splits if it has them, else split by prompt, 80 : 10 : 10.

    Whoever made the splits, prompts of validation and test are removed from training. A split made here has both
    labels if there are enough prompts (see `share_labels`).

    Args:
        source: See `csrlhf_kit.data.sources`; each part of a mixture has its own splits or is split.
        kind: `LabelledResponse` or `PreferencePair`.
        test_source: Another source, to test on.
        seed: Seed of the splits, and of a mixture's shares.
        strict: As in `read_records`.
        places: Normalised prompt -> split, as `places_of` gives it for the same source read as another kind.

    Returns:
        {"train": [...], "validation": [...], "test": [...]}, and the report: one per split that was read, and
        `origins`, which says where validation and test come from.

    Raises:
        UserError: the source cannot be read, or a split is left without records.
    """
    mixed, options = mixture_parts(source), {"seed": seed, "strict": strict}
    read: dict[str, list[Loaded]] = {name: [] for name in SPLITS}  # the source's own splits, by part
    kept: dict[str, list[Loaded]] = {name: [] for name in SPLITS}  # its training rows, split
    origins: dict[str, list[str]] = {name: [] for name in SPLITS}
    drawn: set[str] = set()
    for part in mixed or [(source, 1.0)]:
        train = read_part(part, kind, "train", **options)
        lacking = {}
        for split in ("validation",) if test_source else ("validation", "test"):
            own = companion(train.splits, next(iter(train.splits)), split) if train.splits else None
            if own:
                read[split].append(read_part((train.splits[own], part[1]), kind, own, **options))
                origins[split].append(f"split `{own}` of {part[0]}")
            else:
                lacking[split] = SHARE
                origins[split].append(f"a tenth of the training prompts of {part[0]}")
        pieces = {"train": train.records}
        if lacking:
            # A mixture has kept the prompts with the lowest hashes, so these are split by another seed's hashes.
            shares = {"train": 1 - sum(lacking.values()), **lacking}
            pieces = split_by_prompt(train.records, shares, seed=seed + bool(mixed))
        for split, records in pieces.items():
            kept[split].append(replace(train, records=records))
        read["train"].append(train)
        drawn |= lacking.keys()
    if test_source:
        read["test"] = [read_records(test_source, kind, split="test", **options)]
        origins["test"] = [test_source]
    splits, report = (
        {},
        {"origins": {name: " and ".join(places) for name, places in origins.items() if places}},
    )
    for split in SPLITS:
        whole = kept[split] + (read[split] if split != "train" else [])
        splits[split] = (
            join(source, kind, whole).records if mixed else [r for part in whole for r in part.records]
        )
        if read[split]:
            report[split] = (join(source, kind, read[split]) if mixed else read[split][0]).report
    _part_prompts(splits, report)
    if places is None:
        share_labels(splits, drawn, seed)
    else:
        _follow(splits, places)
    needed = SPLITS if places is None else ("train",)
    if empty := [name for name in needed if not splits[name]]:
        raise UserError(_why_empty(source, empty[0], report, origins))
    return splits, report


def places_of(splits: Mapping[str, list]) -> dict[str, str]:
    """Normalised prompt -> split, for all records."""
    return {normalise_prompt(record.prompt): split for split, inside in splits.items() for record in inside}


def _part_prompts(splits: dict[str, list], report: dict[str, Any]) -> None:
    """Drop training records with a prompt of validation or test, and validation records with a prompt of test."""
    for name in ("test", "validation"):
        seen = {normalise_prompt(record.prompt) for record in splits[name]}
        for other in SPLITS[: SPLITS.index(name)]:
            kept = [record for record in splits[other] if normalise_prompt(record.prompt) not in seen]
            if len(kept) < len(splits[other]):
                report[f"{other}_rows_dropped_for_prompts_of_{name}"] = len(splits[other]) - len(kept)
            splits[other] = kept


def _follow(splits: dict[str, list], places: Mapping[str, str]) -> None:
    """Move each record to the split that `places` gives for its prompt."""
    moved: dict[str, list] = {name: [] for name in SPLITS}
    for name in SPLITS:
        for record in splits[name]:
            moved[places.get(normalise_prompt(record.prompt), name)].append(record)
    splits |= moved


def _why_empty(source: str, split: str, report: dict[str, Any], origins: Mapping[str, list[str]]) -> str:
    """The sentence that says why a split has no records."""
    for name in ("test", "validation"):
        lost = report.get(f"{split}_rows_dropped_for_prompts_of_{name}")
        if lost:
            return (
                f"{source}: all {lost} records for {split} have prompts that are in the {name} split too "
                f"({' and '.join(origins[name])}), expected some of its own"
            )
    return (
        f"{source}: {report['train']['kept']} records leave none for the {split} split, expected more prompts"
    )
