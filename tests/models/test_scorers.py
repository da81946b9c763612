"""Scorers: pooling, padding, calibration folding, and that plain transformers + peft score identically."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_models import PROMPTS, RESPONSES, build_bert
from transformers import AutoModel, AutoModelForSequenceClassification

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.scorers import (
    Scorer,
    encode,
    fold_temperature,
    load_scorer,
    new_scorer,
    output_layer,
    pad,
    save_scorer,
    score_rows,
    score_texts,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, random_base: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "qwen2": random_base,
        "bert": build_bert(folder / "bert"),
        "distilbert": build_bert(folder / "distilbert", "distilbert"),
    }


CASES = [("qwen2", "lora"), ("qwen2", "full"), ("bert", "full"), ("bert", "lora"), ("distilbert", "lora")]


def shaken(base: Path, adaptation: str) -> Scorer:
    """A scorer whose every trainable weight is off its first value (LoRA's B starts at 0), calibrated."""
    scorer = new_scorer(base, adaptation=adaptation, rank=4, alpha=8.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    fold_temperature(scorer, 0.37)
    scorer.notes = {"objective": "semantic"}
    return scorer


@pytest.fixture(scope="module")
def saved(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, np.ndarray]]:
    folder, result = tmp_path_factory.mktemp("saved"), {}
    for kind, adaptation in CASES:
        scorer = shaken(bases[kind], adaptation)
        path = save_scorer(scorer, folder / f"{kind}-{adaptation}")
        result[f"{kind}-{adaptation}"] = path, score_texts(scorer, PROMPTS, RESPONSES)
    return result


PLAIN = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

cases, prompts, responses = json.load(sys.stdin)
scores = {}
for name, folder in cases.items():
    if name.endswith("lora"):
        from peft import AutoPeftModelForSequenceClassification
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores[name] = []
    for prompt, response in zip(prompts, responses):
        if name.startswith("qwen2"):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
            )
            ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            inputs = {"input_ids": torch.tensor([ids])}
        else:
            inputs = tokenizer(prompt, response, return_tensors="pt")
        with torch.inference_mode():
            scores[name].append(model(**inputs).logits[0, 0].item())
assert not any(name.startswith("csrlhf") for name in sys.modules)
print(json.dumps(scores))
"""


def test_plain_transformers_and_peft_score_identically(saved: dict) -> None:
    """A process that has never heard of this package; prompt 3 spells a control token and is left out."""
    chosen = [0, 1, 2, 4]
    cases = {name: str(path) for name, (path, _) in saved.items()}
    texts = [[PROMPTS[i] for i in chosen], [RESPONSES[i] for i in chosen]]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps([cases, *texts]),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain = json.loads(done.stdout.splitlines()[-1])
    for name, (_, scores) in saved.items():
        assert np.std(scores) > 1e-3
        assert np.allclose(plain[name], scores[chosen], atol=1e-5), name


@pytest.mark.parametrize("name", [f"{kind}-{adaptation}" for kind, adaptation in CASES])
def test_saved_scorers_load_and_score_the_same(saved: dict, name: str) -> None:
    path, scores = saved[name]
    loaded = load_scorer(path)
    assert loaded.notes["objective"] == "semantic"
    assert np.allclose(score_texts(loaded, PROMPTS, RESPONSES), scores, atol=1e-6)
    assert np.allclose(score_texts(path, PROMPTS, RESPONSES), scores, atol=1e-5)  # merges adapters
    with torch.inference_mode():  # one door for both: transformers finds the adapter by itself
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()
        batch = pad(encode(loaded, PROMPTS, RESPONSES), loaded.pad_id)
        assert np.allclose(model(**batch).logits[:, 0].numpy(), scores, atol=1e-5)


def test_the_code_in_the_readme_runs(saved: dict) -> None:
    for path, scores in saved.values():
        code = (path / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names = {"folder": str(path), "prompt": PROMPTS[0], "response": RESPONSES[0]}
        exec(code, names)  # our own file, written above
        assert names["score"] == pytest.approx(scores[0], abs=1e-5)


def test_decoder_reads_its_last_real_token(bases: dict[str, Path]) -> None:
    scorer = new_scorer(bases["qwen2"], adaptation="full", seed=3)
    rows = encode(scorer, PROMPTS, RESPONSES)
    body = AutoModel.from_pretrained(bases["qwen2"]).eval()
    for row, score in zip(rows, score_rows(scorer, rows), strict=True):
        assert row["input_ids"][-1] == scorer.tokenizer.eos_token_id
        with torch.inference_mode():
            state = body(torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]  # (hidden,)
        assert float(state @ output_layer(scorer.model).weight.detach()[0]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_neither_padding_nor_order_nor_batch_size_moves_a_score(bases: dict[str, Path], kind: str) -> None:
    scorer = new_scorer(bases[kind], seed=4)
    alone = [score_texts(scorer, [p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert np.allclose(score_texts(scorer, PROMPTS, RESPONSES, batch_size=2), alone, atol=1e-6)
    assert np.allclose(score_texts(scorer, PROMPTS[::-1], RESPONSES[::-1]), alone[::-1], atol=1e-6)
    # Dropout, which an encoder has, is off however the model was left.
    scorer.model.train()
    assert np.allclose(score_texts(scorer, PROMPTS, RESPONSES), alone, atol=1e-6)


@pytest.mark.parametrize(("kind", "adaptation"), CASES)
def test_folded_temperature_divides_every_score(bases: dict[str, Path], kind: str, adaptation: str) -> None:
    scorer = new_scorer(bases[kind], adaptation=adaptation, seed=5)
    head = output_layer(scorer.model)
    if head.bias is not None:
        with torch.no_grad():
            head.bias.fill_(0.3)
    before = score_texts(scorer, PROMPTS, RESPONSES)
    fold_temperature(scorer, 2.5)
    assert np.allclose(score_texts(scorer, PROMPTS, RESPONSES), before / 2.5, atol=1e-6)
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="positive"):
            fold_temperature(scorer, wrong)


def test_adaptation_decides_what_is_trained(bases: dict[str, Path]) -> None:
    def trained(scorer: Scorer) -> set[str]:
        return {name for name, parameter in scorer.model.named_parameters() if parameter.requires_grad}

    automatic = trained(new_scorer(bases["qwen2"]))
    assert all("lora_" in name or "score" in name for name in automatic)
    # Seven linear maps a layer, two layers, A and B; and the head.
    assert len(automatic) == 7 * 2 * 2 + 1
    encoder = new_scorer(bases["bert"])
    assert trained(encoder) == {name for name, _ in encoder.model.named_parameters()}
    # DistilBERT's pre_classifier is new, so it is trained whole beside the adapters.
    mixed = trained(new_scorer(bases["distilbert"], adaptation="lora"))
    assert any("pre_classifier" in name and "lora_" not in name for name in mixed)
    assert not any("embeddings" in name for name in mixed)


def test_dropout_is_off_for_decoders_and_can_be_set(bases: dict[str, Path]) -> None:
    assert new_scorer(bases["qwen2"], adaptation="full").model.config.attention_dropout == 0
    assert new_scorer(bases["bert"]).model.config.hidden_dropout_prob == 0.1  # the encoder's own
    assert new_scorer(bases["bert"], dropout=0.0).model.config.hidden_dropout_prob == 0


def test_bfloat16_backbone_scores_nearly_alike(bases: dict[str, Path]) -> None:
    full = score_texts(new_scorer(bases["qwen2"], seed=6), PROMPTS, RESPONSES)
    half = new_scorer(bases["qwen2"], seed=6, dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in half.model.parameters() if p.requires_grad)
    assert np.allclose(score_texts(half, PROMPTS, RESPONSES), full, atol=0.05)


def test_text_cannot_forge_control_tokens(bases: dict[str, Path]) -> None:
    bert = new_scorer(bases["bert"])
    row = encode(bert, ["the [SEP] fence"], ["no"])[0]
    assert row["input_ids"].count(bert.tokenizer.sep_token_id) == 2
    assert max(row["token_type_ids"]) == 1
    qwen2 = new_scorer(bases["qwen2"])
    row = encode(qwen2, ["end <|end|> here"], ["no <|end|>"])[0]
    assert row["input_ids"].count(qwen2.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_long_dialogues_are_cut_and_keep_a_response(bases: dict[str, Path], kind: str) -> None:
    scorer = new_scorer(bases[kind], max_length=12)
    rows = encode(scorer, ["how do i open the lock " * 9, "a"], ["sure take a tool " * 9, "no"])
    assert len(rows[0]["input_ids"]) == 12
    assert np.isfinite(score_rows(scorer, rows)).all()
    scorer.max_length = 1
    with pytest.raises(UserError, match="max_length"):
        encode(scorer, ["a"], ["b"])
    # Learnt positions end at 128 in this BERT.
    assert new_scorer(bases["bert"], max_length=1000).max_length == 128


def test_errors_are_sentences(bases: dict[str, Path], saved: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        new_scorer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        new_scorer(tmp_path / "empty")
    with pytest.raises(UserError, match="adaptation"):
        new_scorer(bases["qwen2"], adaptation="prefix")
    with pytest.raises(UserError, match="4-bit"):
        new_scorer(bases["qwen2"], adaptation="full", quantization="nf4")
    with pytest.raises(UserError, match="outputs"):
        load_scorer(bases["bert"])  # no trained head: two outputs by default
    with pytest.raises(UserError, match="as many"):
        score_texts(saved["bert-full"][0], ["a"], [])
    assert score_texts(saved["bert-full"][0], [], []).shape == (0,)
    # An adapter whose base has moved: told, and mended by saying where it is.
    folder = saved["qwen2-lora"][0]
    config = json.loads((folder / "adapter_config.json").read_text())
    moved = save_scorer(load_scorer(folder), tmp_path / "moved")
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (moved / "adapter_config.json").write_text(json.dumps(config))
    (moved / "base.json").unlink()
    with pytest.raises(UserError, match="gone"):
        load_scorer(moved)
    again = score_texts(load_scorer(moved, base=bases["qwen2"]), PROMPTS, RESPONSES)
    assert np.allclose(again, saved["qwen2-lora"][1], atol=1e-6)
