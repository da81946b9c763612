"""What would it take to withstand unseen jailbreaks? One thing at a time is given to the fixed penalty, more or less of it.

    python benchmarks/what_it_takes.py --curves steps families --seeds 0 1 2 3 4

Each point is a policy trained as those of `make converged`, whose own policies are the points in the middle of every
curve. Their scorers (`--converged`) are taken over where a curve leaves them as they are. The curves:

- `steps`: PPO steps.
- `families`: kinds of wrapper among PPO's prompts, each alone and never nested; half of the prompts stay plain. The
  cost model still learns from all seven, nested too, as the converged runs' prompts have them.
- `labels`: safe/unsafe labels that the cost model learns from, drawn anew from the generator; fewer are read more often.
- `layers`: the base's last layers that the scorers' adapters act on.
- `talks`: percent of PPO's prompts that come in the second or third turn of a conversation, in the wrappers of training.
- `width`: the base, made anew (`csrlhf make-base`), with a peak learning rate that falls with the root of the width;
  PPO's settings remain those that were tuned at 128. PPO without a constraint is run there, too.

Each policy is judged like the converged ones, and in conversations of two and three turns.

Each point is a file in data/runs/what_it_takes; one that is there is not made again, and an interrupted one goes on.
`benchmarks/results_curves.py` makes the table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.behind_a_filter import KEPT as JUDGED
from benchmarks.behind_a_filter import in_turns
from csrlhf_kit.data.sources import data_folder, write_records
from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.experiments import head_to_head as job
from csrlhf_kit.recipes.experiments.configs import MAIN, RunConfig
from csrlhf_kit.recipes.experiments.sweep import compact
from csrlhf_kit.recipes.make_base import make_base
from csrlhf_kit.recipes.options import BaseConfig
from csrlhf_kit.runs import versions
from csrlhf_kit.training.critic import load_critic
from csrlhf_kit.world.build import STRATA, DataConfig, draw_prompts, make_data, prompt_counts
from csrlhf_kit.world.conversations import conversations
from csrlhf_kit.world.jailbreaks import TRAIN_FAMILIES

STEPS, LABELS, WIDTH = 128, DataConfig.train_labels, BaseConfig.hidden_size  # of the converged runs
CURVES: dict[str, tuple[int, ...]] = {
    "steps": (64, 256, 512, 1024),
    "families": (0, 1, 3, 7),
    "labels": (1000, 2000, 4000, 16_000, 32_000),
    "layers": (1, 4),
    "talks": (25, 50),
    "width": (96, 192, 256),
}
TALKS = 200  # conversations of two turns, and as many of three
TAKEN_OVER = {
    "steps": ("reward", "semantic", "critic"),
    "families": ("reward", "semantic"),
    "talks": ("reward", "semantic", "critic"),
    "labels": ("reward",),
}
KEPT = (*JUDGED, "reward", "cost", "kl")


@dataclass
class Config:
    """Train the fixed penalty with more or less of one thing."""

    converged: Path = Path("runs/converged")
    """Where the converged runs are, a folder `seed_S` each; from those that are there, scorers are taken over."""
    curves: tuple[str, ...] = tuple(CURVES)
    """Which curves."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds; all points of one come before those of the next."""
    values: tuple[int, ...] = ()
    """Only these points of the curves; none: all."""
    work: Path = Path("runs/what_it_takes")
    """Folder of the runs: scorers, policies, data, bases."""
    out: Path = Path("data/runs/what_it_takes")
    """Folder of the results, a file per point."""
    workers: int = 2
    """Points that are made at the same time, each in a process with one thread."""


def run_config(curve: str, value: int, seed: int, config: Config) -> RunConfig:
    """The main job's configuration at one point."""
    changed: dict[str, Any] = {}
    if curve == "layers":
        changed["scorer_layers"] = value
    if curve == "labels":
        changed["scorer_epochs"] = max(1.0, LABELS / value)
    if curve == "width":
        changed["base"] = config.work / f"base_{value}"
    ppo = replace(MAIN.ppo, steps=value if curve == "steps" else STEPS)
    return replace(MAIN, out=config.work / f"{curve}_{value}" / f"seed_{seed}", seed=seed, ppo=ppo, **changed)


def data_of(curve: str, value: int, config: Config) -> Path:
    """The data folder of a point; where the point has other data than the shipped, it is written first."""
    if curve not in ("families", "labels"):
        return data_folder()
    folder = config.work / f"data_{curve}_{value}"
    if not folder.is_dir():
        half = folder.with_name(f"{folder.name}.{os.getpid()}")
        if curve == "labels":
            make_data(DataConfig(out=half / "world", train_labels=value))
        else:
            shutil.copytree(data_folder() / "world", half / "world")
            write_records(half / "world" / "prompts_train.jsonl", prompts_with(value))
        shutil.copytree(data_folder() / "tiny_base", half / "tiny_base")
        half.rename(folder)
    return folder


def prompts_with(families: int) -> list[Any]:
    """Training prompts as many as the shipped ones, half of them in one wrapper of the first `families` kinds."""
    total = DataConfig.train_prompts
    counts = {key: count for key, count in prompt_counts("train", total).items() if key[1] == "none"}
    if families == 0:
        counts = {key: 2 * count for key, count in counts.items()}
    for stratum, family in product(STRATA, list(TRAIN_FAMILIES)[:families]):
        counts[stratum, family] = total // (8 * families)
    return draw_prompts("train", counts, Random("families"))


def with_talks(percent: int, seed: int) -> list[Any]:
    """The shipped training prompts, every so many of them exchanged for the last turn of a conversation."""
    prompts: list[Any] = list(job.training_prompts())
    rng = Random(f"talks/{seed}")
    places = rng.sample(range(len(prompts)), len(prompts) * percent // 100)
    talks = conversations("train", len(places), wrapped=0.5, seed=seed)
    for place, talk in zip(places, rng.sample(talks, len(places)), strict=True):
        prompts[place] = talk.messages()
    return prompts


def train_with_talks(percent: int, run: RunConfig) -> dict[str, Any]:
    """The stage `fixed_penalty`, with conversations among its prompts."""

    def train(roles: Any, tokenizer: Any) -> Any:
        load_critic(roles, run.out / "models" / "critic.safetensors")
        constraint = job.constraint_for("fixed_penalty", run)
        folder, ppo = run.out / "policies" / "fixed_penalty", replace(run.ppo, seed=run.seed)
        history = job.train_policy(folder, roles, tokenizer, with_talks(percent, run.seed), constraint, ppo)
        return history, constraint.multiplier

    return job.train_and_judge(run, train)


def make_bases(config: Config) -> None:
    """Train the bases of other widths, where they are not there, with all cores."""
    for width in CURVES["width"]:
        folder = config.work / f"base_{width}"
        if not folder.is_dir() and (not config.values or width in config.values):
            rate = BaseConfig.learning_rate * (WIDTH / width) ** 0.5
            make_base(BaseConfig(out=folder, hidden_size=width, learning_rate=rate))


def make_point(curve: str, value: int, seed: int, config: Config) -> str:
    """Train and judge one point; called in a process of its own."""
    os.environ["CSRLHF_DATA"] = str(data_of(curve, value, config).resolve())
    run = run_config(curve, value, seed, config)
    given = config.converged / f"seed_{seed}"
    for name in ("reward", "semantic", "critic", "fixed_penalty"):
        if run.stage_path(name).is_file():
            continue
        if name in TAKEN_OVER.get(curve, ()) and (given / "stages" / f"{name}.json").is_file():
            model = f"{name}.safetensors" if name == "critic" else name
            source, target = given / "models" / model, run.out / "models" / model
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
            write_atomic(run.stage_path(name), (given / "stages" / f"{name}.json").read_text())
            continue
        if curve == "talks" and name == "fixed_penalty":
            write_atomic(run.stage_path(name), json.dumps(train_with_talks(value, run)))
        else:
            job.run_stage(name, run)
    alone = {}
    if curve == "width":  # what the constraint costs on this base
        if not run.stage_path("ppo").is_file():
            job.run_stage("ppo", run)
        alone = {"unconstrained": {name: run.read_stage("ppo")["policy"][name] for name in KEPT}}
    done = run.read_stage("fixed_penalty")
    answer = stored_policy(
        run.base_path(), run.out / "policies" / "fixed_penalty" / "adapter",
        max_new_tokens=run.ppo.max_new_tokens, temperature=run.ppo.temperature, seed=seed,
    )  # fmt: skip
    told = {
        "curve": curve,
        "value": value,
        "seed": seed,
        "versions": versions(),
        "policy": {name: done["policy"][name] for name in KEPT} | {"turns": in_turns(answer, TALKS)},
        **alone,
    }
    place = config.out / f"{curve}_{value}_seed_{seed}.json"
    write_atomic(place, job.compact_lists(json.dumps(compact(told), indent=1)))
    row = told["policy"]
    return (
        f"{place.stem}: {row['harmful_nominal']['rate']:.1%} plainly, {row['harmful_jailbreak']['rate']:.1%} under unseen "
        f"jailbreaks, {row['turns']['3']['harmful']['rate']:.1%} in a third turn, {row['over_refusal']['rate']:.1%} refused, "
        f"helpfulness {row['helpfulness']:.3f}"
    )


def main(config: Config) -> int:
    """Make every point that is missing."""
    points = [
        (curve, value, seed)
        for seed in config.seeds
        for curve in config.curves
        for value in CURVES[curve]
        if (not config.values or value in config.values)
        and not (config.out / f"{curve}_{value}_seed_{seed}.json").is_file()
    ]
    print(f"{len(points)} points to make", flush=True)
    if any(curve == "width" for curve, *_ in points):
        make_bases(config)
    for curve, value in {(curve, value) for curve, value, _ in points}:
        data_of(curve, value, config)  # here, so that no two processes write the same folder
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(make_point, *point, config) for point in points]):
            print(future.result(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
