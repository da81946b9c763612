"""The arena: who meets whom, what a vote stores, ratings, and tokens that come one by one."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from csrlhf_kit import files
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.votes import Duel, elo, standings
from csrlhf_kit.files import write_atomic
from csrlhf_kit.widgets import arena
from csrlhf_kit.widgets.arena import talk_html

HOSTILE = "<script>alert(1)</script> **x**"


def speaker(name):
    def talk(messages):
        yield f"{name} "
        yield f"heard {len(messages)} "
        yield HOSTILE

    return talk


POLICIES = {name: speaker(name) for name in ("a", "b", "c")}


def test_each_side_hears_its_own_conversation_and_streams(tmp_path):
    duel = Duel(POLICIES, tmp_path / "votes.jsonl")
    pieces = list(duel.ask("hello"))
    assert [side for side, _ in pieces] == [0, 0, 0, 1, 1, 1]
    assert pieces[1][1] == f"{duel.pair[0]} heard 1 "
    list(duel.ask("and now?"))
    assert [len(turns) for turns in duel.turns] == [4, 4] and "heard 3" in duel.turns[0][3]["content"]
    with pytest.raises(UserError, match="not empty"):
        list(duel.ask(" "))


def test_votes_are_on_disk_and_every_pair_meets(tmp_path):
    duel = Duel(POLICIES, tmp_path / "votes.jsonl")
    with pytest.raises(UserError, match="answer first"):
        duel.vote("1")
    met = set()
    for n in range(6):
        list(duel.ask("x"))
        duel.vote("1")
        assert len(files.read(duel.path)) == n + 1
        met.add(frozenset(duel.pair))
        duel = Duel(POLICIES, tmp_path / "votes.jsonl")
    assert len(met) == 3
    with pytest.raises(UserError, match="one of"):
        duel.vote("9")
    with pytest.raises(UserError, match="at least two"):
        Duel({"a": speaker("a")}, tmp_path / "votes.jsonl")


def test_the_sides_change(tmp_path):
    two, path = {"a": speaker("a"), "b": speaker("b")}, tmp_path / "votes.jsonl"
    assert len({Duel(two, path, seed).pair for seed in range(20)}) == 2


def test_ratings_follow_the_votes_and_ties_are_half():
    votes = [{"left": "a", "right": "b", "vote": "left"}] * 6 + [
        {"left": "b", "right": "a", "vote": "left"}
    ] * 2
    rated = elo([*votes, {"left": "a", "right": "zzz", "vote": "left"}, {}], ["a", "b", "c"])
    assert rated["a"][0] > rated["b"][0] and rated["a"][1] == 8 and rated["c"][1] == 0
    assert sum(points for points, _ in rated.values()) == pytest.approx(0, abs=1e-6)
    tied = elo([{"left": "a", "right": "b", "vote": v} for v in ("tie", "both bad")], ["a", "b"])
    assert tied["a"][0] == pytest.approx(0, abs=1e-6)


def test_one_vote_says_little_and_many_say_more(tmp_path):
    def spans(votes):
        path = tmp_path / f"{len(votes)}.jsonl"
        for vote in votes:
            files.append(path, vote)
        lines = standings(Duel({"a": speaker("a"), "b": speaker("b")}, path))
        return lines, [[float(x) for x in re.findall(r"[+-]\d+", line)] for line in lines]

    lines, [[points, low, high], _] = spans([{"left": "a", "right": "b", "vote": "left"}])
    assert lines[0].startswith("a: ") and lines[0].endswith("1 vote") and low < 0 < points < high
    many = [{"left": "a", "right": "b", "vote": v} for v in ("left", "left", "right") * 40]
    lines, [[points, low, high], _] = spans(many)
    assert lines[0].endswith("120 votes") and 0 < low < points < high < 400
    rng = np.random.default_rng(0)  # against the spread of refitted votes
    drawn = [elo([many[i] for i in rng.integers(0, 120, 120)], ["a", "b"])["a"][0] for _ in range(200)]
    assert high - low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.25)


def test_talk_is_shown_letter_by_letter():
    shown = talk_html([{"role": "user", "content": HOSTILE}], HOSTILE, HOSTILE)
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 3


def test_names_are_told_after_the_vote_only(tmp_path):
    silent = {name: lambda messages: iter(["hm"]) for name in ("left-handed", "right-handed")}
    view = arena(silent, folder=tmp_path, static=False)
    ask, sides, buttons, keys, note, table = view.root.children
    assert all("Nothing asked yet" in side.value for side in sides.children) and ask.children[0].placeholder
    assert "No votes yet" in table.value
    ask.children[0].value = HOSTILE
    shown = lambda: "".join(side.value for side in sides.children)  # noqa: E731
    assert "hm" in shown() and "<script" not in shown() and "-handed" not in shown()
    assert ask.children[0].value == "", "ready for the next"
    keys._handle_custom_msg({"key": "1"}, [])
    assert "left-handed" in shown() and "right-handed" in note.value and "1 vote<" in table.value + "<"
    keys._handle_custom_msg({"key": "n"}, [])
    assert "-handed" not in shown() and "hm" not in shown()
    buttons.children[0].click()
    assert "answer first" in note.value and len(files.read(tmp_path / "votes.jsonl")) == 1
    view.close()
    assert "left-handed: " in arena(silent, folder=tmp_path, static=True)._repr_mimebundle_()["text/plain"]


def test_a_model_speaks_token_by_token_what_it_answers_at_once(random_base):
    from csrlhf_kit.evaluation.answers import load_policy, policy_answers
    from csrlhf_kit.models.base import load_tokenizer
    from csrlhf_kit.widgets.streaming import streaming

    model, tokenizer = load_policy(random_base), load_tokenizer(random_base)
    message = [{"role": "user", "content": "hello there"}]
    pieces = list(streaming(model, tokenizer, max_new_tokens=12, temperature=0)(message))
    whole = policy_answers(model, tokenizer, max_new_tokens=12, temperature=0)([message])[0]
    assert "".join(pieces).strip() == whole
    state = torch.get_rng_state()
    list(streaming(model, tokenizer, max_new_tokens=4)(message))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's draws change"


@pytest.mark.parametrize("kind", ["csrlhf run", "csrlhf ppo"])
def test_a_runs_policies_speak_on_the_base_that_it_was_trained_on(kind, random_base, tmp_path):
    from csrlhf_kit.evaluation.answers import load_policy
    from csrlhf_kit.models.base import load_base, load_tokenizer
    from csrlhf_kit.models.roles import Roles
    from csrlhf_kit.widgets.streaming import policies_of, streaming

    scorer = lambda prompts, responses: torch.zeros(len(prompts))  # noqa: E731
    roles = Roles(load_base(random_base, device="cpu"), reward=scorer, cost=scorer, rank=4, alpha=8)
    with torch.no_grad():
        for parameter in roles.trainable("policy"):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    run = tmp_path / "mine"
    roles.save_policy(run / ("policies/ppo/adapter" if kind == "csrlhf run" else "adapter"))
    message, options = [{"role": "user", "content": "hello there"}], {"max_new_tokens": 12, "temperature": 0}
    tokenizer = load_tokenizer(random_base)
    said = {
        name: "".join(streaming(load_policy(random_base, adapter), tokenizer, **options)(message))
        for name, adapter in (("sft", None), ("own", next(run.glob("**/adapter"))))
    }
    assert said["sft"] != said["own"]
    for named in (str(random_base), random_base.name):  # from here, and from the repository's folder
        write_atomic(run / "config.json", json.dumps({"base": named}))
        found = {name: "".join(talk(message)) for name, talk in policies_of(run, **options).items()}
        assert found == {"sft": said["sft"], "ppo" if kind == "csrlhf run" else "mine": said["own"]}
    with pytest.raises(UserError, match="finished run"):
        policies_of(tmp_path)
