"""Files that are whole or not there, and append-only JSONL: a line is on disk when `append` returns, and nobody's
line is ever lost or rewritten.
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


def append(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add `row` as one line and wait until the disk has it.

    One write to a file that is open for appending: on a local disk several processes' lines never mix. A torn
    line, of a process or a machine that died while writing, is closed off first, so that it costs no other line.
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
            raise OSError(f"{path}: the disk took a part of a line only")
        os.fsync(handle)
    finally:
        os.close(handle)
    if not end and os.name == "posix":  # a new file's name is on disk only with its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines that hold an object; torn ones are left out."""
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


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` so that a reader, or a `kill -9`, sees the old file or the new one.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file
    system), are flushed to disk, and take the name `path` in one step. A link stays, and its target is written.
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
            if error.errno != errno.EBUSY:  # a file that is a mount point: it cannot be renamed, only filled
                raise
            shutil.copyfile(temporary, place)
            os.unlink(temporary)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
