"""Commands on local inputs, each as a shell would run it: nothing on stderr, and no look at any other machine."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import csrlhf_kit
from csrlhf_kit.cli import OPTIONS
from csrlhf_kit.models.scorers import new_scorer, save_scorer

# One process for all: PyTorch is imported once.
RUN = """
import json, sys
from csrlhf_kit.cli import main

for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 0, arguments
"""
IMPORT_ALL = "import importlib, json, sys\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)"


def quietly(script: str, argument: object, folder: Path, text: str = "") -> None:
    """Run `script` with the hub allowed and nobody there; it must succeed, say nothing on stderr, reach nobody."""
    log = folder / "reached"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")} | {
        "GUARD_LOG": str(log)
    }
    command = [sys.executable, "-c", script, json.dumps(argument)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    assert not log.exists(), log.read_text()


@pytest.fixture(scope="module")
def made(random_base, sentences, tmp_path_factory) -> Path:
    """A folder with scorers, labels and pairs."""
    folder = tmp_path_factory.mktemp("quiet")
    for seed, name in enumerate(("reward", "cost")):
        scorer = new_scorer(random_base, adaptation="lora", rank=2, seed=seed)
        with torch.no_grad():
            for parameter in scorer.model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        save_scorer(scorer, folder / name)
    labels = [
        {"prompt": f"{a} {i}", "response": b, "is_safe": bool((i + j) % 2)}
        for i in range(9)
        for a in sentences
        for j, b in enumerate(sentences[:2])
    ]
    pairs = [
        {"prompt": f"{a} {i}", "response_0": "yes", "response_1": b, "is_response_0_safe": True,
         "is_response_1_safe": False, "better_response_id": i % 2, "safer_response_id": 0}
        for i in range(9) for a in sentences for b in sentences[3:]
    ]  # fmt: skip
    for name, rows in (("labels", labels), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def lines(made: Path, base: Path) -> list[list[str]]:
    """A small run of each command that needs no finished head-to-head."""
    common = f"--base {base}"
    train = f"{common} --rank 2 --epochs 1"
    scorers = f"--reward {made}/reward --cost {made}/cost"
    ppo = "--rank 2 --critic.episodes 8 --ppo.steps 1 --ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.microbatch-size 4 --ppo.max-new-tokens 4"
    return [line.split() for line in (
        f"sft {train} --data {made}/labels.jsonl --out sft",
        f"reward-model {train} --data {made}/pairs.jsonl --out rm",
        f"cost-model {train} --data {made}/labels.jsonl --objective semantic --out cm",
        f"ppo {common} {scorers} --prompts {made}/labels.jsonl --out ppo {ppo}",
        f"direct {common} --data {made}/pairs.jsonl --out direct --rank 2",
        f"evaluate {common} {scorers} --policy ppo --prompts {made}/labels.jsonl --limit 4 --max-new-tokens 4 --out e.json",
        f"red-team {common} --policy ppo/adapter --requests 2 --tries 2 --talks 2 --max-new-tokens 4 --out r.json",
        "export ppo --out adapter",
        "export ppo --merge --out merged",
        "chat ppo --max-new-tokens 4",
        "arena ppo sft --max-new-tokens 4",
        f"plan {common}",
        "make-data --out world --train-prompts 40 --train-labels 40 --train-pairs 40",
        "make-base --out base --reading 40 --chatting 40 --batch-size 8 --hidden-size 32 --layers 1",
        "doctor",
    )]  # fmt: skip


def test_small_runs_say_nothing_on_stderr_and_reach_no_other_machine(made, random_base):
    quietly(RUN, lines(made, random_base), made, "open the shed\n/quit\n")


def test_every_import_and_every_help_is_quiet_and_reaches_no_other_machine(tmp_path):
    modules = [m.name for m in pkgutil.walk_packages(csrlhf_kit.__path__, "csrlhf_kit.")]
    quietly(IMPORT_ALL, modules, tmp_path)
    quietly(RUN, [[name, "--help"] for name in OPTIONS], tmp_path)


def test_the_guard_sees_who_is_called_and_lets_this_machine_pass(tmp_path):
    script = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
try:
    socket.create_connection(("example.invalid", 80))
except OSError as error:
    assert "a test tried to reach example.invalid" in str(error)
"""
    with pytest.raises(AssertionError, match=r"example\.invalid"):
        quietly(script, [], tmp_path)
