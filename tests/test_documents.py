"""README, CONTRIBUTING and docs: every path exists, and the constraint that CONTRIBUTING adds really works."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
MADE = re.compile(  # what commands write, readers' own files, and names that stand for any
    r"(runs|student|annotations|arena|\.venv|notebooks/(annotations|arena|mine)|tests/browser/output|csrlhf_kit/shipped)(/|$)"
    r"|benchmarks/results/gpu-|.*(NAME|NN)"
)
QUOTED = re.compile(r"`([^`\n]+)`|\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"(?:[\w.*-]+/)+[\w.*-]*|[\w-]+\.(?:py|md|ipynb|toml|yml|txt|svg|csv)")


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return listed.stdout.splitlines()


def named_paths(page: Path) -> set[str]:
    """What a page quotes or links that looks like one of the repository's files or folders."""
    found = set()
    for quoted, link in QUOTED.findall(page.read_text()):
        if link and "://" not in link:
            found.add((page.parent / link).resolve().relative_to(ROOT).as_posix())
        for word in quoted.split():
            word = word.strip(",;:'\"")
            top = word.split("/")[0]
            if PATH.fullmatch(word) and ("/" not in word or (ROOT / top).exists()):
                found.add(word)
    return {path for path in found if not MADE.match(path)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_paths_that_exist(page):
    files = tracked()
    names = {Path(file).name for file in files}
    missing = []
    for path in sorted(named_paths(page)):
        if "*" in path:
            there = any(ROOT.glob(path))
        else:
            there = (ROOT / path).exists() or ("/" not in path and path in names)
        if not there:
            missing.append(path)
    assert not missing, f"{page.name} names {missing}"


def diffs() -> dict[str, str]:
    """CONTRIBUTING's diffs: file -> the lines that each adds."""
    added: dict[str, list[str]] = {}
    for block in re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S):
        head, *lines = block.splitlines()
        added[head.removeprefix("--- ")] = [line[1:] for line in lines if line.startswith("+")]
    return {file: "\n".join(lines) for file, lines in added.items()}


def test_a_constraint_needs_two_files(monkeypatch):
    from csrlhf_kit.training import constraints
    from csrlhf_kit.training.constraints import make_constraint, penalties

    added = diffs()
    assert list(added) == [
        "csrlhf_kit/training/constraints/penalties.py",
        "csrlhf_kit/training/constraints/__init__.py",
    ]
    assert all((ROOT / file).is_file() for file in added)
    scope = dict(vars(penalties))
    exec(added["csrlhf_kit/training/constraints/penalties.py"], scope)  # the class
    name, kind = eval("{" + added["csrlhf_kit/training/constraints/__init__.py"] + "}", scope).popitem()
    monkeypatch.setitem(constraints.CONSTRAINTS, name, kind)

    constraint = make_constraint(name, threshold=0.1, penalty=3.0)
    constraint.observe(torch.tensor([0.4, 0.2]))
    assert constraint.multiplier == pytest.approx(3.0 * 0.2)
    reward, cost = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [1.0]])
    expected = (reward - 0.6 * cost) / 1.6
    torch.testing.assert_close(constraint.combine(reward, cost), expected)
    constraint.observe(torch.zeros(128))
    assert constraint.multiplier == 0.0  # the window is safe
