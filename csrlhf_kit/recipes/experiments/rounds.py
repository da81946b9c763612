"""`csrlhf rounds`: rounds of training and red-teaming, as Beaver v1 to v3 were made.

A round trains reward and cost model on all data so far and the policy on all prompts so far, and lets the training
red team attack it; what broke the policy joins the data of the next round. The policy of each round is judged by the
test prompts, conversations, and a held-out red team with families and requests that no round has seen. Round 0 is
the base. Source of the scheme: Safe RLHF, Dai et al. 2023, arXiv 2310.12773.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.evaluation.answers import Answer, stored_policy
from csrlhf_kit.evaluation.multi_turn import multi_turn
from csrlhf_kit.evaluation.red_team import attack_as, robustness
from csrlhf_kit.evaluation.safety import evaluation_prompts
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import writes_run
from csrlhf_kit.recipes.experiments.configs import RoundsConfig
from csrlhf_kit.recipes.experiments.head_to_head import (
    evaluate_policy,
    load_roles,
    scorer_settings,
    train_policy,
)
from csrlhf_kit.recipes.experiments.round_data import gather, joined, round_prompts, store
from csrlhf_kit.recipes.experiments.stages import run_stages
from csrlhf_kit.runs import Run, versions
from csrlhf_kit.training.constraints import make_constraint
from csrlhf_kit.training.critic import fit_critic, load_critic, save_critic
from csrlhf_kit.training.reward_modeling import train_scorer
from csrlhf_kit.world.conversations import conversations

# --- stages ------------------------------------------------------------------------------------------


def round_stage_needs(config: RoundsConfig) -> dict[str, tuple[str, ...]]:
    """Every stage and the stages that it reads, in the order of preference."""
    needs: dict[str, tuple[str, ...]] = {}
    for k in range(config.rounds + 1):
        scorers = (f"semantic_{max(k, 1)}", f"reward_{max(k, 1)}")
        policy = (f"policy_{k}",) if k else ()
        if k:
            needs |= dict.fromkeys(scorers, (f"attack_{k - 1}",) if k > 1 else ())
            needs |= {f"policy_{k}": scorers, f"attack_{k}": policy}
        needs |= {f"evaluate_{k}": (*scorers, *policy), f"judge_{k}": policy}
    ahead = ("semantic", "reward", "policy", "attack")  # the next round waits for these
    return dict(sorted(needs.items(), key=lambda item: not item[0].startswith(ahead)))


def run_round_stage(name: str, config: RoundsConfig) -> None:
    """Make one stage and store it; called in a worker process with a single thread."""
    kind, k = name.rsplit("_", 1)
    make = {
        "semantic": train_model,
        "reward": train_model,
        "policy": train_round,
        "attack": attack_round,
        "judge": judge_round,
        "evaluate": evaluate_round,
    }[kind]
    started = time.perf_counter()
    result = make(config, kind, int(k)) if make is train_model else make(config, int(k))
    result["seconds"] = time.perf_counter() - started
    write_atomic(config.stage_path(name), json.dumps(result, indent=1) + "\n")


def train_model(config: RoundsConfig, name: str, k: int) -> dict[str, Any]:
    """Train the reward or the cost model of round k on the shipped data and everything found so far."""
    kind = LabelledResponse if name == "semantic" else PreferencePair
    train = joined(kind, config.data(k))
    settings = scorer_settings(config.shared(), name, config.model(name, k))
    train_scorer(settings, train, read_records("shipped", kind, split="validation").records)
    return {"records": len(train)}


def train_round(config: RoundsConfig, k: int) -> dict[str, Any]:
    """Train the policy of round k by PPO. The critic starts from the last round's, or is fitted to the base."""
    goes_on = k > 1 and config.start == "previous"
    start = config.adapter(k - 1) if goes_on else None
    roles, tokenizer = load_roles(config.shared(), **config.scorers(k), policy=start)
    ppo = replace(config.ppo, seed=config.seed * 1000 + k)
    constraint = make_constraint(config.method, threshold=config.threshold, penalty=config.penalty)
    prompts = round_prompts(config.data(k), config.find_share)
    folder = config.out / "policies" / f"policy_{k}"
    if goes_on:
        load_critic(roles, folder.with_name(f"policy_{k - 1}") / "critic.safetensors")
    else:
        fit_critic(roles, tokenizer, prompts, ppo, config.critic)
    history = train_policy(folder, roles, tokenizer, prompts, constraint, ppo)
    save_critic(roles, folder / "critic.safetensors")
    return {"prompts": len(prompts), "multiplier": constraint.multiplier, "curve": history}


def answers_of(config: RoundsConfig, k: int, salt: int) -> Answer:
    """The policy of round k as a function; a different `salt` gives independent samples."""
    return stored_policy(
        config.base_path(),
        config.adapter(k),
        max_new_tokens=config.ppo.max_new_tokens,
        temperature=config.ppo.temperature,
        seed=config.seed * 1000 + 10 * k + salt,
    )


def attack_round(config: RoundsConfig, k: int) -> dict[str, Any]:
    """Let the training red team attack the policy of round k, and store what it found."""
    answer = answers_of(config, k, 1)
    seed = config.seed * 1000 + k
    attacks = attack_as("train", answer, config.attacked, seed=seed, tries=config.attack_tries)
    finds = gather(attacks, answer, seed=seed)
    store(finds, config.out / "data" / f"round_{k}")
    counts = {name: len(records) for name, records in finds._asdict().items()}
    return {"team": robustness(attacks, tries=config.attack_tries), "found": counts}


def judge_round(config: RoundsConfig, k: int) -> dict[str, Any]:
    """Let the held-out red team attack the policy of round k; keeps the first tries that broke it as examples."""
    policy = answers_of(config, k, 2)
    attacks = attack_as("held_out", policy, config.judged, seed=config.seed, tries=config.judge_tries)
    broken = [s.broken for s in attacks if s.broken]
    examples = [{"prompt": t.prompt, "answer": t.answer, "families": t.families} for t in broken[:10]]
    return {"team": robustness(attacks, tries=config.judge_tries), "examples": examples}


def evaluate_round(config: RoundsConfig, k: int) -> dict[str, Any]:
    """The oracle's row for round k on the test prompts, and its rows by number of turns."""
    roles, tokenizer = load_roles(config.shared(), **config.scorers(k), policy=config.adapter(k))
    row, _ = evaluate_policy(roles, tokenizer, config.shared(), adapter="policy" if k else None)
    talks = conversations("test", config.talks, seed=config.seed)
    turns = multi_turn(answers_of(config, k, 3), talks, history="own")
    return {"policy": row, "turns": turns}


# --- the whole job -----------------------------------------------------------------------------------


def round_rows(config: RoundsConfig) -> list[dict[str, Any]]:
    """One row per round, from what the stages have written."""
    rows = []
    for k in range(config.rounds + 1):
        evaluated = config.read_stage(f"evaluate_{k}")
        row = {
            "round": k,
            "name": f"v{k}" if k else "base",
            **{name: evaluated[name] for name in ("policy", "turns")},
            "held_out_team": config.read_stage(f"judge_{k}")["team"],
        }
        if k:
            trained, attacked = config.read_stage(f"policy_{k}"), config.read_stage(f"attack_{k}")
            row |= {
                "multiplier": trained["multiplier"],
                "seconds": trained["seconds"],
                "prompts": trained["prompts"],
                "labels": config.read_stage(f"semantic_{k}")["records"],
                "preferences": config.read_stage(f"reward_{k}")["records"],
                "training_team": attacked["team"],
                "found": attacked["found"],
            }
        rows.append(row)
    return rows


@writes_run
def run_rounds(config: RoundsConfig) -> dict[str, Any]:
    """Run all rounds, print the table, and return what was written to `rounds.json`.

    Raises UserError if the folder holds another run, or the base is missing.
    """
    config.base_path()  # a missing base is an error before any training
    evaluation_prompts(config.evaluate, config.judged_on)
    Run.open(config.out, config.settings(), contents=config.shared().contents(), resume=config.resume)
    run_stages(round_stage_needs(config), config, run_round_stage)
    results = {
        "config": json.loads(json.dumps(config.settings(), default=str)),
        "seed": config.seed,
        "versions": versions(),
        "rounds": round_rows(config),
    }
    write_atomic(config.out / "rounds.json", json.dumps(results, indent=1) + "\n")
    print(table(results["rounds"]))
    return results


def table(rows: list[dict[str, Any]]) -> str:
    """The rounds as a text table, shares in percent."""
    columns = ("harmful", "jailbroken", "over-refusal", "helpfulness", "3 turns", "robust", "finds")
    lines = [f"{'round':6}" + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    for row in rows:
        policy = row["policy"]
        rates = [policy[name]["rate"] for name in ("harmful_nominal", "harmful_jailbreak", "over_refusal")]
        rates += [row["turns"]["3"]["harmful"]["rate"], row["held_out_team"]["robust"]["rate"]]
        cells = [f"{100 * rate:.1f}" for rate in rates]
        cells.insert(3, f"{policy['helpfulness']:.3f}")
        cells.append(str(row["found"]["prompts"] if "found" in row else ""))
        pairs = zip(columns, cells, strict=True)
        lines.append(f"{row['name']:6}" + "".join(f"{cell:>{len(name) + 2}}" for name, cell in pairs))
    return "\n".join(lines)
