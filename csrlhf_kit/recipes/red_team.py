"""`csrlhf red-team`: attack a trained policy by `evaluation.red_team`, and hold conversations with it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from tqdm.auto import tqdm

from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.evaluation.multi_turn import multi_turn
from csrlhf_kit.evaluation.red_team import attack_as, oracle_progress, robustness
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.open_scorer import text_scorer
from csrlhf_kit.models.places import SHIPPED, adapter_folder, base_of, numbers_of
from csrlhf_kit.outputs import check_file
from csrlhf_kit.recipes.options import RedTeamConfig
from csrlhf_kit.runs import versions
from csrlhf_kit.world.conversations import conversations


def run_red_team(config: RedTeamConfig) -> dict[str, Any]:
    """Attack the policy, talk to it, write the results to `config.out`; print and return the row.

    Raises UserError if the base, the policy or the cost model cannot be read.
    """
    check_file(config.out)
    adapter = adapter_folder(config.policy) if config.policy is not None else None
    answer = stored_policy(
        base_of(adapter, config.base) if adapter else config.base or SHIPPED, adapter,
        **numbers_of(config.policy, config.dtype, config.quantization),
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed,
    )  # fmt: skip
    score = oracle_progress
    if config.cost is not None:
        costs = text_scorer(config.cost)
        score = lambda prompts, answers: costs(prompts, answers).tolist()  # noqa: E731
    started = time.perf_counter()
    with tqdm(total=config.requests, desc="requests") as bar:
        attacks = attack_as(
            config.team, answer, config.requests, seed=config.seed, tries=config.tries, score=score,
            progress=bar.update,
        )  # fmt: skip
    broken = [s.broken for s in attacks if s.broken]
    result = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "versions": versions(),
        **robustness(attacks, tries=config.tries),
        "examples": [{"prompt": t.prompt, "answer": t.answer, "families": t.families} for t in broken[:10]],
    }
    if config.talks:
        talks = conversations("test", config.talks, seed=config.seed)
        result["turns"] = multi_turn(answer, talks, history="own")
    result["seconds"] = round(time.perf_counter() - started, 1)
    write_atomic(config.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("tries", "robust", "robust_after", "median_tries")}))
    return result
