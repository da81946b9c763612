"""The race against TRL: the same workload on both sides, and arithmetic that does what the page says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.ppo_step import REAL, SHAPES, BenchPPOConfig
from csrlhf_kit.recipes.presets import PRESETS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peer_trl.py"


@pytest.fixture(scope="module")
def peer():
    spec = importlib.util.spec_from_file_location("peer_trl", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_run_the_workload_of_the_benchmark(peer):
    ours, work = BenchPPOConfig(), peer.WORKLOADS["peer"]
    assert (ours.batch_size, ours.epochs, ours.new_tokens) == (work.episodes, work.epochs, work.new_tokens)
    assert ours.minibatch_size == work.episodes // work.minibatches
    assert (
        ours.rank,
        ours.threads,
        SHAPES["peer"]["vocab_size"],
    ) == (peer.RANK, peer.THREADS, peer.VOCABULARY)
    assert ours.shape == "peer" and ours.prompt_tokens == work.prompt_tokens


def test_the_real_base_is_the_preset_of_that_name(peer):
    work, preset = peer.WORKLOADS["smollm2"], PRESETS["smollm2-135m"]
    assert {"smollm2": preset["all"]["base"]} == REAL
    assert work.ours["csrlhf_top8"]["policy_layers"] == preset["ppo"]["layers"]
    ppo = preset["ppo"]["ppo"]
    assert (work.episodes, work.new_tokens) == (ppo["batch_size"], ppo["max_new_tokens"])
    assert work.episodes // work.minibatches == ppo["minibatch_size"]


def test_parts_are_the_gaps_between_clocks(peer):
    row = peer.row_of([(10.0, 1.0), (11.0, 1.5), (13.0, 2.5), (16.0, 5.0)])
    assert (row["rollout"], row["score"], row["update"], row["step"]) == (1.0, 2.0, 3.0, 6.0)
    assert (row["cpu_rollout"], row["cpu_score"], row["cpu_update"], row["cpu_step"]) == (0.5, 1.0, 2.5, 4.0)
    assert set(row) == set(peer.COLUMNS)


def test_the_ratio_is_taken_pair_by_pair(peer):
    ours, theirs = (
        [dict.fromkeys(peer.COLUMNS, value) for value in values]
        for values in ((1.0, 2.0, 6.0), (4.0, 4.0, 8.0))
    )
    result = peer.summary({"csrlhf": ours, "trl": theirs})
    assert result["over_trl"]["csrlhf"]["step"] == {"median": 0.5, "least": 0.25, "largest": 0.75}
    assert result["median_seconds"]["csrlhf"]["cpu_update"] == 2.0
