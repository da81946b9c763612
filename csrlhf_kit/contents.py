"""Fingerprints: whether a run that goes on reads what it read before, wherever that lies now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csrlhf_kit.errors import UserError

# What a model's folder holds for its sake, as opposed to notes, and to what somebody has put beside it.
WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "chat_template*",
    "tokenizer*",
    "vocab*",
)
WEIGHTS += ("added_tokens.json", "special_tokens_map.json", "merges.txt", "*.model", "scorer.json")


def content_of(source: str | Path, files: Sequence[str] = WEIGHTS) -> str:
    """Fingerprint of the model in a folder, or of a hub id's in the cache, wherever it lies and whatever its name.

    files: patterns of what counts in the folder. Of a large file, 64 evenly spaced pieces and the size are read.
    What is neither folder nor in the cache is its own fingerprint.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(str(source).rpartition(":")[2], "config.json")
        except HFValidationError:
            cached = None
        if not isinstance(cached, str):
            return str(source)
        folder = Path(cached).parent
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
    """Fingerprint of records (dataclasses), part by part, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for record in part:
            digest.update(repr(record).encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


def check_same(stored: dict[str, Any], asked: dict[str, Any], place: str) -> None:
    """Raises UserError, which names the setting, where a run that began as `stored` would go on as `asked`.

    Where both hold a fingerprint of what a setting names (`contents`), that is compared, and not the name.
    """
    before, now = stored.get("contents", {}), asked.get("contents", {})
    same = {name for name in now if before.get(name) == now[name]}
    plain = [{k: v for k, v in x.items() if k not in same | {"contents"}} for x in (stored, asked)]
    difference = _difference(*plain)
    # In this order: test data takes prompts away from the data.
    changed = [n for n in sorted(now, reverse=True) if n in before and n not in same]
    if difference is None and changed:
        difference = f"{changed[0]} has another content than it had"
    if difference:
        raise UserError(f"{place} cannot be resumed: {difference}, expected the same")


def _difference(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str | None:
    """The first setting that differs, told as "name was ... and is now ..."."""
    for name in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(name, "absent"), asked.get(name, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := _difference(old, new, f"{prefix}{name}."):
                return inner
        elif old != new:
            return f"{prefix}{name} was {old!r} and is now {new!r}"
    return None
