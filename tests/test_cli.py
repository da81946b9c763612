"""The command line: what it prints before anything is imported, and what it says of a line it cannot read."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from csrlhf_kit import cli, errors
from csrlhf_kit.cli import COMMANDS, OPTIONS, find, main

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


# --- numbers ---


def numbers(options: type) -> set[str]:
    """Names of the numbers among the options of a command, those in groups of options included."""
    found: set[str] = set()
    for name, kind in get_type_hints(options).items():
        kinds = {kind, *get_args(kind)}
        if dataclasses.is_dataclass(kind):
            found |= numbers(kind)
        elif kinds & {int, float}:
            found.add(name)
    return found


@pytest.mark.parametrize("command", OPTIONS)
def test_every_number_of_a_command_has_limits(command):
    limited = set(errors._LIMITS)
    options = find(OPTIONS[command][0])
    assert numbers(options) <= limited
    needed = {spec.name: "x" for spec in dataclasses.fields(options) if spec.default is spec.default_factory}
    errors.check_numbers(
        options(**needed | dict.fromkeys(numbers(options) & needed.keys(), 1))
    )  # defaults fit


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sft --rank 0", "rank is 0: expected a whole number from 1"),
        ("sft --learning-rate nan", "learning_rate is nan: expected a number from 0"),
        ("sft --seed -1", "seed is -1: expected a whole number from 0 to 4294967295"),
        ("cost-model --dropout 1.5", "dropout is 1.5: expected a number from 0 to 1"),
        ("reward-model --batch-size -8", "batch_size is -8"),
        ("ppo --reward r --cost c --out o --critic.batch-size 0", "batch_size is 0"),
        ("ppo --reward r --cost c --out o --penalty -1", "penalty is -1.0: expected a number from 0"),
        ("ppo --reward r --cost c --out o --threshold nan", "threshold is nan: expected a number"),
        ("direct --out o --rank 99999999999", "rank is 99999999999"),
        ("evaluate --reward r --cost c --out o --temperature -1", "temperature is -1.0"),
        ("red-team --out o --requests 0", "requests is 0"),
        ("chat --max-new-tokens 0", "max_new_tokens is 0"),
        ("run --workers 0", "workers is 0"),
        ("sweep --seeds 0 -1", "seeds is -1"),
        ("rounds --find-share 1", "find_share is 1.0: expected a number from 0 and below 1"),
        ("make-base --layers 0", "layers is 0"),
        ("make-data --train-prompts -5", "train_prompts is -5"),
        ("plan --batch 0", "batch is 0"),
        ("certify --confidence nan", "confidence is nan"),
        ("suggest-penalty --scores s --beta inf --threshold nan", "threshold is nan"),
    ],
)
def test_a_number_out_of_its_limits_is_one_sentence_before_the_work(
    line, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"csrlhf: {words}") and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- terminals, pipes and Ctrl-C ---


def test_an_output_that_cannot_show_a_character_shows_its_code(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(cli, "overview", lambda: "λ ≤ d, \udcff")
    assert main([]) == 0
    assert shown.getvalue() == b"\\u03bb \\u2264 d, \\udcff\n"


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_a_closed_output_ends_a_command_without_a_word(arguments):
    unread, output = os.pipe()
    os.close(unread)
    code = f"import sys; from csrlhf_kit.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_on_a_full_disk_is_one_sentence():
    code = "import sys; from csrlhf_kit.cli import main; sys.exit(main(['--help']))"
    with open("/dev/full", "w") as output:
        done = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "csrlhf: the output cannot be written: no space left on device\n"


@pytest.mark.parametrize("config", [SimpleNamespace(resume=False), SimpleNamespace()])
def test_a_stopped_command_names_resume_if_it_has_it(config, capsys):
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    assert cli.run_command(stopped, config) == 130
    assert ("--resume" in capsys.readouterr().err) == hasattr(config, "resume")
