"""What is recorded: runs with their rates, curves and samples, read from `results.json` and `sweep.json`.

What `explore_tradeoff` shows, and where `annotate` takes its pairs from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.runs import curve_of
from csrlhf_kit.theory import FiniteProblem

FILES = ("results.json", "sweep.json")


@dataclass(frozen=True)
class RunRow:
    """One recorded policy."""

    name: str
    """What tells it from the others."""
    method: str
    """Its method, which decides how it looks."""
    policy: Mapping[str, Any]
    """Its row as in `results.json`: rates with intervals, helpfulness, reward, cost, kl ..."""
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Training curves by `curve_of`'s short names; empty where nothing was trained."""
    threshold: float | None = None
    """Largest mean cost that its training allowed."""


@dataclass(frozen=True)
class Recorded:
    """Runs and their samples; a problem where the record holds scored samples of the reference."""

    runs: tuple[RunRow, ...]
    samples: Sequence[Mapping[str, Any]] = ()
    problem: FiniteProblem | None = None

    def run(self, name: str) -> RunRow | None:
        return next((run for run in self.runs if run.name == name), None)


def read_recorded(source: str | Path | Mapping[str, Any] | None = None) -> Recorded:
    """Read `results.json` or `sweep.json`: a file, the folder that it is in, what it holds, or None: the shipped one.

    Of a folder whose folders hold records, such as `data/runs`, all are read as one; each run's name then begins with
    its folder's, and no problem is kept: their rewards and costs are those of different models.

    Raises UserError where there is none, or where it holds no policy.
    """
    if isinstance(source, Mapping):
        return _checked(source, None, "results")
    path = data_folder() / "recorded" if source is None else Path(source)
    if path.is_dir() and not _record_in(path):
        inside = {
            folder.name: read_recorded(folder) for folder in sorted(path.glob("*/")) if _record_in(folder)
        }
        if inside:
            return _joined(inside)
    path = (_record_in(path) or path / FILES[0]) if path.is_dir() else path
    try:
        stored = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: no such file; a finished run's results.json was expected") from None
    except ValueError:
        raise UserError(f"{path}: this is no JSON; a finished run's results.json was expected") from None
    return _checked(stored, path.parent, str(path))


def _record_in(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _checked(results: Any, folder: Path | None, name: str) -> Recorded:
    try:
        return _recorded(results, folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: found no policies ({error}); those of results.json were expected") from None


def _joined(records: Mapping[str, Recorded]) -> Recorded:
    """Several folders' records as one."""
    return Recorded(
        tuple(
            replace(run, name=f"{folder} · {run.name}")
            for folder, record in records.items()
            for run in record.runs
        ),
        samples=[
            {
                **sample,
                "responses": {f"{folder} · {name}": said for name, said in sample["responses"].items()},
            }
            for folder, record in records.items()
            for sample in record.samples
        ],
    )


def _recorded(results: Mapping[str, Any], folder: Path | None) -> Recorded:
    if "cells" in results:  # of a sweep
        limit = results.get("threshold")
        runs = [
            RunRow(
                _cell_name(cell), cell["method"], cell["policy"], cell.get("curve") or {},
                cell["settings"].get("threshold", limit),
            )
            for cell in results["cells"]
        ]  # fmt: skip
        return Recorded(tuple(runs))
    curves, config = results.get("curves") or {}, results.get("config") or {}
    runs = [
        RunRow(name, name, policy, curve_of(curves.get(name, ())), config.get("threshold"))
        for name, policy in results["policies"].items()
    ]
    problem = _reweighted(results, config, folder)
    return Recorded(tuple(runs), samples=results.get("samples") or (), problem=problem)


def _cell_name(cell: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in cell["settings"].items())
    return " · ".join(part for part in (cell["method"], settings, f"seed {cell['seed']}") if part)


def _reweighted(
    results: Mapping[str, Any], config: Mapping[str, Any], folder: Path | None
) -> FiniteProblem | None:
    """The problem whose responses are the reference's scored samples, where the record has kept the scores."""
    scores = (results.get("frontier") or {}).get("scores")
    stage = folder / "stages" / "frontier.json" if folder else None
    if scores is None and stage is not None and stage.is_file():
        scores = json.loads(stage.read_text()).get("scores")
    beta = (config.get("ppo") or {}).get("kl_coefficient")
    if not scores or not beta or config.get("threshold") is None:
        return None
    reward = np.array(scores["reward"])
    even = np.full(reward.shape, 1 / reward.shape[1])
    return FiniteProblem(even, reward, np.array(scores["cost"]), beta=beta, threshold=config["threshold"])
