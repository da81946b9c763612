"""The benchmark on a CPU: it runs, its yardsticks measure, and its verdicts can fail."""

from __future__ import annotations

import csv
import gc

import pytest
import torch

from benchmarks import gpu_check, kernels
from benchmarks.measure import interleaved_seconds, peak_extra_bytes
from csrlhf_kit.errors import UserError

CPU = torch.device("cpu")


def test_peak_extra_bytes_counts_what_is_alive_at_once():
    kept = torch.ones(1000)

    def one_after_the_other():
        for _ in range(3):
            torch.empty(250_000)  # 1 MB, freed at once

    def together():
        return [torch.empty(250_000) for _ in range(3)]

    assert peak_extra_bytes(one_after_the_other, CPU) == 1_000_000
    assert peak_extra_bytes(together, CPU) == 3_000_000
    assert peak_extra_bytes(lambda: kept.sum(), CPU) < 1000


def test_peak_extra_bytes_ignores_garbage_of_an_earlier_measurement():
    measured = iter([False, True, False, True])  # each measurement runs once before it looks

    def leaves_a_cycle():
        if next(measured):
            gc.collect()  # Python may do so at any moment; here at the one that would count
        cycle = [torch.empty(1_000_000, dtype=torch.uint8)]
        cycle.append(cycle)

    gc.disable()
    try:
        assert [peak_extra_bytes(leaves_a_cycle, CPU) for _ in range(2)] == [1_000_000] * 2
    finally:
        gc.enable()


def test_runs_take_turns():
    order = []
    taken = interleaved_seconds(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, seconds=0, warm_up=0
    )
    assert "".join(order) == "ab" * 3
    assert all(low <= middle <= high for low, middle, high in taken.values())


def test_bench_runs_on_a_cpu_and_says_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(kernels.SHAPES, "laptop", kernels.Shape(64, 128, 211))
    config = kernels.BenchKernelsConfig(tokens=16, seconds=0.001, device="cpu", out=tmp_path)
    result = kernels.run_bench_kernels(config)
    assert "No GPU" in capsys.readouterr().out
    rows = list(csv.DictReader(result["csv"].read_text().splitlines()))
    assert {r["kernel"] for r in rows} == set(kernels.PROBLEMS)
    assert all(float(r["p20_ms"]) <= float(r["p50_ms"]) <= float(r["p80_ms"]) for r in rows)
    assert all("CPU" in r["device"] and r["torch"] == torch.__version__ for r in rows)
    assert {"csrlhf", "naive", "PEFT + bitsandbytes"} <= {r["variant"] for r in rows}
    page = result["page"].read_text()
    assert "Plotly.newPlot" in page and 'src="http' not in page


def test_bench_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"qwen2\.5-7b"):
        kernels.run_bench_kernels(kernels.BenchKernelsConfig(shapes=("llama",), device="cpu", out=tmp_path))
    with pytest.raises(UserError, match="lora_linear"):
        kernels.run_bench_kernels(kernels.BenchKernelsConfig(kernels=("gemm",), device="cpu", out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_baseline_that_fails_is_left_out_but_ours_is_not():
    def broken():
        raise RuntimeError("out of memory")

    fine = kernels.Case(lambda: torch.ones(3))
    best = {"copy": 1e9, "matmul": 1e9}
    rows = kernels.measure(
        kernels.Problem("", {"csrlhf": fine, "theirs": kernels.Case(broken)}, 1.0, "copy"), CPU, 0.0, best
    )
    assert [r["variant"] for r in rows] == ["csrlhf"]
    with pytest.raises(RuntimeError, match="out of memory"):
        kernels.measure(kernels.Problem("", {"csrlhf": kernels.Case(broken)}, 1.0, "copy"), CPU, 0.0, best)


def test_correctness_checks_hold_on_a_cpu():
    pytest.importorskip("bitsandbytes")
    verdicts = list(gpu_check.correctness(CPU))
    assert len(verdicts) == 9
    assert all(holds for _, holds, _ in verdicts), "\n".join(map(gpu_check.show, verdicts))


def test_correctness_checks_can_fail(monkeypatch):
    genuine = gpu_check.gae
    monkeypatch.setattr(gpu_check, "gae", lambda *a: [x * 1.001 for x in genuine(*a)])
    monkeypatch.setattr(gpu_check, "dequantize_nf4", lambda *a: torch.zeros(1))
    verdicts = {claim: holds for claim, holds, _ in gpu_check.correctness(CPU)}
    assert [claim.split()[0] for claim, holds in verdicts.items() if not holds] == ["dequantize_nf4", "gae"]


def synthetic_rows(speed_up, memory, share):
    rows = []
    for kernel, baseline, name in (
        ("linear_logprob", "naive", "both"),
        ("lora_linear", "PEFT + bitsandbytes", "both"),
        ("dequantize_nf4", "bitsandbytes", "forward"),
    ):
        for shape in ("qwen2.5-0.5b", "qwen2.5-7b"):
            common = {"kernel": kernel, "shape": shape, "pass": name, "case": "nf4 q_proj"}
            rows.append(
                {**common, "variant": "csrlhf", "p50_ms": 1.0, "peak_mb": 1.0, "percent_of_best": share}
            )
            rows.append(
                {**common, "variant": baseline, "p50_ms": speed_up, "peak_mb": memory, "percent_of_best": 1.0}
            )
    return rows


def test_targets_are_judged_by_what_was_measured():
    assert all(holds for _, holds, _ in gpu_check.targets(synthetic_rows(1.6, 11.0, 71.0)))
    assert not any(holds for _, holds, _ in gpu_check.targets(synthetic_rows(1.1, 9.0, 69.0)))
    assert [holds for _, holds, _ in gpu_check.targets(synthetic_rows(1.3, 11.0, 71.0))] == [
        False,
        True,
        False,
        True,
        True,
        True,
    ]
    assert all(holds is None for _, holds, _ in gpu_check.targets([]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_claimed(tmp_path, capsys):
    assert gpu_check.run_gpu_check(gpu_check.GPUCheckConfig(out=tmp_path)) == 3
    assert "nothing was measured" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_bench_ppo_measures_the_parts_of_a_step(tmp_path, capsys):
    from benchmarks.ppo_step import BenchPPOConfig, random_prompts, run_bench_ppo

    config = BenchPPOConfig(
        shape="tiny",
        steps=3,
        warm_up=1,
        batch_size=8,
        minibatch_size=4,
        new_tokens=5,
        rank=2,
        threads=1,
        out=tmp_path / "ppo.json",
    )
    result = run_bench_ppo(config)
    assert "s a step" in capsys.readouterr().out and (tmp_path / "ppo.json").is_file()
    assert all(len(taken) == 3 and min(taken) > 0 for taken in result["seconds"].values())
    for i, whole in enumerate(result["seconds"]["step"]):
        assert whole == pytest.approx(
            sum(result["seconds"][name][i] for name in ("rollout", "score", "update"))
        )
        assert result["seconds"]["cpu_step"][i] == pytest.approx(
            sum(result["seconds"][f"cpu_{name}"][i] for name in ("rollout", "score", "update"))
        )
    prompts = random_prompts(config, 100, torch.Generator().manual_seed(0))
    lengths = prompts["attention_mask"].sum(1)
    assert prompts["input_ids"].shape == (8, 32) and lengths.min() >= 8 and lengths.max() <= 32
    assert (prompts["input_ids"][prompts["attention_mask"] == 0] == 0).all() and prompts["attention_mask"][
        :, -1
    ].all()
