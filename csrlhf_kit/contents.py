"""Fingerprints of models and data: does a resumed run read what it read before, even if it has moved?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csrlhf_kit.errors import UserError

# The files of a model proper, as opposed to notes and to other files in its folder.
WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*config.json", "chat_template*", "tokenizer*", "vocab*",
)  # fmt: skip
WEIGHTS += ("added_tokens.json", "special_tokens_map.json", "merges.txt", "*.model", "scorer.json")


def cached_folder(hub_id: str) -> Path | None:
    """The folder of a hub id in the cache; None if it is not cached, or is no hub id."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(hub_id, "config.json")
    except ValueError:  # no valid hub id
        return None
    return Path(file).parent if isinstance(file, str) else None


def content_of(source: str | Path, files: Sequence[str] = WEIGHTS) -> str:
    """Fingerprint (32 hex digits) of the model in a folder or, for a hub id, in the cache; its place does not count.

    files: patterns of the files that count. For large files, only the size and 64 evenly spaced pieces are read.
    A `source` that is neither a folder nor cached is returned as it is.
    """
    folder: Path | None = Path(source).expanduser()
    if not folder.is_dir() and (folder := cached_folder(str(source).rpartition(":")[2])) is None:
        return str(source)
    digest, piece = hashlib.blake2b(digest_size=16), 2**20
    for path in sorted({path for pattern in files for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            for place in range(0, size, max(piece, size // 64)):
                file.seek(place)
                digest.update(file.read(piece))
    return digest.hexdigest()


def content_of_records(*parts: Iterable[Any]) -> str:
    """Fingerprint (32 hex digits) of several lists of records (dataclasses), in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for record in part:
            digest.update(repr(record).encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


def check_same(stored: dict[str, Any], asked: dict[str, Any], place: str) -> None:
    """Raise UserError, naming the setting, if the settings `stored` and `asked` of a run differ.

    place: the stored file, for the sentence. If both hold a fingerprint of what a setting names (under
    `contents`), the fingerprints are compared instead of the names.
    """
    before, now = stored.get("contents", {}), asked.get("contents", {})
    same = {name for name in now if before.get(name) == now[name]}
    plain = [{k: v for k, v in x.items() if k not in same | {"contents"}} for x in (stored, asked)]
    difference = _difference(*plain)
    # In this order: prompts of the test data are removed from `data`, so a new `test_data` changes both.
    changed = [n for n in sorted(now, reverse=True) if n in before and n not in same]
    if difference is None and changed:
        difference = f"{changed[0]} has another content than it had"
    if difference:
        raise UserError(f"{place} cannot be resumed: {difference}, expected the same")


def _difference(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str | None:
    """The first setting that differs, as "name was ... and is now ..."; None if all are the same."""
    for name in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(name, "absent"), asked.get(name, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := _difference(old, new, f"{prefix}{name}."):
                return inner
        elif old != new:
            return f"{prefix}{name} was {old!r} and is now {new!r}"
    return None
