"""The ledger: its rules against closed forms, and every claim against made-up evidence that settles it."""

from __future__ import annotations

import json

import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.claims import ClaimsConfig, markdown, row_of, run_claims
from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.recipes.claims.evidence import (
    AGREES,
    ASIDE,
    DIFFERS,
    OPEN,
    PROVED,
    REFUTED,
    UNDECIDED,
    Estimate,
    Evidence,
)
from csrlhf_kit.recipes.claims.ledger import CLAIMS, CONVERGED

BY_ID = {claim.id: claim for claim in CLAIMS}


# --- rules -------------------------------------------------------------------------------------------


def test_rules_at_their_edges():
    ours = Estimate(0.5, 0.4, 0.6)
    assert [ev.at_least(ours, b) for b in (0.4, 0.5, 0.61)] == [AGREES, UNDECIDED, DIFFERS]
    assert [ev.at_most(ours, b) for b in (0.6, 0.5, 0.39)] == [AGREES, UNDECIDED, DIFFERS]
    far, near = Estimate(0.9, 0.85, 0.95), Estimate(0.55, 0.45, 0.65)
    assert ev.exceeds(far, ours) == AGREES and ev.exceeds(ours, far) == DIFFERS
    assert ev.exceeds(near, ours) == UNDECIDED
    assert ev.less(ours, far) == AGREES and ev.less(far, ours) == DIFFERS
    assert ev.all_of([AGREES, AGREES]) == AGREES and ev.all_of([DIFFERS]) == DIFFERS
    assert ev.all_of([AGREES, DIFFERS, UNDECIDED]) == DIFFERS, "one counterexample is enough"
    assert ev.all_of([AGREES, UNDECIDED]) == UNDECIDED and ev.all_of([]) == OPEN
    assert ev.all_of([DIFFERS, OPEN]) == OPEN


def test_two_points_are_the_least_difference_that_counts():
    here, there = Estimate(0.100, 0.095, 0.105), Estimate(0.095, 0.09, 0.1)
    assert ev.exceeds(here, there) == ev.exceeds(there, here) == DIFFERS, "equal: neither is more"
    assert ev.no_more(here, there) == ev.no_more(there, here) == AGREES
    more = Estimate(0.11, 0.109, 0.111)
    assert ev.exceeds(more, there) == AGREES and ev.no_more(more, there) == DIFFERS


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_settle_nothing(seeds):
    assert ev.settled(AGREES, seeds) == ev.settled(DIFFERS, seeds) == UNDECIDED
    assert ev.settled(OPEN, seeds) == OPEN
    assert ev.settled(DIFFERS, 3) == DIFFERS and ev.settled(AGREES, None) == AGREES


def test_without_an_interval_a_figure_is_undecided():
    alone = ev.mean_over_seeds([0.9])
    assert ev.at_least(alone, 0.0) == ev.at_most(alone, 1.0) == UNDECIDED
    assert ev.exceeds(alone, Estimate(0.1, 0.1, 0.1)) == UNDECIDED


# --- evidence ----------------------------------------------------------------------------------------


def rate(value, n=500):
    return {"rate": value, "low": 0.0, "high": 1.0, "n": n}


def policy(harm, jailbreak=None, refused=0.03, helpfulness=0.4, cost=0.02):
    return {
        "harmful_nominal": rate(harm),
        "harmful_jailbreak": rate(harm if jailbreak is None else jailbreak),
        "over_refusal": rate(refused),
        "degenerate": rate(0.01),
        "helpfulness": helpfulness,
        "cost": cost,
        "multiplier": 8.0,
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def record(data, *, fixed=0.005, lagrangian=0.3, seeds=3, wins=0.8, gate_off=0.0):
    """A data folder with every kind of evidence; the fixed penalty's and the Lagrangian's harm as given."""
    config = {"threshold": 0.03, "penalty": 8.0, "ppo": {"batch_size": 64}}
    cost = {"accuracy": 0.97, "precision": 0.99, "false_positive_rate_benign_alarming": 0.01}
    pairs = {"accuracy": 0.6, "precision": 0.7, "false_positive_rate_benign_alarming": 0.3}
    quick = [{"objective/harmful": 0.5}] * 4 + [{"objective/harmful": 0.0}] * 56
    slow = [{"objective/harmful": 0.5}] * 50 + [{"objective/harmful": 0.0}] * 10
    for seed in range(seeds):
        jitter = 0.001 * seed
        told = {
            "config": config,
            "seed": seed,
            "cost_models": {
                name: {k: v + jitter for k, v in row.items()} | {"n": 2000}
                for name, row in (("semantic", cost), ("bradley_terry", pairs))
            },
            "policies": {
                "sft": policy(0.53),
                "ppo": policy(0.9),
                "lagrangian": policy(lagrangian, refused=0.2),
                "fixed_penalty": policy(fixed),
                "linear_penalty": policy(0.05),
            },
            "curves": {"fixed_penalty": quick, "lagrangian": slow},
        }
        write(data / ("recorded" if not seed else f"runs/seed_{seed}") / "results.json", told)
        turns = {str(t): {"harmful": rate(0.1 * t)} for t in (1, 2, 3)}
        for method, robust in (("fixed_penalty", 0.97), ("lagrangian", 0.2)):
            team = {
                "config": {"team": "held_out", "policy": f"runs/x/policies/{method}-seed_{seed}/adapter"},
                "robust": rate(robust, 300),
                "turns": turns,
            }
            write(data / "runs" / "red_team" / method / f"seed_{seed}.json", team)
        rounds = [
            {"policy": policy(h), "held_out_team": {"robust": rate(1 - h, 300)}, "turns": turns}
            for h in (0.53, 0.2, 0.08, 0.004 if fixed < 0.1 else fixed)
        ]
        asked = {"method": "fixed_penalty", "threshold": 0.03, "penalty": 8.0, "seed": seed}
        told = {"config": asked, "seed": seed, "rounds": rounds}
        write(data / "runs" / f"rounds_{seed}" / "rounds.json", told)
        if not seed:  # other settings, told beside the recorded ones and never pooled with them
            wall = {
                "policy": policy(0.0, refused=0.99, helpfulness=0.0),
                "held_out_team": {"robust": rate(1.0, 300)},
                "turns": turns,
            }
            strict = {"config": asked | {"penalty": 64.0}, "seed": 0, "rounds": [rounds[0], wall, wall, wall]}
            write(data / "runs" / "strict_rounds_0" / "rounds.json", strict)
        for size, alarm in ((500, 0.1), (5000, 0.3)):
            metrics = {
                "config": {"objective": "safe_rlhf", "data": f"pairs.jsonl:{size}"},
                "splits": {"train": size + seed},
                "models": {"safe_rlhf": {"false_positive_rate_benign_alarming": {"value": alarm + jitter}}},
            }
            write(data / "runs" / f"pairs_{size}_{seed}" / "metrics.json", metrics)
    cells = []
    for seed in range(seeds):
        step = 0.001 * seed

        def cell(method, settings, row, seed=seed):
            return {"method": method, "settings": settings, "seed": seed, "policy": row, "curve": {}}

        for penalty, help_ in ((4.0, 0.2), (8.0, 0.25), (16.0, 0.4), (32.0, 0.2)):
            cells.append(cell("fixed_penalty", {"penalty": penalty}, policy(fixed, helpfulness=help_ + step)))
            linear = policy(0.05, helpfulness=2 * help_ + step)
            cells.append(cell("linear_penalty", {"penalty": penalty}, linear))
        main = policy(fixed, helpfulness=0.41 + step, cost=0.03 + step)
        main["robust"] = rate(0.96 if fixed < 0.1 else 0.1, 100)
        swing = [0.1 + 0.04 * (-1) ** step for step in range(40)]  # batch means that differ by 0.08
        cells.append({**cell("fixed_penalty", {}, main), "curve": {"cost": swing}})
        settled = 0.03 if gate_off else 0.09
        cells.append(cell("fixed_penalty", {"gate": "batch"}, policy(fixed, cost=settled + step)))
        cells.append(cell("linear_penalty", {}, policy(0.01, helpfulness=0.3 + step)))
        cells.append(cell("lagrangian", {}, policy(0.1, helpfulness=0.4 + step)))
        cells.append(cell("lagrangian", {"rate": 1.0}, policy(lagrangian, helpfulness=0.42 + step)))
        cells.append(cell("lagrangian", {"initial": 5.0}, policy(0.01, helpfulness=0.1 + step)))
        cells += [cell("reward_shaping", {"weight": w}, policy(0.4)) for w in (0.1, 10.0)]
        nobody = policy(0.4, helpfulness=0.05) | {"robust": rate(0.99, 100)}  # safe, and no help
        cells.append(cell("reward_shaping", {"weight": 100.0}, nobody))
        cells += [cell(m, {}, policy(0.3)) for m in ("sacpo", "mocan", "safedpo", "dpo_safer")]
        cells.append(cell("ppo", {}, policy(0.9)))
        price = cell("pid_lagrangian", {"threshold": 0.1}, policy(0.1))
        cells.append({**price, "curve": {"multiplier": [1.0 + step] * 40, "cost": swing}})
        for size in (32, 128):
            gate = cell("fixed_penalty", {"threshold": 0.1, "ppo.batch_size": size}, policy(fixed))
            settled = 0.1 + gate_off + 0.0035 * (64 / size) ** 0.5 * 2**0.5 + step
            cells.append({**gate, "curve": {"cost": [0.5] * 20 + [settled] * 20}})
    write(data / "runs" / "all" / "sweep.json", {"threshold": 0.03, "cells": cells})
    lasting = [
        {"method": method, "settings": settings, "seed": seed, "policy": row, "curve": {"harmful": harm}}
        for method, settings, row, harm in (
            ("sft", {}, policy(0.53), []),
            ("ppo", {}, policy(0.9), []),
            ("lagrangian", {}, policy(lagrangian, refused=0.2), [r["objective/harmful"] for r in slow]),
            ("fixed_penalty", {"penalty": 8.0}, policy(fixed), [r["objective/harmful"] for r in quick]),
            ("linear_penalty", {"penalty": 8.0}, policy(0.05), []),
            ("pid_lagrangian", {"initial": 3.0, "integral": 1.0}, policy(lagrangian, helpfulness=0.3), []),
            ("fixed_penalty", {"penalty": 3.0, "gain": 1.0}, policy(fixed, helpfulness=0.5), []),
        )
        for seed in range(seeds)
    ]
    write(data / "runs" / "converged" / "sweep.json", {"threshold": 0.03, "cells": lasting})
    pairwise = [
        {"method": method, "settings": {}, "seed": seed, "policy": policy(harm)}
        for method, harm in (("lagrangian", 0.5), ("fixed_penalty", 0.2))
        for seed in range(seeds)
    ]
    told = {"threshold": 0.03, "cost_model": "bradley_terry", "cells": pairwise}
    write(data / "runs" / "ablation" / "sweep.json", told)
    won = {"rate": wins, "low": wins - 0.05, "high": wins + 0.05, "n": 500}
    rating = {"elo": 200.0, "low": 150.0, "high": 250.0}
    arena = {
        "anchor": "sft",
        "seeds": {"fixed_penalty-penalty_8.0": seeds, "lagrangian": seeds, "sft": seeds},
        "pairs": {"fixed_penalty-penalty_8.0 vs lagrangian": {"helpfulness": won, "harmlessness": won}},
        "helpfulness": {"ratings": {"lagrangian": rating}},
        "harmlessness": {"ratings": {"lagrangian": rating}},
    }
    write(data / "runs" / "arena.json", arena)
    return Evidence.read(data)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Evidence:
    """Evidence in the fixed penalty's favour."""
    return record(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Evidence:
    """Evidence against it."""
    return record(tmp_path_factory.mktemp("bad"), fixed=0.4, lagrangian=0.02, wins=0.3, gate_off=0.05)


TRAINED = [c for c in CLAIMS if c.measure.__module__ != "csrlhf_kit.recipes.claims.exact"]


def test_the_ledger_is_long_enough_and_names_its_sources():
    assert len(CLAIMS) >= 20 and len(BY_ID) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.source and claim.section and claim.theirs and claim.rule and claim.command
        assert claim.claim[0].isupper() and claim.claim.endswith("."), "a sentence"
        assert claim.command.split()[0] in ("csrlhf", "make")
    assert {c.source for c in CLAIMS} >= {"CS-RLHF", "Safe RLHF", "reviewers of CS-RLHF"}


def test_what_needs_no_training_is_settled_without_evidence():
    assert all(c.measure(Evidence(), c.numbers) is None for c in TRAINED)
    rows = {c.id: row_of(c, Evidence()) for c in CLAIMS if c not in TRAINED}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts["exact_penalty"] == verdicts["domination"] == verdicts["no_dual_needed"] == PROVED
    assert verdicts["code_is_paper"] == verdicts["more_reward"] == verdicts["no_dual_needed_batch"] == REFUTED
    assert verdicts["pair_shares"] == verdicts["safer_than_gpt5"] == ASIDE
    p = rows["safer_than_gpt5"]["estimates"]["p"]
    assert (p["low"], p["high"]) == (0.0625, pytest.approx(0.332, abs=1e-3)), "5 of 5, and 6 against 11"


def test_only_exact_claims_are_proved_and_only_claims_about_this_world_are_counted(good):
    rows = [row_of(claim, good) for claim in CLAIMS]
    for claim, row in zip(CLAIMS, rows, strict=True):
        words = {"exact": {PROVED, REFUTED}, ASIDE: {ASIDE}}.get(claim.kind, {AGREES, DIFFERS, UNDECIDED})
        assert row["verdict"] in words, claim.id
        if claim.measure.__module__.endswith("exact"):
            assert claim.kind in ("exact", ASIDE)
    outside = {claim.id for claim in CLAIMS if claim.kind == ASIDE}
    assert outside == {"safe_98", "safer_than_gpt5", "precise_judge", "garbage", "start", "pair_shares"}


def test_evidence_for_the_fixed_penalty_agrees_with_its_claims(good):
    verdicts = {c.id: row_of(c, good)["verdict"] for c in TRAINED}
    favour = [
        "safer_than_lagrangian",
        "five_times_safer",
        "better_judge",
        "pairs_alarm",
        "pressure_grows",
        "best_lambda",
        "insensitive",
        "five_times_faster",
        "preferred",
        "three_rounds",
        "each_round",
        "elo_helpful",
        "elo_harmless",
        "beats_shaping",
        "defaults_work",
        "matched_data",
        "equal_search",
        "equal_search_help",
        "over_refusal",
        "direct",
        "classifier_only",
        "penalty_only",
        "adaptive",
        "turns",
        "gate",
        "gate_settles",
        "moonshot",
        "robust_90",
        "some_method_holds",
        "feasible",
    ]
    assert {name: verdicts[name] for name in favour} == dict.fromkeys(favour, AGREES)
    assert verdicts["code_is_as_helpful"] == DIFFERS
    counted = {name for name, verdict in verdicts.items() if verdict != ASIDE}
    assert set(favour) | {"code_is_as_helpful"} == counted
    rounds = row_of(BY_ID["robust_90"], good)
    assert rounds["estimates"]["robust"]["value"] == pytest.approx(0.996, abs=1e-3) and rounds["seeds"] == 3
    assert "100.0% [98.8, 100.0] at helpfulness 0.00 (threshold 0.03, λ = 64, seeds: 1)" in rounds["ours"]
    told = row_of(BY_ID["some_method_holds"], good)["ours"]
    assert "reward_shaping (weight 100.0) 99.0%" in told and "50% of the help fixed_penalty 96.0%" in told


def test_evidence_against_it_differs_from_them(bad):
    for name in [
        "safer_than_lagrangian",
        "five_times_safer",
        "matched_data",
        "equal_search",
        "preferred",
        "moonshot",
        "direct",
        "gate",
        "gate_settles",
        "some_method_holds",
    ]:
        assert row_of(BY_ID[name], bad)["verdict"] == DIFFERS, name
    # The means of two batches differ by 0.08, so the noise of one is 0.08 / sqrt(2), and the bias 0.399 of that.
    assert "the bias would be 2.26 points" in row_of(BY_ID["gate"], bad)["ours"]


def test_one_seed_settles_no_trained_claim(tmp_path):
    evidence = record(tmp_path, seeds=1)
    # Converged policies count from three seeds on, and these claims need them.
    none = {claim.id for claim in TRAINED if claim.command == CONVERGED} | {"preferred", "direct"}
    none -= {"better_judge", "pairs_alarm", "penalty_only"}  # cost models, and policies of the ablation only
    for claim in TRAINED:
        row = row_of(claim, evidence)
        word = ASIDE if claim.kind == ASIDE else OPEN if claim.id in none else UNDECIDED
        assert row["verdict"] == word, claim.id
        assert row["seeds"] in (1, None)


def test_rows_are_json_and_a_table(good, tmp_path, capsys):
    rows = [row_of(claim, good) for claim in CLAIMS[:8]]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    lines = markdown(rows).splitlines()
    assert len(lines) == 10 and all(line.count(" | ") == 5 for line in lines[2:])
    empty = tmp_path / "data"
    empty.mkdir()
    ledger = run_claims(ClaimsConfig(data=empty, out=tmp_path / "out"))
    stored = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert stored == ledger and sum(stored["verdicts"].values()) + stored["context"] == len(CLAIMS)
    counted = [claim for claim in TRAINED if claim.kind != ASIDE]
    assert stored["verdicts"][OPEN] == len(counted) and not stored["evidence"]
    assert (tmp_path / "out" / "claims.md").read_text().count("\n") == len(CLAIMS) + 2
    assert "not yet measured" in capsys.readouterr().out


def test_cells_of_a_sweep_are_grouped_by_their_settings(good):
    assert len(good.cells("fixed_penalty", {"penalty": 8.0})) == 3
    assert list(good.swept("fixed_penalty", "penalty")) == [4.0, 8.0, 16.0, 32.0]


def test_converged_policies_count_once_each_has_three_seeds(tmp_path):
    record(tmp_path)
    cells = [
        {
            "method": method,
            "settings": settings,
            "seed": seed,
            "policy": policy(harm + 0.001 * seed),
            "curve": {},
        }
        for method, settings, harm in (
            ("sft", {}, 0.5),
            ("lagrangian", {"ppo.steps": 256}, 0.2),
            ("lagrangian", {"ppo.steps": 256, "maximum": 100.0}, 0.03),
            ("fixed_penalty", {"ppo.steps": 256}, 0.1),
            ("fixed_penalty", {"ppo.steps": 256, "penalty": 3.0}, 0.06),
        )
        for seed in range(4)
    ]
    place = tmp_path / "runs" / "converged" / "sweep.json"
    write(place, {"threshold": 0.03, "cells": cells})
    found = Evidence.read(tmp_path)
    assert [c.policy["harmful_nominal"]["rate"] for c in found.main("lagrangian")] == [
        0.2,
        0.201,
        0.202,
        0.203,
    ]
    assert len(found.main("fixed_penalty")) == 4 and len(found.main("fixed_penalty")[0].settings) == 1
    assert found.tuned("lagrangian")[0].settings["maximum"] == 100.0
    assert found.tuned("fixed_penalty")[0].settings["penalty"] == 3.0
    assert row_of(BY_ID["matched_data"], found)["verdict"] == AGREES
    row = row_of(BY_ID["equal_search"], found)
    assert row["verdict"] == DIFFERS and row["seeds"] == 4 and "tuned lagrangian 3.1%" in row["ours"]
    assert "difference 3.0 points" in row["ours"]
    assert not found.cells("fixed_penalty", {"ppo.steps": 256}), "the sweeps of few steps stay apart"
    write(tmp_path / "runs" / "tuning" / "sweep.json", {"threshold": 0.03, "cells": cells})
    assert len(Evidence.read(tmp_path).sweep) == len(found.sweep), "settings were chosen by it: no evidence"
    write(place, {"threshold": 0.03, "cells": [cell for cell in cells if cell["seed"] < 2]})
    assert not Evidence.read(tmp_path).main("fixed_penalty"), "half recorded"


def test_recorded_answers_pair_the_prompts(tmp_path):
    def answered(harm: str) -> dict:
        row = policy(harm.count("8") / len(harm))
        row["harmful_nominal"]["n"] = len(harm)
        return row | {"outcomes": {"prompts": "abc", "harmful_nominal": harm}}

    runs = {"fixed_penalty": "00000000008888888888" * 5, "lagrangian": "08000000008888888888" * 5}
    cells = [
        {"method": method, "settings": {}, "seed": seed, "policy": answered(harm), "curve": {}}
        for method, harm in runs.items()
        for seed in range(3)
    ]
    place = tmp_path / "runs" / "converged" / "sweep.json"
    write(place, {"threshold": 0.03, "cells": cells})
    assert row_of(BY_ID["matched_data"], Evidence.read(tmp_path))["verdict"] == AGREES
    for cell in cells[:3]:
        cell["policy"]["outcomes"]["prompts"] = "other"
    write(place, {"threshold": 0.03, "cells": cells})
    assert row_of(BY_ID["matched_data"], Evidence.read(tmp_path))["verdict"] == UNDECIDED


def test_unreadable_evidence_is_one_sentence(tmp_path):
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "results.json").write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        Evidence.read(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        run_claims(ClaimsConfig(data=tmp_path / "nothing"))


def test_the_batch_of_a_recorded_cell_is_the_main_jobs():
    from csrlhf_kit.evaluation.results import BATCH
    from csrlhf_kit.recipes.experiments.head_to_head import RunConfig

    assert RunConfig().ppo.batch_size == BATCH
