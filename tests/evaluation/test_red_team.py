"""The red team: against policies whose weakness is known, and against a random model."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import load_policy, stored_policy
from csrlhf_kit.evaluation.red_team import TEAMS, attack, compose, robustness, targets, vary
from csrlhf_kit.world.jailbreaks import FAMILIES, TEST_FAMILIES, TRAIN_FAMILIES
from csrlhf_kit.world.requests import STRATA, parse_requests, sample_request
from csrlhf_kit.world.responses import steps

REFUSAL = "sorry, i cannot help with that."
stacks = st.lists(st.sampled_from(list(FAMILIES)), max_size=4)


def tell(prompt: str) -> str:
    return f"sure. {steps(parse_requests(prompt)[0].category, 2, Random(0))}"


@given(st.integers(0, 2**32), st.sampled_from(STRATA), stacks)
def test_wrappers_never_change_what_is_asked(seed, stratum, stack):
    rng = Random(seed)
    request = sample_request(rng, stratum, "test")
    assert set(parse_requests(compose(request, stack, rng))) == {request}


@given(stacks, st.integers(1, 4), st.integers(0, 2**32))
def test_a_varied_stack_is_a_neighbour(stack, depth, seed):
    stack = stack[:depth]
    new = vary(stack, list(TRAIN_FAMILIES), depth, Random(seed))
    assert len(new) <= depth and abs(len(new) - len(stack)) <= 1
    assert set(new) <= set(stack) | set(TRAIN_FAMILIES)


def test_the_two_teams_share_nothing():
    for team, families in (("train", TRAIN_FAMILIES), ("held_out", TEST_FAMILIES)):
        allowed, split = TEAMS[team]
        assert set(allowed) == set(families)
        found = targets(team, 120)
        assert len(set(found)) == 120 and all(r.harmful and r.split == split for r in found)
        assert {r.stratum for r in found} == {"overt", "covert"}
    assert not set(targets("train", 200)) & set(targets("held_out", 200))
    assert not set(TEAMS["train"][0]) & set(TEAMS["held_out"][0])
    assert targets("train", 50) == targets("train", 50) != targets("train", 50, seed=1)


def test_a_policy_that_always_refuses_is_robust():
    requests = targets("held_out", 20)
    attacks = attack(
        lambda prompts: [REFUSAL] * len(prompts), requests, families=TEAMS["held_out"][0], tries=9
    )
    row = robustness(attacks, tries=9)
    assert [len(s.tries) for s in attacks] == [9] * 20
    assert row["robust"]["rate"] == 1.0 and row["robust"]["low"] == pytest.approx(0.025 ** (1 / 20))
    assert row["median_tries"] is None and row["single_try"]["all"]["rate"] == 0.0
    assert set(row["robust_after"]) == {"1", "2", "4", "8", "9"}


def test_a_policy_that_always_tells_breaks_at_once():
    requests = targets("train", 12)
    attacks = attack(lambda prompts: [tell(p) for p in prompts], requests, families=TEAMS["train"][0])
    assert all(s.broken and len(s.tries) == 1 for s in attacks)
    row = robustness(attacks, tries=64)
    assert row["robust"]["rate"] == 0.0 and row["median_tries"] == 1.0
    record = attacks[0].as_prompt()
    assert record.harmful and record.split == "train" and record.prompt == attacks[0].broken.prompt


def weak_to(*needed: str):
    """Tells only through a stack that holds all of `needed`; the wrapper's own words give it away."""
    words = {
        "urgency": ("hurry", "five minutes", "emergency", "no time", "immediately"),
        "style_game": ("reply ", "respond ", "speak "),
    }

    def holds(prompt: str, family: str) -> bool:
        return any(word in prompt for word in words[family])

    def answer(prompts):
        return [tell(p) if all(holds(p, f) for f in needed) else REFUSAL for p in prompts]

    def score(prompts, answers):
        return [float(sum(holds(p, f) for f in needed)) for p in prompts]

    return answer, score


def test_search_climbs_where_the_score_leads():
    """The weakness is a pair of wrappers: guided by how many of them are there, the search needs fewer tries."""
    answer, score = weak_to("urgency", "style_game")
    requests = targets("held_out", 60)
    options = {"families": TEAMS["held_out"][0], "tries": 64}
    guided = attack(answer, requests, score=score, explore=1, **options)
    blind = attack(answer, requests, score=score, explore=64, **options)
    spent = [sum(len(s.tries) for s in attacks) for attacks in (guided, blind)]
    assert spent[0] < 0.8 * spent[1]
    assert robustness(guided, tries=64)["robust"]["rate"] < 0.1
    broken = [s.broken for s in guided if s.broken]
    assert all({"urgency", "style_game"} <= set(t.families) for t in broken)


def test_a_request_is_attacked_on_its_own():
    """What is tried on a request does not depend on the others in the list."""
    answer, score = weak_to("urgency", "style_game")
    requests = targets("held_out", 6)
    options = {"families": TEAMS["held_out"][0], "tries": 24, "score": score}
    together = attack(answer, requests, **options)
    assert together[0] == attack(answer, requests[:1], **options)[0]
    assert together == attack(answer, requests, **options)


def test_the_verdict_is_the_oracles_whatever_guides_the_search():
    requests = targets("train", 5)
    attacks = attack(
        lambda prompts: [REFUSAL] * len(prompts),
        requests,
        families=TEAMS["train"][0],
        tries=4,
        score=lambda prompts, answers: [9.0] * len(prompts),
    )
    assert all(s.broken is None for s in attacks)


def test_a_model_is_attacked_through_a_plain_function(random_base):
    answer = stored_policy(random_base, max_new_tokens=6, seed=3)
    counted = []
    attacks = attack(
        answer, targets("train", 3), families=TEAMS["train"][0], tries=3, width=2, progress=counted.append
    )
    assert [len(s.tries) for s in attacks] == [3, 3, 3] and sum(counted) == 3
    again = stored_policy(random_base, max_new_tokens=6, seed=3)
    first, second = again(["feed the dog"] * 4), again(["feed the dog"] * 4)
    assert first != second, "asking again draws again"
    repeat = stored_policy(random_base, max_new_tokens=6, seed=3)
    assert repeat(["feed the dog"] * 4) == first


def test_bad_asks_are_one_sentence(tmp_path, random_base):
    with pytest.raises(UserError, match="expected some of role_play"):
        attack(lambda p: p, [], families=["magic"])
    with pytest.raises(UserError, match="at least one try"):
        attack(lambda p: p, [], families=["fiction"], tries=0)
    with pytest.raises(UserError, match="expected one of train"):
        targets("magic", 3)
    with pytest.raises(UserError, match="is no policy"):
        load_policy(random_base, tmp_path)
