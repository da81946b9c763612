"""benchmarks/real/blind.py: labels given through the widget's own storage meet the judge's verdicts, without texts."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks.real import page
from benchmarks.real.blind import BlindConfig, pairs_to_label, run_blind
from benchmarks.real.config import RealConfig
from benchmarks.real.prompts import Asked
from csrlhf_kit.errors import UserError
from csrlhf_kit.widgets.labels import Labels


@pytest.fixture
def run(tmp_path):
    """A finished run of three policies: in each harmful answer of `base` and `start` is the word unsafe."""
    out = tmp_path / "run"
    strata = ["harmful", "wrapped", "alarming", "plain"]
    asked = [Asked(f"request {i}", f"request {i}?", strata[i % 4]) for i in range(24)]
    (out / "rows").mkdir(parents=True)
    (out / "stages").mkdir()
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in asked)
    (out / "rows" / "prompts_test.jsonl").write_text(lines)
    (out / "config.json").write_text('{"seed": 3}')
    harmful = [a.stratum in ("harmful", "wrapped") for a in asked]
    said = {
        name: [f"{name}: {'unsafe' if inside else 'fine'} {i}" for i, inside in enumerate(harmful)]
        for name in ("base", "start")
    } | {
        "fixed_penalty": [f"sorry {i}" for i in range(24)],
    }
    verdicts = {name: {"harm": [int("unsafe" in text) for text in texts]} for name, texts in said.items()}
    for name, texts in said.items():
        (out / "stages" / f"{name}.json").write_text(json.dumps({"answers": texts}))
    (out / "stages" / "verdicts.json").write_text(json.dumps(verdicts))
    return RealConfig(out=out, seed=3, methods=("fixed_penalty",))


def label(run, folder, annotator, is_safe) -> None:
    """Answer every question of the widget, which shows the answers without their policies."""
    work = Labels(folder, pairs_to_label(run), annotator)
    while (task := work.task()) is not None:
        side = task.left if task.question.endswith("left") else 1 - task.left
        text = (task.pair.response_0, task.pair.response_1)[side]
        work.answer(task, is_safe(text) if task.question.startswith("safe_") else True)


def test_labels_and_judge_side_by_side(run, tmp_path, capsys):
    folder, record = tmp_path / "labels", tmp_path / "record"
    label(run, folder, "ann", lambda text: "unsafe" not in text)
    label(run, folder, "bob", lambda text: True)
    found = run_blind(BlindConfig(run.out, folder, record))
    texts = [text for pair in pairs_to_label(run) for text in (pair.response_0, pair.response_1)]
    unsafe = sum("unsafe" in text for text in texts) / 48
    assert (
        found["answers"] == len(texts) == 48
        and 0.25 <= unsafe < 0.5
        and found["annotators"] == ["ann", "bob"]
    )
    assert found["agreement"]["pairs"]["ann | the judge"]["cohen"]["value"] == 1
    assert found["agreement"]["pairs"]["ann | the judge"]["agreement"]["value"] == 1
    assert found["agreement"]["pairs"]["bob | the judge"]["agreement"]["value"] == pytest.approx(1 - unsafe)
    assert found["on_harmful_requests"]["items"] == 24
    assert found["unsafe"]["ann"]["rate"] == pytest.approx(unsafe) and found["unsafe"]["bob"]["rate"] == 0
    text = (record / "blind.json").read_text()
    assert "request" not in text.replace("on_harmful_requests", "") and "sorry" not in text
    told = page._blind(found)
    assert "48 answers" in told and "| ann and the judge | 1.000" in told
    assert "48 answers" in capsys.readouterr().out


def test_pairs_are_of_different_policies_and_mostly_on_harmful_requests(run):
    pairs = pairs_to_label(run, 10)
    assert len(pairs) == 10 and pairs == pairs_to_label(run, 10)
    assert all(pair.source_0.split("/")[0] != pair.source_1.split("/")[0] for pair in pairs)
    assert sum("unsafe" in pair.response_0 + pair.response_1 for pair in pairs) == 8


def test_what_is_missing_is_said_in_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match="no pair is labelled"):
        run_blind(BlindConfig(run.out, tmp_path / "labels", tmp_path / "record"))
    with pytest.raises(UserError, match="no such run"):
        run_blind(BlindConfig(tmp_path, tmp_path / "labels", tmp_path / "record"))
    run.stage_path("verdicts").unlink()
    with pytest.raises(UserError, match="no verdicts yet"):
        pairs_to_label(run)
