"""200 test answers labelled blind by the builders, beside the judge of harm: `python -m benchmarks.real.blind`.

The labels are given in the kit's own widget, which shows a request and two policies' answers without their names:

    annotate(pairs_to_label(RealConfig()), folder="runs/real/labels", annotator="ann")

The command joins what is labelled so far with the judge's verdicts and writes labels and agreement, no texts, to
`blind.json` in the folder of records. These are the builders' labels; people's labels are pyrit's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.real.config import RealConfig
from benchmarks.real.evaluation import HARMFUL
from benchmarks.real.job import read
from benchmarks.real.scorers import read_prompts
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.agreement import agreement
from csrlhf_kit.evaluation.safety import rate
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.experiments.head_to_head import compact_lists
from csrlhf_kit.widgets.labels import Judgement, Pair, judgements

HARMFUL_SHARE = 0.8  # of the pairs; the others answer benign requests
JUDGE = "the judge"


@dataclass
class BlindConfig:
    """Write the builders' labels of a finished run, and their agreement with the judge."""

    out: Path = Path("runs/real")
    """The run whose answers were labelled."""
    labels: Path = Path("runs/real/labels")
    """The folder that `annotate` wrote to."""
    record: Path = Path("data/real")
    """The folder for `blind.json`."""


def pairs_to_label(config: RealConfig, count: int = 100) -> list[Pair]:
    """Pairs of answers of two policies to one test request, drawn by the run's seed; the policies' names are the sources.

    A pair whose answers are equal or empty is passed over. Raises UserError if the run is not finished.
    """
    asked = read_prompts(config, "test")
    if not config.stage_path("verdicts").is_file():
        raise UserError(
            f"{config.stage_path('verdicts')}: the run has no verdicts yet, expected a finished run"
        )
    answers = {name: read(config, name)["answers"] for name in config.policies}
    rng = Random(config.seed)
    places = list(range(len(asked)))
    rng.shuffle(places)
    strata = [[i for i in places if (asked[i].stratum in HARMFUL) == harmful] for harmful in (True, False)]
    found = []
    for inside, wanted in zip(strata, (round(HARMFUL_SHARE * count), count), strict=True):
        for place in inside:
            if len(found) == wanted:
                break
            first, second = rng.sample(sorted(answers), 2)
            texts = answers[first][place], answers[second][place]
            if all(text.strip() for text in texts) and texts[0] != texts[1]:
                found.append(Pair(asked[place].request, *texts, f"{first}/{place}", f"{second}/{place}"))
    return found


def beside_the_judge(
    pairs: Sequence[Pair],
    labels: Sequence[Judgement],
    verdicts: dict[str, dict[str, list[int]]],
    strata: Sequence[str],
) -> dict[str, Any]:
    """Labels and agreement, without texts.

    pairs: as `pairs_to_label` made them. verdicts: of `judge_answers`. strata: of each test prompt. An answer counts
    if every annotator labelled it. Raises UserError if there is none.
    """
    names = sorted({each.annotator for each in labels})
    by_pair: dict[str, dict[str, Judgement]] = {}
    for each in labels:
        by_pair.setdefault(each.pair, {})[each.annotator] = each
    rows = []
    for pair in pairs:
        own = by_pair.get(pair.id, {})
        if set(own) != set(names) or not names:
            continue
        for side, source in enumerate((pair.source_0, pair.source_1)):
            policy, place = source.split("/")
            unsafe = {name: int(not own[name].safe[side]) for name in names}
            judged = verdicts[policy]["harm"][int(place)]
            rows.append({"policy": policy, "prompt": int(place), **unsafe, JUDGE: judged})
    if not rows:
        raise UserError("labels: no pair is labelled by every annotator, expected at least one")
    harmful = [strata[row["prompt"]] in HARMFUL for row in rows]
    raters = {name: [bool(row[name]) for row in rows] for name in (*names, JUDGE)}
    said = np.array([raters[name] for name in names]).mean(0) >= 0.5
    judged = np.array(raters[JUDGE])
    return {
        "answers": len(rows),
        "annotators": names,
        "agreement": agreement(raters),
        "on_harmful_requests": agreement(
            {
                name: [x for x, inside in zip(own, harmful, strict=True) if inside]
                for name, own in raters.items()
            }
        ),
        "unsafe": {name: rate(own) for name, own in raters.items()},
        "judge_where_unsafe": rate(judged[said].tolist()),
        "judge_where_safe": rate(judged[~said].tolist()),
        "rows": {key: [row[key] for row in rows] for key in rows[0]},
    }


def main(arguments: list[str] | None = None) -> int:
    """Write `blind.json`; returns the exit status."""
    import tyro

    from csrlhf_kit.cli import run_command

    words = sys.argv[1:] if arguments is None else arguments
    return run_command(run_blind, tyro.cli(BlindConfig, args=words, prog="python -m benchmarks.real.blind"))


def run_blind(config: BlindConfig) -> dict[str, Any]:
    """Join the labels with the judge's verdicts and write `blind.json`. Raises UserError where a part is missing."""
    run = finished_run(config.out)
    strata = [each.stratum for each in read_prompts(run, "test")]
    found = beside_the_judge(pairs_to_label(run), judgements(config.labels), read(run, "verdicts"), strata)
    write_atomic(config.record / "blind.json", compact_lists(json.dumps(found, indent=1)))
    print(
        f"{found['answers']} answers labelled by {', '.join(found['annotators'])}: {config.record / 'blind.json'}"
    )
    return found


def finished_run(out: Path) -> RealConfig:
    """A run's settings, as far as its answers depend on them: its seed, and which policies it has."""
    file = out / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: no such run, expected the folder of `python -m benchmarks.real`")
    seed = json.loads(file.read_text(encoding="utf-8")).get("seed", 0)
    run = RealConfig(out=out)
    return RealConfig(
        out=out, seed=seed, methods=tuple(m for m in run.methods if run.stage_path(m).is_file())
    )


if __name__ == "__main__":
    sys.exit(main())
