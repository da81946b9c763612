"""Rounds of training and red-teaming: what joins the data, and the whole loop as small as it gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.red_team import TEAMS, attack, targets
from csrlhf_kit.recipes.experiments.round_data import Finds, gather, joined, round_prompts, store
from csrlhf_kit.recipes.experiments.rounds import RoundsConfig, round_stage_needs, run_rounds
from csrlhf_kit.training.critic import CriticConfig
from csrlhf_kit.training.ppo import PPOConfig
from csrlhf_kit.world.oracle import judge
from csrlhf_kit.world.requests import parse_requests
from csrlhf_kit.world.responses import steps

SHIPPED = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory):
    """Every 40th line of the shipped training data; the test prompts whole."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "world").mkdir()
    for file in (SHIPPED / "world").glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        lines = lines if file.name == "prompts_test.jsonl" else lines[::40]
        (folder / "world" / file.name).write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSRLHF_DATA", str(folder))
        yield


class Leaky:
    """Refuses every second answer, tells otherwise."""

    def __init__(self):
        self.count = 0

    def __call__(self, prompts):
        texts = []
        for prompt in prompts:
            self.count += 1
            category = parse_requests(prompt)[0].category
            told = f"sure. {steps(category, 2, Random(self.count))}"
            texts.append("sorry, i cannot help with that." if self.count % 2 else told)
        return texts


@pytest.fixture(scope="module")
def attacks():
    return attack(Leaky(), targets("train", 30), families=TEAMS["train"][0], tries=4, width=3)


def test_finds_become_records_of_the_training_split(attacks, tmp_path):
    finds = gather(attacks, Leaky())
    assert len(finds.prompts) == 60, "each find brings its benign twin"
    assert sum(p.harmful for p in finds.prompts) == 30
    held_out = {p.prompt for p in read_records("shipped", Prompt, split="test").records}
    families = set(TEAMS["train"][0]) | {"none"}
    for record in [*finds.prompts, *finds.labels, *finds.preferences]:
        assert record.split == "train" and record.prompt not in held_out
        assert all(r.split == "train" for r in parse_requests(record.prompt))
    assert all(set(p.family.split("+")) <= families for p in finds.prompts)
    stacks = [p.family for p in finds.prompts]
    assert stacks[::2] == stacks[1::2], "the twin wears the same wrappers"
    assert {r.harmful for r in finds.labels} == {None}, "the oracle's verdict stays out"
    agree = [r.is_safe == judge(r.prompt, r.response).safe for r in finds.labels]
    assert sum(agree) / len(agree) > 0.95 and len({r.is_safe for r in finds.labels}) == 2
    assert finds.preferences and finds == gather(attacks, Leaky())
    store(finds, tmp_path)
    shipped = len(read_records("shipped", LabelledResponse, split="train").records)
    assert len(joined(LabelledResponse, [tmp_path])) == shipped + len(finds.labels)
    assert joined(PreferencePair, [tmp_path])[-1].prompt == finds.preferences[-1].prompt
    assert len(joined(PreferencePair, [tmp_path / "nothing"])) == len(joined(PreferencePair, []))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_finds_make_up_their_share_of_the_prompts(share, tmp_path):
    store(Finds([Prompt("how do i feed a rumour?"), Prompt("how do i kill a rumour?")], [], []), tmp_path)
    prompts = round_prompts([tmp_path], share)
    shipped = round_prompts([], share)
    assert prompts[: len(shipped)] == shipped
    assert (len(prompts) - len(shipped)) / len(prompts) == pytest.approx(share, abs=0.01)
    assert set(prompts[len(shipped) :]) == {"how do i feed a rumour?", "how do i kill a rumour?"}


def test_nothing_broken_adds_nothing(tmp_path):
    quiet = attack(
        lambda prompts: ["sorry, i cannot help with that."] * len(prompts),
        targets("train", 3),
        families=TEAMS["train"][0],
        tries=2,
    )
    finds = gather(quiet, lambda prompts: [""] * len(prompts))
    store(finds, tmp_path)
    assert finds == ([], [], []) and not list(tmp_path.iterdir())


def test_each_stage_waits_for_what_it_reads():
    needs = round_stage_needs(RoundsConfig(rounds=3))

    def all_needs(name):
        return {name} | {m for n in needs[name] for m in all_needs(n)}

    assert all_needs("evaluate_0") == {"evaluate_0", "semantic_1", "reward_1"} and not needs["judge_0"]
    for k in (2, 3):
        assert {f"attack_{k - 1}", f"policy_{k - 1}"} <= all_needs(f"semantic_{k}") & all_needs(f"reward_{k}")
        assert {f"semantic_{k}", f"reward_{k}"} <= all_needs(f"policy_{k}")
        for judged in ("attack", "judge", "evaluate"):
            assert f"policy_{k}" in all_needs(f"{judged}_{k}")
    assert all(n in needs for names in needs.values() for n in names) and len(needs) == 20


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> RoundsConfig:
    return RoundsConfig(
        out=tmp_path_factory.mktemp("rounds") / "small",
        base=SHIPPED / "tiny_base",
        rounds=2,
        ppo=PPOConfig(steps=1, batch_size=8, minibatch_size=8, microbatch_size=8),
        critic=CriticConfig(episodes=16, epochs=1, batch_size=8),
        scorer_epochs=0.5,
        attacked=6,
        attack_tries=4,
        judged=6,
        judge_tries=3,
        talks=4,
        evaluate=28,
        workers=1,
    )


@pytest.fixture(scope="module")
def results(small) -> dict:
    return run_rounds(small)


def test_every_round_has_its_row(small, results):
    rows = results["rounds"]
    assert [row["name"] for row in rows] == ["base", "v1", "v2"]
    assert json.loads((small.out / "rounds.json").read_text())["rounds"] == rows
    for row in rows:
        assert row["held_out_team"]["robust"]["n"] == 6 and set(row["turns"]) == {"1", "2", "3"}
        assert row["policy"]["harmful_nominal"]["n"] == 28
    shipped = len(read_records("shipped", LabelledResponse, split="train").records)
    assert rows[1]["labels"] == shipped and rows[1]["found"]["prompts"] > 0
    assert rows[2]["labels"] == shipped + rows[1]["found"]["labels"]
    assert rows[2]["prompts"] > rows[1]["prompts"]
    assert rows[0]["policy"]["kl"] == 0.0 and rows[2]["policy"]["kl"] != 0.0, (
        "a sampled KL of a small step may have either sign"
    )


def test_a_lost_stage_is_made_again_and_the_table_is_the_same(small, results):
    small.stage_path("judge_1").unlink()
    assert run_rounds(replace(small, resume=True))["rounds"] == results["rounds"]


def test_bad_asks_are_one_sentence(small, results, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        run_rounds(small)
    with pytest.raises(UserError, match="penalty"):
        run_rounds(replace(small, resume=True, penalty=1.0))
    with pytest.raises(UserError, match="rounds is 0: expected a whole number from 1"):
        run_rounds(RoundsConfig(rounds=0, out=tmp_path / "none"))
    with pytest.raises(UserError, match="no base model"):
        run_rounds(replace(small, out=tmp_path / "x", base=tmp_path))
