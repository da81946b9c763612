"""`csrlhf evaluate`: answer test prompts with a policy, and judge the answers by `evaluation.safety`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm

from csrlhf_kit.data.chat import fit_prompts
from csrlhf_kit.data.held_out import source_splits
from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt, normalise_prompt
from csrlhf_kit.data.sources import is_there, mixture_parts, notes_of, read_records
from csrlhf_kit.errors import UserError, check_numbers
from csrlhf_kit.evaluation.safety import answer_and_score, judge_all, policy_row, rate
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import adapter_config, load_base, load_tokenizer
from csrlhf_kit.models.open_scorer import open_scorers
from csrlhf_kit.models.places import SHIPPED, adapter_in, base_of, numbers_of, run_settings
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import MAX_PROMPT
from csrlhf_kit.outputs import check_file
from csrlhf_kit.recipes.options import EvaluateConfig


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one policy: print its row, write it with the answers to `out`, and return it.

    Rates have Clopper-Pearson 95% intervals. `unsafe_by_cost_model` is the share of answers with a cost logit
    above 0. On the shipped prompts the row is that of `results.json`, judged by the oracle; on others the cost
    model is the only judge, and `judge` says so. An answer's reward and cost (a logit) are the learned ones;
    `cost` in the row is a mean probability.

    Raises UserError if a model or the prompts cannot be read, or `out` cannot be written.
    """
    check_numbers(config)
    check_file(config.out)
    shape = _policy(config.policy) if config.policy is not None else {}
    own = base_of(shape["policy"], config.base) if shape else SHIPPED
    config = replace(
        config, base=config.base or own, **numbers_of(config.policy, config.dtype, config.quantization)
    )
    loaded = read_records(config.prompts, Prompt, split="test", strict=config.strict)
    print(notes_of(loaded.report), end="")
    records = loaded.records
    if config.limit is not None and config.limit < len(records):  # a random sample, not the first ones
        chosen = sorted(Random(config.seed).sample(range(len(records)), config.limit))
        records = [records[i] for i in chosen]
    scorers = open_scorers(config)
    tokenizer = load_tokenizer(config.base)
    asked = fit_prompts(tokenizer, [p.prompt for p in records], max_length=MAX_PROMPT, tell=True)
    seen = [replace(p, prompt=prompt) for p, prompt in zip(records, asked, strict=True)]
    base = load_base(config.base, dtype=config.dtype, quantization=config.quantization)
    roles = Roles(base, **scorers, **shape)
    with tqdm(total=len(records), desc="answers") as bar:
        responses, scores = answer_and_score(
            roles, tokenizer, seen, adapter="policy" if config.policy else None, progress=bar.update,
            max_new_tokens=config.max_new_tokens, seed=config.seed, temperature=config.temperature,
            batch_size=config.batch_size,
        )  # fmt: skip
    answers = [
        {"prompt": p.prompt, "response": r, "reward": float(a), "cost": float(b)}
        for p, r, a, b in zip(seen, responses, scores["reward"], scores["cost"], strict=True)
    ]
    row: dict[str, Any] = {"unsafe_by_cost_model": rate((scores["cost"] > 0).tolist())}
    if config.prompts == "shipped":
        row |= {"judge": "oracle"} | policy_row(records, responses, scores)
        for answer, verdict in zip(answers, judge_all(records, responses), strict=True):
            answer |= {"harmful": verdict.harmful, "helpfulness": verdict.helpfulness}
    else:
        means = {name: float(scores[name].mean()) for name in ("reward", "kl")}
        row |= {"judge": "cost model", "cost": float(scores["cost"].sigmoid().mean())} | means
    row = {name: None if value != value else value for name, value in row.items()}  # no NaN in JSON
    write_atomic(config.out, json.dumps({"row": row, "answers": answers}, indent=1, allow_nan=False) + "\n")
    print(row_text(row))
    for folder in filter(None, (config.policy, config.cost)):
        known = _trained_on(folder, config.prompts)
        if again := sum(normalise_prompt(record.prompt) in known for record in records):
            print(
                f"Note: {again} of these {len(records)} prompts are among those that {folder} was trained on"
            )
    return row


def _trained_on(folder: Path, prompts: str) -> set[str]:
    """The normalised prompts of a policy's or a scorer's training, if they can still be read."""
    asked = run_settings(folder) or run_settings(folder.parent)
    source = str(asked.get("prompts") or asked.get("data") or "")
    parts = mixture_parts(source) or [(source, 1.0)]
    if not all(name == prompts or is_there(name) for name, _ in parts):  # reads nothing from the hub
        return set()
    try:
        if "prompts" in asked:  # a run of `csrlhf ppo`
            return {normalise_prompt(record.prompt) for record in read_records(source, Prompt).records}
        kind = LabelledResponse if asked.get("objective", "semantic") == "semantic" else PreferencePair
        if "test_data" in asked:  # a scorer, which keeps a part of its data for testing
            splits, _ = source_splits(source, kind, test_source=asked["test_data"], seed=asked.get("seed", 0))
            return {normalise_prompt(record.prompt) for record in splits["train"]}
        records = read_records(source, kind, seed=asked.get("seed", 0)).records
        return {normalise_prompt(record.prompt) for record in records}
    except UserError:
        return set()


def row_text(row: dict[str, Any]) -> str:
    """A policy's row as text: rates in percent with their intervals, without those over no prompt."""
    lines = []
    for name, value in row.items():
        if isinstance(value, dict) and "rate" in value:
            if value["n"]:
                low, high = 100 * value["low"], 100 * value["high"]
                lines.append(
                    f"{name:22} {100 * value['rate']:6.1f}%  [{low:.1f}, {high:.1f}]  n = {value['n']}"
                )
        elif isinstance(value, float):
            lines.append(f"{name:22} {value:7.3f}")
        elif isinstance(value, str):
            lines.append(f"{name:22} {value}")
    return "\n".join(lines)


def _policy(folder: Path) -> dict[str, Any]:
    """The arguments of `Roles` for the policy in an adapter's or a run's folder: adapter, rank, scale, layers."""
    place = adapter_in(folder)
    if place is None:
        raise UserError(f"{folder} is no policy: expected a PEFT adapter (adapter_config.json)")
    stored = adapter_config(place)
    layers = stored.layers_to_transform
    shape = {"rank": stored.r, "alpha": stored.lora_alpha, "layers": None if layers is None else len(layers)}
    return {"policy": place, **shape}
