"""Output folders: checked before the work, locked during it, and replaced as a whole afterwards.

`replace_folder` writes a model. A new folder appears by one rename. An existing one (which may be a mount point,
the target of a link, or the working directory) stays: the new model is written to a hidden folder inside it, and
its files take the places of the old ones when it is complete. Builds on `contents`.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from csrlhf_kit.contents import WEIGHTS
from csrlhf_kit.errors import UserError, check_numbers

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None  # type: ignore[assignment]

NEW, OLD, DONE, LOCK = ".csrlhf.new", ".csrlhf.old", ".csrlhf.done", ".csrlhf.lock"
MODEL = (
    *WEIGHTS,
    "base.json",
    "additional_chat_templates",
    "sft.json",
    "metrics.json",
    "predictions.jsonl",
    "README.md",
)
_held: set[Path] = set()  # locks of this process, which may take them again, as a notebook does


# --- before the work -----------------------------------------------------------------------------------


def check_folder(folder: Path | None, option: str = "--out") -> None:
    """Raise UserError if `folder` is a file or cannot be written to. Leaves nothing behind."""
    if folder is None:
        return
    out = _settled(folder)
    if os.path.isfile(out):
        raise UserError(f"{option} {folder}: found a file, expected a folder or nothing there")
    # A new folder's name is tried with the longest suffix of what will stand beside it.
    _try(
        out if os.path.isdir(out) else out.parent / f".{out.name}.checkpoints", "trial", f"{option} {folder}"
    )


def check_file(path: Path | None, option: str = "--out") -> None:
    """Raise UserError if no file can be written as `path`. Leaves nothing behind."""
    if path is None:
        return
    out = _settled(path)
    if os.path.isdir(out):
        raise UserError(f"{option} {path}: found a folder, expected the name of a file")
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"{option} {path}: found a device or a pipe, expected the name of a file")
    _try(out.parent, out.name, f"{option} {path}")


def _try(folder: Path, name: str, told: str) -> None:
    """Write a file in `folder` and remove it; if there is no such folder yet, in a temporary one like it."""
    place, missing = folder, []
    while not os.path.lexists(place):
        missing.append(place.name)
        place = place.parent
    if os.path.isfile(place):
        raise UserError(f"{told}: {place} is a file, expected a folder")
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".csrlhf-") as trial:
            inner = Path(trial, *reversed(missing))
            inner.mkdir(parents=True, exist_ok=True)
            (inner / name).write_bytes(bytes(4096))
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise UserError(f"{told}: {reason} (in {place}), expected a place that can be written") from error


def check_model_folder(
    out: Path, base: str | None = None, marks: tuple[str, ...] = ("scorer.json", "sft.json")
) -> None:
    """Check, before the training, that a model can be written to `out`.

    marks: files of the kit's models; a folder that is not empty must hold one of them to be replaced.

    Raises UserError if nothing can be written there, if it holds something else, or if it is `base` itself.
    """
    check_folder(out)
    with lock(out, inside=False):
        _finish(_settled(out))
    if base is not None and out.is_dir() and _settled(out) == _settled(Path(base)):
        raise UserError(f"--out {out} is the base itself: expected another folder")
    if _things(out) and not any((out / name).exists() for name in marks):
        raise UserError(f"--out {out}: found a folder with other things in it, expected an empty or new one")


def _things(folder: Path) -> list[str]:
    """Names of what a folder holds, without hidden files and the `lost+found` of every new ext4 volume."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if not name.startswith(".") and name != "lost+found"]


def _settled(path: Path) -> Path:
    """The absolute path with all links followed. Raises UserError if they lead in a circle."""
    settled = Path(os.path.realpath(path))
    if os.path.islink(settled):
        raise UserError(f"{path}: found links in a circle, expected a place that can be written")
    return settled


def trouble(error: BaseException) -> str | None:
    """Why the disk or the file system failed, in a few words; None for other errors, and for a missing file."""
    cause: BaseException | None = error
    while cause is not None:  # safetensors and PyTorch report a full disk in a wrapper, or only in words
        told = "No space left" in str(cause) or "file write failed" in str(cause)
        if told or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full"
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, OSError) or error.errno in (None, errno.ENOENT):
        return None
    return os.strerror(error.errno).lower() + (f": {error.filename}" if error.filename else "")


# --- during the work -----------------------------------------------------------------------------------


@contextmanager
def lock(folder: Path, *, inside: bool = True) -> Iterator[None]:
    """Keep other processes from writing to `folder` within the block. The lock of a dead process does not count.

    inside: make the folder and put the lock file in it; otherwise it stands beside a folder that does not exist.

    Raises UserError, naming the process, if another one holds the lock.
    """
    out = _settled(folder)
    path = out / LOCK if inside or out.is_dir() else out.parent / f".{out.name}.lock"
    if path in _held or fcntl is None:
        yield
        return
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path, folder)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        handle.close()
        with suppress(OSError):  # folders that are not empty stay
            for place in made:
                place.rmdir()


def _locked(path: Path, folder: Path) -> Any:
    """The file `path`, open and locked."""
    while True:
        handle = open(path, "a+")  # noqa: SIM115  (open as long as the lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise UserError(f"{folder} is being written by {owner}: expected one process at a time") from None
        except OSError:  # a file system without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle.fileno())):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                handle.flush()
                return handle
        handle.close()  # the former owner has just removed the file that is locked here: try again


def _alone(*checks: Callable[[Any], None], inside: bool) -> Callable[[Callable], Callable]:
    """A decorator for `function(config, ...)`: calls each check with the config, then locks `config.out` during the call."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(config: Any, *arguments: Any, **options: Any) -> Any:
            from csrlhf_kit import distributed  # imports torch, which other users of this file do without

            def enter() -> None:
                for check in checks:
                    check(config)
                stack.enter_context(lock(Path(config.out), inside=inside))

            distributed.start()
            with ExitStack() as stack:
                distributed.on_main(enter)
                return function(config, *arguments, **options)

        return run

    return decorate


writes_run = _alone(check_numbers, lambda config: check_folder(config.out), inside=True)
writes_model = _alone(lambda config: check_model_folder(Path(config.out), config.base), inside=False)


# --- afterwards ----------------------------------------------------------------------------------------


def replace_folder(out: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(folder)` make a folder, then rename it to `out`, or move its files into an existing `out`.

    Files in `out` that belong to no model stay. Raises UserError, which says where the new model is, if its files
    cannot be moved.
    """
    out = _settled(out)
    with lock(out, inside=False):
        _finish(out)
        fresh = out / NEW if out.is_dir() else out.parent / f".{out.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh)
            for file in fresh.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())  # before the old files are removed
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        try:
            if out.is_dir():
                (out / OLD).mkdir()
                _finish(out)
            else:
                fresh.rename(out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be replaced ({trouble(error) or error}): the new model is in {fresh}"
            ) from error


def _finish(out: Path) -> None:
    """Put the new model inside `out` in the old one's place, from wherever a killed process stopped."""
    new, old, done = (out / name for name in (NEW, OLD, DONE))
    if old.exists():
        taken = os.listdir(new)
        for entry in os.listdir(out):
            if entry in taken or any(fnmatch(entry, pattern) for pattern in MODEL):
                (out / entry).rename(old / entry)
        old.rename(done)
    if done.exists():
        for entry in os.listdir(new) if new.exists() else ():
            (new / entry).rename(out / entry)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(done)
