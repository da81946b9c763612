"""Crash-safe files: `write_atomic` for whole files, and append-only JSONL, in which no line is lost or rewritten; and
`read_json`, by which what was written is read again. Builds on errors.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csrlhf_kit.errors import UserError


def append(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one JSON line; it is on disk when this returns. Raises OSError if the disk is full.

    The line is a single write, so on a local disk the lines of several processes never mix. If a crash has left
    an incomplete last line, a newline is added first, so that only that line is lost.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dict(row)).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end:
            os.lseek(handle, end - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = b"\n" + line
        if os.write(handle, line) != len(line):
            raise OSError(f"{path}: the disk took only part of a line")
        os.fsync(handle)
    finally:
        os.close(handle)
    if not end and os.name == "posix":  # a new file's name is on disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The JSON object of each complete line; incomplete lines are skipped. A missing file gives an empty list."""
    path, rows = Path(path), []
    if not path.is_file():
        return rows
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it cannot be read, or holds anything else."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        told = os.strerror(error.errno or errno.EIO).lower()
        raise UserError(f"{path}: {told}, expected a file with a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON ({error})") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object at the top")
    return stored


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` so that the old file or the new one is always there, even after a `kill -9`.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file system), are
    flushed to disk, and are renamed to `path`. A symbolic link is kept, and its target is written.
    """
    path = Path(path)
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".csrlhf-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        try:
            os.replace(temporary, place)
        except OSError as error:
            if error.errno != errno.EBUSY:  # a mount point cannot be replaced, only overwritten
                raise
            shutil.copyfile(temporary, place)
            os.unlink(temporary)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
