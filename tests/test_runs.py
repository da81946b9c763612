"""Run folders: whole files, exact resume, and what a killed process leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from csrlhf_kit import runs
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.runs import Run, random_state, restore_random_state, seed_everything
from csrlhf_kit.training.constraints import FixedPenalty, PIDLagrangian
from csrlhf_kit.training.ppo import PPOConfig, config_dict, train_ppo


@dataclass
class Settings:
    rate: float = 0.1
    folder: Path = Path("somewhere")
    sizes: tuple[int, ...] = (1, 2)


def rows_without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


# --- files ---


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    assert write_atomic(path, "old") == path

    def crash(*args):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_opening_a_folder(tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        Run.open(Run.open(tmp_path / "a", Settings()).folder, Settings())
    Run.open(tmp_path / "a", Settings(), resume=True)
    with pytest.raises(UserError, match=r"rate was 0\.1 and is now 0\.2"):
        Run.open(tmp_path / "a", Settings(rate=0.2), resume=True)
    with pytest.raises(UserError, match="extra was 'absent'"):
        Run.open(
            tmp_path / "a", {"rate": 0.1, "folder": "somewhere", "sizes": [1, 2], "extra": 3}, resume=True
        )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no config"):
        Run.open(tmp_path / "b", Settings())
    fresh = Run.open(tmp_path / "c", Settings(), resume=True)  # killed before it wrote anything: start
    assert fresh.load() is None and fresh.history() == []


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_settings_that_cannot_be_read_are_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: expected"):
        Run.open(tmp_path, {}, resume=True)


def test_nested_settings_are_compared_by_their_own_name(tmp_path):
    Run.open(tmp_path, {"constraint": {"name": "FixedPenalty", "penalty": 20}})
    with pytest.raises(UserError, match=r"constraint\.penalty was 20 and is now 5"):
        Run.open(tmp_path, {"constraint": {"name": "FixedPenalty", "penalty": 5}}, resume=True)


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path):
    run = Run.open(tmp_path, {})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": step / 3})
    run.save(2, {"x": torch.tensor([2.0])}, {})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.history()] == [1, 2, 3]
    assert run.history()[0]["loss"] == 1 / 3
    again = Run.open(tmp_path, {}, resume=True)
    assert again.load().step == 2
    again.log({"step": 3, "loss": 0.0})
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2, 3]


def test_the_newest_checkpoints_stay_and_leftovers_go(tmp_path):
    run = Run.open(tmp_path, {})
    for step in range(1, 5):
        run.save(step, {"x": torch.full((2,), float(step))}, {"note": {"step": step}})
    (run.checkpoints / ".saving-abc").mkdir()
    (run.checkpoints / ".saving-abc" / "tensors.safetensors").write_bytes(b"half")
    run = Run.open(tmp_path, {}, resume=True)
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == ["step-000003", "step-000004"]
    checkpoint = run.load()
    assert checkpoint.step == 4 and checkpoint.state == {"note": {"step": 4}}
    assert checkpoint.tensors["x"].tolist() == [4.0, 4.0]
    run.save(4, {"x": torch.zeros(2)}, {})  # the same step again
    assert run.load().tensors["x"].tolist() == [0.0, 0.0]
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("damage", ["tensors.safetensors", "state.json"])
def test_an_unreadable_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    run = Run.open(tmp_path, {})
    for step in (1, 2):
        run.log({"step": step})
        run.save(step, {"x": torch.tensor([float(step)])}, {})
    (run.checkpoints / "step-000002" / damage).write_bytes(b"")
    assert run.load().step == 1
    assert [row["step"] for row in run.history()] == [1]
    (run.checkpoints / "step-000001" / damage).write_bytes(b"{")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        run.load()


def test_random_state_round_trip():
    seed_everything(5)
    torch.rand(3), random.gauss(0, 1), np.random.randn(3)
    tensors, state = random_state()
    state = json.loads(json.dumps(state))
    draws = [(torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.randn(2).tolist())]
    seed_everything(6)
    restore_random_state(tensors, state)
    draws.append((torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.randn(2).tolist()))
    assert draws[0] == draws[1]


# --- training, killed and resumed ---

CONFIG = PPOConfig(
    steps=5, batch_size=6, minibatch_size=3, microbatch_size=2, epochs=2, max_new_tokens=6, warmup_steps=2
)
PROMPTS = ["feed the dog", "open the lock of my shed", "write a note", "kill the rumour please"]


def lengths(prompts, responses) -> torch.Tensor:
    return torch.tensor([len(response) / 10 for response in responses])


def vowels(prompts, responses) -> torch.Tensor:
    return torch.tensor([1.0 if set("aeiou") & set(response) else -1.0 for response in responses])


def train(base: Path, folder: Path, *, reward=lengths, resume=False, constraint=None, config=CONFIG):
    """One run from scratch or from its folder: (metrics, trained tensors)."""
    constraint = constraint or PIDLagrangian(threshold=0.2)
    run = Run.open(folder, config_dict(config, constraint), resume=resume)
    roles = Roles(load_base(base, device="cpu"), reward=reward, cost=vowels, rank=4)
    history = train_ppo(roles, load_tokenizer(base), PROMPTS, constraint, config, run)
    assert rows_without_times(history) == rows_without_times(run.history())
    return rows_without_times(history), {n: t.clone() for n, t in roles.trained_state().items()}


def assert_same(left, right):
    assert left[0] == right[0]
    assert all(torch.equal(tensor, right[1][name]) for name, tensor in left[1].items())


@pytest.fixture(scope="module")
def unbroken(random_base, tmp_path_factory):
    return train(random_base, tmp_path_factory.mktemp("runs") / "unbroken")


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads({threads})
import test_runs

calls = 0

def slow(prompts, responses):
    global calls
    calls += 1
    if calls == 4:  # in the middle of step 4: sampled, not yet scored
        print("ready", flush=True)
        time.sleep(600)
    return test_runs.lengths(prompts, responses)

test_runs.train(test_runs.Path({base!r}), test_runs.Path({folder!r}), reward=slow)
"""


def test_resume_after_kill_9_is_bit_identical(random_base, tmp_path, unbroken):
    folder = tmp_path / "killed"
    tests = str(Path(__file__).parent)
    code = CHILD.format(
        tests=tests, base=str(random_base), folder=str(folder), threads=torch.get_num_threads()
    )
    root = str(Path(runs.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    try:
        assert child.stdout.readline().strip() == "ready"
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert [row["step"] for row in Run(folder).history()] == [1, 2, 3], (
        "the step in flight is all that is lost"
    )
    assert_same(train(random_base, folder, resume=True), unbroken)


@pytest.mark.parametrize("moment", ["while saving", "between metrics and checkpoint", "between steps"])
def test_resume_after_a_crash_is_bit_identical(random_base, tmp_path, unbroken, monkeypatch, moment):
    save = Run.save

    def crash(self, step, tensors, state):
        if step == 3 and moment == "between metrics and checkpoint":
            raise KeyboardInterrupt
        if step == 3 and moment == "while saving":
            monkeypatch.setattr(os, "fsync", interrupt)
        path = save(self, step, tensors, state)
        if step == 3:
            raise KeyboardInterrupt
        return path

    def interrupt(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            train(random_base, tmp_path / "run")
    monkeypatch.undo()
    assert_same(train(random_base, tmp_path / "run", resume=True), unbroken)


def test_rare_checkpoints_resume_alike_and_the_last_step_is_stored(random_base, tmp_path):
    config = PPOConfig(**{**CONFIG.__dict__, "checkpoint_every": 2})
    make = lambda: FixedPenalty(threshold=0.5, gate="ema")  # noqa: E731
    whole = train(random_base, tmp_path / "whole", config=config, constraint=make())
    assert Run(tmp_path / "whole").load().step == 5
    run = tmp_path / "whole"
    for name in ("step-000005",):  # as if it had been killed in step 5
        for file in (run / "checkpoints" / name).iterdir():
            file.unlink()
        (run / "checkpoints" / name).rmdir()
    assert_same(train(random_base, run, config=config, constraint=make(), resume=True), whole)


def test_resuming_a_finished_run_changes_nothing(random_base, tmp_path):
    whole = train(random_base, tmp_path / "run")
    assert_same(train(random_base, tmp_path / "run", resume=True), whole)
