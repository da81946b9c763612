"""Blocks of docs/results.md about what more or less of one thing buys, and about cost models behind a policy.

Made from what `make curves` records (`benchmarks/what_it_takes.py`, `benchmarks/behind_a_filter.py`).
"""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev
from typing import Any

from benchmarks.behind_a_filter import DRAWS, JUDGES
from benchmarks.results_tables import MEASURES, Records, label, measured, table, text_of
from benchmarks.what_it_takes import CURVES, LABELS, STEPS, WIDTH
from csrlhf_kit.evaluation.results import PolicyRow, policy_rows
from csrlhf_kit.recipes.claims.evidence import shown
from csrlhf_kit.recipes.experiments.plans import MAIN
from csrlhf_kit.theory.over_seeds import mean_over_seeds, rate_over_seeds

WIDER = 192  # the width of the base whose policies have every threshold of a filter measured
CURVE_TITLES = {  # of benchmarks/what_it_takes.py: what a row is called
    "steps": "{} PPO steps",
    "families": "{} kinds of wrapper in PPO's prompts, never nested",
    "labels": "{:,} labels for the cost model",
    "layers": "adapters of the scorers on the last {} layers",
    "talks": "{}% of PPO's prompts in a conversation",
    "width": "a base of width {}",
}


def curve_points(records: Records) -> dict[tuple[str, int], list[PolicyRow]]:
    """(curve, value) -> the policies that `benchmarks/what_it_takes.py` has recorded there, one per seed."""
    points: dict[tuple[str, int], list[PolicyRow]] = {}
    for told in records.recorded("what_it_takes/*.json"):
        row = PolicyRow("fixed_penalty", seed=told["seed"], policy=told["policy"])
        points.setdefault((told["curve"], told["value"]), []).append(row)
    return points


def spread(records: Records) -> str:
    """How far apart seeds end after as many steps as the main job has: its fixed penalty, and the tuned Lagrangian."""
    tuned = [row for told in records.recorded("main_tuned/*/sweep.json") for row in policy_rows(told)]
    rows = []
    for cells in (curve_points(records)["steps", MAIN.ppo.steps], tuned):
        found = {name: measured(cells, name) for name in MEASURES}
        told = [text_of(name, figure) for name, figure in found.items()]
        rows.append(
            [label(cells), str(len(cells)), f"{100 * stdev(found['harmful_nominal'].runs):.1f}", *told]
        )
    head = ["in percent", "seeds", "spread of the next column (one standard deviation)", *MEASURES.values()]
    return table(head, rows)


def judges_as_words(count: int) -> str:
    """Who reads the answers, as a row calls it."""
    return "the cost model" if count == 1 else f"{count} cost models"


def behind_filter(
    records: Records, folder: str = "filter", policies: str = "The converged fixed penalty"
) -> str:
    """A trained policy, and what cost models behind it change, policy by policy; thresholds were chosen on validation."""
    seeds = records.recorded(f"{folder}/seed_*.json")
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
        judges = judges_as_words(first["judges"])
        what = f"{judges} as a filter" if first["draws"] == 1 else f"the best of {first['draws']} by {judges}"
        told = [
            shown(one, scale, "", digits)
            for one, (scale, digits) in zip(gaps if place else own, shapes, strict=True)
        ]
        table_rows.append([f"{what}: change" if place else "the policy alone", *told])
    return (
        table(["in percent, or points", *titles.values()], table_rows)
        + f"\n\n{policies}, {len(seeds)} seeds; the changes are paired by policy, with intervals over "
        f"seeds; per seed {seeds[0]['requests']} requests are attacked, and {seeds[0]['talks']} conversations held."
    )


def thresholds(records: Records) -> str:
    """What each threshold of a filter does to the answers of the policies on the wider base."""
    seeds = records.recorded(f"filter_{WIDER}/seed_*.json")
    wide = records.recorded(f"what_it_takes/width_{WIDER}_*.json")
    free = [told["unconstrained"]["helpfulness"] for told in wide]

    def over_seeds(split: str, place: int) -> list[PolicyRow]:
        return [
            PolicyRow("fixed_penalty", seed=one["seed"], policy=one["curve"][split][place]) for one in seeds
        ]

    rows, chosen = [], {}
    for place, first in enumerate(seeds[0]["curve"]["test"]):
        judges, limit = first["judges"], first["threshold"]
        refused = measured(over_seeds("validation", place), "over_refusal").value
        if limit < 1 and refused <= 0.05:
            chosen[judges] = (place, f"{judges_as_words(judges)} {limit:g} ({100 * refused:.1f}%)")  # t falls
        if (limit == 1 and judges > 1) or refused > 0.5:
            continue
        name = "the policy alone" if limit == 1 else f"{judges_as_words(judges)}, t = {limit:g}"
        rows.append([name, *(text_of(key, measured(over_seeds("test", place), key)) for key in MEASURES)])
    ours = [row.policy["helpfulness"] for row in over_seeds("test", chosen[JUDGES[-1]][0])]
    told = [", ".join(f"{value:.2f}" for value in values) for values in (free, ours)]
    return table(["in percent", *MEASURES.values()], rows) + (
        f"\n\n{len(seeds)} seeds, {DRAWS[-1]} answers to each prompt, each filtered on its own. The smallest t with at most 5% of "
        f"such refusals on validation prompts, over all seeds: {', '.join(text for _, text in chosen.values())}. Helpfulness of PPO without a "
        f"constraint on this base, seed by seed: {told[0]}; of the policies behind {JUDGES[-1]} cost models at that t: {told[1]}."
    )


def what_it_takes(records: Records) -> str:
    """More or less of one thing at a time, and the converged runs in the middle of each curve."""
    points = curve_points(records)
    middle = {"steps": STEPS, "labels": LABELS, "layers": MAIN.scorer_layers, "talks": 0, "width": WIDTH}
    alone = {told["seed"]: told["rows"][0] for told in records.recorded("filter/*.json")}
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
