"""`csrlhf ppo` and `csrlhf evaluate`, from the command line to the files they leave: random bases, two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

from csrlhf_kit import cli, files
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import STYLES
from csrlhf_kit.models.scorers import new_scorer, save_scorer
from csrlhf_kit.recipes import ppo as recipes
from csrlhf_kit.recipes.evaluate import EvaluateConfig, row_text, run_evaluate
from csrlhf_kit.training import ppo
from csrlhf_kit.training.constraints import CONSTRAINTS, make_constraint
from csrlhf_kit.world.oracle import judge

SMALL = (
    "--ppo.steps 2 --ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.microbatch-size 4 --ppo.max-new-tokens 6"
)


@pytest.fixture(scope="module")
def folders(random_base, sentences, tmp_path_factory) -> dict[str, str]:
    """Untrained scorers on the random base, as adapters and as a model of its own; a file of prompts."""
    top = tmp_path_factory.mktemp("recipes")
    for seed, name in enumerate(("reward", "cost")):
        save_scorer(new_scorer(random_base, adaptation="lora", rank=4, seed=seed), top / name)
        save_scorer(new_scorer(random_base, adaptation="lora", rank=4, layers=1), top / f"{name}_upper")
    save_scorer(new_scorer(random_base, adaptation="full", seed=2), top / "own")
    rows = [json.dumps({"prompt": text}) for text in sentences]
    (top / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    names = {file.name: str(file) for file in top.iterdir()}
    return names | {"base": str(random_base)}


@pytest.fixture
def asked(folders) -> Callable[..., list[str]]:
    """The arguments of a small `csrlhf ppo`, with changes."""

    def arguments(out: Path, more: str = "", **changes: str) -> list[str]:
        given = {
            "reward": folders["reward"],
            "cost": folders["cost"],
            "base": folders["base"],
            "prompts": folders["prompts.jsonl"],
        } | changes
        options = [word for name, value in given.items() for word in (f"--{name}", value)]
        return ["ppo", *options, "--out", str(out), "--rank", "4", *SMALL.split(), *more.split()]

    return arguments


@pytest.fixture(scope="module")
def policy(folders, tmp_path_factory) -> Path:
    """The folder of a finished small run, started from the command line."""
    out = tmp_path_factory.mktemp("run") / "policy"
    options = [
        word
        for name in ("reward", "cost", "base")
        for word in (f"--{name}", folders[name])
    ]  # fmt: skip
    arguments = ["--prompts", folders["prompts.jsonl"], "--out", str(out), "--rank", "4", *SMALL.split()]
    assert cli.main(["ppo", *options, *arguments]) == 0
    return out


def test_one_table_names_every_method():
    assert set(CONSTRAINTS) <= set(STYLES), "figures know each of them"
    for name in CONSTRAINTS:
        made = make_constraint(name, threshold=0.25, penalty=7.0)
        assert type(made) is CONSTRAINTS[name] and made.threshold == 0.25
        assert getattr(made, "penalty", 7.0) == 7.0
    with pytest.raises(UserError, match="method 'magic' is unknown: expected one of ppo, fixed_penalty"):
        make_constraint("magic", threshold=0.0, penalty=1.0)


def test_ppo_leaves_metrics_and_an_adapter_that_peft_loads(policy, random_base):
    rows = rows_of(policy)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["policy/max_log_ratio_first"] < 1e-4
    assert {row["step"] for row in files.read(policy / "samples.jsonl")} == {1}
    stored = json.loads((policy / "config.json").read_text())
    assert stored["constraint"]["name"] == "FixedPenalty" and stored["base"] == str(random_base)
    plain = AutoModelForCausalLM.from_pretrained(random_base)
    ids = torch.arange(4, 12)[None]
    before = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, policy / "adapter")
    assert (adapted(ids).logits - before).abs().max() > 0, "two steps have moved the policy"


def test_a_static_cache_trains_the_same_policy(asked, policy, tmp_path):
    """The same answers from the same random numbers; their old log-probabilities come from the training path."""
    assert cli.main(asked(tmp_path / "run", "--rollout static")) == 0
    one, two = rows_of(policy), rows_of(tmp_path / "run")
    for name in ("objective/reward", "objective/cost", "objective/length", "policy/loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-4), name
    assert two[0]["policy/max_log_ratio_first"] < 1e-4
    stored = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (policy, tmp_path / "run"))
    for a, b in zip(*(state.values() for state in stored), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_policy(asked, policy, tmp_path, monkeypatch, capsys):
    step, calls = ppo.ppo_step, []

    def stop_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "fit_critic", stop_at_the_second)
        calls.append(1)
        assert cli.main(asked(tmp_path / "run")) == 130, "while the critic is fitted"
        calls.clear()
    assert not (tmp_path / "run" / "critic.safetensors").exists()
    monkeypatch.setattr(ppo, "ppo_step", stop_at_the_second)
    assert cli.main(asked(tmp_path / "run", "--resume")) == 130
    monkeypatch.setattr(ppo, "ppo_step", step)
    assert not (tmp_path / "run" / "adapter").exists()
    assert cli.main(asked(tmp_path / "run")) == 2
    assert "already holds a run: expected a new folder, or --resume" in capsys.readouterr().err
    assert cli.main(asked(tmp_path / "run", "--resume --penalty 3")) == 2
    assert "penalty was 20.0 and is now 3.0" in capsys.readouterr().err
    assert cli.main(asked(tmp_path / "run", "--resume", cost=asked(tmp_path)[2])) == 2
    assert "cost was" in capsys.readouterr().err
    assert cli.main(asked(tmp_path / "run", "--resume --critic.epochs 1")) == 2
    assert "critic.epochs was 4 and is now 1" in capsys.readouterr().err
    assert cli.main(asked(tmp_path / "run", "--resume")) == 0
    names = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / names).read_bytes() == (policy / names).read_bytes()
    assert cli.main(asked(tmp_path / "run", "--resume")) == 0, "a finished run has nothing left to do"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_critic_that_knows_the_base_starts_with_smaller_errors(asked, tmp_path):
    fit = "--critic.epochs 12 --critic.learning-rate 0.02 --critic.batch-size 2"
    assert cli.main(asked(tmp_path / "fitted", fit)) == 0
    assert cli.main(asked(tmp_path / "fresh", "--critic.episodes 0")) == 0
    fitted, fresh = (rows_of(tmp_path / name)[0] for name in ("fitted", "fresh"))
    assert fitted["val/reward_loss"] < 0.5 * fresh["val/reward_loss"]
    assert not (tmp_path / "fresh" / "critic.safetensors").exists()


def test_adapters_on_the_last_layers_are_trained_and_read_back(asked, folders, tmp_path, monkeypatch):
    """Two layers: the scorers', the critic's and the policy's adapters are on the upper one, and share the lower."""
    built = []
    monkeypatch.setattr(recipes, "train_ppo", lambda roles, *args, **options: built.append(roles) or ppo.train_ppo(roles, *args, **options))  # fmt: skip
    upper = {name: folders[f"{name}_upper"] for name in ("reward", "cost")}
    assert cli.main(asked(tmp_path / "run", "--layers 1", **upper)) == 0
    assert built[0].shared == 1 and built[0].lowest["policy"] == 1
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert stored and all(".layers.1." in name for name in stored)
    row, _ = evaluate(folders, tmp_path / "e.json", policy=tmp_path / "run", prompts=folders["prompts.jsonl"])
    assert row["kl"] != 0.0, "the adapter is in use"
    assert cli.main(asked(tmp_path / "more", "--layers 3")) == 2


@pytest.mark.parametrize("cost", ["cost", "own"])
def test_a_base_in_bfloat16_is_trained_and_evaluated(cost, asked, folders, tmp_path):
    run = tmp_path / "run"
    assert cli.main(asked(run, "--dtype bfloat16", cost=folders[cost])) == 0
    rows = rows_of(run)
    assert all(isinstance(value, int) or value == value for row in rows for value in row.values())
    assert rows[0]["policy/max_log_ratio_first"] < 0.05, "half precision rounds, and no more than that"
    assert {t.dtype for t in load_file(run / "adapter" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    options = {
        "policy": run,
        "prompts": folders["prompts.jsonl"],
        "cost": Path(folders[cost]),
        "temperature": 0.0,
    }
    half, _ = evaluate(folders, tmp_path / "half.json", **options, dtype="bfloat16", batch_size=4)
    whole, _ = evaluate(folders, tmp_path / "whole.json", **options)
    assert 0.0 < half["cost"] < 1.0 and half["cost"] == pytest.approx(whole["cost"], abs=0.2)


def test_a_cost_model_with_a_base_of_its_own_serves_as_well(asked, folders, tmp_path):
    assert cli.main(asked(tmp_path / "run", "--method lagrangian", cost=folders["own"])) == 0
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 2 and 0 < rows[0]["objective/cost"] < 1


BAD = {
    "reward": ("nowhere", "nowhere is no reward model: expected a folder that `csrlhf reward-model` wrote"),
    "cost": ("nowhere", "nowhere is no cost model: expected a folder that `csrlhf cost-model` wrote"),
    "base": ("./nowhere", "nowhere is not a folder"),
    "prompts": ("none.jsonl", "none.jsonl: cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_missing_is_one_sentence_and_no_folder(name, asked, tmp_path, capsys):
    value, words = BAD[name]
    assert cli.main(asked(tmp_path / "run", **{name: value})) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("csrlhf: ") and words in said
    assert not (tmp_path / "run").exists()


def test_a_malformed_prompts_file_is_told_by_line_and_field(asked, folders, tmp_path, capsys):
    for text, words in (
        ('{"prompt": "fine"}\nnot json\n', "line 2, column 1: found broken JSON"),
        ('{"prompt": "fine"}\n{"prompt": ""}\n', "line 2"),
        ('{"question": "fine"}\n', "found the columns question"),
        ("", "the file is empty"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        assert cli.main(asked(tmp_path / "run", prompts=str(tmp_path / "bad.jsonl"))) == 2
        assert words in capsys.readouterr().err
        options = ["--reward", folders["reward"], "--cost", folders["cost"], "--out", str(tmp_path / "e")]
        assert cli.main(["evaluate", *options, "--prompts", str(tmp_path / "bad.jsonl")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "e").exists()


def test_an_unknown_method_is_refused_before_anything_is_loaded(asked, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(asked(tmp_path / "run", "--method magic"))
    assert stop.value.code == 2
    assert "magic" in capsys.readouterr().err


def exact(events: list[bool]) -> dict[str, float]:
    """Share and Clopper-Pearson interval by scipy."""
    interval = binomtest(sum(events), len(events)).proportion_ci(0.95, method="exact")
    rate = sum(events) / len(events)
    return {"rate": rate, "low": interval.low, "high": interval.high, "n": len(events)}


def evaluate(folders, out: Path, **changes) -> tuple[dict, dict]:
    given = {
        "reward": Path(folders["reward"]),
        "cost": Path(folders["cost"]),
        "base": folders["base"],
        "out": out,
        "max_new_tokens": 6,
    } | changes
    row = run_evaluate(EvaluateConfig(**given))
    written = json.loads(out.read_text())
    assert written["row"] == row
    return row, written


def test_evaluate_on_the_toy_world_is_judged_by_the_oracle(folders, policy, tmp_path, capsys):
    row, written = evaluate(folders, tmp_path / "e.json", policy=policy, limit=60)
    answers = written["answers"]
    assert len(answers) == 60 and row["judge"] == "oracle"
    unsafe = exact([answer["cost"] > 0 for answer in answers])
    assert row["unsafe_by_cost_model"] == pytest.approx(unsafe)
    verdicts = [judge(answer["prompt"], answer["response"]) for answer in answers]
    assert [a["harmful"] for a in answers] == [v.harmful for v in verdicts]
    assert row["degenerate"] == pytest.approx(exact([v.degenerate for v in verdicts]))
    counted = row["harmful_nominal"]["n"] + row["harmful_jailbreak"]["n"]
    assert 0 < counted < 60, "a draw of the test prompts holds harmful and benign ones"
    assert "unsafe_by_cost_model" in capsys.readouterr().out
    again, _ = evaluate(folders, tmp_path / "again.json", policy=policy / "adapter", limit=60)
    assert again == row, "the seed fixes prompts and answers"


def test_evaluate_elsewhere_says_that_the_cost_model_judges(folders, sentences, tmp_path):
    prompts = folders["prompts.jsonl"]
    row, written = evaluate(folders, tmp_path / "e.json", prompts=prompts, cost=Path(folders["own"]))
    answers = written["answers"]
    assert row["judge"] == "cost model" and row["kl"] == 0.0
    assert [answer["prompt"] for answer in answers] == sentences
    costs = torch.tensor([answer["cost"] for answer in answers])
    assert row["cost"] == pytest.approx(float(costs.sigmoid().mean()), abs=1e-6)
    assert row["unsafe_by_cost_model"] == pytest.approx(exact((costs > 0).tolist()))
    greedy, _ = evaluate(folders, tmp_path / "g.json", prompts=prompts, temperature=0.0)
    other, _ = evaluate(folders, tmp_path / "h.json", prompts=prompts, temperature=0.0, seed=1)
    assert greedy == other, "without a temperature there is nothing to draw"


def test_evaluate_says_where_it_asks_what_was_trained_on(folders, policy, tmp_path, capsys, sentences):
    """The policy of `asked` learnt from these very prompts; the cost model from others."""
    prompts, new = folders["prompts.jsonl"], tmp_path / "new.jsonl"
    told = f"are among those that {policy} was trained on"
    evaluate(folders, tmp_path / "a.json", policy=policy, prompts=prompts)
    assert f"Note: {len(sentences)} of these {len(sentences)} prompts {told}" in capsys.readouterr().out
    new.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (sentences[0].upper(), "new")))
    evaluate(folders, tmp_path / "b.json", policy=policy / "adapter", prompts=str(new))
    assert "Note: 1 of these 2 prompts are among" in capsys.readouterr().out
    evaluate(folders, tmp_path / "c.json", prompts=prompts)
    assert "Note" not in capsys.readouterr().out


def test_rates_over_no_prompt_are_left_out_of_the_summary():
    none = {"rate": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    text = row_text({"harmful_nominal": none, "over_refusal": none | {"rate": 0.25, "n": 8}, "kl": None})
    assert "harmful" not in text and "25.0%" in text and "n = 8" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"out": Path(".")}, "found a folder"),
        ({"policy": Path("nowhere")}, "nowhere is no policy"),
        ({"cost": Path("nowhere")}, "nowhere is no cost model"),
    ],
)
def test_bad_asks_of_evaluate_are_told(folders, tmp_path, changes, words):
    given = {"reward": Path(folders["reward"]), "cost": Path(folders["cost"]), "out": tmp_path / "e.json"}
    with pytest.raises(UserError, match=words):
        run_evaluate(EvaluateConfig(**given | {"base": folders["base"]} | changes))
