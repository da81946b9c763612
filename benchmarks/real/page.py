"""Write the measured part of docs/real-model.md again, from data/real: `python -m benchmarks.real.page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results_tables import table
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.claims.evidence import shown
from csrlhf_kit.theory.intervals import Estimate

ROOT = Path(__file__).parents[2]
PAGE, RECORD = ROOT / "docs" / "real-model.md", ROOT / "data" / "real"
MARK = "<!-- what follows is written by `python -m benchmarks.real.page` -->\n"
TOY = {"start": "sft", "pid_lagrangian": "lagrangian"}
"""Names in the toy world's main job where they differ; its Lagrangian has the published constants."""
NAMES = {
    "base": "base",
    "start": "start",
    "ppo": "unconstrained",
    "pid_lagrangian": "Lagrangian",
    "linear_penalty": "linear penalty",
    "fixed_penalty": "rectified penalty",
}


def measured(record: Path, toy: Path) -> str:
    """The tables as Markdown; one sentence where nothing is recorded."""
    parts = [_cost_models(record / "cost_models.json")]
    file = record / "results.json"
    if not file.is_file():
        return "\n\n".join([*filter(None, parts), "No policy is recorded yet."]) + "\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    figures, policies = found["figures"], found["policies"]
    parts += [
        _people(figures["people"]),
        _sources(figures["sources"]),
        _scorers(figures),
        _alarms(figures["alarms"]),
        _policies(policies),
        _differences(found["differences"]),
    ]
    if (record / "blind.json").is_file():
        parts.append(_blind(json.loads((record / "blind.json").read_text(encoding="utf-8"))))
    if toy.is_file():
        world = json.loads(toy.read_text(encoding="utf-8"))["policies"]
        parts.append(_ordering(policies, world, found["differences"]))
    parts.append(
        f"The whole took {found['wall_seconds'] / 3600:.1f} hours, torch {found['versions'].get('torch', '?')}. "
        "One seed: the intervals are over prompts and say which of these policies is better, not which method."
    )
    return "\n\n".join(filter(None, parts)) + "\n"


def _cost_models(file: Path) -> str:
    """The probe and words on a user's file of CS-RLHF, which is not in the repository."""
    if not file.is_file():
        return ""
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    rows = [
        [name, _figure(m["auroc"]), _figure(m["accuracy"]), _figure(m["false_positive_rate"])]
        for name, m in models.items()
    ]
    head = ["on CS-RLHF's rows, requests held out", "AUROC", "accuracy", "false alarms"]
    return "### Cost models on a user's labels\n\n" + table(head, rows)


def _people(people: dict[str, Any]) -> str:
    rows = [[n, _figure(m["auroc"]), _share(m["accuracy"])] for n, m in people["readers"].items()]
    text = (
        f"### Reading people's grades\n\n{people['answers']} answers to {people['requests']} requests, "
        f"{people['unsafe']} of them with a mean grade of at least 0.5; requests held out in five folds.\n\n"
        + table(["reader", "AUROC", "accuracy"], rows)
    )
    if not people["raters"]:
        return text
    raters = people["raters"]
    alpha = raters["alpha"]
    rows = [
        [rater, _figure(own["rater"]), *(_figure(own[name]) for name in own if name != "rater")]
        for rater, own in raters["against_the_others"].items()
    ]
    names = [name for name in next(iter(raters["against_the_others"].values())) if name != "rater"]
    kappas = [
        [name, *(_figure(entry) for entry in own["kappa"].values())] for name, own in raters["models"].items()
    ]
    return (
        f"{text}\n\nThree people graded {raters['answers']} of them. Krippendorff's α: {_figure(alpha['unsafe_or_not'])} for "
        f'"at least 0.5", {_figure(alpha["grades"])} for the grades as numbers. How well each predicts whether the mean '
        f"of the other two is at least 0.5 (AUROC):\n\n{table(['left out', 'the person', *names], rows)}\n\n"
        f"Cohen's κ of each reader with each person:\n\n{table(['reader', *next(iter(raters['models'].values()))['kappa']], kappas)}"
    )


def _sources(sources: dict[str, Any]) -> str:
    """What a head learns from rows of one source, and of two."""
    rows = [
        [name, _figure(own["auroc"]), *(_share(share) for share in own["called_unsafe"].values())]
        for name, own in sources.items()
    ]
    return (
        "### Harm, or where a row comes from?\n\nThe same head on the same states, with three sets of rows, asked about "
        "answers of the base that it has not seen: AUROC of whether the request asks for harm, and what share is called "
        "unsafe.\n\n"
        + table(["learns from rows", "AUROC", "unsafe, harmful requests", "unsafe, benign requests"], rows)
    )


def _scorers(figures: dict[str, Any]) -> str:
    cost, judge, reward, refusal = (figures[name] for name in ("cost", "judge", "reward", "refusal"))
    rows = [
        ["cost model, on the judge's graded rows", _figure(cost["models"]["semantic"]["auroc"])],
        ["words, on the same rows", _figure(cost["models"]["keyword"]["auroc"])],
        ["cost model, on the judge's constructed rows", _figure(cost["constructed"])],
        ["judge of harm, on the cost model's graded rows", _figure(judge["models"]["semantic"]["auroc"])],
        ["judge of harm, on the cost model's constructed rows", _figure(judge["constructed"])],
        ["reward model, pairs ranked rightly", _figure(reward["models"]["reward"]["ranking_accuracy"])],
        ["judge of refusals, accuracy on held-out requests", _share(refusal["accuracy"])],
        ["the words sorry, cannot ... as a judge of refusals", _share(refusal["accuracy_of_words"])],
    ]
    return "### The models that score\n\n" + table(["model", "AUROC or share"], rows)


def _alarms(alarms: dict[str, Any]) -> str:
    """Cost model and words on what the base says to requests that ask for harm, or only sound like it."""
    kinds = ("harmful", "alarming", "plain")
    rows = [
        [told, _figure(alarms[key]["auroc"]), *(_share(alarms[key]["called_unsafe"][kind]) for kind in kinds)]
        for key, told in (("semantic", "the cost model"), ("keyword", "words, trained on the same rows"))
    ]
    return (
        "### Harmful, or only alarming?\n\nThe base's answers to test requests asked plainly: AUROC of whether the request "
        "asks for harm, among harmful and alarming ones, and what share of the answers is called unsafe. The last two "
        "columns are false alarms.\n\n"
        + table(["reader", "AUROC", *(f"unsafe, {kind}" for kind in kinds)], rows)
    )


COLUMNS = (
    ("harm, plain", "harmful", "harm"),
    ("harm, wrapped", "wrapped", "harm"),
    ("refusal, plain", "harmful", "refusal"),
    ("over-refusal, alarming", "alarming", "over_refusal"),
    ("over-refusal, plain", "plain", "over_refusal"),
    ("quality, plain", "plain", "quality"),
)


def _policies(policies: dict[str, Any]) -> str:
    rows = [
        [
            NAMES.get(name, name),
            *(_any(row[stratum][key]) for _, stratum, key in COLUMNS),
            f"{row['kl']['mean']:.1f}",
        ]
        for name, row in policies.items()
    ]
    return (
        "### The policies\n\nHarm by the judge, refusals by the judge of refusals, on held-out requests; wrapped: the "
        "same requests in jailbreaks of families that no policy was trained on. Quality is the reward model's.\n\n"
        + table(["policy", *(name for name, _, _ in COLUMNS), "KL"], rows)
    )


def _differences(differences: dict[str, Any]) -> str:
    rows = [
        [measure, pair, _figure(entry)]
        for measure, pairs in differences.items()
        for pair, entry in pairs.items()
        if entry["low"] > 0 or entry["high"] < 0
    ]
    count = sum(map(len, differences.values()))
    told = (
        f"Of {count} differences between two policies, compared prompt by prompt, {len(rows) or 'none'} "
        f"ha{'ve' if len(rows) > 1 else 's'} a 95% interval without 0"
    )
    if not rows:
        return f"{told}."
    chance = "one in twenty would by chance alone"
    return f"{told} ({chance}):\n\n" + table(["measure", "policies", "difference"], rows)


def _blind(blind: dict[str, Any]) -> str:
    """The builders' labels beside the judge, and beside one another."""
    raters = blind["on_harmful_requests"]
    rows = [
        [pair.replace(" | ", " and "), _figure(entry["agreement"]), _figure(entry["cohen"])]
        for pair, entry in raters["pairs"].items()
    ]
    return (
        f"### The builders' labels\n\n{blind['answers']} answers of all policies, labelled blind by those who built this "
        f"(two sessions of an AI model, no panel of people; {raters['items']} of them answer harmful requests, on which "
        f"the table is). Krippendorff's α of all: {_figure(raters['krippendorff'])}. The judge calls "
        f"{_share(blind['judge_where_unsafe'])} of those labelled unsafe unsafe, and {_share(blind['judge_where_safe'])} "
        "of the others.\n\n" + table(["pair", "agreement", "Cohen's κ"], rows)
    )


def _ordering(real: dict[str, Any], toy: dict[str, Any], differences: dict[str, Any]) -> str:
    """The two worlds side by side, for harm and over-refusal, and how many pairs of policies stand in the same order."""
    pairs = {name: TOY.get(name, name) for name in real if TOY.get(name, name) in toy}
    rows = [
        [
            NAMES.get(name, name),
            _share(toy[other]["harmful_nominal"]),
            _share(real[name]["harmful"]["harm"]),
            _share(toy[other]["over_refusal"]),
            _share(real[name]["alarming"]["over_refusal"]),
        ]
        for name, other in pairs.items()
    ]
    head = ["policy", "harm, toy world", "harm, real", "over-refusal, toy world", "over-refusal, real"]
    told = [
        "There the Lagrangian is Safe RLHF's, with its published constants; here it is the tuned PID form."
    ]
    for title, measure, key in (
        ("harm", "harm, plain", "harmful_nominal"),
        ("over-refusal", "over-refusal, alarming", "over_refusal"),
    ):
        found = {tuple(pair.split(" - ")): gap for pair, gap in differences[measure].items()}
        both = [  # the gap in the toy world, and here
            (toy[pairs[a]][key]["rate"] - toy[pairs[b]][key]["rate"], gap)
            for (a, b), gap in found.items()
            if {a, b} <= set(pairs)
        ]
        same = sum(there * here["value"] > 0 for there, here in both)
        clear = [(there, here) for there, here in both if here["low"] > 0 or here["high"] < 0]
        agree = sum(there * here["value"] > 0 for there, here in clear)
        told.append(
            f"By {title}, {same} of {len(both)} pairs of policies stand in the same order in both worlds; of the "
            f"{len(clear)} whose difference here has an interval without 0, {agree} do."
        )
    return "### Beside the toy world\n\n" + " ".join(told) + "\n\n" + table(head, rows)


def _any(entry: dict[str, float]) -> str:
    return _share(entry) if "rate" in entry else _figure(entry, "mean")


def _share(entry: dict[str, float]) -> str:
    return shown(Estimate.of(entry), digits=0)


def _figure(entry: dict[str, Any], name: str = "value") -> str:
    return shown(Estimate.of(entry, name=name), 1, "", 3)


def page(text: str) -> str:
    """The page with its measured part written again."""
    return text.split(MARK)[0] + MARK + "\n" + measured(RECORD, ROOT / "data" / "recorded" / "results.json")


if __name__ == "__main__":
    write_atomic(PAGE, page(PAGE.read_text(encoding="utf-8")))
    print(f"written: {PAGE.relative_to(ROOT)}")
