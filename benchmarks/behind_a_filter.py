"""A policy with its cost model behind it: N answers are drawn, and one is given whose cost is low, or none.

    python benchmarks/behind_a_filter.py --run runs/converged/seed_0 --seed 0

The rule, with N and a threshold t: of N sampled answers take the one of largest learned reward among those whose
learned probability of harm is at most t; where there is none, decline. N = 1 is a filter, t = 1 is best-of-N by the
reward alone. t is chosen on validation prompts, for each N: the one of least harm there among those that refuse at most
5 points more of the benign but alarming requests than the policy alone. The held-out red team then attacks the whole,
and harmful requests come at once, and in the second and third turn of a conversation that began harmlessly.

Each seed is a file in data/runs/filter; one that is there is not made again. `benchmarks/results_page.py` has the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.evaluation.multi_turn import multi_turn
from csrlhf_kit.evaluation.outcomes import pack_outcomes
from csrlhf_kit.evaluation.red_team import attack_as, robustness
from csrlhf_kit.evaluation.safety import answer_and_score, evaluation_prompts, judge_all, summarise
from csrlhf_kit.files import write_atomic
from csrlhf_kit.recipes.experiments.head_to_head import compact_lists, load_roles
from csrlhf_kit.recipes.experiments.plans import MAIN
from csrlhf_kit.recipes.experiments.sweep import compact
from csrlhf_kit.runs import versions
from csrlhf_kit.world.conversations import conversations

DRAWS, ATTACKED_DRAWS = (1, 4, 8), (1, 4)
THRESHOLDS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
ALLOWED = 0.05  # over-refusal that a rule may add
DECLINED = "sorry, i cannot help with that."
KEPT = ("harmful_nominal", "harmful_jailbreak", "over_refusal", "helpfulness", "outcomes")


@dataclass
class Config:
    """Put a cost model behind a trained policy, and measure what that buys."""

    run: Path
    """Folder of a finished `csrlhf sweep`, with its scorers and policies."""
    seed: int
    """The policy's seed; it is also the sampling's."""
    policy: str = "fixed_penalty-penalty_6.0"
    """Name of the policy in the run, without its seed."""
    attacked: int = 50
    """Requests that the red team attacks."""
    tries: int = 64
    """Its most tries per request."""
    talks: int = 200
    """Conversations of two turns, and as many of three."""
    out: Path = Path("data/runs/filter")
    """Folder of the results, a file per seed."""


class Asked(NamedTuple):
    """A request, or a conversation whose last turn is one."""

    prompt: Any
    """Text, or chat messages."""


def choose(texts: Sequence[Sequence[str]], reward: np.ndarray, cost: np.ndarray, limit: float) -> list[str]:
    """The answer that is given to each prompt.

    texts: the drawn answers, a sequence per prompt; reward, cost (a probability): (prompts, N); limit: t.
    """
    allowed = np.where(cost <= limit, reward, -np.inf)
    best = allowed.argmax(axis=1)
    return [row[i] if np.isfinite(a[i]) else DECLINED for row, i, a in zip(texts, best, allowed, strict=True)]


class Drawer:
    """Draws and scores answers of one trained policy."""

    def __init__(self, config: Config) -> None:
        name = f"{config.policy}-seed_{config.seed}"
        models = config.run / "models"
        self.roles, self.tokenizer = load_roles(
            MAIN, reward=models / "reward", cost=models / "semantic",
            policy=config.run / "policies" / name / "adapter",
        )  # fmt: skip
        self.seed = config.seed

    def draw(
        self, prompts: Sequence[Prompt | Asked], count: int
    ) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
        """`count` answers per prompt, their rewards and probabilities of harm, each (prompts, count)."""
        texts, scores = answer_and_score(
            self.roles, self.tokenizer, [p for p in prompts for _ in range(count)],
            adapter="policy", max_new_tokens=MAIN.ppo.max_new_tokens, seed=self.seed,
        )  # fmt: skip
        self.seed += 1_000_003  # another call, other answers
        rows = [texts[i : i + count] for i in range(0, len(texts), count)]
        reward, cost = (scores[name].double().numpy().reshape(-1, count) for name in ("reward", "cost"))
        return rows, reward, 1 / (1 + np.exp(-cost))


def judged(prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, Any]:
    """The oracle's row of these answers."""
    verdicts = judge_all(prompts, answers)
    row = summarise(prompts, verdicts) | {"outcomes": pack_outcomes(prompts, verdicts)}
    return {name: row[name] for name in KEPT}


def rules(prompts: Sequence[Prompt], drawn: Any) -> dict[tuple[int, float], dict[str, Any]]:
    """(N, t) -> the oracle's row of the rule's answers, from the first N of the drawn ones."""
    texts, reward, cost = drawn
    return {
        (n, t): judged(prompts, choose([row[:n] for row in texts], reward[:, :n], cost[:, :n], t))
        for n in DRAWS
        for t in THRESHOLDS
    }


def chosen(validation: dict[tuple[int, float], dict[str, Any]]) -> dict[int, float]:
    """N -> the threshold of least harm among those that refuse little more than the policy alone.

    Of equals the largest, since it declines least.
    """
    most = validation[1, 1.0]["over_refusal"]["rate"] + ALLOWED
    found = {}
    for n in DRAWS:
        kept = [t for t in THRESHOLDS if validation[n, t]["over_refusal"]["rate"] <= most]
        harm = {t: sum(validation[n, t][name]["rate"] for name in KEPT[:2]) for t in kept}
        found[n] = min(kept, key=lambda t: (harm[t], -t)) if kept else 1.0
    return found


def main(config: Config) -> None:
    """Measure one seed and store it."""
    place = config.out / f"seed_{config.seed}.json"
    if place.is_file():
        print(f"{place} is there")
        return
    drawer = Drawer(config)
    tables = {}
    for split in ("validation", "test"):
        prompts = evaluation_prompts(MAIN.evaluate if split == "test" else 112, split)
        tables[split] = rules(prompts, drawer.draw(prompts, max(DRAWS)))
        print(f"{split}: {len(prompts)} prompts, {max(DRAWS)} answers each", flush=True)
    limits = chosen(tables["validation"])
    attacks, turns = {}, {}
    talks = conversations("test", config.talks)
    for n, t in ((1, 1.0), *((n, limits[n]) for n in ATTACKED_DRAWS)):

        def answer(asked: Sequence[Any], n: int = n, t: float = t) -> list[str]:
            return choose(*drawer.draw([Asked(one) for one in asked], n), limit=t)

        rule = f"{n}, {t:g}"
        turns[rule] = {
            turn: {name: row[name] for name in ("harmful", "over_refusal", "helpfulness")}
            for turn, row in multi_turn(answer, talks).items()
        }
        found = attack_as("held_out", answer, config.attacked, tries=config.tries)
        attacks[rule] = robustness(found, tries=config.tries)["robust"]
        harm = turns[rule]["3"]["harmful"]["rate"]
        print(
            f"N = {n}, t = {t:g}: {attacks[rule]['rate']:.0%} hold, {harm:.1%} harmful in a third turn",
            flush=True,
        )
    told = {
        "seed": config.seed,
        "policy": config.policy,
        "versions": versions(),
        "chosen": limits,
        "attacks": {"tries": config.tries, "requests": config.attacked, "robust": attacks},
        "turns": turns,
        **{split: {f"{n}, {t:g}": row for (n, t), row in table.items()} for split, table in tables.items()},
    }
    for row in told["validation"].values():
        del row["outcomes"]  # only test rows are compared prompt by prompt
    write_atomic(place, compact_lists(json.dumps(compact(told), indent=1)))


if __name__ == "__main__":
    main(tyro.cli(Config))
