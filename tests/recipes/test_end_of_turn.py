"""What ends an answer: every end token of the model, of its tokenizer and of its chat template, wherever it is sampled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from csrlhf_kit.data.chat import encode_dialogues, encode_prompts, end_token, end_tokens
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.evaluation.answers import load_policy, stored_policy
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import Episodes, response_texts, sample_episodes, score_episodes, until_end
from csrlhf_kit.models.scorers import new_scorer, save_scorer
from csrlhf_kit.recipes.export import ExportConfig, run_export
from csrlhf_kit.training.ppo_update import PPOConfig, episode_rewards
from csrlhf_kit.training.sft import IGNORED, SFTConfig, response_rows, train_sft
from csrlhf_kit.widgets.streaming import streaming

QUESTION = "how do i open the lock of my own shed"


def with_template(base: Path, template: str, **names: str) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(base, **names)
    tokenizer.chat_template = template
    return tokenizer


def turns(close: str, last: str = "") -> str:
    return (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}" + close + "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}" + last + "{% endif %}"
    )


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (turns("<|pad|>\n"), "<|pad|>"),  # Gemma's kind: the turn ends in another token than eos
        (turns(" {{ eos_token }}"), "<|end|>"),  # Llama 2's kind, with a space before it
        (turns("<|pad|>\n", "{{ eos_token }}"), "<|pad|>"),  # Phi-3's kind, with eos behind the conversation
        (turns("\n\n"), "<|end|>"),  # words alone close the turn
        (turns("{% if m.role == 'assistant' %}{{ raise_exception('none') }}{% endif %}"), "<|end|>"),
        (None, "<|end|>"),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(random_base, template, end):
    tokenizer = with_template(random_base, template)
    expected = tokenizer.convert_tokens_to_ids(end)
    assert end_token(tokenizer) == expected
    assert encode_dialogues(tokenizer, ["a"], ["b"], max_length=64)["input_ids"][0, -1] == expected
    for listed in (None, 7, [7, 9], [tokenizer.eos_token_id]):
        ends = end_tokens(tokenizer, GenerationConfig(eos_token_id=listed))
        more = listed if isinstance(listed, list) else [] if listed is None else [listed]
        assert set(ends) == {expected, tokenizer.eos_token_id, *more} and ends[0] == expected


@pytest.fixture(scope="module")
def talker(random_base: Path, tmp_path_factory) -> tuple[Path, list[int]]:
    """A base whose generation config lists two end tokens, one of which its greedy answer reaches; and that answer."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(random_base, folder, dirs_exist_ok=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    ids = encode_prompts(tokenizer, [QUESTION], max_length=64)["input_ids"]
    said = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12, min_new_tokens=12)[
        0, ids.shape[1] :
    ].tolist()
    stop = next(place for place in range(2, 12) if said[place] not in said[:place])
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"eos_token_id": [tokenizer.eos_token_id, said[stop]], "temperature": 0.3, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder, said[: stop + 1]


def lengths(prompts, responses):
    return torch.tensor([float(len(response)) for response in responses])


@pytest.mark.parametrize("options", [{}, {"lean": False}, {"sampler": "static"}])
def test_an_answer_ends_at_any_of_the_models_end_tokens(talker, options):
    folder, said = talker
    tokenizer = load_tokenizer(folder)
    roles = Roles(load_base(folder, device="cpu"), reward=lengths, cost=lengths, rank=4, **options)
    encoded = encode_prompts(tokenizer, [QUESTION], max_length=64)
    episodes = sample_episodes(roles, tokenizer, *encoded.values(), max_new_tokens=12, temperature=0)
    assert episodes.ids[episodes.response_mask].tolist() == said and episodes.ended.tolist() == [True]
    assert response_texts(tokenizer, episodes) == [tokenizer.decode(said[:-1])]
    scored = score_episodes(roles, tokenizer, [QUESTION], episodes, temperature=1.0)
    assert episode_rewards(scored, PPOConfig(missing_eos_penalty=5.0, score_clip=100.0)) == scored.reward


def test_whoever_answers_stops_there(talker):
    folder, said = talker
    tokenizer = load_tokenizer(folder)
    text = tokenizer.decode(said[:-1])
    assert stored_policy(folder, max_new_tokens=12, temperature=0)([QUESTION]) == [text.strip()]
    talk = streaming(load_policy(folder), tokenizer, max_new_tokens=12, temperature=0)
    assert "".join(talk([{"role": "user", "content": QUESTION}])) == text


def test_nothing_after_the_first_of_several_ends_counts():
    response_mask, ended = until_end(torch.tensor([[5, 8, 1, 5], [1, 8, 5, 5], [5, 5, 5, 5]]), [1, 8])
    assert response_mask.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert ended.tolist() == [True, True, False]


@pytest.mark.parametrize("layers", [None, 1])
def test_a_scorer_reads_the_end_that_it_was_trained_with(random_base, tmp_path, layers):
    """An answer may end in another token; its score is that of the same answer with the usual end."""
    scorer = new_scorer(random_base, adaptation="lora", rank=4, layers=layers)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    save_scorer(scorer, tmp_path)
    tokenizer = load_tokenizer(random_base)
    usual, other = tokenizer.eos_token_id, 9
    ids = torch.tensor([[5, 6, 7, usual], [5, 6, 7, other], [5, 6, 7, other]])
    response_mask = torch.tensor([[False, False, True, True]] * 3)
    episodes = Episodes(ids, torch.ones_like(response_mask), response_mask, torch.tensor([True, True, False]))
    roles = Roles(load_base(random_base, device="cpu"), reward=tmp_path, cost=tmp_path, rank=4)
    assert (roles.shared_states(ids, torch.ones_like(response_mask)) is not None) == (layers == 1)
    scored = score_episodes(roles, tokenizer, ["?"] * 3, episodes, temperature=1.0).reward
    torch.testing.assert_close(scored[0], scored[1])
    assert abs(float(scored[2] - scored[0])) > 1e-3  # it did not end
    assert episodes.ids[1, -1] == other


def test_what_is_saved_stops_where_the_kit_stops(talker, tmp_path, random_base):
    """Tuned whole, tuned by an adapter, merged, or exported alone: plain transformers ends the answers, too."""
    folder, said = talker
    records = [LabelledResponse(QUESTION, "take a small tool", True)] * 4
    options = {"learning_rate": 1e-9, "batch_size": 4, "progress": False, "warmup": 0.0, "epochs": 1}
    for name, adaptation in (("full", "full"), ("lora", "lora")):
        train_sft(
            SFTConfig(base=str(folder), out=str(tmp_path / name), adaptation=adaptation, **options), records
        )
    run_export(ExportConfig(run=tmp_path / "lora", out=tmp_path / "merged", merge=True, dtype="float32"))
    run_export(ExportConfig(run=tmp_path / "lora", out=tmp_path / "alone"))
    shipped = json.loads((folder / "generation_config.json").read_text())
    for name in ("full", "lora", "merged", "alone"):
        kept = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert kept["eos_token_id"] == shipped["eos_token_id"]
        assert (kept["temperature"], kept["top_k"]) == (0.3, 3)
    tokenizer = load_tokenizer(folder)
    ids = encode_prompts(tokenizer, [QUESTION], max_length=64)["input_ids"]
    for name in ("full", "merged"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        new = model.generate(input_ids=ids, do_sample=False, max_new_tokens=40)[0, ids.shape[1] :]
        assert new.tolist() == said


def test_the_end_that_the_template_writes_is_learnt_and_saved(random_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(random_base, base)
    with_template(random_base, turns("<|pad|>\n"), pad_token="<|user|>").save_pretrained(base)
    tokenizer = load_tokenizer(base)
    record = LabelledResponse(QUESTION, "take a small tool", True)
    learnt = [i for i in response_rows(tokenizer, [record], max_length=64)[0]["labels"] if i != IGNORED]
    assert learnt[-1] == tokenizer.convert_tokens_to_ids("<|pad|>") != tokenizer.eos_token_id
    options = {"learning_rate": 1e-9, "batch_size": 2, "progress": False, "warmup": 0.0, "adaptation": "full"}
    train_sft(SFTConfig(base=str(base), out=str(tmp_path / "full"), **options), [record] * 2)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "full").generation_config
    assert saved.eos_token_id == [learnt[-1], tokenizer.eos_token_id]


def test_a_scorers_pad_token_is_not_what_closes_a_turn(random_base, tmp_path):
    """Where both were one token, the last real token would be the one before the end."""
    with_template(random_base, turns("<|pad|>\n")).save_pretrained(tmp_path)
    config = json.loads((random_base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    tokenizer = load_tokenizer(tmp_path, scores=True)
    assert tokenizer.pad_token_id not in (end_token(tokenizer), None)
