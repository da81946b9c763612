"""The house itself: one set of versions, commands that explain themselves, no path of anybody's machine."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from csrlhf_kit.cli import OPTIONS, find, main
from csrlhf_kit.errors import UserError

ROOT = Path(__file__).parents[1]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines) -> dict[str, str]:
    return {
        normalised(k): v
        for k, v in (line.strip().partition(";")[0].split("==") for line in lines if "==" in line)
    }


def requirements() -> dict[str, SpecifierSet]:
    """The versions that pyproject allows, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = map(Requirement, [*project["dependencies"], *extras["kernels"], *extras["test"]])
    return {normalised(wanted.name): wanted.specifier for wanted in named if wanted.name != "csrlhf-kit"}


def test_environment_names_what_pyproject_needs_at_the_versions_of_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    wanted = environment["dependencies"][-1]["pip"]
    listed = pins(line for line in wanted if not line.startswith("--"))
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert listed == {name: constraints[name] for name in requirements()}
    assert wanted[0] == "--constraint constraints.txt" and wanted[-1] == "--editable ."


def test_pyproject_allows_what_was_measured_with_and_nothing_that_was_seen_to_fail():
    constraints, allowed = pins((ROOT / "constraints.txt").read_text().splitlines()), requirements()
    assert {name: constraints[name] for name in allowed if constraints[name] not in allowed[name]} == {}
    # Before 5.20 a prompt forges turns (tests/data/test_chat.py has the attack); before 5.23 the Trainer lacks a setting.
    # Before peft 0.20 transformers reads a saved scorer's adapter wrongly (tests/models/test_scorers.py would fail).
    for name, old in (("transformers", "5.22.2"), ("peft", "0.19.1"), ("datasets", "3.6.0")):
        assert old not in allowed[name]
    for name, beyond in (("transformers", "6.0"), ("peft", "1.0")):  # their internals are used
        assert beyond not in allowed[name]


def test_constraints_pin_torch_and_nbval_as_the_course_needs_them():
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert constraints["torch"] == "2.13.0" and constraints["nbval"] == "0.11.0"


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_command_has_help_for_every_option(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage: csrlhf" in capsys.readouterr().out


def documented(cls: type) -> set[str]:
    """Fields of a dataclass that a docstring follows."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        field.target.id
        for field, after in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_option_is_documented(name):
    options = find(OPTIONS[name][0])
    told = set().union(*(documented(cls) for cls in options.__mro__ if cls is not object))
    assert {field.name for field in dataclasses.fields(options)} <= told


def test_a_mistake_is_one_sentence_and_exit_status_2(tmp_path):
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "csrlhf_kit.cli",
            "run",
            "--base",
            str(tmp_path / "none"),
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 2
    assert (
        found.stderr.count("\n") == 1 and "no base model" in found.stderr and "Traceback" not in found.stderr
    )
    assert not (tmp_path / "o").exists(), "nothing half-written"


def test_a_wheel_carries_data_and_base_and_runs_from_a_folder_with_any_name(tmp_path):
    """Built from what git knows, unpacked where a space and an umlaut are in the path, away from the checkout."""
    source, place = tmp_path / "source", tmp_path / "über mich" / "hier hin"
    for file in tracked():
        if file.parts[len(ROOT.parts)] in (
            "csrlhf_kit",
            "data",
            "pyproject.toml",
            "setup.py",
            "README.md",
            "LICENSE",
        ):
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(place)
    packages = {
        p.relative_to(ROOT) for p in tracked() if p.suffix in (".py", ".jinja") and "csrlhf_kit" in p.parts
    }
    assert packages and all((place / p).is_file() for p in packages), "no file of the package is left behind"
    environment = {k: v for k, v in os.environ.items() if k != "CSRLHF_DATA"} | {"PYTHONPATH": str(place)}
    command = [sys.executable, "-P", "-m", "csrlhf_kit.cli", "doctor"]
    done = subprocess.run(command, cwd=place.parent, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("world", "tiny_base"):
        assert str(place / "csrlhf_kit" / "shipped" / name) in done.stdout


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_path_and_none_is_large():
    path = re.compile(r"(?:^|[^a-zA-Z0-9_.])/(?:work|farm|opt|root|home)/[a-z]", re.M)
    total = 0
    for file in tracked():
        size = file.stat().st_size
        total += size
        assert size < 9_000_000, f"{file} is larger than 9 MB"
        if (
            "tests" not in file.parts
            and file.suffix
            in (
                ".py",
                ".md",
                ".toml",
                ".yml",
                ".txt",
                ".ipynb",
                ".json",
                ".jinja",
                ".html",
            )
            and file != Path(__file__)
        ):
            found = path.search(file.read_text())
            assert not found, f"{file}: {found.group() if found else ''}"
    assert total < 60_000_000


def test_work_left_over_is_not_committed():
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    for file in tracked():
        if file.suffix == ".py":
            assert not mark.search(file.read_text()), file
