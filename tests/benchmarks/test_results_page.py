"""README and docs/results.md say what the records say, and no page has a result that no command makes again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks.results_curves import curve_points
from benchmarks.results_page import BLOCKS, FIGURE, PAGES, dots, filled
from benchmarks.results_tables import MEASURES, Records, label, measured
from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.recipes.claims.trained import of_ablation
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds, rate_over_seeds

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w./-])\d+(?:\.\d+)?\s?%|(?<![\w./-])\d+\.\d+(?![\w.])")
COMMAND = re.compile(r"`(?:make|csrlhf|python)\b[^`]*`|```bash")
STATED = {
    "2%",
    "5%",
    "95%",
    "97%",
    "98%",
    "0.98",
    "3.11",
}  # the limit, our goals, Python's version: set, not measured
DEFINE = ("glossary.md", "primer.md", "setup.md")  # their numbers are examples and versions


def prose(page: str) -> str:
    """A page without its made blocks, code, links, formulas and names of papers."""
    for pattern in (
        r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->",
        r"```.*?```",
        r"\]\([^)]*\)",
        r"\$[^$]*\$",
        r"arXiv \d+\.\d+",
        r"[Ee]xercises?[ (]+\d+\.\d+(?:(?:, | to | and )\d+\.\d+)*",
    ):
        page = re.sub(pattern, "", page, flags=re.DOTALL)
    return page


@pytest.fixture(scope="module")
def records() -> Records:
    return Records.read(data_folder())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_records_say(page, records):
    text = (ROOT / page).read_text()
    assert filled(text, records) == text, "`make results` writes it anew"
    assert set(NUMBER.findall(prose(text))) <= STATED, (
        "a number outside of the blocks that `make results` makes"
    )


def test_the_figure_is_that_of_the_records(records):
    assert FIGURE.read_text() == dots(records), "`make results` draws it anew"


def test_every_block_is_shown_and_a_changed_record_changes_it(records, tmp_path):
    shown = "".join((ROOT / page).read_text() for page in PAGES)
    assert set(re.findall(r"<!-- ([\w-]+) -->", shown)) == set(BLOCKS)
    shutil.copytree(data_folder() / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("*.csv"))
    shutil.copytree(data_folder() / "recorded", tmp_path / "recorded")
    claims = (data_folder() / "claims.json").read_text()
    (tmp_path / "claims.json").write_text(claims.replace('"undecided"', '"differs"'))
    page = "<!-- verdicts -->\n<!-- /verdicts -->\n<!-- headline -->\n<!-- /headline -->"
    before = filled(page, records)
    shutil.rmtree(sorted((tmp_path / "runs/converged").glob("seed_*"))[-1])
    after = filled(page, Records.read(tmp_path))
    assert "undecided 0." in after and "undecided 0." not in before
    assert before.splitlines()[5:] != after.splitlines()[5:]


def test_the_prose_beside_the_headline_holds(records):
    """README: the tuned methods are close, equal tuning trades refusals for harm, published constants end useless."""
    groups = {label(cells).strip("*"): cells for cells in records.evidence.converged}
    fixed, tuned = groups["fixed penalty"], groups["Lagrangian, tuned"]
    published = groups["Lagrangian, published constants"]
    for name in MEASURES:
        gap = difference(measured(fixed, name), measured(tuned, name))
        assert gap.low < 0 < gap.high and gap.high - gap.low < 0.1
    for ours, theirs in product((fixed, groups["fixed penalty, tuned: λ = 3"]), (tuned, published)):
        gap = difference(measured(ours, "harmful_jailbreak"), measured(theirs, "harmful_jailbreak"))
        assert gap.low < 0 < gap.high
    gaps = {
        name: difference(measured(groups["fixed penalty, tuned: λ = 3"], name), measured(tuned, name))
        for name in MEASURES
    }
    assert (
        gaps["over_refusal"].high < 0 < gaps["harmful_nominal"].low and gaps["harmful_nominal"].value < 0.03
    )
    base = min(cell.policy["helpfulness"] for cell in groups["the base"])
    useless = [cell for cell in published if cell.policy["helpfulness"] < 0.5 * base]
    assert len(useless) > len(published) / 2
    gaps = {name: difference(measured(fixed, name), measured(published, name)) for name in MEASURES}
    assert gaps["harmful_nominal"].high < 0 < gaps["over_refusal"].low and gaps["helpfulness"].low > 0
    assert not [c for c in (*fixed, *tuned) if c.policy["helpfulness"] < 0.5 * base]


def share(row: dict, name: str) -> float:
    """One of a recorded row's rates; "turns": harm in the third turn."""
    return (row["turns"]["3"]["harmful"] if name == "turns" else row[name])["rate"]


def test_the_prose_beside_the_filters_holds(records):
    seeds = records.recorded("filter/*.json")
    assert len(seeds) >= 3
    for told in seeds:
        alone, *ruled = told["rows"]
        filters = {row["judges"]: row for row in ruled if row["draws"] == 1}
        assert set(filters) == {1, 5}
        for row in filters.values():
            assert row["harmful_jailbreak"]["rate"] < alone["harmful_jailbreak"]["rate"]
            assert row["helpfulness"] > alone["helpfulness"] - 0.02
    hold = [row["robust"]["rate"] for told in seeds for row in told["rows"]]
    assert sum(hold) / len(hold) < 0.5

    def changes(name: str, judges: int, draws: int) -> Estimate:
        """The change of a rate by a rule, paired by policy."""
        found = []
        for told in seeds:
            alone, *ruled = told["rows"]
            row = next(r for r in ruled if (r["judges"], r["draws"]) == (judges, draws))
            found.append(share(row, name) - share(alone, name))
        return mean_over_seeds(found)

    own, five, best = (changes("harmful_jailbreak", *rule) for rule in ((1, 1), (5, 1), (1, 4)))
    alone = mean_over_seeds([told["rows"][0]["harmful_jailbreak"]["rate"] for told in seeds])
    assert own.high < 0 and own.value < -alone.value / 2 and abs(own.value - five.value) < 0.02
    assert best.value > own.value and changes("over_refusal", 1, 4).high < changes("over_refusal", 1, 1).low
    assert all(turn.low < 0 < turn.high for turn in (changes("turns", j, n) for j in (1, 5) for n in (1, 4)))


def test_the_prose_beside_the_thresholds_holds(records):
    seeds = records.recorded("filter_192/*.json")
    wide = records.recorded("what_it_takes/width_192_*.json")
    unconstrained = {told["seed"]: told["unconstrained"]["helpfulness"] for told in wide}
    free = sum(unconstrained.values()) / 5
    assert len(seeds) == len(wide) == 5

    def at(place: int, name: str, split: str = "test") -> Estimate:
        return rate_over_seeds([told["curve"][split][place][name] for told in seeds])

    places = {(row["judges"], row["threshold"]): i for i, row in enumerate(seeds[0]["curve"]["test"])}

    def meets(place: int) -> bool:
        harm = at(place, "harmful_jailbreak")
        helps = [told["curve"]["test"][place]["helpfulness"] for told in seeds]
        safe = harm.value <= 0.02 and harm.high <= 0.03
        return safe and at(place, "over_refusal").value <= 0.05 and sum(helps) / 5 >= 0.95 * free

    assert [rule for rule, place in places.items() if meets(place)] == [
        (5, 0.2),
        (5, 0.1),
    ], "two in a row, of five cost models"
    kept = [rule for rule, place in places.items() if at(place, "over_refusal", "validation").value <= 0.05]
    smallest = {judges: min(t for j, t in kept if j == judges) for judges in (1, 5)}
    assert smallest == {1: 0.05, 5: 0.05} == {row["judges"]: row["threshold"] for row in seeds[0]["rows"][1:]}
    ours = {told["seed"]: told["curve"]["test"][places[5, 0.1]]["helpfulness"] for told in seeds}
    assert min(unconstrained.values()) < 0.1 and sum(unconstrained[s] > ours[s] for s in ours) == 3
    own, five = places[1, 0.05], places[5, 0.05]
    assert 0.05 < at(five, "over_refusal").value < 0.06
    assert at(five, "harmful_jailbreak").value < at(places[5, 0.1], "harmful_jailbreak").value < 0.02
    assert at(five, "harmful_jailbreak").value < at(own, "harmful_jailbreak").value
    assert at(five, "over_refusal").value <= at(own, "over_refusal").value
    alone, *filters = ({name: mean_over_seeds([share(told["rows"][i], name) for told in seeds]).value
                        for name in ("turns", "robust")} for i in range(3))  # fmt: skip
    assert alone["robust"] < 0.05
    assert all(row["turns"] < alone["turns"] / 2 and row["robust"] > 0.5 for row in filters)
    for place in (1, 2):
        third = [told["rows"][place]["turns"]["3"] for told in seeds]
        later, first = ([row["over_refusal"]["rate"] for row in rows]
                        for rows in (third, [told["rows"][place] for told in seeds]))  # fmt: skip
        assert sum(later) > 2 * sum(first) and sum(row["helpfulness"] for row in third) / 5 < 0.15


def test_the_prose_beside_the_curves_holds(records):
    found = curve_points(records).items()
    points = {f"{curve} {value}": [row.policy for row in rows] for (curve, value), rows in found}
    usual = [told["rows"][0] for told in records.recorded("filter/*.json")]

    def mean(rows: list[dict], name: str) -> Estimate:
        return mean_over_seeds([share(row, name) for row in rows])

    def gap(point: str, name: str) -> Estimate:
        return difference(mean(points[point], name), mean(usual, name))

    jailbreak = mean(usual, "harmful_jailbreak").value
    assert 1.6 < mean(points["families 0"], "harmful_jailbreak").value / jailbreak < 2.4
    assert gap("families 0", "harmful_jailbreak").low > 0
    for point in ("steps 64", "labels 1000", "labels 32000", "width 192"):
        found = gap(point, "harmful_jailbreak")
        assert abs(found.value) < 0.02 and found.low < 0 < found.high
    assert gap("width 192", "over_refusal").high < 0 and mean(points["width 192"], "over_refusal").high < 0.02
    assert any(row["over_refusal"]["rate"] > 0.9 for row in points["steps 256"])
    talks = gap("talks 25", "turns")
    assert talks.low < 0 < talks.high


def test_the_prose_beside_the_ablation_holds(records):
    rate = {(cost, method): of_ablation(records.evidence, f"{cost} + {method}")
            for cost in ("bradley_terry", "semantic") for method in ("fixed_penalty", "lagrangian")}  # fmt: skip
    gap = difference(rate["bradley_terry", "fixed_penalty"], rate["semantic", "fixed_penalty"])
    assert -0.02 < gap.low < 0 < gap.high < 0.02
    base = measured(records.evidence.main("sft"), "helpfulness").value
    own = [cell for cell in records.evidence.ablation if cell.method == "lagrangian"]
    for cost, cells in (("bradley_terry", own), ("semantic", records.evidence.main("lagrangian"))):
        assert difference(rate[cost, "lagrangian"], rate[cost, "fixed_penalty"]).low > 0
        assert sum(cell.policy["helpfulness"] < base / 2 for cell in cells) > len(cells) / 2


def test_the_prose_beside_the_strengths_holds(records):
    rectified, linear = (records.evidence.swept(f"{name}_penalty", "penalty") for name in ("fixed", "linear"))
    for low in (1.0, 2.0):
        assert [c.policy["cost"] for c in rectified[low]] == [c.policy["cost"] for c in linear[low]]
    assert [c.policy["cost"] for c in rectified[4.0]] != [c.policy["cost"] for c in linear[4.0]]
    for swept in (rectified, linear):
        assert (
            difference(measured(swept[8.0], "helpfulness"), measured(swept[32.0], "helpfulness")).value > 0.05
        )
    gap = difference(measured(rectified[64.0], "helpfulness"), measured(linear[64.0], "helpfulness"))
    assert gap.low < 0 < gap.value


def test_what_a_filter_changes_is_paired_by_policy(records, tmp_path):
    (tmp_path / "runs/filter").mkdir(parents=True)
    for seed, harm in enumerate((0.3, 0.9)):  # the policies differ by much, the change by nothing
        rows = [
            {
                "judges": judges,
                "draws": draws,
                **{name: {"rate": rate} for name in MEASURES},
                "helpfulness": 1 - rate,
                "robust": {"rate": 1 - rate},
                "turns": {"3": {"harmful": {"rate": rate}}},
            }
            for judges, draws, rate in ((1, 1, harm), (1, 1, harm - 0.1), (5, 4, harm - 0.2))
        ]
        told = {"seed": seed, "tries": 64, "requests": 50, "talks": 200, "rows": rows}
        (tmp_path / f"runs/filter/seed_{seed}.json").write_text(json.dumps(told))
    lines = BLOCKS["behind-a-filter"](replace(records, data=tmp_path)).replace("\u00a0", " ").splitlines()
    assert lines[2].startswith("| the policy alone | 60.0 [0.0, 100.0] |")
    change = "-10.0 [-10.0, -10.0]"
    assert lines[3] == (
        f"| the cost model as a filter: change | {change} | {change} | {change} | 0.10 [0.10, 0.10] "
        f"| 10.0 [10.0, 10.0] | {change} |"
    )
    assert lines[4].startswith("| the best of 4 by 5 cost models: change | -20.0 [-20.0, -20.0] |")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_measured_numbers_name_the_command_that_gives_them_again(page):
    if page.name in DEFINE or f"docs/{page.name}" in PAGES:
        return
    for section in re.split(r"\n(?=## )", page.read_text()):
        assert COMMAND.search(section) or not NUMBER.search(prose(section)), section[:200]
