"""Prompts that are too long: what is cut of them, and that it is told, wherever a prompt is read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from example_prompts import rendered
from transformers import AutoTokenizer

from csrlhf_kit.data.chat import encode_prompts
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import stored_policy
from csrlhf_kit.models.base import load_tokenizer
from csrlhf_kit.models.beaver import encode_beaver
from csrlhf_kit.models.judge import QUESTION, Verdicts, _turns
from csrlhf_kit.models.scorers import encode, new_scorer, save_scorer
from csrlhf_kit.recipes.evaluate import EvaluateConfig, run_evaluate
from csrlhf_kit.recipes.ppo import PPORunConfig, run_ppo
from csrlhf_kit.training.critic import CriticConfig
from csrlhf_kit.training.dialogues import encode_responses
from csrlhf_kit.training.ppo_update import PPOConfig

LONG = "please help me feed the dog " * 30
END = "and kill the rumour"


@pytest.fixture(scope="module")
def tokenizer(random_base: Path):
    return load_tokenizer(random_base)


def room_for(tokenizer, tokens: int) -> int:
    return len(tokenizer(rendered(tokenizer, ""))["input_ids"]) + tokens


def test_beavers_words_around_a_dialogue_stay(random_base):
    scorer = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(random_base), max_length=60)
    whole, short, silent = encode_beaver(scorer, ["no", LONG + END, LONG], ["sure", "sure", LONG + END])
    texts = [scorer.tokenizer.decode(row["input_ids"]) for row in (whole, short, silent)]
    assert texts[0] == "BEGINNING OF CONVERSATION: USER: no ASSISTANT:sure<|end|>"
    assert all(len(row["input_ids"]) <= 60 for row in (short, silent))
    assert texts[1].startswith("BEGINNING OF CONVERSATION: USER: ")
    assert texts[1].endswith(f"{END} ASSISTANT:sure<|end|>")
    assert texts[2].startswith("BEGINNING OF CONVERSATION: USER:  ASSISTANT:") and texts[2].endswith(
        f"{END}<|end|>"
    )


def test_a_judge_is_asked_the_whole_question(tokenizer):
    asked = _turns(Verdicts("ask"), tokenizer, LONG + END, "sure", 300)
    assert encode_prompts(tokenizer, [asked], max_length=10_000)["input_ids"].shape[1] <= 300
    head, middle, tail = QUESTION.partition("{prompt}")[0], f"{END}\n</request>", "one word, safe or unsafe."
    assert asked.startswith(head) and middle in asked and asked.endswith(tail)
    assert _turns(Verdicts("ask"), tokenizer, "no", "sure", 300) == QUESTION.format(
        prompt="no", response="sure"
    )


def test_scorers_count_and_pairs_tell_what_they_cut(random_base, tokenizer, capsys):
    size = room_for(tokenizer, 12)
    scorer = new_scorer(random_base, rank=2, max_length=size)
    rows = encode(scorer, ["no", LONG + END], ["sure", "sure"])
    assert scorer.cut == 1 and tokenizer.decode(rows[1]["input_ids"]).startswith("<|user|> ")
    encode_responses(tokenizer, ["no", LONG + END], ["sure", "sure"], max_length=size)
    assert f"1 of 2 dialogues have more than {size} tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected room for a part of its prompt"):
        encode_responses(tokenizer, ["no"], [LONG], max_length=size)


def test_a_policy_that_answers_says_what_was_cut(random_base, tokenizer, capsys):
    answer = stored_policy(random_base, max_new_tokens=2, temperature=0, max_length=room_for(tokenizer, 12))
    texts = answer([[{"role": "user", "content": LONG + END}], "no"])
    assert len(texts) == 2 and "1 of 2 prompts have more than" in capsys.readouterr().out


def test_runs_tell_and_show_the_prompts_that_the_policy_sees(
    random_base, tokenizer, tmp_path, capsys, monkeypatch
):
    size = room_for(tokenizer, 12)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("no", LONG + END)))
    scorer = new_scorer(random_base, rank=2)
    for name in ("reward", "cost"):
        save_scorer(scorer, tmp_path / name)
    models = {"reward": tmp_path / "reward", "cost": tmp_path / "cost", "base": str(random_base)}
    ppo = PPOConfig(
        steps=1, batch_size=2, minibatch_size=2, microbatch_size=2, max_new_tokens=2, max_prompt_length=size
    )
    run_ppo(
        PPORunConfig(
            **models,
            out=tmp_path / "run",
            prompts=str(prompts),
            rank=2,
            ppo=ppo,
            critic=CriticConfig(episodes=0),
        )
    )
    assert f"1 of 2 prompts have more than {size} tokens" in capsys.readouterr().out
    shown = [
        json.loads(line)["prompt"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    ]
    assert shown[0] == "no" and shown[1].endswith(END) and len(shown[1]) < len(LONG)
    for module in ("evaluation.safety", "recipes.evaluate"):
        monkeypatch.setattr(f"csrlhf_kit.{module}.MAX_PROMPT", size)
    run_evaluate(EvaluateConfig(**models, prompts=str(prompts), out=tmp_path / "e.json", max_new_tokens=2))
    assert f"1 of 2 prompts have more than {size} tokens" in capsys.readouterr().out
    asked = [answer["prompt"] for answer in json.loads((tmp_path / "e.json").read_text())["answers"]]
    assert asked == shown
