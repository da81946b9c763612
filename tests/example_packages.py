"""Packages as pip leaves them, made for tests of several rooms."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    """What pip leaves of a wheel: the files, and a dist-info that lists them."""
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(content)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return site
