"""Stages of a job: each after what it reads, none twice, and one failure ends the job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.experiments.stages import run_stages

NEEDS = {"last": ("left", "right"), "left": ("root",), "right": ("root",), "root": (), "alone": ()}


@dataclass
class Errand:
    """A job as small as they come."""

    out: Path
    workers: int = 2
    methods: tuple[str, ...] = ()
    ppo: Any = None

    def stage_path(self, name: str) -> Path:
        return self.out / name


def note(name: str, job: Errand) -> None:
    """Write down which of the needed stages are there."""
    there = [other for other in NEEDS.get(name, ()) if job.stage_path(other).is_file()]
    job.stage_path(name).write_text(" ".join(there))


def stumble(name: str, job: Errand) -> None:
    if name == "right":
        raise UserError("the right one fell")
    note(name, job)


def wait_for_the_clock(name: str, job: Errand) -> None:
    """Until the job's time, more than before this run, is stored while a stage still works."""
    clock, end = job.stage_path("seconds"), time.monotonic() + 60
    while time.monotonic() < end:
        if float(clock.read_text()) > 100:
            return note(name, job)
        time.sleep(0.05)
    raise UserError("the clock stood still")


def test_time_is_stored_while_stages_work_so_that_a_kill_does_not_lose_it(tmp_path):
    (tmp_path / "seconds").write_text("100.0")
    assert run_stages({"root": ()}, Errand(tmp_path), wait_for_the_clock) > 100
    assert run_stages({"root": ()}, Errand(tmp_path), note) > 100  # nothing is left to do


def test_each_stage_finds_what_it_reads(tmp_path):
    run_stages(NEEDS, Errand(tmp_path), note)
    for name, needs in NEEDS.items():
        assert (tmp_path / name).read_text().split() == list(needs)


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "root").write_text("made earlier")
    run_stages(NEEDS, Errand(tmp_path, workers=1), note)
    assert (tmp_path / "root").read_text() == "made earlier"
    assert (tmp_path / "last").read_text() == "left right"


def test_a_failure_is_raised_and_what_needs_it_is_not_made(tmp_path):
    with pytest.raises(UserError, match="fell"):
        run_stages(NEEDS, Errand(tmp_path), stumble)
    assert (tmp_path / "root").is_file()
    assert not (tmp_path / "last").is_file()


def test_stages_that_wait_for_each_other_are_told(tmp_path):
    with pytest.raises(ValueError, match="egg"):
        run_stages({"hen": ("egg",), "egg": ("hen",)}, Errand(tmp_path), note)
