"""A run's folder: config, metrics, checkpoints; whole files or none, and a resume that loses at most a step.

    runs/<name>/config.json              what was asked
    runs/<name>/request                  what somebody asks of it meanwhile: pause, or stop
    runs/<name>/metrics.jsonl            one JSON object a step, appended and flushed
    runs/<name>/checkpoints/step-000012/ tensors.safetensors + state.json, written aside and renamed

A checkpoint of step k is written after row k of the metrics. Whatever moment a process is killed at, the
folder then holds a newest complete checkpoint and at least its rows; a later or torn row is dropped on
resume and computed again.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrlhf_kit import __version__
from csrlhf_kit.contents import check_same
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor


CURVE = {  # short name -> what PPO's metrics call it
    "reward": "objective/reward",
    "cost": "objective/cost",
    "harmful": "objective/harmful",
    "kl": "objective/kl",
    "multiplier": "constraint/multiplier",
    "window_cost": "constraint/window_cost",
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
}
REQUEST = "request"
WISHES = ("run", "pause", "stop")


def ask(folder: str | Path, wish: str) -> None:
    """Ask whatever process trains in `folder` to `pause`, to `stop`, or to `run` on; it obeys at its next checkpoint.

    A run that stopped so has lost nothing, and goes on when it is resumed. Raises UserError for another wish.
    """
    if wish not in WISHES:
        raise UserError(f"request: found {wish!r}, one of {', '.join(WISHES)} was expected")
    if wish == "run":
        (Path(folder) / REQUEST).unlink(missing_ok=True)
    else:
        write_atomic(Path(folder) / REQUEST, wish + "\n")


def asked(folder: str | Path) -> str:
    """What is asked of the run in `folder`: one of `WISHES`."""
    try:
        wish = (Path(folder) / REQUEST).read_text().strip()
    except OSError:
        return "run"
    return wish if wish in WISHES else "run"


class Checkpoint(NamedTuple):
    """What one complete checkpoint holds."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Run:
    """One run's folder. Open it with `Run.open`; `log` each step, then `save` it.

    Only one process may write to a folder at a time.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.metrics_path = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: Any,
        *,
        contents: Mapping[str, str] | None = None,
        resume: bool = False,
        keep: int = 2,
    ) -> Run:
        """Start a run in `folder`, or go on with the one that is there.

        config: a dataclass or mapping of JSON values; stored, and compared on resume.
        contents: fingerprints of what settings name, which are compared instead of the names.
        keep: number of newest checkpoints that stay.

        Raises UserError where the folder already holds a run and `resume` is off, where there is nothing to
        resume, or where the stored config differs (the sentence names the field).
        """
        run = cls(folder, keep=keep)
        path = run.folder / "config.json"
        asked = _plain(config) | ({"contents": dict(contents)} if contents else {})
        if path.is_file():
            if not resume:
                raise UserError(
                    f"{run.folder} already holds a run: expected a new folder, or --resume to go on"
                )
            stored = json.loads(path.read_text())
            check_same(stored, asked, str(path))
        else:
            if run.metrics_path.exists() or run.checkpoints.exists():
                raise UserError(
                    f"{run.folder} has metrics or checkpoints but no config.json: expected a new folder"
                )
            write_atomic(path, json.dumps(asked, indent=1, sort_keys=True) + "\n")
        ask(run.folder, "run")  # what was asked of an earlier process
        for leftover in run.checkpoints.glob(".*"):  # of a process that was killed while saving
            shutil.rmtree(leftover, ignore_errors=True)
        return run

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the metrics; it is on its way to disk when this returns."""
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All complete rows; a torn last line (a process killed while writing) is left out."""
        return [row for row, _ in self._rows()]

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Store a checkpoint of `step`: tensors as safetensors, `state` as JSON. Older ones beyond `keep` go.

        Then does what somebody has asked for (`ask`): waits, or raises KeyboardInterrupt, which stops a job as
        Ctrl-C does.
        """
        from safetensors.torch import save_file

        self.checkpoints.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=self.checkpoints, prefix=".saving-"))
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(whole, aside / "tensors.safetensors")
            (aside / "state.json").write_text(json.dumps({"step": step, **state}))
            for name in ("tensors.safetensors", "state.json"):
                with open(aside / name, "rb") as file:
                    os.fsync(
                        file.fileno()
                    )  # a power cut must not leave a complete-looking folder of empty files
        except Exception:  # a full disk
            shutil.rmtree(aside, ignore_errors=True)
            raise
        final = self.checkpoints / f"step-{step:06d}"
        if final.exists():
            final.rename(aside / "replaced")
        aside.chmod(0o755)
        aside.rename(final)
        shutil.rmtree(final / "replaced", ignore_errors=True)
        for old in self._steps()[: -self.keep]:
            doomed = self.checkpoints / f".old-{old.name}"
            old.rename(doomed)  # first, since a half-deleted folder must not count
            shutil.rmtree(doomed, ignore_errors=True)
        while (wish := asked(self.folder)) == "pause":
            time.sleep(0.2)
        if wish == "stop":
            ask(self.folder, "run")
            raise KeyboardInterrupt(f"{self.folder} was asked to stop after step {step}")
        return final

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or None; metrics of later steps and torn lines are cut off the file.

        A checkpoint that cannot be read (disk trouble) gives way to the one before.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        checkpoint = None
        for folder in reversed(self._steps()):
            try:
                state = json.loads((folder / "state.json").read_text())
                checkpoint = Checkpoint(
                    int(state.pop("step")), load_file(folder / "tensors.safetensors"), state
                )
                break
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                unreadable = f"{folder}: {error}"
        if checkpoint is None and self._steps():
            raise UserError(f"no checkpoint can be read ({unreadable}): expected one whole folder")
        self._truncate(checkpoint.step if checkpoint else 0)
        return checkpoint

    def _steps(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))

    def _rows(self) -> list[tuple[dict[str, Any], int]]:
        """(row, byte offset of its end) of each complete line."""
        if not self.metrics_path.exists():
            return []
        rows, end = [], 0
        for line in self.metrics_path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                break
            end += len(line)
            rows.append((row, end))
        return rows

    def _truncate(self, step: int) -> None:
        end = max((end for row, end in self._rows() if row.get("step", 0) <= step), default=0)
        if self.metrics_path.exists():
            os.truncate(self.metrics_path, end)


def curve_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Metrics rows as columns, by `CURVE`'s short names; what was not measured in every row is left out."""
    return {
        short: [row[name] for row in rows]
        for short, name in CURVE.items()
        if rows and all(row.get(name) is not None for row in rows)
    }


def postfix(row: Mapping[str, Any]) -> dict[str, str]:
    """What a progress line says of a step of PPO."""
    names = {"harm": "harmful", "reward": "reward", "kl": "kl", "λ": "multiplier"}
    return {name: f"{row[CURVE[short]]:.2f}" for name, short in names.items()}


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of all global generators (torch, its GPUs, Python, numpy) as (tensors, JSON values)."""
    import torch

    version, inner, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    python = {"version": version, "inner": list(inner), "gauss": gauss}
    return tensors, {"python": python, "numpy": [name, position, has_gauss, cached]}


def restore_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Undo of `random_state`."""
    import torch

    torch.set_rng_state(tensors["rng.torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda.{i}"], i)
    python = state["python"]
    random.setstate((python["version"], tuple(python["inner"]), python["gauss"]))
    name, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, Python and numpy."""
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _plain(config: Any) -> dict[str, Any]:
    """Config as it will read back from JSON (tuples become lists, paths strings)."""
    values = asdict(config) if is_dataclass(config) else dict(config)
    return json.loads(json.dumps(values, default=str))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "scikit-learn")
    return {
        "csrlhf-kit": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    } | {n: version(n) for n in names}
