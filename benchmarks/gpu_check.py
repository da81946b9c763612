"""Everything that only a GPU can show, in one command: `python benchmarks/gpu_check.py`.

First the kernels' numbers on the device, then their speed and memory against the baselines, then the targets.
Writes `gpu-check-<device>.json` beside the benchmark's CSV. Without a GPU it says so, measures nothing and writes
nothing. The exit status is 0 where every check and target holds, 1 where one fails, 3 without a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.kernels import BenchKernelsConfig, lora_layer, run_bench_kernels
from benchmarks.measure import device_name, versions
from csrlhf_kit.files import write_atomic
from csrlhf_kit.kernels import dequantize_nf4, fuse, gae, linear_logprob, lora_linear
from csrlhf_kit.kernels.gae import gae_reference
from csrlhf_kit.kernels.logprob import linear_logprob_reference
from csrlhf_kit.kernels.lora import lora_linear_reference
from csrlhf_kit.outputs import check_folder

Verdict = tuple[
    str, bool | None, str
]  # what is claimed, whether it holds (None: could not be judged), figures
# Claims of time and memory; factors of the baseline over ours.
SMALL, LARGE = "qwen2.5-0.5b", "qwen2.5-7b"
NAIVE, PEFT, BITSANDBYTES = "naive", "PEFT + bitsandbytes", "bitsandbytes"


@dataclass
class GPUCheckConfig:
    """Check and measure the kernels on a GPU."""

    tokens: int = 8192
    """Tokens in a batch of the benchmark."""
    out: Path = field(default_factory=lambda: Path("benchmarks/results"))
    """Folder for the results."""


def rms(got: Tensor, truth: Tensor) -> float:
    return (got.double() - truth.double()).square().mean().sqrt().item()


def half_precision(
    claim: str, ours: Callable, plain: Callable, leaves: list[Tensor], differentiated: list[int]
) -> Verdict:
    """Outputs' and gradients' error of `ours` against float64: at most 1.5 times that of the plain path."""

    def results(function: Callable, leaves: list[Tensor]) -> list[Tensor]:
        outputs = function(*leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        generator = torch.Generator().manual_seed(0)
        upstream = torch.randn(outputs[0].shape, generator=generator).to(outputs[0])
        wanted = [leaves[i] for i in differentiated]
        return [*outputs, *torch.autograd.grad(outputs[0], wanted, upstream)]

    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    truth = results(plain, exact)
    errors = [
        (rms(mine, want), rms(theirs, want))
        for mine, theirs, want in zip(results(ours, leaves), results(plain, leaves), truth, strict=True)
    ]
    holds = all(mine <= 1.5 * theirs for mine, theirs in errors)
    return claim, holds, "; ".join(f"{mine:.3g} against {theirs:.3g}" for mine, theirs in errors)


def correctness(device: torch.device, *, scale: int = 1) -> Iterator[Verdict]:
    """The kernels' numbers on `device`; scale multiplies the sizes of the problems."""
    yield from _nf4_is_bit_exact(device, scale)
    yield from _logprob_is_right(device, scale)
    yield from _lora_is_right(device, scale)
    rewards, values = torch.randn(2, 2, 16, 37 * scale, device=device).unbind()
    mask = torch.rand(16, 37 * scale, device=device) > 0.3
    worst = max(
        rms(a, b)
        for a, b in zip(
            gae(rewards, values, mask), gae_reference(rewards, values, mask, 1.0, 0.95), strict=True
        )
    )
    yield "gae agrees with its reference", worst < 1e-5, f"rms {worst:.2g}"


def _nf4_is_bit_exact(device: torch.device, scale: int) -> Iterator[Verdict]:
    import bitsandbytes as bnb

    wrong = []
    for shape in ((64, 64), (7, 130), (33, 65), (96 * scale, 256 * scale)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for double in (False, True):
                weight = torch.randn(shape, device=device).to(dtype)
                packed, state = bnb.functional.quantize_4bit(
                    weight, quant_type="nf4", compress_statistics=double
                )
                if not torch.equal(
                    dequantize_nf4(packed, state), bnb.functional.dequantize_4bit(packed, state)
                ):
                    wrong.append(f"{shape} {dtype} {'double' if double else 'plain'}")
    yield "dequantize_nf4 is bit-exact against bitsandbytes", not wrong, ", ".join(wrong) or "24 cases"


def _logprob_is_right(device: torch.device, scale: int) -> Iterator[Verdict]:
    torch.manual_seed(0)
    tokens, width, vocabulary = 48 * scale, 64, 1031 * scale
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device) / 8
    targets = torch.randint(vocabulary, (tokens,), device=device)
    truth = linear_logprob_reference(hidden.double(), weight.double(), targets, temperature=0.7)
    ours = linear_logprob(hidden, weight, targets, temperature=0.7)
    slopes = (torch.autograd.grad(result[0].sum(), hidden)[0] for result in (ours, truth))
    worst = max(rms(a, b) for a, b in (*zip(ours, truth, strict=True), tuple(slopes)))
    yield "linear_logprob in float32: values, gradient", worst < 1e-4, f"rms {worst:.2g} against float64"
    leaves = [hidden.detach().bfloat16().requires_grad_(), weight.bfloat16()]
    yield half_precision(
        "linear_logprob in bfloat16: error at most 1.5 times the plain path's",
        lambda h, w: linear_logprob(h, w, targets),
        lambda h, w: linear_logprob_reference(h, w, targets),
        leaves,
        [0],
    )


def _lora_is_right(device: torch.device, scale: int) -> Iterator[Verdict]:
    torch.manual_seed(0)
    sizes = ((64 * scale, 96), (80, 96), (16, 96), (80, 16), (80,))  # x, W, A, B, bias
    leaves = [
        torch.randn(size, device=device).bfloat16().requires_grad_(i != 1) for i, size in enumerate(sizes)
    ]
    yield half_precision(
        "lora_linear in bfloat16: error at most 1.5 times the plain path's",
        lambda x, w, a, b, bias: lora_linear(x, w, a, b, bias=bias, scaling=0.5),
        lambda x, w, a, b, bias: lora_linear_reference(x, w, a, b, bias=bias, scaling=0.5),
        leaves,
        [0, 2, 3, 4],
    )
    for quantised in (False, True):
        model = lora_layer(128, 192, True, quantised, device)
        layer = model.base_model.model["proj"]
        dtype = layer.base_layer.compute_dtype if quantised else layer.base_layer.weight.dtype
        x = torch.randn(8 * scale, 128, device=device).to(dtype).requires_grad_()
        wanted = (x, *(p for p in layer.parameters() if p.requires_grad))

        def run(function: Callable, x: Tensor = x, wanted: tuple[Tensor, ...] = wanted) -> list[Tensor]:
            y = function(x)
            return [y, *torch.autograd.grad(y.float().square().sum(), wanted)]

        theirs = run(layer)
        with fuse(model):
            ours, traced = (
                run(layer),
                run(torch.compile(layer, backend="inductor" if x.is_cuda else "aot_eager")),
            )
        for name, got in (("PEFT", ours), ("PEFT, under torch.compile", traced)):
            worst = max(
                rms(a, b) / b.double().square().mean().sqrt().item() for a, b in zip(got, theirs, strict=True)
            )
            allowed = 1e-5 if dtype == torch.float32 else 2e-2
            base = "NF4" if quantised else "dense"
            yield (
                f"lora_linear over {base} agrees with {name}: y, dx, dA, dB",
                worst < allowed,
                f"relative {worst:.2g}",
            )


def targets(rows: list[dict[str, object]]) -> list[Verdict]:
    """What the benchmark's rows say about the promised factors."""

    def total(kernel: str, shape: str, variant: str, column: str, case: str = "") -> float | None:
        passes = {"forward"} if kernel == "dequantize_nf4" else {"both"}
        found = [
            float(r[column])
            for r in rows
            if (r["kernel"], r["shape"], r["variant"]) == (kernel, shape, variant)
            and r["pass"] in passes
            and str(r["case"]).startswith(case)
        ]
        return sum(found) if found else None

    def factor(
        claim: str, least: float, column: str, kernel: str, shape: str, baseline: str, case: str = ""
    ) -> Verdict:
        ours = total(kernel, shape, "csrlhf", column, case)
        theirs = total(kernel, shape, baseline, column, case)
        if not ours or theirs is None:
            return f"{claim} at {shape}: at least {least}", None, "not measured (the baseline may not fit)"
        return f"{claim} at {shape}: at least {least}", theirs / ours >= least, f"{theirs / ours:.2f}"

    verdicts = [
        factor("linear_logprob's speed over the naive path", 1.5, "p50_ms", "linear_logprob", SMALL, NAIVE),
        factor(
            "linear_logprob's peak memory below the naive path's",
            10,
            "peak_mb",
            "linear_logprob",
            SMALL,
            NAIVE,
        ),
        factor(
            "lora_linear's speed over PEFT + bitsandbytes", 1.5, "p50_ms", "lora_linear", SMALL, PEFT, "nf4"
        ),
        factor(
            "lora_linear's speed over PEFT + bitsandbytes", 1.15, "p50_ms", "lora_linear", LARGE, PEFT, "nf4"
        ),
        factor(
            "dequantize_nf4's speed over bitsandbytes", 1.15, "p50_ms", "dequantize_nf4", LARGE, BITSANDBYTES
        ),
    ]
    share = total("dequantize_nf4", LARGE, "csrlhf", "percent_of_best")
    claim = f"dequantize_nf4's share of copy bandwidth at {LARGE}: at least 70%"
    verdicts.append(
        (claim, None if share is None else share >= 70, "not measured" if share is None else f"{share}%")
    )
    return verdicts


def show(verdict: Verdict) -> str:
    claim, holds, figures = verdict
    return f"{'?' if holds is None else 'ok' if holds else 'FAIL':5} {claim}: {figures}"


def run_gpu_check(config: GPUCheckConfig) -> int:
    """The exit status; see the module's first lines."""
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU and PyTorch sees none here: nothing was measured, nothing was written.")
        return 3
    check_folder(config.out)
    device = torch.device("cuda")
    verdicts = []
    for verdict in correctness(device, scale=4):
        verdicts.append(verdict)
        print(show(verdict), flush=True)
    measured = run_bench_kernels(BenchKernelsConfig(tokens=config.tokens, device="cuda", out=config.out))
    verdicts += (promised := targets(measured["rows"]))
    print("\n".join(map(show, promised)))
    record = {
        "device": device_name(device),
        "versions": versions(),
        "best": measured["best"],
        "verdicts": [{"claim": c, "holds": h, "figures": f} for c, h, f in verdicts],
    }
    stem = measured["csv"].stem.replace("kernels-", "gpu-check-", 1)
    print(f"Written: {write_atomic(config.out / f'{stem}.json', json.dumps(record, indent=1) + chr(10))}")
    return int(any(holds is False for _, holds, _ in verdicts))


if __name__ == "__main__":
    import tyro

    sys.exit(run_gpu_check(tyro.cli(GPUCheckConfig)))
