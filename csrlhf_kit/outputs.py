"""Where a command writes: looked at before the work, one process at a time during it, whole afterwards.

A model's folder is replaced by `replace_folder`. Into a new place the model comes by one rename. A folder that is
there (a mount point, the target of a link, the working directory) stays itself: the new model is written in it,
hidden, and when it is whole its files take the old one's places.
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
from csrlhf_kit.errors import UserError

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
_held: set[Path] = set()  # locks of this process: a notebook may open what it has open


# --- before the work -----------------------------------------------------------------------------------


def check_folder(folder: Path | None, option: str = "--out") -> None:
    """Raises UserError where `folder` is a file, or nothing can be written there; leaves nothing behind."""
    if folder is None:
        return
    out = _settled(folder)
    if os.path.isfile(out):
        raise UserError(f"{option} {folder}: found a file, expected a folder or nothing there")
    # A folder to come needs room for the longer name of what is kept beside it.
    _try(
        out if os.path.isdir(out) else out.parent / f".{out.name}.checkpoints", "trial", f"{option} {folder}"
    )


def check_file(path: Path | None, option: str = "--out") -> None:
    """Raises UserError where no file can be written under the name `path`; leaves nothing behind."""
    if path is None:
        return
    out = _settled(path)
    if os.path.isdir(out):
        raise UserError(f"{option} {path}: found a folder, expected the name of a file")
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"{option} {path}: found a device or a pipe, expected the name of a file")
    _try(out.parent, out.name, f"{option} {path}")


def _try(folder: Path, name: str, told: str) -> None:
    """Write a file and remove it: in `folder`, or in one like it where `folder` is not there yet."""
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
    """Refuse to write a model where it cannot be, before an hour is spent on it.

    marks: a folder that is not empty has to hold one of these, since they show a model that may be replaced.

    Raises UserError also where `out` is the base that is being trained.
    """
    check_folder(out)
    with lock(out, inside=False):
        _finish(_settled(out))
    if base is not None and out.is_dir() and _settled(out) == _settled(Path(base)):
        raise UserError(f"--out {out} is the base itself: expected another folder")
    if _things(out) and not any((out / name).exists() for name in marks):
        raise UserError(f"--out {out}: found a folder with other things in it, expected an empty or new one")


def _things(folder: Path) -> list[str]:
    """What is in a folder; hidden things are not counted, nor what every new ext4 volume holds."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if not name.startswith(".") and name != "lost+found"]


def _settled(path: Path) -> Path:
    """The place itself: absolute, links followed."""
    return Path(os.path.realpath(path))


def trouble(error: BaseException) -> str | None:
    """The reason of an error that a disk or a file system gave; None for others.

    A file that is missing is not among them: who looks for one says what it was to be.
    """
    cause: BaseException | None = error
    while cause is not None:  # safetensors and PyTorch wrap a full disk, or tell it in words alone
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
    """Let no other process write to `folder` meanwhile; what a dead process has locked is free.

    inside: make the folder, and keep the lock's file in it; else beside it, for as long as there is no folder.

    Raises UserError where another process has it; the sentence says which.
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
        with suppress(OSError):  # what is not empty stays
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
        handle.close()  # its owner has just removed it: what is locked has no name any more


def _alone(check: Callable[[Any], None], *, inside: bool) -> Callable[[Callable], Callable]:
    """A decorator: functions of a configuration that write to `config.out`, after a look at it, and alone."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(config: Any, *arguments: Any, **options: Any) -> Any:
            from csrlhf_kit import distributed  # PyTorch's: not for commands that need none

            def enter() -> None:
                check(config)
                stack.enter_context(lock(Path(config.out), inside=inside))

            distributed.start()
            with ExitStack() as stack:
                distributed.on_main(enter)
                return function(config, *arguments, **options)

        return run

    return decorate


writes_run = _alone(lambda config: check_folder(config.out), inside=True)
writes_model = _alone(lambda config: check_model_folder(Path(config.out), config.base), inside=False)


# --- afterwards ----------------------------------------------------------------------------------------


def replace_folder(out: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a folder, then give it the name `out`, or its files to the folder that is there.

    What is in `out` and belongs to no model stays. Raises UserError where the files cannot be moved; the new model
    is then kept beside the old one.
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
                        os.fsync(handle.fileno())  # before the old ones go
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
    """Let the new model in `out` take the old one's place; goes on wherever a killed process has stopped."""
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
