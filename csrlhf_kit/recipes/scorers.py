"""`csrlhf cost-model` and `csrlhf reward-model`: train a scorer, and measure it on held-out rows.

Builds on `training.reward_modeling` and `evaluation.scorer_metrics`. The folder written holds the model (see
`csrlhf_kit.models.scorers`), `predictions.jsonl` and `metrics.json`; it appears whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from csrlhf_kit import distributed
from csrlhf_kit.data.held_out import places_of, source_splits
from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.data.sources import notes_of
from csrlhf_kit.data.splits import SPLITS
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.cost_models import pair_scores, pairs_measured
from csrlhf_kit.evaluation.keyword import fit_keyword, keyword_scores
from csrlhf_kit.evaluation.scorer_metrics import cost_metrics, few_rows, metrics_table
from csrlhf_kit.files import write_atomic
from csrlhf_kit.kernels.linear4bit import CAUTION, unpacks_here
from csrlhf_kit.models.scorers import Scorer, encode, save_scorer, score_rows
from csrlhf_kit.outputs import replace_folder, writes_model
from csrlhf_kit.recipes.options import CostModelConfig, RewardModelConfig
from csrlhf_kit.training.reward_modeling import fit_scorer
from csrlhf_kit.training.supervised import clear_checkpoints


@writes_model
def run_cost_model(config: CostModelConfig) -> dict[str, Any]:
    """Train a cost model, print its metrics beside the keyword baseline's, write model and predictions.

    Returns the content of `metrics.json`: `models` (metrics by name, on the test split), `splits` (rows), `data`
    (what was read and dropped), `training`, `config`. Raises UserError if the data or the base cannot be used, or
    `out` holds something else.
    """
    started = time.perf_counter()
    labelled, report = labelled_splits(config)
    if config.objective == "semantic":
        pairs: dict[str, list] = {}
        scorer = fit_scorer(config, *(labelled[split] for split in SPLITS))
    else:
        pairs, pair_report = read_splits(config, PreferencePair, places_of(labelled))
        report = {"labels": report, "pairs": pair_report, "origins": report["origins"]}
        scorer = fit_scorer(config, *(pairs[split] for split in SPLITS))
    keyword = fit_keyword(*_columns(labelled["train"]))
    lines, models = [], {}
    for split in SPLITS:
        prompts, responses, unsafe = _columns(labelled[split])
        if not prompts:
            continue
        rows = encode(scorer, prompts, responses)
        costs, words = score_rows(scorer, rows), keyword_scores(keyword, prompts, responses)
        lines += _prediction_lines(labelled[split], costs, words, split)
        if split == "test":
            strata = [record.stratum for record in labelled[split]]
            models = {
                config.objective: cost_metrics(costs, unsafe, strata),
                "keyword": cost_metrics(words, unsafe, strata),
            }
    if pairs:
        scores = pair_scores(scorer, pairs["test"])
        models[config.objective] |= pairs_measured(scores, pairs["test"], config.objective)
    return _finished(config, scorer, models, labelled, report, lines, started)


@writes_model
def run_reward_model(config: RewardModelConfig) -> dict[str, Any]:
    """Train a reward model, print its ranking accuracy on held-out pairs, write model and predictions.

    Returns and raises as `run_cost_model`.
    """
    started = time.perf_counter()
    pairs, report = read_splits(config, PreferencePair)
    scorer = fit_scorer(config, *(pairs[split] for split in SPLITS))
    lines = []
    for split in SPLITS:
        scores = pair_scores(scorer, pairs[split])  # those of the last split, test, are measured below
        for pair, (first, second) in zip(pairs[split], scores, strict=True):
            asked = ("prompt", "response_0", "response_1", "better_response_id")
            row = {name: getattr(pair, name) for name in asked}
            row |= {"score_0": float(first), "score_1": float(second), "split": split}
            lines.append(json.dumps(row, ensure_ascii=False))
    models = {"reward": pairs_measured(scores, pairs["test"], "reward")}
    return _finished(config, scorer, models, pairs, report, lines, started)


# --- splits --------------------------------------------------------------------------------------------


def read_splits(
    config: Any, kind: type, places: Mapping[str, str] | None = None
) -> tuple[dict[str, list], dict[str, Any]]:
    """Records by split and the report of what was read, by the command's options; prints notes about the data."""
    splits, report = source_splits(
        config.data, kind, test_source=config.test_data, seed=config.seed,
        strict=getattr(config, "strict", False), places=places,
    )  # fmt: skip
    print(notes_of(*(report[name] for name in SPLITS if name in report)), end="")
    return splits, report


def labelled_splits(config: Any) -> tuple[dict[str, list[LabelledResponse]], dict[str, Any]]:
    """Labelled responses by split, and the report. Raises UserError if the training split has only one label."""
    splits, report = read_splits(config, LabelledResponse)
    labels = {record.is_safe for record in splits["train"]}
    if len(labels) < 2:
        label = "safe" if labels == {True} else "unsafe"
        raise UserError(f"{config.data}: all responses are labelled {label}, expected both labels")
    return splits, report


# --- results -------------------------------------------------------------------------------------------


def _columns(records: Sequence[LabelledResponse]) -> tuple[list[str], list[str], np.ndarray]:
    unsafe = np.array([not record.is_safe for record in records], dtype=bool)
    return [record.prompt for record in records], [record.response for record in records], unsafe


def _prediction_lines(
    records: Sequence[LabelledResponse], costs: np.ndarray, words: np.ndarray, split: str
) -> list[str]:
    probability, keyword_probability = (np.exp(-np.logaddexp(0.0, -x)) for x in (costs, words))
    return [
        json.dumps(
            {
                "prompt": record.prompt,
                "response": record.response,
                "label": "Safe" if record.is_safe else "Unsafe",
                "score": float(costs[index]),
                "probability": float(probability[index]),
                "keyword_probability": float(keyword_probability[index]),
                "split": split,
                **({"stratum": record.stratum} if record.stratum else {}),
            },
            ensure_ascii=False,
        )
        for index, record in enumerate(records)
    ]


def _finished(
    config: Any, scorer: Scorer, models: dict, splits: dict, report: dict, lines: list[str], started: float
) -> dict[str, Any]:
    """Write the folder of the finished scorer, print its metrics, and return what `metrics.json` holds."""
    training = {name: value for name, value in scorer.notes.items() if name not in ("config", "meaning")}
    result = {
        "models": models,
        "splits": {name: len(records) for name, records in splits.items()},
        "data": report,
        "training": training,
        "config": asdict(config),
        "seconds": round(time.perf_counter() - started, 2),
    }

    def write(folder: Path) -> None:
        save_scorer(scorer, folder)
        write_atomic(folder / "predictions.jsonl", "\n".join(lines) + "\n")
        write_atomic(folder / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

    distributed.on_main(lambda: replace_folder(Path(config.out), write))
    clear_checkpoints(config)
    print(_headline(config, result), metrics_table(models), sep="\n")
    print(few_rows(models), end="")
    if unpacks_here(scorer.model):
        print(CAUTION)
    return result


def _headline(config: Any, result: dict[str, Any]) -> str:
    rows, training, origins = result["splits"], result["training"], result["data"]["origins"]
    why = training.get("uncalibrated")
    if "probe" in training:
        how = (
            f"a {config.probe.head} probe after the layers {', '.join(map(str, training['probe']['layers']))}"
        )
    else:
        how = f"learning rate {training['learning_rate']:g}, {training['epochs']:g} epochs"
    return (
        f"{config.objective} on {config.base}: {rows['train']} training, {rows['validation']} validation and "
        f"{rows['test']} test rows, {how}, {result['seconds']:.0f} s; saved to {config.out}\n"
        + (f"Not calibrated: {why}\n" if why else "")
        + f"Validation: {origins['validation']}\nTest: {origins['test']}; with 95% intervals:"
    )
