"""Answers as digits in a policy's row: what is packed is unpacked, and its means are the row's own figures."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.evaluation.outcomes import MEASURES, pack_outcomes, read_outcomes
from csrlhf_kit.evaluation.safety import judge_all, summarise
from csrlhf_kit.world.jailbreaks import wrap
from csrlhf_kit.world.oracle import Verdict, judge
from csrlhf_kit.world.requests import STRATA, sample_request
from csrlhf_kit.world.responses import RESPONSE_KINDS, respond


def answered(seed: int, count: int = 60) -> tuple[list[Prompt], list[str]]:
    """Prompts of every stratum, some wrapped, with answers of every kind."""
    rng, prompts, answers = Random(seed), [], []
    for place in range(count):
        request = sample_request(rng, STRATA[place % len(STRATA)], "test")
        family = "urgency" if request.harmful and place % 3 == 0 else "none"
        told = {"stratum": request.stratum, "family": family, "harmful": request.harmful}
        prompts.append(Prompt(wrap(request, family, rng), **told))
        answers.append(respond(request, rng.choice(tuple(RESPONSE_KINDS)), rng))
    return prompts, answers


@pytest.mark.parametrize("seed", range(5))
def test_the_means_of_the_digits_are_the_rows_figures(seed):
    prompts, answers = answered(seed)
    judged = judge_all(prompts, answers)
    row = summarise(prompts, judged)
    stored = json.loads(json.dumps(row | {"outcomes": pack_outcomes(prompts, judged)}))
    for name in MEASURES:
        found = read_outcomes([stored], name)
        assert found.values.shape[0] == 1 and ((found.values >= 0) & (found.values <= 1)).all()
        expected = row[name] if name == "helpfulness" else row[name]["rate"]
        assert found.values.mean() == pytest.approx(expected, abs=1e-12)


judgements = st.builds(
    Verdict,
    st.booleans(),
    st.integers(0, 8).map(lambda k: k / 8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
ASKED = [
    Prompt("a", stratum="plain", harmful=False),
    Prompt("b", stratum="benign_alarming", harmful=False),
    Prompt("c", stratum="covert", harmful=True),
    Prompt("d", stratum="overt", harmful=True, family="urgency"),
]


@given(st.lists(st.tuples(judgements, judgements, judgements, judgements), min_size=1, max_size=4))
def test_unpack_undoes_pack(seeds):
    rows = [{"outcomes": pack_outcomes(ASKED, given)} for given in seeds]
    for name, read in {
        "harmful_nominal": lambda j: [j[2].harmful],
        "harmful_jailbreak": lambda j: [j[3].harmful],
        "over_refusal": lambda j: [j[1].refused],
        "helpfulness": lambda j: [j[0].helpfulness, j[1].helpfulness],
    }.items():
        np.testing.assert_array_equal(read_outcomes(rows, name).values, [read(given) for given in seeds])


def test_rows_pair_only_on_the_same_prompts_and_old_rows_not_at_all():
    fine = Verdict(False, 0.5, False, False, False)
    here, there = pack_outcomes(ASKED, [fine] * 4), pack_outcomes(ASKED[::-1], [fine] * 4)
    assert here["prompts"] != there["prompts"] and len(here["prompts"]) == 12
    assert read_outcomes([{"outcomes": here}] * 2, "helpfulness").prompts == here["prompts"]
    assert read_outcomes([{"outcomes": here}, {"outcomes": there}], "helpfulness") is None
    assert (
        read_outcomes([{"outcomes": here}, {}], "helpfulness") is None
        and read_outcomes([{}], "helpfulness") is None
    )


def test_every_grade_of_the_oracle_fits_in_a_digit_and_nothing_else_does():
    for seed in range(3):
        prompts, answers = answered(seed)
        grades = {
            8 * judge(p.prompt, f"i cannot. {a}").helpfulness for p, a in zip(prompts, answers, strict=True)
        }
        assert grades <= set(range(9))
    odd = Verdict(False, 0.3, False, False, False)
    with pytest.raises(ValueError, match="helpfulness: a value is no multiple of 1/8"):
        pack_outcomes(ASKED, [odd] * 4)
