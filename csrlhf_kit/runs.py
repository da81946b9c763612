"""A run's folder: settings, metrics and checkpoints, from which a killed run resumes without a trace.

    runs/<name>/config.json              the settings
    runs/<name>/request                  a request to the running process: pause, or stop
    runs/<name>/metrics.jsonl            one JSON object per step, appended
    runs/<name>/checkpoints/step-000012/ tensors.safetensors + state.json, written aside and renamed

A checkpoint of step k is written after row k of the metrics. So whenever a process is killed, every complete
checkpoint has all its rows; later or incomplete rows are dropped on resume and computed again.
Builds on `files` and `contents`; torch is imported only where tensors are used.
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
from csrlhf_kit.files import read_json, write_atomic

if TYPE_CHECKING:
    from torch import Tensor


CURVE = {  # short name -> name in the metrics
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
STOP_REQUESTS = ("run", "pause", "stop")


def send_stop_request(folder: str | Path, request: str) -> None:
    """Ask the process that trains in `folder` to `pause`, `stop` or `run` on; it obeys at its next checkpoint.

    A run stopped this way loses nothing and can be resumed. Raises UserError for any other request.
    """
    if request not in STOP_REQUESTS:
        raise UserError(f"request: found {request!r}, one of {', '.join(STOP_REQUESTS)} was expected")
    if request == "run":
        (Path(folder) / REQUEST).unlink(missing_ok=True)
    else:
        write_atomic(Path(folder) / REQUEST, request + "\n")


def stop_request(folder: str | Path) -> str:
    """The pending request to the run in `folder`: one of `STOP_REQUESTS`, "run" if there is none."""
    try:
        request = (Path(folder) / REQUEST).read_text().strip()
    except OSError:
        return "run"
    return request if request in STOP_REQUESTS else "run"


class Checkpoint(NamedTuple):
    """The contents of one complete checkpoint."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Run:
    """One run's folder. Open it with `Run.open`; `log` each step, then `save` it.

    Only one process may write to a folder at a time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metrics_path = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def open(
        cls, folder: str | Path, config: Any, *,
        contents: Mapping[str, str] | None = None, resume: bool = False,
    ) -> Run:  # fmt: skip
        """Start a run in `folder`, or resume the one that is there.

        config: a dataclass or mapping of JSON values; stored, and compared on resume.
        contents: setting name -> fingerprint of the data or model that it names, compared instead of the name.

        Raises UserError if the folder already holds a run and `resume` is off, if it holds metrics without a
        config, or if the stored config differs (the sentence names the field).
        """
        run = cls(folder)
        path = run.folder / "config.json"
        asked = _plain(config) | ({"contents": dict(contents)} if contents else {})
        if path.is_file():
            if not resume:
                raise UserError(
                    f"{run.folder} already holds a run: expected a new folder, or --resume to go on"
                )
            check_same(read_json(path), asked, str(path))
        else:
            if run.metrics_path.exists() or run.checkpoints.exists():
                raise UserError(
                    f"{run.folder} has metrics or checkpoints but no config.json: expected a new folder"
                )
            write_atomic(path, json.dumps(asked, indent=1, sort_keys=True) + "\n")
        send_stop_request(run.folder, "run")  # withdraws requests to an earlier process
        for leftover in run.checkpoints.glob(".*"):  # of a process that was killed while saving
            shutil.rmtree(leftover, ignore_errors=True)
        return run

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the metrics file. It survives a killed process, but not a power cut."""
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All complete rows of the metrics; an incomplete last line is left out."""
        return [row for row, _ in self._rows()]

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Store a checkpoint of `step`: tensors as safetensors, `state` as JSON. Deletes all but the newest two.

        Then obeys a pending request (see `send_stop_request`): waits while paused, and raises KeyboardInterrupt to stop.
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
                    os.fsync(file.fileno())  # a power cut must not leave complete-looking, empty files
        except Exception:  # a full disk
            shutil.rmtree(aside, ignore_errors=True)
            raise
        final = self.checkpoints / f"step-{step:06d}"
        if final.exists():
            final.rename(aside / "replaced")
        aside.chmod(0o755)
        aside.rename(final)
        shutil.rmtree(final / "replaced", ignore_errors=True)
        for old in self._steps()[:-2]:
            doomed = self.checkpoints / f".old-{old.name}"
            old.rename(doomed)  # first, since a half-deleted folder must not pass for a checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
        while (request := stop_request(self.folder)) == "pause":
            time.sleep(0.2)
        if request == "stop":
            send_stop_request(self.folder, "run")
            raise KeyboardInterrupt(f"{self.folder} was asked to stop after step {step}")
        return final

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None. Metrics of later steps are cut off the file.

        Raises UserError if there are checkpoints and none can be read.
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
            raise UserError(f"no checkpoint can be read ({unreadable}): expected one complete folder")
        self._truncate(checkpoint.step if checkpoint else 0)
        return checkpoint

    def _steps(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))

    def _rows(self) -> list[tuple[dict[str, Any], int]]:
        """(row, byte offset of its end) of each complete line of the metrics."""
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
    """Metrics as one list of numbers per short name of `CURVE`; metrics missing from any row are left out."""
    return {
        short: [row[name] for row in rows]
        for short, name in CURVE.items()
        if rows and all(row.get(name) is not None for row in rows)
    }


def postfix(row: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a PPO step."""
    names = {"harm": "harmful", "reward": "reward", "kl": "kl", "λ": "multiplier"}
    return {name: f"{row[CURVE[short]]:.2f}" for name, short in names.items()}


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of all global random generators (torch, its GPUs, Python, numpy) as (tensors, JSON values)."""
    import torch

    version, inner, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    python = {"version": version, "inner": list(inner), "gauss": gauss}
    return tensors, {"python": python, "numpy": [name, position, has_gauss, cached]}


def restore_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Set all global random generators to what `random_state` returned."""
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
    """Seed the global random generators of torch, Python and numpy."""
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _plain(config: Any) -> dict[str, Any]:
    """The config as JSON would give it back (tuples become lists, paths strings)."""
    values = asdict(config) if is_dataclass(config) else dict(config)
    return json.loads(json.dumps(values, default=str))


def processor_name(torch: Any) -> str:
    """The name that the processor gives itself."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not there before PyTorch 2.11
    return str(known.get("cpu_name", platform.processor() or platform.machine()))


def versions() -> dict[str, str]:
    """Versions of the kit, of Python and of the libraries that results depend on, and the processor."""
    import torch

    names = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "scikit-learn")
    return {
        "csrlhf-kit": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": f"{processor_name(torch)}, used as {torch.backends.cpu.get_cpu_capability()}",
    } | {n: version(n) for n in names}
