"""A probe: which states it reads, that it is fitted exactly, stored small, and refused where it cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from example_models import PROMPTS, RESPONSES, build_bert
from example_records import dialogues, pairs
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from csrlhf_kit.cli import main
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.scorer_metrics import auroc
from csrlhf_kit.models.base import load_base
from csrlhf_kit.models.open_scorer import open_scorer
from csrlhf_kit.models.probe import KERNEL_NOISE, KERNEL_WIDTH
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import encode, load_scorer, score_rows, score_texts
from csrlhf_kit.recipes.scorers import CostModelConfig, run_cost_model
from csrlhf_kit.training.configs import ProbeConfig, ScorerConfig
from csrlhf_kit.training.probing import pooled_states
from csrlhf_kit.training.reward_modeling import fit_scorer, train_scorer
from csrlhf_kit.widgets.inspect_cost import load_scorers

LENGTH = 96


def config(base: Path, out: Path, **options) -> ScorerConfig:
    made = {"adaptation": "probe", "max_length": LENGTH, "progress": False}
    return ScorerConfig(base=str(base), out=str(out), **(made | options))


def read_plainly(
    base: Path, layer: int, pooling: str, prompts: list[str], responses: list[str]
) -> np.ndarray:
    """What a probe reads, one dialogue at a time, by transformers alone."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        turns = [{"role": "user", "content": prompt}]
        opening = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = [*opening, *tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        rows.append(states[len(opening) if pooling == "answer" else 0 :].mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["answer", "dialogue"])
@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2)])
def test_a_probe_reads_the_mean_of_the_states_after_its_layers(random_base, tmp_path, layers, pooling):
    settings = config(random_base, tmp_path / "p", probe=ProbeConfig(layers, pooling))
    scorer = fit_scorer(settings, dialogues(24))
    found = pooled_states(scorer, encode(scorer, PROMPTS, RESPONSES)).numpy()
    wanted = [read_plainly(random_base, layer, pooling, PROMPTS, RESPONSES) for layer in layers]
    assert np.allclose(found, np.concatenate(wanted, axis=1), atol=1e-5)


@pytest.mark.parametrize("head", ["gaussian", "linear"])
def test_the_head_is_what_scikit_learn_fits(random_base, tmp_path, head):
    records = dialogues(40)
    scorer = fit_scorer(config(random_base, tmp_path / "p", probe=ProbeConfig((1,), head=head)), records)
    texts = [r.prompt for r in records], [r.response for r in records]
    states = read_plainly(random_base, 1, "answer", *texts).astype(np.float64)
    unsafe = np.array([not r.is_safe for r in records])
    z = StandardScaler().fit_transform(states)
    if head == "gaussian":
        signs = np.where(unsafe, 1.0, -1.0)
        kernel = RBF(np.sqrt(z.shape[1] / (2 * KERNEL_WIDTH)), "fixed")
        fitted = GaussianProcessRegressor(kernel, alpha=KERNEL_NOISE, optimizer=None).fit(
            z, signs - signs.mean()
        )
        wanted = fitted.predict(z) + signs.mean()
    else:
        wanted = LogisticRegression(C=0.03, max_iter=1000).fit(z, unsafe).decision_function(z)
    assert np.allclose(score_texts(scorer, *texts), wanted, atol=1e-3)


def test_a_stored_probe_scores_the_same_in_any_batch_and_holds_no_copy_of_its_base(random_base, tmp_path):
    folder = train_scorer(config(random_base, tmp_path / "p"), dialogues(40), dialogues(20, seed=1))
    assert not list(folder.glob("model*")) and (folder / "probe.safetensors").stat().st_size < 100_000
    scorer = load_scorer(folder)
    rows = encode(scorer, PROMPTS, RESPONSES)
    one_by_one = np.concatenate([score_rows(scorer, [row]) for row in rows])
    assert np.allclose(score_rows(scorer, rows), one_by_one, atol=1e-4)
    again = open_scorer(folder, "cost", base=random_base)(PROMPTS, RESPONSES).numpy()
    assert np.allclose(again, one_by_one, atol=1e-4)
    shown = load_scorers({"probe": folder})["probe"](PROMPTS, RESPONSES)
    assert np.allclose(shown, one_by_one, atol=1e-4)
    Roles(load_base(random_base), reward=folder, cost=folder)


def test_calibration_divides_a_probe_s_scores(random_base, tmp_path):
    records, held_out = dialogues(40), dialogues(20, seed=1)
    raw, calibrated = (
        fit_scorer(config(random_base, tmp_path / "p"), records, rows) for rows in ((), held_out)
    )
    scores = score_texts(raw, PROMPTS, RESPONSES) / calibrated.notes["temperature"]
    assert np.allclose(score_texts(calibrated, PROMPTS, RESPONSES), scores, atol=1e-4)


def test_a_moved_probe_finds_its_base_and_refuses_another(random_base, tmp_path):
    base = Path(shutil.copytree(random_base, tmp_path / "here" / "base"))
    folder = train_scorer(config(base, tmp_path / "here" / "probe"), dialogues(24))
    scores = score_texts(folder, PROMPTS, RESPONSES)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "probe"
    assert np.allclose(score_texts(moved, PROMPTS, RESPONSES), scores, atol=1e-6)
    other = AutoModel.from_pretrained(random_base)
    for parameter in other.parameters():
        parameter.data += 0.1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="was trained on another base"):
        load_scorer(moved, base=tmp_path / "other")


def test_plain_transformers_refuses_a_probe_and_so_does_export(random_base, tmp_path, capsys):
    folder = train_scorer(config(random_base, tmp_path / "p"), dialogues(24))
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "is a probe: expected an adapter" in capsys.readouterr().err
    assert "plain transformers cannot load it" in (folder / "README.md").read_text()


def test_the_cost_model_command_fits_and_measures_a_probe(random_base, tmp_path, capsys):
    rows = [
        {"prompt": r.prompt, "response": r.response if r.is_safe else f"kill {r.response}", "label": label}
        for r in dialogues(200)
        for label in ["Safe" if r.is_safe else "Unsafe"]
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"adaptation": "probe", "progress": False, "probe": ProbeConfig((1,))}
    run_cost_model(
        CostModelConfig(data=str(data), base=str(random_base), out=str(tmp_path / "cost"), **options)
    )
    assert "a gaussian probe after the layers 1" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "cost" / "predictions.jsonl").read_text().splitlines()]
    test = [line for line in lines if line["split"] == "test"]
    unsafe = np.array([line["label"] == "Unsafe" for line in test])
    assert auroc(np.array([line["score"] for line in test]), unsafe) > 0.9


def test_what_no_probe_can_be_fitted_to_is_told(random_base, tmp_path):
    out = tmp_path / "p"
    with pytest.raises(UserError, match="expected semantic"):
        fit_scorer(config(random_base, out, objective="reward"), pairs(8))
    with pytest.raises(UserError, match="is an encoder, expected a causal language model"):
        fit_scorer(config(build_bert(tmp_path / "bert"), out), dialogues(8))
    for layers in ((0,), (3,), (1, -1)):
        with pytest.raises(UserError, match="expected numbers from 1 to 2"):
            fit_scorer(config(random_base, out, probe=ProbeConfig(layers)), dialogues(8))
