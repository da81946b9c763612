"""The plan against what PyTorch allocates: parameters exactly, phases within the stated margin, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.measure import peak_extra_bytes
from csrlhf_kit import cli
from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import logprob
from csrlhf_kit.kernels.backend import _override
from csrlhf_kit.models.base import DTYPES, load_base
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.recipes import plan
from csrlhf_kit.recipes.plan import (
    CARDS,
    GIB,
    KNOWN,
    PlanConfig,
    known_shape,
    predict,
    run_plan,
    shape_of,
    six_models,
)

SIZES = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 3000, "tie_word_embeddings": False,
}  # fmt: skip
PLAN = PlanConfig(
    rank=8, batch=4, microbatch=4, prompt_tokens=64, new_tokens=64, device="cpu", dtype="float32"
)
MARGIN = 0.2


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {}
    for name, model in (("qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES))), ("llama", LlamaForCausalLM(LlamaConfig(**SIZES)))):  # fmt: skip
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "none"), ("bfloat16", "nf4")])
def test_what_stays_is_what_is_allocated(name, dtype, quantization, bases):
    base = load_base(bases[name], dtype=dtype, quantization=quantization, device="cpu")
    roles = Roles(base, reward=len, cost=len, rank=8, lean=False)
    told = predict(shape_of(base.config), replace(PLAN, dtype=dtype, quantization=quantization))["roles"]
    held = {t.data_ptr(): t.numel() * t.element_size() for t in roles.parameters()}
    for module in base.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            for tensor in (state.absmax, state.state2.absmax):
                held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    expected = (
        told["base (policy's and reference's trunk)"] + told["policy: adapter"] + told["critic: adapter"]
    )
    assert sum(held.values()) == pytest.approx(expected, rel=0.01)
    adapters = sum(p.numel() for n, p in roles.named_parameters() if ".policy." in n)
    assert told["policy: adapter"] == 4 * adapters and told["critic: moments"] == 8 * adapters


@pytest.mark.parametrize(
    ("quantization", "checkpointing", "layers"),
    [(q, c, None) for q in ("none", "nf4") for c in (False, True)] + [("none", False, 2), ("nf4", True, 3)],
)
def test_phases_take_what_was_predicted(quantization, checkpointing, layers, bases):
    """Update of policy and critic, and scoring, against the profiler's record of every allocation."""
    base = load_base(bases["qwen2"], quantization=quantization, device="cpu")
    roles = Roles(base, reward=len, cost=len, rank=8, lean=False, layers=layers)
    if checkpointing:
        checkpoint_activations(roles)
    config = replace(
        PLAN,
        quantization=quantization,
        gradient_checkpointing=checkpointing,
        layers=layers,
        scorer_layers=layers,
    )
    shape = shape_of(base.config)
    told = predict(shape, config)["phases"]
    ids = torch.randint(0, 3000, (4, 128), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    response_mask = mask & (torch.arange(128) >= 64)

    def policy():
        roles.log_probs(ids, mask, response_mask)[0].sum().backward()
        roles.zero_grad(set_to_none=True)

    def critic():
        roles.values(ids, mask, response_mask).sum().backward()
        roles.zero_grad(set_to_none=True)

    episodes = (
        predict(shape, replace(config, batch=8))["phases"]["update the critic"] - told["update the critic"]
    )
    for name, run in (("update the policy", policy), ("update the critic", critic)):
        measured = peak_extra_bytes(run, torch.device("cpu"))
        assert told[name] - episodes == pytest.approx(measured, rel=MARGIN), name


def test_the_promise_for_seven_billion_is_arithmetic_that_holds():
    config = PlanConfig()
    shape = known_shape("qwen2.5-7b")
    assert shape.linear + shape.other == 7_615_616_512, "the published count of Qwen2.5-7B"
    told = predict(shape, config)
    assert told["peak"]["bytes"] < 16 * GIB
    assert six_models(shape)["weights"] == 6 * 2 * 7_615_616_512
    dense = predict(shape, replace(config, quantization="none"))
    assert dense["peak"]["bytes"] > 16 * GIB > told["peak"]["bytes"]
    larger = predict(shape, replace(config, gradient_checkpointing=False))
    assert larger["phases"]["update the policy"] > 3 * told["phases"]["update the policy"]
    smaller = predict(shape, replace(config, optimizer="adamw_8bit"))
    assert smaller["roles"]["policy: moments"] == told["roles"]["policy: moments"] / 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-1.5b", 1_543_714_304), ("llama-3.1-8b", 8_030_261_248)],
)
def test_known_shapes_have_the_published_number_of_parameters(name, parameters):
    shape = known_shape(name)
    assert shape.linear + shape.other == parameters


@pytest.mark.parametrize("name", KNOWN)
def test_arithmetic_counts_what_pytorch_builds(name):
    assert known_shape(name) == shape_of(AutoConfig.for_model(**KNOWN[name]))
    assert plan.LOGPROB_CHUNK == logprob.CHUNK_ELEMENTS and plan.LOGPROB_ROWS == logprob.LEAST_ROWS
    assert all(plan.WIDTHS[name] == DTYPES[name].itemsize for name in plan.WIDTHS)


def test_plan_is_a_command_that_says_what_fits_and_that_nothing_was_measured(bases, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert cli.main(["plan", "--base", "qwen2.5-0.5b", "--quantization", "none", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "predicted, not measured" in said and "fits into: " in said
    written = json.loads(out.read_text())
    assert written["measured"] is False and list(written["fits"]) == [f"{size} GiB" for size in CARDS]
    assert list(written["fits"].values()) == sorted(written["fits"].values()), (
        "what fits a card fits a larger one"
    )
    assert run_plan(replace(PLAN, base=str(bases["llama"])))["shape"]["layers"] == 6
    assert cli.main(["plan", "--base", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert cli.main(["plan", "--batch", "0"]) == 2
    assert cli.main(["plan", "--base", "qwen2.5-0.5b", "--layers", "25"]) == 2
    assert "layers is 25: expected 1 to 24" in capsys.readouterr().err


# --- the benchmark that a session with a GPU runs ---


@pytest.fixture(scope="module")
def benchmark():
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_ppo.py"
    spec = importlib.util.spec_from_file_location("gpu_ppo", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_ppo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_of_the_benchmark_runs_every_line(benchmark, tmp_path, capsys, monkeypatch):
    out = tmp_path / "r.json"
    assert benchmark.main(benchmark.GPUStepConfig(dry_run=True, out=out)) == 0
    written = json.loads(out.read_text())
    assert written["verdicts"] == {"kernels run": True, "every figure is finite": True}
    for part in (written["measured"], written["six_models"]):
        assert all(rate > 0 for rate in part["tokens_per_second"].values())
    assert "tiny, nf4" in capsys.readouterr().out
    measure, backends = benchmark.measure, []

    def broken_kernels(*arguments):
        backends.append(list(_override))
        if _override[-1] == "auto":
            raise RuntimeError("PassManager::run failed")
        return measure(*arguments)

    monkeypatch.setattr(benchmark, "measure", broken_kernels)
    upper = {"layers": 1, "scorer_layers": 1, "rollout": "static"}
    assert benchmark.main(benchmark.GPUStepConfig(dry_run=True, quantization="none", **upper, out=out)) == 1
    assert backends == [["auto"], ["torch"]] and not _override
    assert "PassManager" in json.loads(out.read_text())["kernels_failed"]
    with pytest.raises(UserError, match="base is gpt"):
        benchmark.main(benchmark.GPUStepConfig(base="gpt"))


def test_the_benchmark_judges_the_promises(benchmark):
    config = benchmark.GPUStepConfig()
    good = benchmark.verdicts(config, {"peak": {"card": 12.0 * GIB}}, 12.5 * GIB)
    assert good == {"plan within 10%": True, "peak at most 16 GiB": True}
    bad = benchmark.verdicts(config, {"peak": {"card": 17.0 * GIB}}, 12.5 * GIB)
    assert not any(bad.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it says without a GPU")
def test_without_a_gpu_the_benchmark_measures_nothing(benchmark, capsys):
    assert benchmark.main(benchmark.GPUStepConfig()) == 3
    assert "nothing was measured" in capsys.readouterr().out
