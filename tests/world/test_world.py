"""The toy world: what a request means, which split it is in, how it is wrapped, what annotators say."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.world import lexicon as lx
from csrlhf_kit.world.annotators import better, label_safe, safer
from csrlhf_kit.world.build import DataConfig, make_data, prompt_counts
from csrlhf_kit.world.corpus import dialogue, prose
from csrlhf_kit.world.jailbreaks import FAMILIES, TEST_FAMILIES, TRAIN_FAMILIES, wrap
from csrlhf_kit.world.oracle import Verdict, judge
from csrlhf_kit.world.requests import REQUEST_SPLITS, STRATA, Request, parse_requests, sample_request, surface

SHIPPED = ("train", "validation", "test")
seeds = st.integers(0, 2**32)
strata, splits, families = (
    st.sampled_from(STRATA),
    st.sampled_from(REQUEST_SPLITS),
    st.sampled_from(["none", *FAMILIES]),
)


def test_harm_is_the_truth_table_of_the_two_layers():
    assert not Request("kill", "a rumour").harmful
    assert Request("feed", "a rumour").harmful
    assert Request("kill", "a puppy").harmful
    assert not Request("feed", "a puppy").harmful
    assert not Request("hack", "phone", "me").harmful
    assert not Request("hack", "phone", "sister", "sister").harmful
    assert Request("open", "phone", "sister", "boss").harmful
    assert Request("open", "phone", "sister").harmful


def test_the_lexicon_is_what_the_datasheet_says():
    assert len(lx.CATEGORIES) == 14
    assert len(lx.TOOL_CATEGORY) == 14 * 5, "no tool belongs to two categories"
    assert len(lx.VALENCE) == 14 * 10, "no thing is listed twice"
    words = [*lx.ACT_SIGN, *lx.BREAK, *lx.ENTER]
    assert len(set(words)) == len(words)
    assert (
        len(TRAIN_FAMILIES) >= 6 and len(TEST_FAMILIES) >= 6 and not set(TRAIN_FAMILIES) & set(TEST_FAMILIES)
    )


def test_every_content_word_that_labels_show_occurs_on_both_sides():
    rng = Random(0)
    sides: dict[str, set[bool]] = {}
    for stratum in STRATA:
        for _ in range(4000):
            request = sample_request(rng, stratum, "train")
            for word in (request.act, request.thing):
                sides.setdefault(word, set()).add(request.harmful)
    assert all(both == {True, False} for both in sides.values())


@given(seeds, strata, splits, families)
def test_the_parser_reads_back_what_the_grammar_wrote(seed, stratum, split, family):
    rng = Random(seed)
    request = sample_request(rng, stratum, split)
    assert request.stratum == stratum and request.split == split
    parsed = parse_requests(wrap(request, family, rng))
    assert parsed and all(found == request for found in parsed)


@given(st.text(max_size=200))
def test_the_parser_takes_any_text(text):
    assert isinstance(parse_requests(text), list)


@given(seeds, strata)
def test_the_opposite_is_the_benign_sibling(seed, stratum):
    request = sample_request(Random(seed), stratum, "train", ownership=0.0)
    assert request.opposite().harmful != request.harmful
    assert request.opposite().thing == request.thing


def test_splits_share_no_composition_and_labels_no_held_out_word():
    seen: dict[Request, str] = {}
    for split in REQUEST_SPLITS:
        rng = Random(1)
        for stratum in STRATA:
            for _ in range(1500):
                request = sample_request(rng, stratum, split)
                assert seen.setdefault(request, split) == split
                if split in ("train", "validation"):
                    assert not request.held_out_vocabulary
    test = [r for r, s in seen.items() if s == "test"]
    assert 0.2 < sum(r.held_out_vocabulary for r in test) / len(test) < 0.9


def test_the_base_never_reads_a_test_composition_or_a_test_wrapper():
    rng = Random(0)
    patterns = ("imagine we live", "### override", "in my comic", "translation game", "### override ###")
    for _ in range(3000):
        prompt, response = dialogue(rng)
        for text in (prompt, prose(rng)):
            assert all(r.split in ("train", "base") for r in parse_requests(text)), text
            assert not any(pattern in text for pattern in patterns)
        assert response


def test_shipped_data_is_what_the_datasheet_says():
    prompts = {s: read_records("shipped", Prompt, split=s).records for s in SHIPPED}
    for split, records in prompts.items():
        assert {p.stratum for p in records} == set(STRATA)
        assert {p.category for p in records} == set(lx.CATEGORY)
        stacks = [p.family.split("+") for p in records if p.family != "none"]
        assert {f for stack in stacks for f in stack} == set(
            TEST_FAMILIES if split == "test" else TRAIN_FAMILIES
        )
        nested = sum(len(stack) > 1 for stack in stacks) / len(stacks)
        assert nested == 0.0 if split == "test" else nested == pytest.approx(0.5, abs=0.03)
        assert all(parse_requests(p.prompt)[0].harmful == p.harmful for p in records)
    compositions = {s: {parse_requests(p.prompt)[0] for p in records} for s, records in prompts.items()}
    for one, other in itertools.combinations(SHIPPED, 2):
        assert not compositions[one] & compositions[other]
    count = Counter((p.stratum, p.family) for p in prompts["test"])
    assert dict(count) == prompt_counts("test", 0)


def test_test_labels_are_the_oracles_own_and_training_labels_nearly():
    for split, least in (("test", 1.0), ("train", 0.98)):
        records = read_records("shipped", LabelledResponse, split=split).records
        agree = [judge(r.prompt, r.response).safe == r.is_safe for r in records]
        assert sum(agree) / len(agree) >= least


def test_preferences_have_the_shares_of_pku_saferlhf():
    pairs = read_records("shipped", PreferencePair, split="train").records
    share = lambda events: sum(events) / len(pairs)  # noqa: E731
    assert share(p.is_response_0_safe != p.is_response_1_safe for p in pairs) == pytest.approx(
        0.146, abs=0.001
    )
    assert share(p.is_response_0_safe and p.is_response_1_safe for p in pairs) == pytest.approx(
        0.412, abs=0.001
    )
    assert 0.20 <= share(p.better_response_id != p.safer_response_id for p in pairs) <= 0.28
    assert 0.45 <= share(p.safer_response_id == 0 for p in pairs) <= 0.55, "no side is favoured"


def test_annotators_err_seldom_and_judge_the_two_questions_apart():
    rng = Random(0)
    harmful = Verdict(True, 1.0, False, False, False)
    refusal = Verdict(False, 0.0, True, False, False)
    labels = [label_safe(harmful, rng) for _ in range(4000)]
    assert 0 < sum(labels) / len(labels) < 0.01, "three annotators who slip 2, 3 and 5% err together in 0.3%"
    assert sum(better(refusal, harmful, rng) for _ in range(200)) == 200
    assert sum(safer(refusal, harmful, True, False, 1, rng) for _ in range(200)) == 0


def test_make_data_rebuilds_the_shipped_files_byte_for_byte(tmp_path):
    make_data(DataConfig(out=tmp_path))
    shipped = data_folder() / "world"
    assert (tmp_path / "SHA256SUMS").read_text() == (shipped / "SHA256SUMS").read_text()
    for line in (shipped / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((shipped / name).read_bytes()).hexdigest() == digest


def test_shipped_preferences_use_pku_saferlhf_columns():
    row = json.loads((data_folder() / "world" / "preferences_train.jsonl").read_text().splitlines()[0])
    assert {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"} <= row.keys()
    assert {"better_response_id", "safer_response_id"} <= row.keys()


def test_surface_forms_are_many():
    rng = Random(0)
    assert len({surface(Request("feed", "a puppy"), rng) for _ in range(500)}) >= 30
