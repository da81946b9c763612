"""Train, validation and test of every kind of source: its own splits, else a tenth of training with both labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_records import dialogues
from test_schemas import jsonl, pku

from csrlhf_kit.data.held_out import places_of, source_splits
from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.data.sources import read_records, write_records
from csrlhf_kit.data.splits import SPLITS, companion, find_split, share_labels, split_by_prompt, split_key
from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.presets import PKU


def rows(name: str, count: int, unsafe=lambda index: index % 2 == 1) -> list[dict]:
    return [
        {"prompt": f"{name} {i}", "response": "yes", "label": "Unsafe" if unsafe(i) else "Safe"}
        for i in range(count)
    ]


def cs_rlhf(records: list[LabelledResponse]) -> list[dict]:
    return [
        {"prompt": r.prompt, "response": r.response, "label": "Safe" if r.is_safe else "Unsafe"}
        for r in records
    ]


def sizes(splits: dict[str, list]) -> dict[str, int]:
    return {name: len(records) for name, records in splits.items()}


def names(splits: dict[str, list], split: str) -> set[str]:
    """The first words of a split's prompts, which say where they come from."""
    return {record.prompt.rpartition(" ")[0] for record in splits[split]}


# --- own splits -----------------------------------------------------------------------------------------


def local_folder(folder: Path, tables: dict[str, list[dict]]) -> str:
    for name, table in tables.items():
        jsonl(folder / f"{name}.jsonl", table)
    return str(folder)


def saved_folder(folder: Path, tables: dict[str, list[dict]]) -> str:
    import datasets

    built = datasets.DatasetDict({name: datasets.Dataset.from_list(table) for name, table in tables.items()})
    built.save_to_disk(folder)
    return str(folder)


def one_file(folder: Path, tables: dict[str, list[dict]]) -> str:
    return str(
        jsonl(folder / "all.jsonl", [row | {"split": name} for name, t in tables.items() for row in t])
    )


@pytest.mark.parametrize("write", [local_folder, saved_folder, one_file])
@pytest.mark.parametrize("validation", [None, "validation", "val", "valid", "dev"])
def test_own_splits_are_used_and_what_lacks_is_cut(tmp_path, monkeypatch, capfd, write, validation):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tables = {"train": rows("train", 200), "test": rows("held out", 40)}
    if validation:
        tables[validation] = rows("dev", 30)
    (tmp_path / "set").mkdir()
    source = write(tmp_path / "set", tables)
    capfd.readouterr()
    splits, report = source_splits(source, LabelledResponse)
    assert capfd.readouterr() == ("", ""), "no progress bars"
    assert names(splits, "test") == {"held out"} and len(splits["test"]) == 40
    assert names(splits, "train") == {"train"}
    assert names(splits, "validation") == {"dev" if validation else "train"}
    assert len(splits["train"]) + (0 if validation else len(splits["validation"])) == 200
    assert report["origins"]["test"] == f"split `test` of {source}"
    own = validation and ("validation" if write is local_folder else validation)  # `datasets` renames files
    assert report["origins"]["validation"] == (
        f"split `{own}` of {source}" if own else f"a tenth of the training prompts of {source}"
    )


def test_one_saved_table_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(rows("saved", 60)).save_to_disk(tmp_path / "set")
    assert sum(sizes(source_splits(str(tmp_path / "set"), LabelledResponse)[0]).values()) == 60
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(UserError, match="could not load it"):
        read_records(tmp_path / "set", LabelledResponse)


@pytest.fixture
def hub(monkeypatch):
    """A hub of data sets by name, in the place of the real one."""
    import datasets

    tables: dict[str, dict[str, list[dict]]] = {}

    def load_dataset(name, config=None):
        return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in tables[name].items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return tables


@pytest.mark.parametrize("kind", [LabelledResponse, PreferencePair])
def test_the_presets_data_are_tested_on_their_own_test_split(hub, kind):
    hub[PKU] = {
        split: [pku(prompt=f"{split} {i}", is_response_1_safe=i % 3 == 0) for i in range(count)]
        for split, count in (("train", 90), ("test", 20))
    }
    splits, report = source_splits(PKU, kind)
    assert names(splits, "test") == {"test"} and names(splits, "validation") == {"train"}
    assert report["origins"]["test"] == f"split `test` of {PKU}"
    assert report["test"]["source"] == f"{PKU}@test"


def test_a_named_split_has_companions(hub):
    """BeaverTails names its splits 30k_train, 30k_test, 330k_train and 330k_test."""
    hub["o/b"] = {f"{n}_{s}": rows(f"{n} {s}", 60) for n in ("30k", "330k") for s in ("train", "test")}
    splits, _ = source_splits("o/b@30k_train", LabelledResponse)
    assert names(splits, "test") == {"30k test"} and names(splits, "validation") == {"30k train"}
    splits, report = source_splits("o/b@330k_test", LabelledResponse)
    assert names(splits, "train") == names(splits, "test") == {"330k test"}
    assert "a tenth of the training prompts" in report["origins"]["test"]
    with pytest.raises(UserError, match=r"found the splits 30k_train, 30k_test, .* expected `train`"):
        source_splits("o/b", LabelledResponse)


def test_each_part_of_a_mixture_has_its_own_splits_or_is_cut(hub, tmp_path):
    hub["o/s"] = {"train": rows("hub", 100), "test": rows("hub held out", 20)}
    plain = jsonl(tmp_path / "plain.jsonl", rows("plain", 100))
    splits, report = source_splits(f"o/s:0.5,{plain}:1", LabelledResponse)
    assert names(splits, "test") == {"hub held out", "plain"}
    assert names(splits, "train") == names(splits, "validation") == {"hub", "plain"}
    assert sum(sizes(splits).values()) == 50 + 10 + 100
    assert report["origins"]["test"] == f"split `test` of o/s and a tenth of the training prompts of {plain}"
    # A number of training records may be more than the test split has.
    splits, _ = source_splits(f"o/s:60,{plain}:1", LabelledResponse)
    assert sum(record.prompt.startswith("hub held out") for record in splits["test"]) == 20


def test_a_broken_row_of_the_test_split_is_told_and_not_replaced_by_training_rows(tmp_path):
    table = [row | {"split": "train"} for row in rows("t", 60)] + [{**rows("h", 1)[0], "split": "test"}]
    path = jsonl(tmp_path / "r.jsonl", [*table, {**table[0], "label": "maybe", "split": "test"}])
    with pytest.raises(UserError, match="line 62: field `label`: found 'maybe'"):
        source_splits(str(path), LabelledResponse)


def test_no_row_vanishes_whatever_its_split_is_called(tmp_path):
    found = ["train", "", "Training", "val", "DEV", "test", "eval"]
    table = [row | {"split": found[i % 7]} for i, row in enumerate(rows("t", 70, lambda i: i % 3 == 0))]
    splits, _ = source_splits(str(jsonl(tmp_path / "r.jsonl", table)), LabelledResponse)
    assert sizes(splits) == {"train": 30, "validation": 20, "test": 20}


def test_names_of_splits():
    assert [split_key(name) for name in ("Dev", "30k_val", "train_sft", "latest", "device")] == [
        "validation", "30k_validation", "train_sft", "latest", "device",
    ]  # fmt: skip
    assert find_split(["dev", "validation"], "validation") == "validation"
    assert find_split(["dev", "train"], "validation") == "dev"
    assert companion(["train_sft", "test_sft", "train_gen", "test_gen"], "train_gen", "test") == "test_gen"
    assert companion(["a", "test"], "a", "test") is None


def test_test_data_that_hold_every_prompt_are_named(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", rows("t", 40))
    with pytest.raises(UserError) as caught:
        source_splits(str(path), LabelledResponse, test_source=str(path))
    assert f"have prompts that are in the test split too ({path})" in str(caught.value)


def test_no_prompt_is_in_two_splits(tmp_path: Path) -> None:
    """Own splits that share a prompt: it stays in the test split only."""
    records = dialogues(60)
    rows = cs_rlhf(records)
    for index, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[index % 3]
    rows.append({**rows[2], "prompt": rows[2]["prompt"].upper(), "split": "train"})
    data = jsonl(tmp_path / "rows.jsonl", rows)
    splits, report = source_splits(str(data), LabelledResponse)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [20, 20, 20]
    assert report["train_rows_dropped_for_prompts_of_test"] == 1
    seen = [{r.prompt.casefold() for r in splits[name]} for name in ("train", "validation", "test")]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_mixture_leaves_rows_for_every_split(tmp_path: Path) -> None:
    """A mixture takes prompts by their hash, and a split cuts by hash: by the same one, all would be training."""
    rows = [
        {"prompt": f"question {i}", "response": f"answer {i}", "label": "Unsafe" if i % 2 else "Safe"}
        for i in range(600)
    ]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    for amounts in (("0.2",), ("0.1", "0.3")):
        mixture = ",".join(f"{data}:{amount}" for amount in amounts)
        splits, _ = source_splits(mixture, LabelledResponse)
        sizes = {name: len(records) for name, records in splits.items()}
        assert min(sizes.values()) >= 4 and sizes["train"] > 4 * sizes["test"], sizes


# --- both labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "every"), [(30, 10), (400, 50), (1000, 100), (12, 4)])
@pytest.mark.parametrize("seed", range(6))
def test_a_rare_label_is_in_every_split(tmp_path, count, every, seed):
    path = jsonl(tmp_path / "r.jsonl", rows(f"q{seed}", count, lambda i: i % every == 0))
    splits, _ = source_splits(str(path), LabelledResponse, seed=seed)
    assert sum(sizes(splits).values()) == count
    for name in SPLITS:
        assert {record.is_safe for record in splits[name]} == {True, False}, name
        assert {record.split for record in splits[name]} == {name}
    # What chance has dealt well stays as it was.
    dealt = split_by_prompt(read_records(path, LabelledResponse).records, seed=seed)
    if all(len({record.is_safe for record in dealt[name]}) == 2 for name in SPLITS):
        assert splits == dealt


def test_training_keeps_a_label_that_there_is_only_once():
    for seed in range(12):
        records = [LabelledResponse(f"p {i}", "r", i != 3) for i in range(20)]
        splits = split_by_prompt(records, seed=seed)
        share_labels(splits, ("validation", "test"), seed)
        assert {record.is_safe for record in splits["train"]} == {True, False}
        assert all(splits.values())


@pytest.mark.parametrize("labels", [(True, True, None, None), (False, True, True, True), (None,) * 4])
def test_pairs_and_their_labels_are_cut_alike(tmp_path, labels):
    """Pairs with rare labels, with one-sided ones, with none: no pair's prompt is in another split than its labels."""
    common, rare = labels[:2], labels[2:]
    for seed in range(5):
        pairs = [
            PreferencePair(f"p{seed} {i}", "a", "b", *(rare if i % 20 == 0 else common), 0, 0)
            for i in range(60)
        ]
        path = str(write_records(tmp_path / "p.jsonl", [p for p in pairs if not p.has_label_conflict]))
        alone, _ = source_splits(path, PreferencePair, seed=seed)
        assert all(alone.values())
        if None in labels:
            continue
        places = places_of(source_splits(path, LabelledResponse, seed=seed)[0])
        splits, _ = source_splits(path, PreferencePair, seed=seed, places=places)
        assert all(places[record.prompt] == name for name in SPLITS for record in splits[name])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_prompts_are_refused_in_a_sentence(tmp_path, count):
    path = jsonl(tmp_path / "r.jsonl", rows("t", count))
    with pytest.raises(
        UserError, match=f"{count} records leave none for the .* split, expected more prompts"
    ):
        source_splits(str(path), LabelledResponse)
