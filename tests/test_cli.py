"""The command line: what it prints before anything is imported, and what it says of a line it cannot read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from csrlhf_kit.cli import COMMANDS, OPTIONS, main

LIGHT = """
import json, sys
from csrlhf_kit.cli import main

def loaded():
    return {"numpy", "scipy", "tyro", "torch", "transformers"} & set(sys.modules)

main(["--help"])
assert not loaded(), loaded()
for arguments in json.loads(sys.argv[1]):
    try:
        assert main(arguments) == 0, arguments
    except SystemExit as stop:
        assert stop.code == 0, arguments
    assert not loaded() & {"torch", "transformers"}, arguments
"""


def test_no_help_nor_plan_certify_and_suggest_penalty_waits_for_pytorch(tmp_path):
    harm = {"rate": 0.1, "low": 0.05, "high": 0.2, "n": 50}
    (tmp_path / "results.json").write_text(json.dumps({"policies": {"ppo": {"harmful_nominal": harm}}}))
    rows = [
        {"prompt": str(i), "reward": (i * k) % 7, "cost": (i + k) % 5} for i in range(25) for k in range(6)
    ]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suggest = ["suggest-penalty", "--scores", str(tmp_path / "scores.jsonl"), "--beta", "1", "--threshold", "1.9"]  # fmt: skip
    lines = [
        *([name, "--help"] for name in OPTIONS),
        ["plan"],
        ["plan", "--base", "llama-3.1-8b", "--layers", "4", "--optimizer", "paged_adamw_8bit", "--out", str(tmp_path / "p.json")],
        ["certify", str(tmp_path)],
        [*suggest, "--bootstrap", "20"],
    ]  # fmt: skip
    command = [sys.executable, "-c", LIGHT, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_overview_says_what_every_command_does_in_four_groups(capsys):
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert bare == said and list(COMMANDS) == ["train", "judge", "explain", "make"]
    lines = said.splitlines()
    for group, rows in COMMANDS.items():
        assert f"{group}:" in lines
        for name, (_, _, told) in rows.items():
            assert any(line.split() == [*name.split(), *told.split()] for line in lines), name
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("line", ["mak-data", "bench", "bench speed", "--version", "run-all --preset laptop"])
def test_an_unknown_command_is_one_sentence_that_lists_the_known(line, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and f"no command {line.split()[0]!r}" in said.err
    assert all(name in said.err for name in OPTIONS)
