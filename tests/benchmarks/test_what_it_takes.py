"""The points of the curves: each differs from the converged runs in one thing, and in that one alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.what_it_takes import (
    CURVES,
    LABELS,
    STEPS,
    TAKEN_OVER,
    WIDTH,
    Config,
    data_of,
    prompts_with,
    run_config,
    with_talks,
)
from csrlhf_kit.data.records import LabelledResponse, Prompt
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.recipes.experiments.configs import MAIN
from csrlhf_kit.recipes.experiments.plans import Cell, SweepConfig
from csrlhf_kit.recipes.options import BaseConfig
from csrlhf_kit.world.jailbreaks import TRAIN_FAMILIES

RECORDED = sorted((data_folder() / "runs" / "what_it_takes").glob("*.json"))


@pytest.mark.parametrize("curve", CURVES)
def test_a_point_differs_from_the_converged_runs_in_one_thing(curve):
    config = Config(work=Path("w"))
    usual = run_config("families", 7, 3, config)  # data alone is changed there
    assert (usual.ppo.steps, usual.seed, usual.penalty) == (STEPS, 3, MAIN.penalty)
    asked = {name: value for name, value in vars(usual).items() if name not in ("out", "ppo")}
    for value in CURVES[curve]:
        found = run_config(curve, value, 3, config)
        changed = {name for name, value in asked.items() if getattr(found, name) != value}
        allowed = {"layers": {"scorer_layers"}, "width": {"base"}, "labels": {"scorer_epochs"}}.get(
            curve, set()
        )
        assert changed <= allowed and (found.ppo.steps == STEPS) == (curve != "steps")
        assert found.out == Path("w") / f"{curve}_{value}" / "seed_3"
        if curve == "labels":  # never fewer updates than usual, nor less than one pass
            assert found.scorer_epochs * value >= LABELS and found.scorer_epochs >= 1


def test_the_middle_of_each_curve_is_what_make_converged_trains():
    made = (
        (data_folder().parent / "Makefile").read_text()
        if (data_folder().parent / "Makefile").is_file()
        else ""
    )
    assert f"--plan converged --ppo.steps {STEPS} " in made
    assert json.loads((data_folder() / "tiny_base" / "config.json").read_text())["hidden_size"] == WIDTH
    assert BaseConfig().layers == max(CURVES["layers"]), "adapters on every layer are the last point"
    cells = SweepConfig(plan="converged", seeds=(0,)).cells().values()
    assert Cell.of("fixed_penalty", {"penalty": MAIN.penalty}, 0) in cells
    assert set(TAKEN_OVER["steps"]) > set(TAKEN_OVER["families"]) > set(TAKEN_OVER["labels"])


@pytest.mark.parametrize("families", CURVES["families"])
def test_prompts_are_as_many_as_the_shipped_and_know_only_the_first_families(families):
    usual = read_records("shipped", Prompt, split="train").records
    found = prompts_with(families)
    assert len(found) == len({p.prompt for p in found}) == pytest.approx(len(usual), rel=0.01)
    wrapped = [p for p in found if p.family != "none"]
    assert {p.family for p in wrapped} == set(list(TRAIN_FAMILIES)[:families])
    assert len(wrapped) / len(found) == pytest.approx(0.5 if families else 0.0, abs=0.01)
    assert len(set(Counter(p.stratum for p in found).values())) == 1
    asked = {
        p.prompt
        for split in ("validation", "test")
        for p in read_records("shipped", Prompt, split=split).records
    }
    assert not asked & {p.prompt for p in found}


@pytest.mark.parametrize("percent", CURVES["talks"])
def test_some_prompts_come_in_a_later_turn_and_the_others_stay(percent):
    usual = [p.prompt for p in read_records("shipped", Prompt, split="train").records]
    found = with_talks(percent, 3)
    talks = [prompt for prompt in found if not isinstance(prompt, str)]
    assert len(found) == len(usual) and len(talks) / len(found) == pytest.approx(percent / 100, abs=0.001)
    assert {len(talk) for talk in talks} == {3, 5}, "messages of two and of three turns"
    assert all(a == b for a, b in zip(found, usual, strict=True) if isinstance(a, str))
    assert with_talks(percent, 3) == found != with_talks(percent, 4)


def test_other_data_are_written_once_and_beside_the_shipped_base(tmp_path, monkeypatch):
    assert data_of("steps", 64, Config(work=tmp_path)) == data_folder()
    shipped = {split: read_records("shipped", Prompt, split=split).records for split in ("train", "test")}
    folder = data_of("labels", 1000, Config(work=tmp_path))
    stamp = (folder / "world" / "labels_train.jsonl").stat().st_mtime_ns
    assert data_of("labels", 1000, Config(work=tmp_path)) == folder
    assert (folder / "world" / "labels_train.jsonl").stat().st_mtime_ns == stamp
    assert [f.name for f in tmp_path.iterdir()] == ["data_labels_1000"], "nothing half-written is left"
    monkeypatch.setenv("CSRLHF_DATA", str(folder))
    assert len(read_records("shipped", LabelledResponse, split="train").records) == 1000
    for split, usual in shipped.items():
        assert read_records("shipped", Prompt, split=split).records == usual, "the prompts stay the same"


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_a_recorded_point_says_what_and_where_it_was(file):
    told = json.loads(file.read_text())
    assert file.stem == f"{told['curve']}_{told['value']}_seed_{told['seed']}"
    assert told["value"] in CURVES[told["curve"]] and told["versions"]["processor"]
    row = told["policy"]
    for name, scale in (("harmful_nominal", 8), ("harmful_jailbreak", 8), ("over_refusal", 8)):
        digits = row["outcomes"][name]
        assert len(digits) == row[name]["n"] and row[name]["rate"] == pytest.approx(
            sum(map(int, digits)) / scale / len(digits), abs=1e-4
        )
