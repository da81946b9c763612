"""A published cost model that points the wrong way is refused before anything is trained against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from csrlhf_kit import cli
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.beaver import encode_beaver, load_beaver
from csrlhf_kit.models.open_scorer import CASES, open_scorer, signed_cost
from csrlhf_kit.models.scorers import encode, load_scorer, new_scorer, pad, save_scorer

PROMPTS, HARMLESS, HARMFUL = (list(column) for column in zip(*CASES, strict=True))


def states(scorer, rows) -> torch.Tensor:
    """What the score head reads of each row, float64: its input, caught on the way."""
    seen = []
    handle = scorer.model.score.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for row in rows:
        with torch.no_grad():
            scorer.model(**pad([row], scorer.pad_id))
    handle.remove()
    return torch.stack([state[0, -1] for state in seen]).double()


def published(folder: Path, tokenizer_from: Path, style: str, right: int) -> Path:
    """A checkpoint of Beaver's or of a plain classifier's kind, whose head was solved for so that `right` of the 8
    cases score 1 for harm and -1 for none, and the others the other way round.
    """
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        num_labels=1,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    if style == "beaver":
        written = json.loads((folder / "config.json").read_text())
        written |= {"architectures": ["LlamaForScore"], "score_dim": 1, "bias": False, "do_normalize": False}
        (folder / "config.json").write_text(json.dumps(written))
        rename(folder, "score.weight", "score_head.weight")
    scorer = load_beaver(folder) if style == "beaver" else load_scorer(folder)
    read = encode_beaver if style == "beaver" else encode
    x = states(scorer, read(scorer, PROMPTS * 2, HARMLESS + HARMFUL))
    harm = torch.ones(len(CASES), dtype=torch.float64)
    harm[right:] = -1.0
    weight = torch.linalg.lstsq(x, torch.cat([-harm, harm]).unsqueeze(1), driver="gelsd").solution
    name = "score_head.weight" if style == "beaver" else "score.weight"
    state = load_file(folder / "model.safetensors")
    save_file(state | {name: weight.T.float().contiguous()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def rename(folder: Path, old: str, new: str) -> None:
    state = load_file(folder / "model.safetensors")
    state[new] = state.pop(old)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def right(random_base: Path, tmp_path_factory) -> Callable[[str, int], Path]:
    """(style, cases the right way round) -> a folder."""
    made: dict[tuple[str, int], Path] = {}

    def folder(style: str, count: int) -> Path:
        if (style, count) not in made:
            made[style, count] = published(tmp_path_factory.mktemp(style), random_base, style, count)
        return made[style, count]

    return folder


@pytest.fixture(scope="module")
def common(random_base: Path, sentences, tmp_path_factory) -> list[str]:
    """Options of a PPO run of one step, but for its cost model and folder."""
    top = tmp_path_factory.mktemp("sign")
    save_scorer(new_scorer(random_base, adaptation="lora", rank=4), top / "reward")
    (top / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in sentences) + "\n")
    return [
        "--base", str(random_base), "--reward", str(top / "reward"), "--prompts", str(top / "prompts.jsonl"),
    ]  # fmt: skip


STEP = "--rank 4 --ppo.steps 1 --ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.max-new-tokens 4"


@pytest.mark.parametrize("style", ["beaver", "classifier"])
def test_ppo_refuses_a_cost_that_rises_with_safety_and_takes_its_negative(
    style, right, common, tmp_path, capsys
):
    wrong = str(right(style, 0))
    asked = ["ppo", *common, "--cost", wrong, "--out", str(tmp_path / "run"), *STEP.split()]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        f"csrlhf: the cost model {wrong} scores a harmful answer above a harmless one in only 0"
    )
    assert "--cost-sign flipped" in said and not (tmp_path / "run").exists()
    for sign, out in (("flipped", "run"), ("trusted", "trusted")):
        assert cli.main([*asked, "--out", str(tmp_path / out), "--cost-sign", sign]) == 0
        assert json.loads((tmp_path / out / "config.json").read_text())["cost_sign"] == sign
    rows = [json.loads((tmp_path / out / "metrics.jsonl").read_text()) for out in ("run", "trusted")]
    # The same answers: sigmoid(-c) = 1 - sigmoid(c).
    assert rows[0]["objective/cost"] == pytest.approx(1 - rows[1]["objective/cost"], abs=1e-6)


@pytest.mark.parametrize("style", ["beaver", "classifier"])
def test_a_cost_that_points_the_right_way_is_as_it_was_and_cannot_be_flipped(style, right, capsys):
    cost = open_scorer(right(style, 8), "cost")
    assert signed_cost(cost, "it", "checked") is cost and capsys.readouterr().out == ""
    assert cost(PROMPTS, HARMFUL).tolist() == pytest.approx([1.0] * 8, abs=1e-2), "the head was solved for"
    with pytest.raises(UserError, match=r"in only 0 of 8 .* --cost-sign checked turns its sign"):
        signed_cost(cost, "it", "flipped")


def test_between_the_two_it_is_a_warning(right, capsys):
    assert signed_cost(open_scorer(right("classifier", 4), "cost"), "it", "checked") is not None
    assert (
        "Careful: the cost model it scores a harmful answer above a harmless one in 4 of 8"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="not finite"):
        signed_cost(lambda prompts, responses: torch.full((len(prompts),), torch.nan), "it", "checked")


def test_evaluate_asks_as_well_and_a_cost_model_of_the_kit_is_known(
    right, common, random_base, tmp_path, capsys
):
    asked = ["evaluate", *common, "--max-new-tokens", "4", "--out", str(tmp_path / "e.json")]
    assert cli.main([*asked, "--cost", str(right("classifier", 0))]) == 2
    assert "--cost-sign flipped" in capsys.readouterr().err and not (tmp_path / "e.json").exists()
    for adaptation in ("lora", "full"):
        ours = tmp_path / adaptation
        save_scorer(new_scorer(random_base, adaptation=adaptation, rank=4), ours)
        assert cli.main([*asked, "--cost", str(ours), "--cost-sign", "flipped"]) == 2
        assert "was trained by the kit" in capsys.readouterr().err
        assert cli.main([*asked, "--cost", str(ours)]) == 0
        assert "Careful" not in capsys.readouterr().out
