"""The one reader of what finished runs have recorded: `results.json` of a head-to-head, `sweep.json` of a sweep.

`read_results` checks that nothing is missing, `policy_rows` makes a typed row of each policy, `read_recorded` gathers
rows, sample answers and scored samples. Values with their intervals become `theory.intervals.Estimate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import read_json
from csrlhf_kit.runs import curve_of
from csrlhf_kit.theory import FiniteProblem

ADDED = ("cost_model", "judged_on")  # settings that older records do not name
FILES = ("results.json", "sweep.json")
BATCH = 64  # the default of `PPOConfig`, which is training's: this room does not know it
POLICY_RATES = ("harmful_nominal", "harmful_jailbreak", "over_refusal")
POLICY_NUMBERS = ("helpfulness", "reward", "cost", "kl", "multiplier", "seconds")
COST_MODEL_NUMBERS = (
    "auroc", "auroc_tricky", "precision", "recall", "false_positive_rate_benign_alarming", "ece", "n",
)  # fmt: skip


@dataclass(frozen=True)
class PolicyRow:
    """One recorded policy: trained, and judged."""

    method: str
    """Its method, which decides its colour and marker in figures."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the method's published constants."""
    seed: int = 0
    """Seed of the training."""
    threshold: float | None = None
    """Largest mean cost allowed in its training."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Its row as in `results.json`: rates with intervals, helpfulness, reward, cost, kl ..."""
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Training curves by `curve_of`'s short names; empty if nothing was trained."""
    batch_size: int = BATCH
    """Episodes per training step."""
    name: str = ""
    """A name that no other run of the record has."""


@dataclass(frozen=True)
class RecordedRuns:
    """Runs and their samples, and a problem if the record holds scored samples of the reference."""

    runs: tuple[PolicyRow, ...]
    samples: Sequence[Mapping[str, Any]] = ()
    problem: FiniteProblem | None = None

    def run(self, name: str) -> PolicyRow | None:
        return next((run for run in self.runs if run.name == name), None)


def read_recorded(source: str | Path | Mapping[str, Any] | None = None) -> RecordedRuns:
    """Read `results.json` or `sweep.json` from a file, its folder, or its parsed content; None: the shipped record.

    Records in the folders of a folder, such as `data/runs`, are read as one: each run's name then begins with its
    folder's, and there is no problem, since their rewards and costs come from different models.

    Raises UserError if there is no record, or it holds no policy.
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
    return _checked(read_json(path), path.parent, str(path))


def read_results(path: Path) -> dict[str, Any]:
    """`results.json` with every key that a report needs. Raises UserError that names what is missing."""
    results = read_json(path)
    for key, kind in {
        "config": Mapping,
        "seed": int,
        "versions": Mapping,
        "wall_seconds": int | float,
        "cost_models": Mapping,
        "policies": Mapping,
    }.items():
        _need(results, key, kind, path, "")
    if not results["policies"]:
        raise UserError(f"{path}: `policies` is empty; a report needs at least one")
    for name, policy in results["policies"].items():
        place = f"policies.{name}."
        for key in POLICY_RATES:
            _need(policy, key, Mapping, path, place)
            for part in ("rate", "low", "high", "n"):
                _need(policy[key], part, int | float, path, f"{place}{key}.")
        for key in POLICY_NUMBERS:
            _need(policy, key, int | float | None, path, place)
    for name, model in results["cost_models"].items():
        for key in COST_MODEL_NUMBERS:
            _need(model, key, int | float | None, path, f"cost_models.{name}.")
    return results


def recorded_policies(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The policies of every shipped head-to-head whose settings, seeds and folders aside, are those of `config`."""

    def settings(of: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in of.items() if name not in ("seed", "base", "methods", *ADDED)}
        return own | {"ppo": {**of["ppo"], "seed": 0}}

    files = sorted(data_folder().glob("recorded/results.json")) + sorted(
        data_folder().glob("runs/*/results.json")
    )
    stored = [read_json(file) for file in files]
    return [told["policies"] for told in stored if settings(told["config"]) == settings(config)]


def _need(holder: Any, key: str, kind: Any, path: Path, place: str) -> None:
    if not isinstance(holder, Mapping) or key not in holder:
        raise UserError(f"{path}: `{place}{key}` is missing")
    if not isinstance(holder[key], kind):
        found = type(holder[key]).__name__
        expected = "an object" if kind is Mapping else "a number"
        raise UserError(f"{path}: `{place}{key}` is {found}, expected {expected}")


def _record_in(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _checked(results: Any, folder: Path | None, name: str) -> RecordedRuns:
    try:
        return _recorded(results, folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: found no policies ({error}); those of results.json were expected") from None


def _joined(records: Mapping[str, RecordedRuns]) -> RecordedRuns:
    """Several folders' records as one."""
    return RecordedRuns(
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


def _recorded(results: Mapping[str, Any], folder: Path | None) -> RecordedRuns:
    runs = policy_rows(results)
    if "cells" in results:  # of a sweep
        return RecordedRuns(runs)
    return RecordedRuns(runs, samples=results.get("samples") or (), problem=_reweighted(results, folder))


def policy_rows(results: Mapping[str, Any]) -> tuple[PolicyRow, ...]:
    """One row per policy of a `results.json`, or per cell of a `sweep.json`."""
    if "cells" in results:
        limit = results.get("threshold")
        return tuple(
            PolicyRow(
                cell["method"],
                cell["settings"],
                cell["seed"],
                cell["settings"].get("threshold", limit),
                cell["policy"],
                cell.get("curve") or {},
                int(cell["settings"].get("ppo.batch_size", BATCH)),
                _cell_name(cell),
            )
            for cell in results["cells"]
        )
    curves, config = results.get("curves") or {}, results.get("config") or {}
    shared = {"seed": results.get("seed", 0), "threshold": config.get("threshold")}
    shared["batch_size"] = (config.get("ppo") or {}).get("batch_size", BATCH)
    return tuple(
        PolicyRow(name, policy=policy, curve=curve_of(curves.get(name, ())), name=name, **shared)
        for name, policy in results["policies"].items()
    )


def _cell_name(cell: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in cell["settings"].items())
    return " · ".join(part for part in (cell["method"], settings, f"seed {cell['seed']}") if part)


def _reweighted(results: Mapping[str, Any], folder: Path | None) -> FiniteProblem | None:
    """The problem whose responses are the reference's scored samples, if the record has kept the scores."""
    config = results.get("config") or {}
    scores = (results.get("frontier") or {}).get("scores")
    stage = folder / "stages" / "frontier.json" if folder else None
    if scores is None and stage is not None and stage.is_file():
        scores = read_json(stage).get("scores")
    beta = (config.get("ppo") or {}).get("kl_coefficient")
    if not scores or not beta or config.get("threshold") is None:
        return None
    reward = np.array(scores["reward"])
    even = np.full(reward.shape, 1 / reward.shape[1])
    return FiniteProblem(even, reward, np.array(scores["cost"]), beta=beta, threshold=config["threshold"])
