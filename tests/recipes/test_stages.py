"""Stages of a job: each after what it reads, none twice, and one failure ends the job."""

from __future__ import annotations

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
