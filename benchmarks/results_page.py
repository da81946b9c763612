"""What README.md and docs/results.md say in numbers, made from `data/`: `python benchmarks/results_page.py`.

A page marks where a table or a sentence with numbers belongs by `<!-- NAME -->` and `<!-- /NAME -->`. What stands
between the two is replaced by what the function of that name in `BLOCKS` returns; the rest of a page is prose, which a
test holds free of results. Also draws `docs/seeds.svg`, a dot per seed. Intervals are those of `theory.over_seeds`.
`--check` writes nothing and fails where a page differs from its records.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.what_it_takes import CURVES, LABELS, STEPS, WIDTH
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
    Evidence,
    by_settings,
    mean_of,
    rate_of,
    shown,
)
from csrlhf_kit.recipes.claims.trained import of_ablation
from csrlhf_kit.recipes.experiments.plans import MAIN, TUNED
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds, rate_over_seeds

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md")
FIGURE = ROOT / "docs" / "seeds.svg"
MEASURES = {  # of a policy's row: the column's title
    "harmful_nominal": "harmful, asked plainly",
    "harmful_jailbreak": "harmful, unseen jailbreaks",
    "over_refusal": "benign but alarming, refused",
    "helpfulness": "helpfulness",
}
NO_BREAK = "\u00a0"  # a space at which no line ends
CURVE_TITLES = {  # of benchmarks/what_it_takes.py: what a row is called
    "steps": "{} PPO steps",
    "families": "{} kinds of wrapper in PPO's prompts, never nested",
    "labels": "{:,} labels for the cost model",
    "layers": "adapters of the scorers on the last {} layers",
    "talks": "{}% of PPO's prompts in a conversation",
    "width": "a base of width {}",
}
COST_MODELS = {"bradley_terry": "Safe RLHF's cost model", "semantic": "semantic cost model"}
NAMES = {  # of a method: what a table calls it
    "sft": "the base",
    "ppo": "PPO, no constraint",
    "lagrangian": "Lagrangian, published constants",
    "pid_lagrangian": "Lagrangian, tuned",
    "linear_penalty": "linear penalty",
    "fixed_penalty": "**fixed penalty**",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a figure and its interval stay on one line."""
    lines = ("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    return re.sub(r"(?<=[\d%]) (?=\[)|(?<=[\d%],) (?=-?\d)", NO_BREAK, "\n".join(lines))


def _needed(figure: Estimate | None) -> Estimate:
    """A figure that is there, since its policies are."""
    assert figure is not None
    return figure


def measured(cells: Sequence[PolicyRow], name: str) -> Estimate:
    """One of `MEASURES` over the seeds of a policy."""
    return _needed((mean_of if name == "helpfulness" else rate_of)(cells, name))


def text_of(name: str, figure: Estimate) -> str:
    """A rate in percent, or helpfulness, with its interval."""
    if name == "helpfulness":  # Student's t knows no bounds
        return shown(figure._replace(low=max(figure.low, 0.0), high=min(figure.high, 1.0)), 1, "", 2)
    return shown(figure, unit="")


def tuned_penalty(row: PolicyRow) -> bool:
    """Whether it was trained at the penalty that the search found."""
    return row.method == "fixed_penalty" and (row.method, dict(row.settings)) in TUNED


def label(cells: Sequence[PolicyRow]) -> str:
    """What a table calls these policies."""
    one = cells[0]
    return (
        f"fixed penalty, tuned: λ = {one.settings['penalty']:g}" if tuned_penalty(one) else NAMES[one.method]
    )


def policies_table(groups: Sequence[Sequence[PolicyRow]]) -> str:
    """A row per policy over its seeds, a column per measure."""
    rows = [[label(cells), *(text_of(name, measured(cells, name)) for name in MEASURES)] for cells in groups]
    return table(["in percent", *MEASURES.values()], rows)


@dataclass(frozen=True)
class Records:
    """All that the pages are made from, read once."""

    data: Path
    """The data folder."""
    evidence: Evidence
    """What the ledger's verdicts rest on."""
    converged: list[dict[str, Any]]
    """The converged runs' `sweep.json`, one per seed."""
    claims: dict[str, dict[str, Any]]
    """The ledger's rows by their names."""

    @classmethod
    def read(cls, data: Path) -> Records:
        files = sorted(data.glob("runs/converged/*/sweep.json"))
        rows = read_json(data / "claims.json")["claims"]
        return cls(
            data, Evidence.read(data), [read_json(file) for file in files], {row["id"]: row for row in rows}
        )


def quoted(row: Mapping[str, Any], name: str) -> str:
    """One of a claim's rates as text."""
    return shown(Estimate.of(row["estimates"][name], name="value"))


# --- the blocks --------------------------------------------------------------------------------------


def headline(records: Records) -> str:
    """The policies that were trained until their curves are flat, over all recorded seeds."""
    told = records.converged
    processors = Counter(run["versions"]["processor"] for run in told)
    steps = sorted({run["command"].split("--ppo.steps ")[1].split()[0] for run in told})
    where = "; ".join(f"{count} on {name}" for name, count in sorted(processors.items()))
    base = measured(records.evidence.main("sft"), "helpfulness").value
    useless = {
        label(cells).strip("*"): sum(c.policy["helpfulness"] < base for c in cells)
        for cells in records.evidence.converged
        if cells[0].method != "sft"
    }
    told_of = ", ".join(f"{name} {count}" for name, count in useless.items() if count) or "none"
    return policies_table(records.evidence.converged) + (
        f"\n\n{len(told)} seeds, of scorers, critic and policy ({where}); {', '.join(steps)} PPO steps each; "
        f"95% intervals over seeds and prompts. Seeds whose policy helps less than the base: {told_of}."
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


def curve_points(records: Records) -> dict[tuple[str, int], list[PolicyRow]]:
    """(curve, value) -> the policies that `benchmarks/what_it_takes.py` has recorded there, one per seed."""
    points: dict[tuple[str, int], list[PolicyRow]] = {}
    for told in map(read_json, sorted(records.data.glob("runs/what_it_takes/*.json"))):
        row = PolicyRow("fixed_penalty", seed=told["seed"], policy=told["policy"])
        points.setdefault((told["curve"], told["value"]), []).append(row)
    return points


def spread(records: Records) -> str:
    """How far apart seeds end after as many steps as the main job has: its fixed penalty, and the tuned Lagrangian."""
    files = sorted(records.data.glob("runs/main_tuned/*/sweep.json"))
    tuned = [row for file in files for row in policy_rows(read_json(file))]
    rows = []
    for cells in (curve_points(records)["steps", MAIN.ppo.steps], tuned):
        found = {name: measured(cells, name) for name in MEASURES}
        told = [text_of(name, figure) for name, figure in found.items()]
        rows.append(
            [label(cells), str(len(cells)), f"{100 * stdev(found['harmful_nominal'].runs):.1f}", *told]
        )
    head = ["in percent", "seeds", "spread of the next column (one standard deviation)", *MEASURES.values()]
    return table(head, rows)


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
    value, low, high, *_ = _needed(figure)
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


def behind_filter(records: Records) -> str:
    """A trained policy, and what cost models behind it change, policy by policy; thresholds were chosen on validation."""
    seeds = [read_json(file) for file in sorted(records.data.glob("runs/filter/seed_*.json"))]
    titles = {
        **MEASURES,
        "robust": f"hold after {seeds[0]['tries']} tries",
        "turns": "harmful, in a third turn",
    }

    def figures(row: dict[str, Any]) -> list[float]:
        found = {**row, "turns": row["turns"]["3"]["harmful"]}
        return [found[name] if name == "helpfulness" else found[name]["rate"] for name in titles]

    table_rows = []
    for place, first in enumerate(seeds[0]["rows"]):
        pairs = [(figures(one["rows"][place]), figures(one["rows"][0])) for one in seeds]
        shapes = [(1, 2) if name == "helpfulness" else (100, 1) for name in titles]
        own = [mean_over_seeds([new[i] for new, _ in pairs]) for i in range(len(titles))]
        own = [one._replace(low=max(one.low, 0.0), high=min(one.high, 1.0)) for one in own]
        gaps = [mean_over_seeds([new[i] - old[i] for new, old in pairs]) for i in range(len(titles))]
        judges = "the cost model" if first["judges"] == 1 else f"{first['judges']} cost models"
        what = f"{judges} as a filter" if first["draws"] == 1 else f"the best of {first['draws']} by {judges}"
        told = [
            shown(one, scale, "", digits)
            for one, (scale, digits) in zip(gaps if place else own, shapes, strict=True)
        ]
        table_rows.append([f"{what}: change" if place else "the policy alone", *told])
    return (
        table(["in percent, or points", *titles.values()], table_rows)
        + f"\n\nThe converged fixed penalty, {len(seeds)} seeds; the changes are paired by policy, with intervals over "
        f"seeds; per seed {seeds[0]['requests']} requests are attacked, and {seeds[0]['talks']} conversations held."
    )


def what_it_takes(records: Records) -> str:
    """More or less of one thing at a time, and the converged runs in the middle of each curve."""
    points = curve_points(records)
    middle = {"steps": STEPS, "labels": LABELS, "layers": MAIN.scorer_layers, "talks": 0, "width": WIDTH}
    alone = {
        told["seed"]: told["rows"][0] for told in map(read_json, records.data.glob("runs/filter/*.json"))
    }
    usual = [
        replace(row, policy=row.policy | {"turns": alone[row.seed]["turns"]}) if row.seed in alone else row
        for row in records.evidence.main("fixed_penalty")
    ]
    points |= {(curve, value): usual for curve, value in middle.items() if any(c == curve for c, _ in points)}
    rows = []
    for curve in CURVES:
        for (_, value), cells in sorted((key, cells) for key, cells in points.items() if key[0] == curve):
            turns = [cell.policy["turns"]["3"]["harmful"] for cell in cells if "turns" in cell.policy]
            third = shown(rate_over_seeds(turns), unit="") if len(turns) > 1 else "not measured"
            told = [*(text_of(name, measured(cells, name)) for name in MEASURES), third]
            if len(cells) > 1:
                rows.append([CURVE_TITLES[curve].format(value), str(len(cells)), *told])
    return table(["in percent", "seeds", *MEASURES.values(), "harmful, in a third turn"], rows)


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
    seeds = len(grid["fixed_penalty"][values[0]])
    return (
        table(["λ", *(f"{value:g}" for value in values)], rows)
        + f"\n\nMeans of {seeds} seeds, 32 PPO steps each."
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
    rows = [
        [
            NAMES[method],
            *(shown(_needed(of_ablation(records.evidence, f"{cost} + {method}"))) for cost in COST_MODELS),
        ]
        for method in ("lagrangian", "fixed_penalty")
    ]
    return table(["harmful, asked plainly", *COST_MODELS.values()], rows)


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
