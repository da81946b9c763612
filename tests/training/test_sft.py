"""Supervised fine-tuning: only the response is learnt, and the result is a plain causal language model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from example_prompts import rendered
from peft import PeftModel
from transformers import AutoModelForCausalLM

from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.recipes.sft import _dialogues, run_sft, told
from csrlhf_kit.training.sft import (
    IGNORED,
    SFTConfig,
    collate,
    response_loss,
    response_rows,
    train_sft,
)
from csrlhf_kit.training.supervised import EpochTrainer

DIALOGUES = [
    LabelledResponse(f"how do i open the lock {index}", "sure , take a small tool and turn it slowly", True)
    for index in range(48)
]


def quick(base: Path, out: Path, **options: Any) -> SFTConfig:
    chosen = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "rank": 4, "progress": False, **options}
    return SFTConfig(base=str(base), out=str(out), **chosen)


def test_labels_are_the_response_and_its_end(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base)
    row = response_rows(tokenizer, DIALOGUES[:1], max_length=64)[0]
    learnt = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learnt) == DIALOGUES[0].response + tokenizer.eos_token
    prompt = row["input_ids"][: len(row["input_ids"]) - len(learnt)]
    assert tokenizer.decode(prompt) == rendered(tokenizer, DIALOGUES[0].prompt)
    assert row["labels"] == [IGNORED] * len(prompt) + learnt
    assert row["input_ids"][len(prompt) :] == learnt


def test_dialogues_without_a_prompt_left_are_dropped(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base)
    size = len(tokenizer(DIALOGUES[0].response)["input_ids"]) + 1
    size += len(tokenizer(rendered(tokenizer, ""))["input_ids"])  # the template stays
    assert response_rows(tokenizer, DIALOGUES[:2], max_length=size) == []
    rows = response_rows(tokenizer, DIALOGUES[:2], max_length=size + 2)
    assert [row["cut"] for row in rows] == [1, 1]
    assert tokenizer.decode(rows[0]["input_ids"]).startswith("<|user|> ")


def test_loss_against_token_by_token_log_probabilities(random_base: Path) -> None:
    """Both the reported loss and the one that is descended, on rows of different lengths."""
    tokenizer, model = load_tokenizer(random_base), load_base(random_base)
    some = [DIALOGUES[0], replace(DIALOGUES[1], response="no"), replace(DIALOGUES[2], prompt="a dog")]
    rows = response_rows(tokenizer, some, max_length=64)
    total, count = 0.0, 0
    for row in rows:
        with torch.inference_mode():
            log_probs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)  # (length, words)
        for position, label in enumerate(row["labels"]):
            if label != IGNORED:
                total -= log_probs[position - 1, label].item()
                count += 1
    assert response_loss(model, tokenizer, rows, batch_size=2) == pytest.approx(total / count, rel=1e-5)
    batch = collate(rows, tokenizer.pad_token_id)
    with torch.inference_mode():
        assert model(**batch).loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_training_learns_the_response_and_saves_plainly(
    random_base: Path, tmp_path: Path, adaptation: str
) -> None:
    tokenizer = load_tokenizer(random_base)
    rows = response_rows(tokenizer, DIALOGUES[:8], max_length=64)
    before = response_loss(load_base(random_base), tokenizer, rows)
    config = quick(random_base, tmp_path / "sft", adaptation=adaptation)
    report = train_sft(config, DIALOGUES, DIALOGUES[:8])
    assert report["validation_loss"] < 0.6 * before
    if adaptation == "lora":
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(random_base), config.out)
        assert (tmp_path / "sft" / "adapter_model.safetensors").exists()
    else:
        plain = AutoModelForCausalLM.from_pretrained(config.out)
    assert response_loss(plain, tokenizer, rows) == pytest.approx(report["validation_loss"], abs=1e-5)
    assert json.loads((tmp_path / "sft" / "sft.json").read_text())["rows"] == 48
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft"]  # no checkpoint stays behind


def test_resume_ends_where_an_uninterrupted_run_ends(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(random_base, tmp_path / "a", checkpoint_seconds=0.0)
    whole = train_sft(config, DIALOGUES, DIALOGUES[:8])["validation_loss"]
    original, steps = EpochTrainer.compute_loss, 0

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(EpochTrainer, "compute_loss", failing)
    config = replace(config, out=str(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        train_sft(config, DIALOGUES, DIALOGUES[:8])
    report = train_sft(replace(config, resume=True), DIALOGUES, DIALOGUES[:8])
    assert steps == 9 + 4  # twelve steps in all; the ninth was not finished
    assert report["validation_loss"] == whole


def test_the_command_reads_a_file_and_can_keep_to_safe_rows(random_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": r.prompt, "response": r.response, "label": "Safe" if i % 3 else "Unsafe"}
        for i, r in enumerate(DIALOGUES)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = quick(random_base, tmp_path / "sft", data=str(data), safe_only=True, epochs=1)
    assert run_sft(config)["rows"] == sum(i % 3 > 0 for i in range(48))
    assert run_sft(replace(config, safe_only=False))["rows"] == 48


def test_the_sources_own_validation_split_is_held_out(random_base: Path, tmp_path: Path) -> None:
    """Not only of the shipped data, whatever it is called, and without the prompts that were learnt."""
    lines = [
        {
            "prompt": r.prompt,
            "response": r.response,
            "is_safe": True,
            "split": "dev" if i % 3 == 0 else "train",
        }
        for i, r in enumerate(DIALOGUES)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**lines[1], "split": "dev"}]))
    config = quick(random_base, tmp_path / "sft", data=str(data), epochs=1)
    report = run_sft(config)
    assert report["rows"] == 32 and report["validation_loss"] > 0
    train, held_out = _dialogues(config)
    assert len(held_out) == 16 and not {r.prompt for r in train} & {r.prompt for r in held_out}
    data.write_text("".join(json.dumps({**line, "split": ""}) + "\n" for line in lines))
    assert run_sft(config)["validation_loss"] is None
    train, held_out = _dialogues(replace(config, data="shipped"))
    assert (len(train), len(held_out)) == (8000, 1000)


def test_errors_are_sentences(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_length: found 4"):
        train_sft(quick(random_base, tmp_path / "x", max_length=4), DIALOGUES)
    with pytest.raises(UserError, match="4-bit"):
        train_sft(quick(random_base, tmp_path / "x", adaptation="full", quantization="nf4"), DIALOGUES)
    with pytest.raises(UserError, match="learning-rate"):
        train_sft(quick(random_base, tmp_path / "x", adaptation="full", learning_rate=1e30), DIALOGUES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other things"):
        train_sft(quick(random_base, tmp_path / "mine"), DIALOGUES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_was_left_out_is_told_with_its_reason():
    report = {"rows": 31, "dropped": 473, "train_loss": 1.5, "validation_loss": None, "seconds": 2.0}
    text = told(SFTConfig(max_length=64), report)
    assert "Learnt from 31 dialogues" in text and "1.500 nats" in text and "runs/sft" in text
    assert "473 more were left out, since --max-length 64 leaves no room for their prompt" in text
    assert "validation" not in text
    assert "left out" not in told(SFTConfig(), report | {"dropped": 0, "validation_loss": 1.0})
