"""Two processes do what one does with the same global batch: judged by the files that they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csrlhf_kit import cli, distributed
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.scorers import new_scorer, save_scorer

PPO = (
    "--method lagrangian --threshold 0.3 --rank 4 --ppo.steps 3 --ppo.batch-size 8 --ppo.minibatch-size 4 "
    "--ppo.microbatch-size 2 --ppo.epochs 2 --ppo.max-new-tokens 6 --ppo.learning-rate 0.001"
)
SFT = "--rank 4 --alpha 8 --epochs 2 --batch-size 4 --no-progress --learning-rate 0.001"
FULL = "--adaptation full --epochs 2 --batch-size 4 --no-progress --learning-rate 0.001"
RUN_ALL = """
import json, os, sys
from accelerate.state import AcceleratorState, DistributedType, PartialState
from csrlhf_kit import cli
from csrlhf_kit.training.supervised import TimedCheckpoints

made, saved = AcceleratorState.__init__, TimedCheckpoints.on_save

def shard_on_cpus(self, *arguments, fsdp_plugin=None, **options):
    # Accelerate turns FSDP on for accelerators only, while PyTorch shards between CPUs as well: let it.
    made(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

def stop(self, *arguments, **options):
    saved(self, *arguments, **options)
    raise KeyboardInterrupt

AcceleratorState.__init__ = shard_on_cpus
for arguments in json.load(open(sys.argv[1])):
    stopping = arguments[:1] == ["stop"]
    TimedCheckpoints.on_save = stop if stopping else saved
    code = cli.main(arguments[stopping:])
    os.write(1, f"{arguments[0]} {code}\\n".encode())  # in one piece: both processes write to one pipe
"""


@pytest.fixture(scope="module")
def results(random_base, sentences, tmp_path_factory) -> dict[int, Path]:
    """Folders that one process, and two under torchrun, have written: `ppo` and `sft` in each."""
    top = tmp_path_factory.mktemp("processes")
    for seed, name in enumerate(("reward", "cost")):
        scorer = new_scorer(random_base, adaptation="lora", rank=4, seed=seed)
        with torch.no_grad():
            for parameter in scorer.model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        save_scorer(scorer, top / name)
    rows = [{"prompt": a, "response": b, "is_safe": True} for a in sentences for b in sentences[:2]]
    (top / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    common = ["--base", str(random_base)]
    for count in (1, 2):
        folder = top / str(count)
        scorers = [word for name in ("reward", "cost") for word in (f"--{name}", str(top / name))]
        commands = [
            ["ppo", *common, *scorers, "--prompts", str(top / "data.jsonl"), "--out", str(folder / "ppo"), *PPO.split()],
            ["sft", *common, "--data", str(top / "data.jsonl"), "--out", str(folder / "sft"), *SFT.split()],
        ]  # fmt: skip
        full = ["sft", *common, "--data", str(top / "data.jsonl"), *FULL.split()]
        if count == 1:
            commands.append([*full, "--out", str(folder / "full")])
            assert [cli.main(arguments) for arguments in commands] == [0, 0, 0]
            continue
        stopped = [*full, "--sharded", "--out", str(folder / "stopped")]
        commands += [
            [*full, "--sharded", "--out", str(folder / "full")],
            ["stop", *stopped, "--checkpoint-seconds", "0"],
            [*stopped, "--resume"],
        ]
        (top / "commands.json").write_text(json.dumps(commands))
        (top / "run.py").write_text(RUN_ALL)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        launch = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
        ]
        done = subprocess.run(
            [*launch, "2", str(top / "run.py"), str(top / "commands.json")],
            env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        # gloo sometimes aborts after the work is done: only what was written counts.
        assert (folder / "ppo" / "adapter").is_dir(), done.stderr[-3000:]
        assert (folder / "sft" / "sft.json").is_file(), done.stderr[-3000:]
        assert (folder / "stopped" / "sft.json").is_file(), done.stderr[-3000:]
        assert done.stdout.count("The policy's adapter is in") == 1, "the main process alone prints"
        assert done.stdout.count("stop 130") == 2, done.stdout
    return {count: top / str(count) for count in (1, 2)}


def test_two_processes_leave_the_losses_and_multipliers_of_one(results):
    one, two = (
        [json.loads(line) for line in (results[n] / "ppo" / "metrics.jsonl").read_text().splitlines()]
        for n in (1, 2)
    )
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {n for n in a if n.startswith("time/")}:
            assert b[name] == pytest.approx(a[name], abs=1e-5, rel=1e-5), name
    multipliers = [row["constraint/multiplier"] for row in one]
    assert len(set(multipliers)) == 3, "the multiplier has moved, so that there was something to compare"


@pytest.mark.parametrize("adapter", ["ppo/adapter", "sft"])
def test_two_processes_leave_the_adapter_of_one(adapter, results):
    one, two = (load_file(results[n] / adapter / "adapter_model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert any(float(value.abs().max()) > 0 for name, value in one.items() if "lora_B" in name)


@pytest.mark.parametrize("folder", ["full", "stopped"])
def test_two_processes_with_half_of_the_weights_each_leave_the_model_of_one(folder, results, random_base):
    """FSDP2: sharded weights, gradients and moments; at once, and stopped after a checkpoint and resumed."""
    one, two = (load_file(results[n] / f / "model.safetensors") for n, f in ((1, "full"), (2, folder)))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    base = load_file(random_base / "model.safetensors")
    assert all(float((one[name] - base[name]).abs().max()) > 1e-4 for name in one if "weight" in name)
    written = json.loads((results[2] / folder / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForCausalLM"]
    losses = [
        json.loads((results[n] / f / "sft.json").read_text())["train_loss"]
        for n, f in ((1, "full"), (2, "full"))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_sharding_is_refused_where_it_would_do_nothing(random_base, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "response": "b", "is_safe": true}\n')
    options = [
        "--base",
        str(random_base),
        "--data",
        str(tmp_path / "data.jsonl"),
        "--out",
        str(tmp_path / "o"),
    ]
    options += ["--sharded", "--no-progress"]
    assert cli.main(["sft", *options]) == 2
    assert "sharded is for --adaptation full" in capsys.readouterr().err
    assert cli.main(["sft", *options, "--adaptation", "full"]) == 2
    assert "sharded needs several processes" in capsys.readouterr().err


def test_alone_everything_is_as_given():
    tensor = torch.arange(5.0)
    assert distributed.count() == 1 and distributed.is_main()
    assert torch.equal(distributed.share(tensor), tensor) and distributed.summed(tensor) is tensor
    assert distributed.gathered([tensor, None]) == [tensor, None]
    assert distributed.on_main(lambda: 7) == 7
    with pytest.raises(UserError, match="told"):
        distributed.on_main(lambda: (_ for _ in ()).throw(UserError("told")))


def test_shares_cover_a_batch_once_and_uneven_batches_are_told(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(torch.arange(12)))
    assert torch.cat(shares).tolist() == list(range(12)) and {len(s) for s in shares} == {4}
    distributed.check_divisible(batch_size=12)
    with pytest.raises(UserError, match="batch_size is 8: expected a multiple of the 3 processes"):
        distributed.check_divisible(batch_size=8)
