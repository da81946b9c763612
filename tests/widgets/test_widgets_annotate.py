"""Labelling: what is on disk when, what survives a killed process, and what comes out of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from csrlhf_kit import files
from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.agreement import cohen_kappa
from csrlhf_kit.evaluation.results import read_recorded
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.widgets import annotate
from csrlhf_kit.widgets.annotate import task_html
from csrlhf_kit.widgets.labels import (
    Judgement,
    Labels,
    Pair,
    agreement_now,
    disagreements,
    export,
    judgements,
    pairs_of_samples,
    preference_pairs,
    unsafe_counts,
)

HOSTILE = "<script>alert(1)</script> **x**"
PAIRS = [Pair(f"request {i}", f"yes {i}", f"no {i}", "a", "b") for i in range(12)]


def label(labels: Labels, choose) -> None:
    """Answer everything that is open; `choose(task)` says whether the first choice holds."""
    while (task := labels.task()) is not None:
        labels.answer(task, choose(task))


def truth(task) -> bool:
    """`no` is safe, `yes` is not; `yes` is more helpful."""
    texts = (task.pair.response_0, task.pair.response_1)
    left, right = texts[task.left], texts[1 - task.left]
    if task.question == "safe_left":
        return left.startswith("no")
    if task.question == "safe_right":
        return right.startswith("no")
    return left.startswith("yes")


# --- the journal ---


def test_a_torn_line_costs_no_other_line(tmp_path):
    path = tmp_path / "deep" / "x.jsonl"
    files.append(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2, "half')
    files.append(path, {"n": 3, "text": "\n\ud800"})
    assert [row["n"] for row in files.read(path)] == [1, 3]
    assert files.read(tmp_path / "none") == []


def _write_many(path, who):
    for n in range(200):
        files.append(path, {"who": who, "n": n, "text": "x" * (n * 7 % 300)})


def test_writers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path / "x.jsonl", who)) for who in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = files.read(tmp_path / "x.jsonl")
    assert Counter(row["who"] for row in rows) == {0: 200, 1: 200}
    assert [row["n"] for row in rows if row["who"] == 1] == list(range(200))


# --- labelling ---


def test_every_answer_is_on_disk_at_once_and_a_new_session_goes_on_at_the_very_question(tmp_path):
    labels = Labels(tmp_path, PAIRS, "ann")
    for clicks in range(1, 7):
        task = labels.task()
        labels.answer(task, truth(task))
        assert len(files.read(labels.path)) == clicks
        assert Labels(tmp_path, list(reversed(PAIRS)), "ann").task() == labels.task()


def test_a_killed_process_loses_no_answer(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from csrlhf_kit.widgets.labels import Labels, Pair\n"
        "labels = Labels(sys.argv[1], [Pair(f'request {i}', f'yes {i}', f'no {i}') for i in range(12)], 'ann')\n"
        "for _ in range(7): labels.answer(labels.task(), True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == -signal.SIGKILL
    assert len(Labels(tmp_path, PAIRS, "ann").clicks) == 7


def test_the_judgements_are_those_that_were_meant_whatever_side_an_answer_stood_on(tmp_path):
    label(Labels(tmp_path, PAIRS, "ann"), truth)
    found = judgements(tmp_path)
    assert {(j.safe, j.better, j.safer) for j in found} == {((False, True), 0, 1)} and len(found) == len(
        PAIRS
    )


def test_sides_and_order_are_drawn_for_each_annotator(tmp_path):
    people = [Labels(tmp_path, PAIRS, name) for name in ("ann", "bob")]
    assert people[0].order != people[1].order
    for labels in people:
        assert {labels.left(pair.id) for pair in PAIRS} == {0, 1}
    assert Labels(tmp_path, PAIRS, "ann", seed=1).order != people[0].order


def test_equal_safety_is_asked_about_and_unequal_safety_is_not(tmp_path):
    asked = []

    def both_safe(task):
        asked.append(task.question)
        return True

    label(Labels(tmp_path / "both", PAIRS[:1], "ann"), both_safe)
    assert asked == ["safe_left", "safe_right", "better", "safer"]
    asked.clear()
    label(
        Labels(tmp_path / "one", PAIRS[:1], "ann"), lambda task: (asked.append(task.question), truth(task))[1]
    )
    assert asked == ["safe_left", "safe_right", "better"]


def test_taking_back_is_a_line_and_reopens_the_question(tmp_path):
    labels = Labels(tmp_path, PAIRS[:2], "ann")
    assert not labels.undo()
    label(labels, truth)
    before = len(files.read(labels.path))
    assert labels.undo() and len(files.read(labels.path)) == before + 1
    assert labels.task().question == "better" and labels.progress() == (1, 2)
    again = Labels(tmp_path, PAIRS[:2], "ann")
    assert again.task() == labels.task()
    for _ in range(5):
        again.undo()
    assert again.progress() == (0, 2) and not again.undo()


def test_lines_that_are_no_answer_are_ignored(tmp_path):
    labels = Labels(tmp_path, PAIRS[:1], "ann")
    for row in ({}, {"pair": 3}, {"pair": PAIRS[0].id, "question": "better", "answer": 2},
                {"pair": PAIRS[0].id, "question": "safe_0", "answer": 1}, {"undo": True}):  # fmt: skip
        files.append(labels.path, row)
    assert Labels(tmp_path, PAIRS[:1], "ann").clicks == [] and judgements(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 41])
def test_a_name_that_makes_no_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="annotator"):
        Labels(tmp_path, PAIRS, name)


def test_no_pair_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pair"):
        Labels(tmp_path, [], "ann")


# --- what comes out ---


def test_agreement_is_that_of_the_labels(tmp_path):
    label(Labels(tmp_path, PAIRS, "ann"), truth)
    label(Labels(tmp_path, PAIRS, "bob"), lambda task: truth(task) != (task.pair == PAIRS[0]))
    told = agreement_now(judgements(tmp_path))
    reference = cohen_kappa([1, 0] * 12, [0, 1, *[1, 0] * 11])
    assert told["unsafe"]["kappa"] == {"ann | bob": (pytest.approx(reference), 24)}
    assert 0 < told["unsafe"]["alpha"] < 1 and told["better"]["items"] == 12


def test_the_cost_model_is_held_against_the_labels():
    found = [
        Judgement(PAIRS[0].id, "ann", (False, True), 0, 1),
        Judgement(PAIRS[1].id, "ann", (True, True), 0, 1),
    ]
    pairs = {pair.id: pair for pair in PAIRS}
    count, against = disagreements(found, pairs, {PAIRS[0].id: (2.0, 0.5), PAIRS[1].id: (-1.0, 3.0)})
    assert count == 4 and [(row[0], row[1]) for row in against] == [(PAIRS[1], 1), (PAIRS[0], 1)]


def test_the_export_is_read_back_by_the_kits_own_reader(tmp_path):
    label(Labels(tmp_path, PAIRS, "ann"), truth)
    label(Labels(tmp_path, PAIRS[:3], "bob"), truth)
    assert export(tmp_path, PAIRS, tmp_path / "out.jsonl", majority=True) == 12
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    pku = {
        "prompt",
        "response_0",
        "response_1",
        "is_response_0_safe",
        "is_response_1_safe",
        "better_response_id",
    }
    assert pku | {"safer_response_id"} <= row.keys()
    records = read_records(tmp_path / "out.jsonl", PreferencePair).records
    assert len(records) == 12 and all(r.better_response_id == 0 and r.safer_response_id == 1 for r in records)
    labelled = read_records(tmp_path / "out.jsonl", LabelledResponse).records
    assert all(r.is_safe == r.response.startswith("no") for r in labelled) and len(labelled) == 24
    with pytest.raises(UserError, match="no complete"):
        export(tmp_path / "empty", PAIRS, tmp_path / "o.jsonl")


def test_a_majority_settles_and_ties_are_left_out():
    pairs = {pair.id: pair for pair in PAIRS}
    one, other = (
        Judgement(PAIRS[0].id, n, s, 0, int(s[1])) for n, s in (("a", (False, True)), ("b", (True, False)))
    )
    assert preference_pairs([one, other], pairs, majority=True) == []
    assert len(preference_pairs([one, other], pairs)) == 2
    settled = preference_pairs([one, other, one], pairs, majority=True)
    assert len(settled) == 1 and settled[0].is_response_1_safe and settled[0].safer_response_id == 1


def test_counts_feed_certify(tmp_path):
    label(Labels(tmp_path, PAIRS, "ann"), truth)
    counts = unsafe_counts(judgements(tmp_path), {pair.id: pair for pair in PAIRS})
    assert counts == {"a": (12, 12), "b": (0, 12)}
    assert clopper_pearson(*counts["b"]).high < 0.3


def test_pairs_of_recorded_policies_leave_equal_answers_out():
    said = lambda a, b: {"prompt": "p", "responses": {"x": {"text": a}, "y": {"text": b}}}  # noqa: E731
    pairs = pairs_of_samples([said("1", "2"), said("1", "1"), said(" ", "1"), {"prompt": "p"}], "x", "y")
    assert pairs == [Pair("p", "1", "2", "x", "y")]


def test_the_shipped_pairs_differ_and_half_of_them_hold_an_unsafe_answer():
    recorded = read_recorded()
    pairs = pairs_of_samples(recorded.samples)
    verdicts = {sample["prompt"]: sample["responses"] for sample in recorded.samples}
    unsafe = [any(verdicts[p.prompt][s]["harmful"] for s in (p.source_0, p.source_1)) for p in pairs]
    assert len(pairs) >= 6 and 1 / 3 <= sum(unsafe) / len(pairs) <= 2 / 3
    assert all(p.response_0 != p.response_1 for p in pairs)
    jailbroken = {s["prompt"] for s in recorded.samples if s.get("family", "none") != "none"}
    assert jailbroken and not jailbroken & {p.prompt for p in pairs}


# --- the widget ---


def test_texts_are_shown_letter_by_letter_and_sources_not_at_all(tmp_path):
    hostile = [Pair(HOSTILE, HOSTILE + "0", HOSTILE + "1", "secret", "secret")]
    shown = "".join(task_html(Labels(tmp_path, hostile, "ann").task()))
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 3 and "secret" not in shown
    twin = annotate(hostile, folder=tmp_path, static=True)._repr_mimebundle_()
    assert "<script" not in twin["text/html"] and "secret" not in twin["text/plain"]
    assert not list(tmp_path.glob("labels-*")), "looking writes nothing"


def test_keys_and_buttons_label_and_the_agreement_follows(tmp_path):
    label(Labels(tmp_path, PAIRS[:3], "bob"), truth)
    shown = annotate(
        PAIRS[:3], folder=tmp_path, annotator="ann", cost=lambda p, r: [1.0] * len(r), static=False
    )
    _, _, _, buttons, keys, agreement = shown.root.children
    for _ in range(30):
        keys._handle_custom_msg({"key": "1"}, [])
    assert len(judgements(tmp_path)) == 6 and buttons.children[0].disabled
    assert "κ(ann | bob)" in agreement.value and "contradicts" in agreement.value
    buttons.children[2].click()
    assert len(judgements(tmp_path)) == 5 and "Taken back" in keys.hint
    buttons.children[1].click()
    assert len(judgements(tmp_path)) == 6
    shown.close()


def test_what_the_disk_refuses_is_said_and_nothing_moves_on(tmp_path, monkeypatch):
    shown = annotate(PAIRS, folder=tmp_path, static=False)
    question, *_, keys, _ = shown.root.children
    before = question.value

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("csrlhf_kit.widgets.labels.append", full)
    keys._handle_custom_msg({"key": "1"}, [])
    assert "NOT STORED: no space left" in keys.hint and question.value == before
    shown.close()
