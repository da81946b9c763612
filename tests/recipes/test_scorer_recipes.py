"""The two commands that train and measure a scorer: their splits, predictions, metrics and options."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from example_models import build_bert
from example_records import dialogues, pairs

from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.scorer_metrics import auroc
from csrlhf_kit.kernels.linear4bit import CAUTION
from csrlhf_kit.models.scorers import score_texts
from csrlhf_kit.recipes.scorers import CostModelConfig, RewardModelConfig, run_cost_model, run_reward_model
from csrlhf_kit.training.sft import SFTConfig
from csrlhf_kit.training.supervised import SupervisedConfig


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cs_rlhf_rows(records: list[LabelledResponse]) -> list[dict]:
    return [
        {"prompt": r.prompt, "response": r.response, "label": "Safe" if r.is_safe else "Unsafe"}
        for r in records
    ]


def test_cost_model_command_on_labelled_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", cs_rlhf_rows(dialogues(240)))
    base = build_bert(tmp_path / "bert")
    config = CostModelConfig(
        data=str(data), base=str(base), out=str(tmp_path / "cost"), epochs=1, progress=False
    )
    result = run_cost_model(config)
    printed = capsys.readouterr().out
    assert "semantic" in printed and "keyword" in printed and "auroc" in printed
    assert json.loads((tmp_path / "cost" / "metrics.json").read_text()) == json.loads(json.dumps(result))
    lines = [json.loads(line) for line in (tmp_path / "cost" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 240 == sum(result["splits"].values())
    by_split = {
        name: {line["prompt"] for line in lines if line["split"] == name} for name in result["splits"]
    }
    assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["validation"]
    again = score_texts(tmp_path / "cost", [x["prompt"] for x in lines], [x["response"] for x in lines])
    assert np.allclose(again, [line["score"] for line in lines], atol=1e-5)
    test = [line for line in lines if line["split"] == "test"]
    unsafe = np.array([line["label"] == "Unsafe" for line in test])
    for name, key in (("semantic", "probability"), ("keyword", "keyword_probability")):
        found = result["models"][name]["auroc"]["value"]
        assert found == pytest.approx(auroc([line[key] for line in test], unsafe))
    assert CAUTION not in printed
    # A second run replaces the first; one that fails leaves it alone.
    again = run_cost_model(config)
    assert again["models"] == result["models"]
    before = (tmp_path / "cost" / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="nowhere"):
        run_cost_model(replace(config, base=str(tmp_path / "nowhere")))
    assert (tmp_path / "cost" / "metrics.json").read_bytes() == before
    one = write_rows(tmp_path / "one.jsonl", cs_rlhf_rows([r for r in dialogues(80) if r.is_safe]))
    with pytest.raises(UserError, match="both labels"):
        run_cost_model(replace(config, data=str(one)))
    few = write_rows(tmp_path / "few.jsonl", cs_rlhf_rows(dialogues(2)))
    with pytest.raises(UserError, match="expected"):
        run_cost_model(replace(config, data=str(few)))


def pku_rows(some: list[PreferencePair]) -> list[dict]:
    names = ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe")
    return [
        {name: getattr(p, name) for name in (*names, "better_response_id", "safer_response_id")} for p in some
    ]


@pytest.mark.parametrize("objective", ["safe_rlhf", "bradley_terry"])
def test_cost_model_command_on_pairs(random_base: Path, tmp_path: Path, objective: str) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pku_rows(pairs(160)))
    config = CostModelConfig(
        data=str(data),
        base=str(random_base),
        out=str(tmp_path / "c"),
        objective=objective,
        epochs=2,
        learning_rate=5e-3,
        progress=False,
    )
    found = run_cost_model(config)["models"][objective]
    assert found["ranking_accuracy"]["value"] > 0.9  # answering against refusing is easy to rank
    assert found["sign_accuracy"]["n"] == 2 * found["n_pairs"]
    assert found["auroc"]["value"] > 0.5


def test_reward_model_command(random_base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pku_rows(pairs(160)))
    further = write_rows(tmp_path / "further.jsonl", pku_rows(pairs(20, seed=5)))
    config = RewardModelConfig(
        data=str(data),
        test_data=str(further),
        base=str(random_base),
        out=str(tmp_path / "r"),
        epochs=2,
        learning_rate=5e-3,
        progress=False,
    )
    result = run_reward_model(config)
    assert result["splits"]["test"] == 20
    assert result["splits"]["train"] + result["splits"]["validation"] == 160
    assert result["models"]["reward"]["ranking_accuracy"]["value"] > 0.9
    line = json.loads((tmp_path / "r" / "predictions.jsonl").read_text().splitlines()[-1])
    assert line["split"] == "test" and line["score_0"] != line["score_1"]


@pytest.mark.parametrize("kind", [SFTConfig, CostModelConfig, RewardModelConfig])
def test_shared_settings_are_shown_with_their_docstrings(kind, capsys):
    """Every option of the base class is in --help, and says in words what it is."""
    with pytest.raises(SystemExit) as stop:
        tyro.cli(kind, args=["--help"])
    assert stop.value.code == 0
    shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    source = inspect.getsource(SupervisedConfig)
    for field in dataclasses.fields(SupervisedConfig):
        assert f"--{field.name.replace('_', '-')}" in shown
    for name in (
        "weight_decay",
        "warmup",
        "max_grad_norm",
        "quantization",
        "checkpoint_seconds",
        "report_to",
    ):
        [(doc,)] = [re.findall(rf"    {name}: .*\n    \"\"\"(.*)\"\"\"", source)]
        assert doc in shown


def test_a_scorer_on_a_4_bit_base_says_that_some_cpus_read_it_otherwise(tmp_path, random_base, capsys):
    pytest.importorskip("bitsandbytes")
    data = write_rows(tmp_path / "rows.jsonl", cs_rlhf_rows(dialogues(80)))
    options = {"data": str(data), "base": str(random_base), "out": str(tmp_path / "cost")}
    run_cost_model(CostModelConfig(**options, epochs=0.1, rank=2, quantization="nf4", progress=False))
    told = capsys.readouterr()
    assert CAUTION in told.out and not told.err
    assert CAUTION in (tmp_path / "cost" / "README.md").read_text()
