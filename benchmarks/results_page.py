"""What README.md and docs/results.md say in numbers, made from `data/`: `python benchmarks/results_page.py`.

A page marks where a table or a sentence with numbers belongs by `<!-- NAME -->` and `<!-- /NAME -->`. What stands
between the two is replaced by what the function of that name in `BLOCKS` returns; the rest of a page is prose, which a
test holds free of results. Also draws `docs/seeds.svg`, a dot per seed. Intervals are those of `theory.over_seeds`.
`--check` writes nothing and fails where a page differs from its records.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.results_curves import WIDER, behind_filter, spread, thresholds, what_it_takes
from benchmarks.results_tables import (
    MEASURES,
    NAMES,
    Records,
    label,
    measured,
    needed,
    policies_table,
    quoted,
    table,
    tuned_penalty,
)
from csrlhf_kit.evaluation.results import PolicyRow, policy_rows, read_json
from csrlhf_kit.figures.results import seeds as draw_seeds
from csrlhf_kit.figures.static import static_svg
from csrlhf_kit.figures.style import style
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.claims.attacks import held_out_teams
from csrlhf_kit.recipes.claims.evidence import (
    AGREES,
    ASIDE,
    DIFFERS,
    PROVED,
    REFUTED,
    UNDECIDED,
    by_settings,
    shown,
)
from csrlhf_kit.recipes.claims.trained import of_ablation
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds, rate_over_seeds

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md")
FIGURE = ROOT / "docs" / "seeds.svg"
COST_MODELS = {"bradley_terry": "Safe RLHF's cost model", "semantic": "semantic cost model"}


def headline(records: Records) -> str:
    """The policies that were trained until their curves are flat, over all recorded seeds."""
    told = records.converged
    processors = Counter(run["versions"]["processor"] for run in told)
    steps = sorted({run["command"].split("--ppo.steps ")[1].split()[0] for run in told})
    where = "; ".join(f"{count} on {name}" for name, count in sorted(processors.items()))
    base = measured(records.evidence.main("sft"), "helpfulness").value
    groups = {label(cells).strip("*"): cells for cells in records.evidence.converged}
    useless = {
        name: sum(cell.policy["helpfulness"] < base for cell in cells)
        for name, cells in groups.items()
        if cells[0].method != "sft"
    }
    told_of = ", ".join(f"{name} {count}" for name, count in useless.items() if count) or "none"
    seeds = {name: len(cells) for name, cells in groups.items()}
    fewest, most = min(seeds.values()), max(seeds.values())
    more = ", ".join(f"{name} {count}" for name, count in seeds.items() if count > fewest)
    return policies_table(records.evidence.converged) + (
        f"\n\n{fewest} seeds{f' ({more})' if more else ''}, of scorers, critic and policy ({where}); {', '.join(steps)} PPO steps each; "
        f"95% intervals over seeds and prompts. Seeds whose policy helps less than the base: {told_of}."
        + (second_look(fewest, most) if more else "")
    )


def second_look(early: int, late: int) -> str:
    """What it costs to read some seeds first, and to add others where these leave a claim undecided."""
    with (ROOT / "benchmarks" / "results" / "interval_rule.csv").open(encoding="utf-8") as lines:
        found = [
            row for row in csv.DictReader(lines) if row["world"] == "prompts differ" and row["gap"] == "0.0"
        ]
    last = found[-1]["seeds"]
    share = {row["rule"]: float(row["share"]) for row in found if row["seeds"] == last}
    return (
        f" The last {late - early} seeds of the {late} were added when the first {early} had been read and had left "
        f"much undecided. Who looks twice takes equal methods for different ones more often: in simulations with {last} "
        f"seeds in {share['kit, two looks']:.1%} of the cases, against {share['kit, answers recorded']:.1%} "
        "(`benchmarks/interval_rule.py`)."
    )


def contrasts(records: Records) -> str:
    """The fixed penalty, as it is and tuned, minus each Lagrangian, prompt by prompt; and minus the linear penalty."""
    groups = {label(cells): cells for cells in records.evidence.converged}
    fixed = [cells for cells in groups.values() if cells[0].method == "fixed_penalty"]
    rivals = [cells for cells in groups.values() if cells[0].method in ("lagrangian", "pid_lagrangian")]
    linear = [cells for cells in groups.values() if cells[0].method == "linear_penalty"]
    rows = []
    for ours, theirs in [*product(fixed, rivals), *product(fixed[:1], linear)]:
        gaps = {name: difference(measured(ours, name), measured(theirs, name)) for name in MEASURES}
        signed = [_signed(gap, 1 if name == "helpfulness" else 100) for name, gap in gaps.items()]
        rows.append([f"{label(ours).strip('*')} − {label(theirs)}", *signed])
    return table(["difference, points", *MEASURES.values()], rows)


def _signed(gap: Estimate, scale: float) -> str:
    digits = 2 if scale == 1 else 1
    text = shown(gap, scale, "", digits)
    return f"**{text}**" if gap.low > 0 or gap.high < 0 else text


def verdicts(records: Records) -> str:
    """How many claims agree, differ, are undecided; and those outside the tally."""
    count = Counter(row["verdict"] for row in records.claims.values())
    trained = ", ".join(f"{word} {count[word]}" for word in (AGREES, DIFFERS, UNDECIDED))
    return (
        f"Trained in this world: {trained}. Exact theory and released code: {PROVED} {count[PROVED]}, "
        f"{REFUTED} {count[REFUTED]}. Beside the tally, because it was measured on other models or built into "
        f"the data: {ASIDE} {count[ASIDE]}."
    )


def main_job(records: Records) -> str:
    """The policies of `make run`, over all recorded seeds."""
    groups: dict[str, list[PolicyRow]] = {}
    for told in records.evidence.results:
        for name, policy in told["policies"].items():
            groups.setdefault(name, []).append(PolicyRow(name, seed=told["seed"], policy=policy))
    steps = records.evidence.results[0]["config"]["ppo"]["steps"]
    return policies_table(list(groups.values())) + (
        f"\n\n{len(records.evidence.results)} seeds, {steps} PPO steps each{_rule(groups['sft'])}."
    )


def _rule(cells: Sequence[PolicyRow]) -> str:
    """What a table has to say of records that an earlier oracle judged."""
    old = not all("outcomes" in cell.policy for cell in cells)
    return "; judged by the oracle's earlier rule ([CHANGELOG](../CHANGELOG.md))" if old else ""


def cost_models(records: Records) -> str:
    """The scorers of `make run`, over all recorded seeds."""
    columns = {
        "auroc": ("AUROC, all", 1, 3),
        "auroc_tricky": ("AUROC, tricky", 1, 3),
        "false_positive_rate_benign_alarming": ("false alarms on benign but alarming, %", 100, 1),
    }
    names = list(records.evidence.results[0]["cost_models"])
    rows = [
        [f"`{name}`", *(_share(records.evidence.costs(name, key), scale, digits) for key, (_, scale, digits) in columns.items())]
        for name in names
    ]  # fmt: skip
    return table(["cost model", *(title for title, *_ in columns.values())], rows)


def _share(figure: Estimate | None, scale: float, digits: int) -> str:
    """A figure in [0, 1]; without an interval where no seed changes it, as with the filter, which trains nothing."""
    value, low, high, *_ = needed(figure)
    if low == high:
        return f"{scale * value:.{digits}f}"
    return shown(Estimate(value, max(low, 0.0), min(high, 1.0)), scale, "", digits)


def attacks(records: Records) -> str:
    """The converged policies against the held-out red team, and in conversations."""
    rows = []
    for name, told in held_out_teams(records.evidence).items():
        hold = rate_over_seeds([one["robust"] for one in told])
        eight = mean_over_seeds([one["robust_after"]["8"] for one in told])
        first, third = (rate_over_seeds([one["turns"][k]["harmful"] for one in told]) for k in ("1", "3"))
        rows.append(
            [NAMES[name], f"{100 * eight.value:.0f}", *(shown(e, unit="") for e in (hold, first, third))]
        )
    order = list(NAMES.values())
    rows.sort(key=lambda row: order.index(row[0]))
    one = records.evidence.red_team[0]["config"]
    head = ["in percent", "hold after 8 tries", f"hold after {one['tries']} tries", "harmful, asked at once", "harmful, in a third turn"]  # fmt: skip
    seeds = max(len(told) for told in held_out_teams(records.evidence).values())
    return table(head, rows) + f"\n\n{seeds} seeds, {one['requests']} requests each, intervals over seeds."


def hold_out(records: Records) -> str:
    """What holds against 64 tries, in words."""
    claims = records.claims
    holds, rounds = claims["some_method_holds"], claims["robust_90"]
    last, nearest = claims["three_rounds"], claims["each_round"]
    strict = read_json(records.data / "runs/strict_rounds_0/rounds.json")["rounds"][-1]
    held = rate_over_seeds([strict["held_out_team"]["robust"]])
    groups = by_settings(c for c in records.evidence.sweep if "robust" in c.policy)
    return (
        f"Of {len(groups)} settings of all methods ([summary.csv](../data/runs/published/summary.csv), `make sweeps`) the one that "
        f"holds most while it keeps half of unconstrained help holds {quoted(holds, 'useful')}; the one that holds most, "
        f"{quoted(holds, 'best')}, helps nobody (`reward_shaping` at its largest weight). Three rounds of red-teaming (`data/runs/rounds_*`) bring the fixed "
        f"penalty to {quoted(last, 'last')} harmful asked plainly, {quoted(nearest, 'v3')} under unseen jailbreaks, and "
        f"{quoted(rounds, 'robust')} of requests that hold; our goal was 90%. With a quarter of the limit and a stronger penalty "
        f"(one seed, `data/runs/strict_rounds_0`) {shown(held)} hold after the third round, and that policy refuses "
        f"{100 * strict['policy']['over_refusal']['rate']:.0f}% of benign requests that sound alarming."
    )


def strengths(records: Records) -> str:
    """λ against what it does, for the rectified and the linear penalty."""
    grid = {m: records.evidence.swept(m, "penalty") for m in ("fixed_penalty", "linear_penalty")}
    values = [value for value in grid["fixed_penalty"] if value >= 1]
    rows = []
    for key in ("harmful_nominal", "over_refusal", "helpfulness"):
        for word, method in (("rectified", "fixed_penalty"), ("linear", "linear_penalty")):
            cells = [measured(grid[method][value], key).value for value in values]
            shape = "{:.2f}" if key == "helpfulness" else "{:.1%}"
            rows.append([f"{MEASURES[key]}, {word}", *(shape.format(value).rstrip("%") for value in cells)])
    seeds = sorted({len(cells) for swept in grid.values() for cells in swept.values()})
    return (
        table(["λ", *(f"{value:g}" for value in values)], rows)
        + f"\n\nMeans of {' to '.join(map(str, seeds))} seeds, 32 PPO steps each."
    )


def equal_search(records: Records) -> str:
    """The search on validation prompts from which the tuned settings are, and the published grids' best."""
    told = read_json(records.data / "runs/tuning/sweep.json")
    rows = [
        [
            {"pid_lagrangian": "Lagrangian, PID"}.get(cell["method"], style(cell["method"]).label),
            ", ".join(f"{name} {value:g}" for name, value in cell["settings"].items() if name != "scaled"),
            *(f"{100 * cell['policy'][name]['rate']:.1f}" for name in MEASURES if name != "helpfulness"),
            f"{cell['policy']['helpfulness']:.2f}",
        ]
        for cell in told["cells"]
    ]
    return (
        table(["method", "settings", *MEASURES.values()], rows)
        + "\n\nOne seed, 128 PPO steps each, validation prompts."
    )


def ablation(records: Records) -> str:
    """Safe RLHF's cost model or the semantic one, with either constraint."""
    found = {
        method: {cost: needed(of_ablation(records.evidence, f"{cost} + {method}")) for cost in COST_MODELS}
        for method in ("lagrangian", "fixed_penalty")
    }
    rows = [[NAMES[method], *map(shown, row.values())] for method, row in found.items()]
    seeds = ", ".join(f"{rate.seeds} ({COST_MODELS[cost]})" for cost, rate in found["lagrangian"].items())
    return table(["harmful, asked plainly", *COST_MODELS.values()], rows) + f"\n\nSeeds: {seeds}."


def gate_theory(records: Records) -> str:
    """Where a gated penalty settles: predicted before the runs, and measured."""
    row = records.claims["gate_settles"]
    rows = [
        [str(size), quoted(row, f"B={size}, predicted"), quoted(row, f"B={size}")] for size in (32, 64, 128)
    ]
    return table(["batch", "predicted mean cost", "measured"], rows)


BLOCKS: dict[str, Callable[[Records], str]] = {
    "headline": headline,
    "contrasts": contrasts,
    "verdicts": verdicts,
    "main-job": main_job,
    "spread": spread,
    "cost-models": cost_models,
    "attacks": attacks,
    "hold-out": hold_out,
    "behind-a-filter": behind_filter,
    "wider-behind-a-filter": partial(
        behind_filter, folder=f"filter_{WIDER}", policies=f"The fixed penalty on a base of width {WIDER}"
    ),
    "thresholds": thresholds,
    "what-it-takes": what_it_takes,
    "strengths": strengths,
    "equal-search": equal_search,
    "ablation": ablation,
    "gate-theory": gate_theory,
}
BLOCK = re.compile(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def filled(page: str, records: Records) -> str:
    """A page with each of its blocks made anew. Raises KeyError for a block that has no function."""
    return BLOCK.sub(
        lambda found: f"<!-- {found[1]} -->\n{BLOCKS[found[1]](records)}\n<!-- /{found[1]} -->", page
    )


def dots(records: Records) -> str:
    """The headline as SVG, a dot per seed and policy, under the names of the table above it."""
    runs = [
        {"fixed penalty, tuned" if tuned_penalty(row) else row.method: row.policy for row in policy_rows(one)}
        for one in records.converged
    ]
    names = [NAMES.get(name, name).strip("*").removesuffix(" constants") for name in runs[0]]
    return static_svg(draw_seeds(runs).update_yaxes(ticktext=names))


def main() -> int:
    records, check, wrong = Records.read(ROOT / "data"), "--check" in sys.argv[1:], []
    made = {ROOT / page: filled((ROOT / page).read_text(), records) for page in PAGES} | {
        FIGURE: dots(records)
    }
    for path, text in made.items():
        if not path.is_file() or path.read_text() != text:
            wrong.append(path.relative_to(ROOT))
            if not check:
                write_atomic(path, text)
    print(f"{'differ' if check else 'written'}: {', '.join(map(str, wrong)) or 'none'}")
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
