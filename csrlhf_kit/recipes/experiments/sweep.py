"""`csrlhf sweep`: methods x settings x seeds. Each cell is a stage, made once even if the sweep is interrupted.

Scorers and critic are trained once and shared. A cell's row depends on the plan, the seed and the machine alone, so
that a resumed sweep ends with the same tables as an uninterrupted one. With `--attacked` the held-out red team
attacks each policy too, and the row has the share of requests that the policy withstood. The tables:

    cells.csv     a row a cell: rates with their intervals, helpfulness, learned reward and cost, KL, multiplier
    summary.csv   a row a setting: seeds pooled (rate and interval), and the smallest and largest seed
    sweep.json    command, versions, seeds, seconds, and each cell's whole row and training curve
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.evaluation.red_team import attack_as, robustness
from csrlhf_kit.evaluation.safety import evaluation_prompts
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_folder, writes_run
from csrlhf_kit.recipes.experiments.cells import check_cell, offline_stage, train_cell
from csrlhf_kit.recipes.experiments.head_to_head import SCORERS, train_cost_model, train_critic
from csrlhf_kit.recipes.experiments.plans import Cell, SweepConfig
from csrlhf_kit.recipes.experiments.stages import run_stages
from csrlhf_kit.runs import Run, curve_of, versions
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.training.configs import METHODS as DIRECT

TRIES = 64  # of the red team per request
MEANS = ("helpfulness", "reward", "cost", "kl", "multiplier")


# --- stages ---


def run_sweep_stage(name: str, config: SweepConfig) -> None:
    """Make one stage and store it; runs in a worker process with a single thread."""
    shared = config.shared()
    if name in SCORERS:
        result = train_cost_model(name, shared)
    elif name == "critic":
        result = train_critic(shared)
    elif name == "offline":
        result = offline_stage(shared, config.direct)
    elif name in (attacks := config.attacks()):
        result = attack_cell(attacks[name], config)
    else:
        cell = config.cells()[name]
        offline = config.read_stage("offline") if cell.method == "mocan" else None
        result = train_cell(cell, shared, config.direct, offline)
    write_atomic(config.stage_path(name), json.dumps(result, default=float) + "\n")
    for leftover in (config.out / "policies" / name).rglob("checkpoints"):
        shutil.rmtree(leftover, ignore_errors=True)  # the adapter stays; checkpoints are not needed any more


def attack_cell(cell: Cell, config: SweepConfig) -> dict[str, Any]:
    """Share of harmful requests that a cell's policy withstands under attack by the held-out red team."""
    adapter = None if cell.method == "sft" else config.out / "policies" / cell.name / "adapter"
    answer = stored_policy(
        config.shared().base_path(),
        adapter,
        max_new_tokens=config.ppo.max_new_tokens,
        temperature=config.ppo.temperature,
        seed=cell.seed,
    )
    found = robustness(
        attack_as("held_out", answer, config.attacked, seed=cell.seed, tries=TRIES), tries=TRIES
    )
    return {name: found[name] for name in ("robust", "robust_after")}


def sweep_stage_needs(config: SweepConfig) -> dict[str, tuple[str, ...]]:
    """Every stage, in the order of preference, and the stages that it reads."""
    scorers = ("reward", config.cost_model)
    needs: dict[str, tuple[str, ...]] = dict.fromkeys(scorers, ()) | {"critic": scorers, "offline": scorers}
    for name, cell in config.cells().items():
        own = "offline" if cell.method == "mocan" else None if cell.method in ("sft", *DIRECT) else "critic"
        needs[name] = (*scorers, own) if own else scorers
    attacks = {attack: (cell.name,) for attack, cell in config.attacks().items()}
    needs |= attacks
    wanted = {*config.cells(), *attacks} | {stage for needed in needs.values() for stage in needed}
    return {name: needed for name, needed in needs.items() if name in wanted}


# --- tables ---


def cell_row(cell: Cell, row: Mapping[str, Any], rates: Sequence[str]) -> dict[str, Any]:
    """One line of cells.csv."""
    line: dict[str, Any] = {"method": cell.method, "settings": cell.settings_text, "seed": cell.seed}
    for name in rates:
        entry = row[name]
        line |= {name: entry["rate"], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
        line[f"{name}_n"] = entry["n"]
    return line | {name: row[name] for name in MEANS}


def summary_rows(config: SweepConfig, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of summary.csv: seeds of one setting pooled.

    A rate is over all seeds' prompts. Its Clopper-Pearson interval covers the sampling of prompts and answers, but
    not the spread between seeds, which `_min` and `_max`, the extreme seeds, show.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, cell in config.cells().items():
        groups.setdefault((cell.method, cell.settings_text), []).append(rows[name])
    for (method, settings), seeds in groups.items():
        line: dict[str, Any] = {"method": method, "settings": settings, "seeds": len(seeds)}
        for name in config.rates:
            entries = [row[name] for row in seeds]
            rate = Estimate.pooled(entries)
            line |= {name: rate.value if rate.n else 0.0, f"{name}_low": rate.low, f"{name}_high": rate.high}
            line |= {f"{name}_min": min(e["rate"] for e in entries)}
            line |= {f"{name}_max": max(e["rate"] for e in entries), f"{name}_n": rate.n}
        for name in MEANS:
            values = [row[name] for row in seeds]
            line |= {name: sum(values) / len(values), f"{name}_min": min(values), f"{name}_max": max(values)}
        yield line


def as_csv(lines: list[dict[str, Any]]) -> str:
    """Lines with the same keys as CSV text; six significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines
    )
    return text.getvalue()


def compact(value: Any) -> Any:
    """JSON values with floats of five significant digits."""
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    if isinstance(value, list):
        return [compact(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def command(config: SweepConfig) -> str:
    """The command that makes these tables again (folders and speed aside)."""
    aside = {"out", "record", "resume", "workers"}

    def options(value: Any, default: Any, prefix: str) -> Iterator[str]:
        for spec in fields(value):
            mine, other = getattr(value, spec.name), getattr(default, spec.name)
            if mine == other or (not prefix and spec.name in aside):
                continue
            flag = f"{prefix}{spec.name}".replace("_", "-")
            if is_dataclass(mine):
                yield from options(mine, other, f"{prefix}{spec.name}.")
            elif isinstance(mine, bool):
                yield f"--{flag}" if mine else f"--{flag.rpartition('.')[0]}.no-{flag.rpartition('.')[2]}"
            else:
                yield " ".join([f"--{flag}", *map(str, mine if isinstance(mine, tuple) else (mine,))])

    return " ".join(["csrlhf sweep", *options(config, SweepConfig(), "")])


@writes_run
def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Run every missing cell and write the tables; returns the content of `sweep.json`.

    Raises UserError, before any training, for unknown methods or settings, and if the folder holds another sweep.
    """
    check_folder(config.record, "--record")
    shared = config.shared()
    shared.base_path()  # a missing base is an error before any training
    cells = config.cells()
    if not cells:
        raise UserError("the sweep has no cell: expected at least one method and one seed")
    for cell in cells.values():
        check_cell(cell, shared, config.direct)
    evaluation_prompts(config.evaluate, config.judged_on)
    settings = config.settings("record", "attacked") | {"cells": list(cells)}
    Run.open(config.out, settings, contents=shared.contents(), resume=config.resume)
    run_stages(sweep_stage_needs(config), config, run_sweep_stage)
    return write_tables(config)


def write_tables(config: SweepConfig) -> dict[str, Any]:
    """Write the three files to `config.out` and, if given, to `config.record`; returns the content of sweep.json."""
    cells = config.cells()
    done = {name: config.read_stage(name) for name in cells}
    rows = {name: stage["policy"] for name, stage in done.items()}
    if config.attacked:
        rows = {name: row | config.read_stage(config.attack_on(name)) for name, row in rows.items()}
    told = {
        "plan": config.plan,
        "command": command(config),
        "seeds": list(config.seeds),
        "threshold": config.threshold,
        "cost_model": config.cost_model,
        "cost_models": {config.cost_model: config.read_stage(config.cost_model)},
        "versions": versions(),
        "wall_seconds": config.read_stage("seconds"),
        "cells": [
            {
                "method": cell.method,
                "settings": dict(cell.settings),
                "seed": cell.seed,
                "policy": rows[name],
                "curve": curve_of(done[name]["curve"]),
            }
            for name, cell in cells.items()
        ],
    }
    files = {
        "cells.csv": as_csv([cell_row(cell, rows[name], config.rates) for name, cell in cells.items()]),
        "summary.csv": as_csv(list(summary_rows(config, rows))),
        "sweep.json": json.dumps(compact(told), separators=(",", ":")) + "\n",
    }
    for folder in (config.out, config.record):
        for name, text in files.items() if folder else ():
            write_atomic(folder / name, text)
    print(f"{len(cells)} cells: the tables are in {config.out}")
    return compact(told)
