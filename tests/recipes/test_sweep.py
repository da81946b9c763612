"""The sweep: plans and names, tables from rows, every kind of cell trained, and a kill -9 that changes nothing."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csrlhf_kit.cli import main
from csrlhf_kit.data.records import Prompt, to_row
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.safety import evaluation_prompts, rate
from csrlhf_kit.models.base import load_base
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.recipes.experiments.cells import STRICT, cell_constraint, shift_reward_values
from csrlhf_kit.recipes.experiments.plans import CELL_METHODS, PLANS, RATES, Cell, SweepConfig, grid_settings
from csrlhf_kit.recipes.experiments.sweep import (
    MEANS,
    as_csv,
    command,
    compact,
    run_sweep,
    summary_rows,
    sweep_stage_needs,
)
from csrlhf_kit.recipes.red_team import RedTeamConfig, run_red_team
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.training.configs import METHODS as DIRECT
from csrlhf_kit.training.configs import CriticConfig, DirectConfig, PPOConfig
from csrlhf_kit.training.constraints import CONSTRAINTS
from csrlhf_kit.training.constraints.per_group import PerGroup

# --- plans ---


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_names_known_methods_and_settings(plan):
    config = SweepConfig(plan=plan)
    cells = config.cells()
    assert len(cells) == 3 * len(PLANS[plan]())  # no two cells share a name
    for name, cell in cells.items():
        assert cell.method in CELL_METHODS and "/" not in name
        if cell.method in CONSTRAINTS:
            assert type(cell_constraint(cell, config.shared())) is CONSTRAINTS[cell.method]


def test_the_whole_plan_holds_what_was_promised():
    cells = SweepConfig(plan="all").cells().values()
    assert {c.method for c in cells} == set(CELL_METHODS), "no method is missing"
    assert set(Counter((c.method, c.settings) for c in cells).values()) == {3}
    for method in ("fixed_penalty", "linear_penalty"):
        swept = {
            dict(c.settings)["penalty"] for c in cells if c.method == method and "penalty" in dict(c.settings)
        }
        assert len(swept) == 8
    pairs = {
        (dict(c.settings).get("initial"), dict(c.settings).get("rate"))
        for c in cells
        if c.method == "lagrangian"
    }
    assert len(pairs - {(None, None)}) == 9


def test_per_category_is_stricter_where_it_says_so():
    config = SweepConfig(threshold=0.04).shared()
    made = cell_constraint(Cell.of("per_category", {"strict": 0.25, "penalty": 3.0}, 0), config)
    assert isinstance(made, PerGroup) and made.constraints.keys() == {"", *STRICT}
    assert made.constraints[""].threshold == 0.04 and made.constraints["self_harm"].threshold == 0.01
    assert {c.penalty for c in made.constraints.values()} == {3.0}
    assert set(STRICT) < {p.category for p in read_records("shipped", Prompt, split="train").records}


def test_a_grid_is_all_combinations():
    found = grid_settings(("fixed_penalty", "p3o"), ("penalty=1,2.5", "window=64"))
    assert found == [(m, {"penalty": p, "window": 64}) for m in ("fixed_penalty", "p3o") for p in (1, 2.5)]
    assert grid_settings(("fixed_penalty",), ("gate=ema",)) == [("fixed_penalty", {"gate": "ema"})]


def test_stages_wait_for_what_they_read():
    needs = sweep_stage_needs(SweepConfig(plan="smoke", seeds=(0,)))
    assert needs["mocan-seed_0"] == ("reward", "semantic", "offline")
    assert needs["sft-seed_0"] == ("reward", "semantic")
    assert "critic" in needs["fixed_penalty-penalty_4.0-seed_0"]
    only = sweep_stage_needs(SweepConfig(plan="grid", method=("dpo_safer",), seeds=(0,)))
    assert only.keys() == {"reward", "semantic", "dpo_safer-seed_0"}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"plan": "grid", "method": ("magic",)}, "magic"),
        ({"plan": "grid", "grid": ("colour=1",)}, "colour"),
        ({"plan": "grid", "grid": ("ppo.colour=1",)}, "colour"),
        ({"plan": "grid", "grid": ("penalty",)}, "name=value"),
        ({"plan": "grid", "grid": ("penalty=-1",)}, "penalty"),
        ({"plan": "grid", "grid": ("penalty=high",)}, "penalty_high.*expected settings of the right kind"),
        ({"plan": "grid", "grid": ("threshold=high",)}, "threshold is high: expected a number"),
        ({"plan": "grid", "grid": ("ppo.steps=many",)}, "steps is many: expected a whole number from 1"),
        ({"plan": "grid", "method": ("sacpo",), "grid": ("beta=0",)}, "beta"),
        ({"seeds": ()}, "no cell"),
        ({"evaluate": 5000}, "expected at most 500"),
        ({"base": Path("nowhere")}, "no base model"),
    ],
)
def test_bad_asks_are_told_before_anything_is_made(tmp_path, change, word):
    with pytest.raises(UserError, match=word):
        run_sweep(SweepConfig(out=tmp_path / "sweep", **change))
    assert not (tmp_path / "sweep").exists()


# --- tables ---


def made_row(events: int) -> dict:
    return {name: rate([True] * events + [False] * (20 - events)) for name in RATES} | dict.fromkeys(
        MEANS, events / 10
    )


def test_the_summary_pools_seeds():
    config = SweepConfig(plan="grid", method=("fixed_penalty",), grid=("penalty=1,2",), seeds=(3, 4))
    rows = {name: made_row(i) for i, name in enumerate(config.cells())}
    lines = list(summary_rows(config, rows))
    assert [(line["settings"], line["seeds"]) for line in lines] == [
        ('{"penalty":1}', 2),
        ('{"penalty":2}', 2),
    ]
    first = lines[0]  # seeds with 0 and 2 events of 20
    low, high = clopper_pearson(2, 40)
    assert (first["over_refusal"], first["over_refusal_low"], first["over_refusal_high"]) == (0.05, low, high)
    assert (first["over_refusal_min"], first["over_refusal_max"], first["over_refusal_n"]) == (0.0, 0.1, 40)
    assert (first["kl"], first["kl_min"], first["kl_max"]) == (0.1, 0.0, 0.2)
    read = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert [float(r["over_refusal"]) for r in read] == pytest.approx([0.05, 0.1])
    assert json.loads(read[1]["settings"]) == {"penalty": 2}


def test_numbers_are_stored_short():
    assert compact({"a": [0.123456789, 3, "x", None, True]}) == {"a": [0.12346, 3, "x", None, True]}


def test_the_command_says_what_differs():
    config = SweepConfig(plan="grid", seeds=(5,), threshold=0.5, out=Path("elsewhere"), resume=True)
    config = replace(config, direct=DirectConfig(beta=0.7))
    assert command(config) == "csrlhf sweep --threshold 0.5 --plan grid --seeds 5 --direct.beta 0.7"


def test_values_of_a_shaped_reward_follow_from_the_shared_critic(random_base):
    def nothing(prompts, responses):
        return torch.zeros(len(prompts))

    roles = Roles(load_base(random_base, device="cpu"), reward=nothing, cost=nothing, rank=4, alpha=8)
    with torch.no_grad():
        roles.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        roles.value_head.bias.copy_(torch.tensor([0.3, -0.2]))
    ids = torch.randint(4, 300, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        before = roles.values(ids, mask)
        shift_reward_values(roles, 2.5)
        after = roles.values(ids, mask)
    torch.testing.assert_close(after[..., 0], before[..., 0] - 2.5 * before[..., 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[..., 1], before[..., 1])


# --- the whole thing ---


def small(out: Path, base: Path) -> SweepConfig:
    """The plan `smoke` with one seed, as small as it gets, on a random base."""
    return SweepConfig(
        out=out,
        base=base,
        plan="smoke",
        seeds=(1,),
        ppo=PPOConfig(steps=3, batch_size=8, minibatch_size=8, microbatch_size=8, max_new_tokens=4),
        critic=CriticConfig(episodes=16, epochs=1, batch_size=8),
        direct=DirectConfig(
            pairs=48, batch_size=16, learning_rate=1e-2, offline_prompts=12, offline_samples=2, threshold=0.9,
            checkpoint_every=1,
        ),
        scorer_epochs=0.2,
        evaluate=28,
        attacked=3,
        workers=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def little_data(tmp_path_factory) -> Path:
    """The shipped world's first rows: a few hundred labels and pairs, and the prompts that are asked."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "world").mkdir()
    for file in (data_folder() / "world").glob("*.jsonl"):
        if file.name == "prompts_test.jsonl":
            lines = [json.dumps(to_row(p)) for p in evaluation_prompts(28)]
        else:
            lines = file.read_text().splitlines()[:400]
        (folder / "world" / file.name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, random_base, little_data) -> SweepConfig:
    config = small(tmp_path_factory.mktemp("sweep") / "whole", random_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSRLHF_DATA", str(little_data))
        run_sweep(config)
    return config


TABLES = ("cells.csv", "summary.csv")


def test_every_cell_has_its_row_and_its_curve(whole):
    rows = list(csv.DictReader((whole.out / "cells.csv").open()))
    assert [row["method"] for row in rows] == [cell.method for cell in whole.cells().values()]
    for row in rows:
        for name in RATES:
            low, value, high = (float(row[f"{name}{end}"]) for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1 and int(row[f"{name}_n"]) >= 28
        assert (float(row["kl"]) == 0) == (row["method"] == "sft")
        assert int(row["robust_n"]) == 3
    stored = json.loads((whole.out / "sweep.json").read_text())
    assert stored["versions"]["torch"] and stored["seeds"] == [1] and stored["wall_seconds"] > 0
    assert "--ppo.steps 3" in stored["command"]
    for told in stored["cells"]:
        steps = {"sft": 0, "dpo_safer": 3}.get(told["method"], 3)
        if told["method"] != "mocan":
            assert {len(column) for column in told["curve"].values()} <= {steps}
        assert told["policy"]["seconds"] >= 0 and "harmful_nominal" in told["policy"]
        assert told["policy"]["robust_after"]["64"] == told["policy"]["robust"]["rate"]
    for name, cell in whole.cells().items():
        folder = whole.out / "policies" / name
        assert (folder / "adapter" / "adapter_model.safetensors").is_file() == (cell.method != "sft")
        assert not list(folder.rglob("checkpoints")), "a finished cell keeps its adapter only"


def test_a_sweep_killed_half_way_resumes_to_the_same_tables(whole, tmp_path, little_data, monkeypatch):
    """kill -9 of the main process while cells are in the making; its workers end with it."""
    out = tmp_path / "killed"
    shutil.copytree(whole.out / "models", out / "models")
    for name in ("reward", "semantic", "critic", "offline"):
        (out / "stages").mkdir(exist_ok=True)
        shutil.copy(whole.stage_path(name), out / "stages")
    config = replace(whole, out=out)
    script = tmp_path / "again.py"  # a file, since spawned workers import the main module
    script.write_text(
        "import pickle, sys\nfrom csrlhf_kit.recipes.experiments.sweep import run_sweep\n\n"
        "if __name__ == '__main__':\n    run_sweep(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
    )
    monkeypatch.setenv("CSRLHF_DATA", str(little_data))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    process = subprocess.Popen(
        [sys.executable, str(script), pickle.dumps(config).hex()],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 900
    while not sum(config.stage_path(name).is_file() for name in config.cells()) >= 2:
        assert process.poll() is None and time.monotonic() < deadline, "the sweep ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers notice
    left = [name for name in config.cells() if not config.stage_path(name).is_file()]
    assert left, "nothing was left to do: killed too late"
    assert not (out / "cells.csv").exists()
    with pytest.raises(UserError, match="already holds a run"):
        run_sweep(config)
    record = tmp_path / "recorded"
    run_sweep(replace(config, resume=True, record=record))
    for name in TABLES:
        assert (out / name).read_text() == (whole.out / name).read_text(), name
        assert (record / name).read_text() == (whole.out / name).read_text()
    one, two = (json.loads((folder / "sweep.json").read_text())["cells"] for folder in (whole.out, out))
    for a, b in zip(one, two, strict=True):
        assert a["curve"] == b["curve"]
        a["policy"].pop("seconds"), b["policy"].pop("seconds")
        assert a["policy"] == b["policy"]


def test_an_attack_may_come_later(whole, tmp_path, little_data, monkeypatch):
    """More requests, or none, are no other sweep; the first seed's targets are `csrlhf red-team`'s."""
    monkeypatch.setenv("CSRLHF_DATA", str(little_data))
    config = replace(whole, out=tmp_path / "later", attacked=0, resume=True)
    shutil.copytree(whole.out, config.out)
    run_sweep(config)
    assert "robust" not in (config.out / "cells.csv").read_text()
    run_sweep(replace(config, attacked=2))
    told = json.loads((config.out / "sweep.json").read_text())
    assert {cell["policy"]["robust"]["n"] for cell in told["cells"]} == {2} and "--attacked 2" in told[
        "command"
    ]
    folder = whole.out / "policies" / "dpo_safer-seed_1" / "adapter"
    alone = RedTeamConfig(
        out=tmp_path / "alone.json",
        policy=folder,
        base=str(whole.base),
        requests=2,
        talks=0,
        seed=1,
        max_new_tokens=4,
    )
    same = next(cell["policy"] for cell in told["cells"] if cell["method"] == "dpo_safer")
    found = run_red_team(alone)
    assert compact({name: found[name] for name in ("robust", "robust_after")}) == {
        name: same[name] for name in ("robust", "robust_after")
    }


def test_another_sweep_does_not_go_on_with_this_one(whole):
    with pytest.raises(UserError, match="threshold"):
        run_sweep(replace(whole, resume=True, threshold=0.5))


def test_direct_from_the_command_line(random_base, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    row = {
        "prompt": "how do i open the lock ?", "response_0": "sorry , i can not", "response_1": "take a tool",
        "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0,
    }  # fmt: skip
    pairs.write_text("".join(json.dumps(row | {"prompt": f"{row['prompt']} {i}"}) + "\n" for i in range(6)))
    arguments = ["direct", "--base", str(random_base), "--data", str(pairs), "--direct.batch-size", "3"]
    assert main([*arguments, "--out", str(tmp_path / "policy"), "--method", "safedpo"]) == 0
    assert (tmp_path / "policy" / "adapter" / "adapter_model.safetensors").is_file()
    assert len((tmp_path / "policy" / "step-1" / "metrics.jsonl").read_text().splitlines()) == 2
    assert main([*arguments, "--out", str(tmp_path / "other"), "--method", "mocan"]) == 2
    assert "expected --reward and --cost" in capsys.readouterr().err
    assert set(DIRECT) >= {"safedpo", "mocan"}
