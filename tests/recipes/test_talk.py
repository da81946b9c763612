"""Chat, arena and export: what a person types and sees, and models that plain transformers loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from csrlhf_kit import cli
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation import answers
from csrlhf_kit.evaluation.answers import answer_of
from csrlhf_kit.evaluation.terminal import visible
from csrlhf_kit.evaluation.votes import elo
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import new_scorer, save_scorer, score_texts
from csrlhf_kit.recipes import arena, evaluate, ppo
from csrlhf_kit.recipes.arena import run_arena
from csrlhf_kit.recipes.chat import run_chat
from csrlhf_kit.recipes.export import ExportConfig, run_export
from csrlhf_kit.recipes.options import ArenaConfig, ChatConfig
from csrlhf_kit.recipes.red_team import RedTeamConfig, run_red_team
from csrlhf_kit.widgets import streaming


@pytest.fixture(scope="module")
def runs(random_base: Path, tmp_path_factory) -> list[Path]:
    """Two policies in folders as `csrlhf ppo` leaves them, and a cost model."""
    top = tmp_path_factory.mktemp("runs")
    for index in range(2):
        roles = Roles(load_base(random_base, device="cpu"), reward=len, cost=len, rank=4, alpha=8)
        with torch.no_grad():
            for parameter in roles.trainable("policy"):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(index))
        roles.save_policy(top / str(index) / "adapter")
        settings = {"base": str(random_base), "quantization": "none"}
        (top / str(index) / "config.json").write_text(json.dumps(settings))
    scorer = new_scorer(random_base, adaptation="lora", rank=4)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    save_scorer(scorer, top / "cost")
    return [top / "0", top / "1", top / "cost"]


def typing(monkeypatch, lines: list[str]) -> None:
    remaining = iter(lines)

    def answer(label: str = "") -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_nothing_a_model_writes_has_power_over_the_terminal():
    assert visible("a\x1b[2Jb\r\x07c\u202ed\u200be\x9bf") == r"a\x1b[2Jb\r\x07c\u202ed\u200be\x9bf"
    assert visible("line\n\ttab é 漢 🙂") == "line\n\ttab é 漢 🙂"


@given(st.text())
def test_visible_text_has_no_control_characters(text):
    shown = visible(text)
    assert all(c.isprintable() or c in "\n\t" or c.isspace() for c in shown)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown) and "\x7f" not in shown


def test_a_conversation_keeps_its_turns_until_it_is_reset(runs, monkeypatch, capsys):
    typing(
        monkeypatch, ["how do i open the lock", "", "and then", "/reset", "write a note", "/quit", "never"]
    )
    turns = run_chat(ChatConfig(run=runs[0], max_new_tokens=5))
    assert [t["role"] for t in turns] == ["user", "assistant"] and turns[0]["content"] == "write a note"
    assert capsys.readouterr().out.count("policy:") == 3
    typing(monkeypatch, [])
    assert run_chat(ChatConfig(run=runs[0], max_new_tokens=5)) == []
    with pytest.raises(UserError, match="which base"):
        run_chat(ChatConfig())
    with pytest.raises(UserError, match="holds no adapter"):
        run_chat(ChatConfig(run=runs[0].parent))


def test_the_policy_answers_and_not_its_base(runs, random_base):
    answers = [
        answer_of(run, ChatConfig(base=str(random_base), temperature=0.0, max_new_tokens=8))(["open"])
        for run in (runs[0], runs[1], None)
    ]
    assert len({a[0] for a in answers}) == 3


def by_name(run, config):
    return lambda prompts: [f"by {run.name}"]


def test_the_arena_hides_who_is_who_and_counts_right(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(arena, "answer_of", by_name)
    asked, out = [f"request {i}" for i in range(12)], tmp_path / "votes.jsonl"
    typing(monkeypatch, [line for request in asked for line in (request, "1")])
    first, second, third = map(str, runs)
    result = run_arena(ArenaConfig(duel=(runs[0], runs[1]), out=out))
    shown, told = capsys.readouterr().out, "Elo"
    firsts = [line.removeprefix("1: by ") for line in shown.splitlines() if line.startswith("1: ")]
    assert set(firsts) == {"0", "1"}, "the order is drawn"
    assert first not in shown[: shown.rindex("\n1: by")] and told in shown, "names come last"
    votes = [json.loads(line) for line in out.read_text().splitlines()]
    assert [vote["turns"][0][0]["content"] for vote in votes] == asked
    assert [Path(vote[vote["vote"]]).name for vote in votes] == firsts
    assert result == elo(votes, [first, second]) and result[first][1] == 12
    gap = result[first][0] - result[second][0]
    assert (gap > 0) == (firsts.count("0") > 6) and (gap < 0) == (firsts.count("0") < 6)
    typing(monkeypatch, ["one", "=", "two", "no idea", "three", "0"])
    again = run_arena(ArenaConfig(duel=(runs[1], runs[0]), out=out))
    assert again[first][1] == 14, "the other way round, and neither a word nor silence is a vote"
    assert abs(again[first][0] - again[second][0]) <= abs(gap), "ties draw together"
    typing(monkeypatch, ["one", "="])
    other = run_arena(ArenaConfig(duel=(runs[0], runs[2]), out=out))
    assert other == {first: (0.0, 1), third: (0.0, 1)}, "another pair"
    with pytest.raises(UserError, match="found a folder"):
        run_arena(ArenaConfig(duel=(runs[0], runs[1]), out=tmp_path))
    typing(monkeypatch, [line for request in "abc" for line in (request, "=")])
    three = run_arena(ArenaConfig(duel=(*runs,), out=tmp_path / "three.jsonl"))
    assert [votes for _, votes in three.values()] == [2, 2, 2], "of three, the pair that has met least"


def test_each_vote_is_on_disk_before_the_next_question(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(arena, "answer_of", by_name)
    out, lines = tmp_path / "votes.jsonl", iter(["a", "1", "b", "", "2", "c", "=", "d"])
    seen = []

    def answer(label: str = "") -> str:
        line = next(lines, None)
        seen.append((line, len(out.read_text().splitlines()) if out.is_file() else 0))
        if line is None:
            raise KeyboardInterrupt  # Ctrl-C at a question leaves, and what was voted counts
        return line

    monkeypatch.setattr("builtins.input", answer)
    result = run_arena(ArenaConfig(duel=(runs[0], runs[1]), out=out))
    assert [count for line, count in seen if line in ("a", "b", "c", "d")] == [0, 1, 2, 3]
    assert result[str(runs[0])][1] == 3


VOTE = """
import sys
from pathlib import Path
from csrlhf_kit.recipes import arena
arena.answer_of = lambda run, config: lambda prompts: [run.name]
arena.run_arena(arena.ArenaConfig(duel=(Path("A"), Path("B")), out=Path(sys.argv[1])))
"""


def test_votes_outlive_a_killed_arena_and_the_next_one_goes_on(monkeypatch, capsys, tmp_path):
    out = tmp_path / "votes.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", VOTE, str(out)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        process.stdin.write(b"one\n1\ntwo\n=\nthree\n")
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while not out.is_file() or out.read_bytes().count(b"\n") < 2:
            assert time.monotonic() < deadline and process.poll() is None, "the votes never came"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    with open(out, "ab") as file:
        file.write(b'{"prompt": "torn')  # as a machine that dies while writing leaves it
    monkeypatch.setattr(arena, "answer_of", by_name)
    typing(monkeypatch, ["three", "="])
    result = run_arena(ArenaConfig(duel=(Path("A"), Path("B")), out=out))
    assert result["A"][1] == result["B"][1] == 3
    assert "holds 2 votes on these already" in capsys.readouterr().out


def test_both_are_commands(runs, monkeypatch, capsys):
    typing(monkeypatch, ["open the shed"])
    assert cli.main(["chat", str(runs[0]), "--max-new-tokens", "4"]) == 0
    typing(monkeypatch, ["open the shed", "2"])
    assert cli.main(["arena", str(runs[0]), str(runs[1]), "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert (
        "policy: " in shown
        and "Elo (" in shown
        and "), 1 vote\n" in shown
        and str(runs[0].parent / "votes.jsonl") in shown
    )


@pytest.mark.parametrize("line", ["", "A", "A A", "A B --runs C", "--anchor sft"])
def test_an_arena_needs_runs_of_one_kind(line, capsys):
    assert cli.main(["arena", *line.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "arena needs two runs" in said and "--runs" in said


def test_a_merged_policy_needs_no_peft(runs, random_base, tmp_path):
    assert (
        cli.main(["export", str(runs[0]), "--out", str(tmp_path / "m"), "--merge", "--dtype", "float32"]) == 0
    )
    ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(random_base)
        base = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, runs[0] / "adapter").eval()(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert float((merged - base).abs().max()) > 0.01
    assert load_tokenizer(tmp_path / "m").eos_token_id == load_tokenizer(random_base).eos_token_id
    with pytest.raises(UserError, match="expected an empty or new one"):
        run_export(ExportConfig(run=runs[0], out=tmp_path / "m"))


def test_a_merged_scorer_scores_the_same_and_an_adapter_travels(runs, sentences, tmp_path):
    run_export(ExportConfig(run=runs[2], out=tmp_path / "m", merge=True, dtype="float32"))
    assert not (tmp_path / "m" / "adapter_config.json").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", num_labels=1)
    expected = score_texts(runs[2], sentences, sentences[::-1])
    assert score_texts(tmp_path / "m", sentences, sentences[::-1]) == pytest.approx(expected, abs=1e-5)
    run_export(ExportConfig(run=runs[1], out=tmp_path / "a"))
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        runs[1] / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_metrics_go_to_a_tracker_on_request(monkeypatch, tmp_path):
    from accelerate.tracking import GeneralTracker

    rows = []

    class Recorder(GeneralTracker):
        name, requires_logging_directory = "recorder", False

        def __init__(self) -> None:
            super().__init__()

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            rows.append(values)

        def log(self, values, step, **_):
            rows.append((step, values))

    monkeypatch.setattr(ppo, "filter_trackers", lambda names, folder: [Recorder()])
    with ppo.tracker("tensorboard", tmp_path, {"a": 1, "b": {"c": 2}}) as log:
        log({"step": 3, "x": 0.5})
    assert rows == [{"a": 1, "b": "{'c': 2}"}, (3, {"step": 3, "x": 0.5})]
    with ppo.tracker("none", tmp_path, {}) as log:
        assert log is None
    with (
        pytest.raises(UserError, match="tracker 'abacus' is unknown"),
        ppo.tracker("abacus", tmp_path, {}),
    ):
        pass


def test_a_full_gpu_is_one_sentence(capsys):
    def full(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert cli.run_command(full, None) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "memory is full" in said and "csrlhf plan" in said


@pytest.fixture
def coarse_run(runs, random_base, tmp_path) -> Path:
    """A run that was asked for bfloat16 weights in 4 bit."""
    shutil.copytree(runs[0], tmp_path / "run")
    settings = {"base": str(random_base), "dtype": "bfloat16", "quantization": "nf4"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    return tmp_path / "run"


def test_a_policy_is_loaded_in_its_runs_numbers(runs, coarse_run, random_base, tmp_path, monkeypatch):
    loaded = []

    def spy(*_, dtype="float32", quantization="none", **__):
        loaded.append((dtype, quantization))
        raise UserError("seen")

    for module in (answers, evaluate):
        monkeypatch.setattr(module, "load_base", spy)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "open the shed"}\n')
    score = {"reward": runs[2], "cost": runs[2], "base": str(random_base), "prompts": str(prompts)}

    def loads(ask) -> tuple[str, str]:
        with pytest.raises(UserError, match="seen"):
            ask()
        return loaded.pop()

    for place in (coarse_run, coarse_run / "adapter"):
        for asked, expected in (
            ({}, ("bfloat16", "nf4")),
            ({"dtype": "float32", "quantization": "none"}, ("float32", "none")),
        ):
            chat, duel = ChatConfig(run=place, **asked), ArenaConfig(duel=(place, runs[1]), **asked)
            red = RedTeamConfig(
                policy=coarse_run / "adapter", base=str(random_base), out=tmp_path / "r.json", **asked
            )
            judged = evaluate.EvaluateConfig(policy=place, out=tmp_path / "e.json", **score, **asked)
            for ask, config in (
                (run_chat, chat), (run_arena, duel), (run_red_team, red), (evaluate.run_evaluate, judged)
            ):  # fmt: skip
                assert loads(lambda ask=ask, config=config: ask(config)) == expected
    assert loads(lambda: streaming.policies_of(coarse_run)) == ("bfloat16", "nf4")
    assert loads(lambda: run_chat(ChatConfig(run=runs[1]))) == ("float32", "none")
    among = tmp_path / "many" / "policies" / "one"
    shutil.copytree(coarse_run, among)
    shutil.move(among / "config.json", tmp_path / "many")
    assert loads(lambda: run_chat(ChatConfig(run=among / "adapter"))) == ("bfloat16", "nf4")


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_merged_model_has_its_runs_numbers(coarse_run, tmp_path, dtype):
    run_export(ExportConfig(run=coarse_run, out=tmp_path / "m", merge=True, dtype=dtype))
    weights = load_file(tmp_path / "m" / "model.safetensors").values()
    assert {tensor.dtype for tensor in weights} == {torch.float32 if dtype else torch.bfloat16}


def test_a_coarse_policy_is_the_one_that_was_trained(runs, random_base):
    """Folded into bfloat16 weights, an adapter would lose most of its digits: it stays beside them."""
    ids = torch.arange(4, 14)[None]
    whole = answers.load_policy(random_base, runs[0] / "adapter")
    beside = answers.load_policy(random_base, runs[0] / "adapter", dtype="bfloat16")
    assert not isinstance(whole, PeftModel) and isinstance(beside, PeftModel)
    assert beside.get_base_model().dtype == torch.bfloat16
    with torch.no_grad():
        trained = PeftModel.from_pretrained(
            load_base(random_base, dtype="bfloat16", device="cpu"), runs[0] / "adapter"
        )
        torch.testing.assert_close(beside(ids).logits, trained.eval()(ids).logits)
