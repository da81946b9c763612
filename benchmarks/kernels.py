"""`python benchmarks/kernels.py`: every kernel against its baselines, in one run on one machine."""

from __future__ import annotations

import copy
import csv
import importlib.util
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.measure import (
    copy_bandwidth,
    device_name,
    interleaved_seconds,
    matmul_rate,
    peak_extra_bytes,
    versions,
)
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.kernels import dequantize_nf4, gae, linear_logprob
from csrlhf_kit.kernels.gae import gae_reference
from csrlhf_kit.kernels.logprob import linear_logprob_reference
from csrlhf_kit.outputs import check_folder


class Shape(NamedTuple):
    hidden: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "qwen2.5-0.5b": Shape(896, 4864, 151_936),
    "qwen2.5-1.5b": Shape(1536, 8960, 151_936),
    "qwen2.5-7b": Shape(3584, 18_944, 152_064),
    "laptop": Shape(256, 704, 20_000),
}
RANK = 16
EPISODES = 64


@dataclass
class BenchKernelsConfig:
    """Time and memory of the kernels and of what they replace."""

    shapes: tuple[str, ...] = ()
    """Model shapes: qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, laptop (default: the three on a GPU, laptop on a CPU)."""
    kernels: tuple[str, ...] = ("linear_logprob", "lora_linear", "dequantize_nf4", "gae")
    """Which kernels to measure."""
    tokens: int = 0
    """Tokens in a batch (default: 8192 on a GPU, 512 on a CPU)."""
    seconds: float = 0.0
    """How long to measure each variant of a case (default: 0.5 on a GPU, 1.0 on a CPU)."""
    compiled: bool = False
    """Also measure the baselines under torch.compile (always on a GPU; a CPU needs a C++ compiler and minutes)."""
    device: str = ""
    """cuda or cpu (default: cuda where there is one)."""
    out: Path = field(default_factory=lambda: Path("benchmarks/results"))
    """Folder for kernels-<device>.csv and .html."""


class Case(NamedTuple):
    """One way to compute something: forward() -> tensor(s), of which the first is differentiated to `leaves`."""

    forward: Callable[[], Tensor | tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...] = ()


class Problem(NamedTuple):
    """The same work done in several ways; work = FLOPs of forward and backward, or bytes to move."""

    name: str
    cases: dict[str, Case]
    work: float
    bound: str  # matmul or copy: what limits it


def logprob_problems(shape: Shape, tokens: int, device: torch.device, compiled: bool) -> list[Problem]:
    """A frozen head, log-probabilities differentiated, entropy as a statistic: what PPO does."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(tokens, shape.hidden, device=device).to(dtype).requires_grad_()
    weight = torch.randn(shape.vocabulary, shape.hidden, device=device).mul_(shape.hidden**-0.5).to(dtype)
    targets = torch.randint(shape.vocabulary, (tokens,), device=device)

    def naive() -> tuple[Tensor, Tensor]:
        log_probs, entropy = linear_logprob_reference(hidden, weight, targets)
        return log_probs, entropy.detach()

    def lean() -> tuple[Tensor, Tensor]:
        """The plain path written with care: no graph for entropy."""
        log_probs = (hidden @ weight.t()).float().log_softmax(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(1, targets[:, None]).squeeze(1), entropy

    cases = {
        "csrlhf": Case(lambda: linear_logprob(hidden, weight, targets), (hidden,)),
        "naive": Case(naive, (hidden,)),
        "lean": Case(lean, (hidden,)),
    }
    if compiled:
        cases["lean, compiled"] = Case(torch.compile(lean), (hidden,))
    if hasattr(nn.functional, "linear_cross_entropy"):
        options = nn.LinearCrossEntropyOptions() if hasattr(nn, "LinearCrossEntropyOptions") else None
        cases["torch linear_cross_entropy (no entropy)"] = Case(
            lambda: nn.functional.linear_cross_entropy(
                hidden, weight, targets, reduction="none", options=options
            ),
            (hidden,),
        )
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="none")
        cases["Liger (no entropy)"] = Case(lambda: liger(weight, hidden, targets), (hidden,))
    work = 4 * tokens * shape.hidden * shape.vocabulary
    return [Problem("", cases, work, "matmul")]


def lora_layer(inside: int, outside: int, bias: bool, quantised: bool, device: torch.device) -> nn.Module:
    """PEFT's LoRA layer over one dense or NF4 linear layer, as a model has it."""
    import peft

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    layer = nn.Linear(inside, outside, bias=bias, dtype=dtype)
    if quantised:
        import bitsandbytes as bnb

        dense, layer = (
            layer,
            bnb.nn.Linear4bit(inside, outside, bias=bias, compute_dtype=dtype, quant_type="nf4"),
        )
        layer.load_state_dict(dense.state_dict())
        layer.support_avx512bf16_for_cpu = False
    base = nn.ModuleDict({"proj": layer}).to(device)
    base.is_loaded_in_4bit = quantised
    config = peft.LoraConfig(r=RANK, target_modules=["proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config).to(device)


def lora_problems(shape: Shape, tokens: int, device: torch.device, compiled: bool) -> list[Problem]:
    """A decoder block's three kinds of layer: q_proj with a bias, up_proj, down_proj."""
    from csrlhf_kit.kernels import fuse

    problems = []
    sizes = {
        "q_proj": (shape.hidden, shape.hidden, True),
        "up_proj": (shape.hidden, shape.intermediate, False),
        "down_proj": (shape.intermediate, shape.hidden, False),
    }
    for quantised in (True, False):
        for name, (inside, outside, bias) in sizes.items():
            theirs = lora_layer(inside, outside, bias, quantised, device)
            ours = copy.deepcopy(theirs)
            fuse(ours)
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            x = torch.randn(tokens, inside, device=device).to(dtype).requires_grad_()

            def case(model: nn.Module, x: Tensor = x, compile_it: bool = False) -> Case:
                layer = model.base_model.model["proj"]
                run = torch.compile(layer) if compile_it else layer
                return Case(lambda: run(x), (x, *(p for p in layer.parameters() if p.requires_grad)))

            base = "PEFT + bitsandbytes" if quantised else "PEFT"
            cases = {"csrlhf": case(ours), base: case(theirs)}
            if compiled:
                cases[f"{base}, compiled"] = case(copy.deepcopy(theirs), compile_it=True)
            work = 4 * tokens * inside * outside + 6 * tokens * RANK * (inside + outside)
            problems.append(Problem(f"{'nf4' if quantised else 'dense'} {name}", cases, work, "matmul"))
    return problems


def nf4_problems(shape: Shape, tokens: int, device: torch.device, compiled: bool) -> list[Problem]:
    """The largest matrix of a block, double-quantised as QLoRA has it, to bfloat16."""
    import bitsandbytes as bnb

    weight = torch.randn(shape.intermediate, shape.hidden, device=device).bfloat16()
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    cases = {
        "csrlhf": Case(lambda: dequantize_nf4(packed, state)),
        "bitsandbytes": Case(lambda: bnb.functional.dequantize_4bit(packed, state)),
    }
    moved = packed.numel() + state.absmax.numel() + 2 * weight.numel()
    return [Problem("up_proj", cases, moved, "copy")]


def gae_problems(shape: Shape, tokens: int, device: torch.device, compiled: bool) -> list[Problem]:
    """Reward and cost of 64 episodes, tokens / 64 long but at least 24."""
    length = max(24, tokens // EPISODES)
    rewards, values = torch.randn(2, 2, EPISODES, length, device=device).unbind()
    mask = torch.ones(EPISODES, length, dtype=torch.bool, device=device)
    cases = {
        "csrlhf": Case(lambda: gae(rewards, values, mask)),
        "loop over time": Case(lambda: gae_reference(rewards, values, mask, 1.0, 0.95)),
    }
    return [Problem(f"2 x {EPISODES} x {length}", cases, 4.0 * 4 * rewards.numel(), "copy")]


PROBLEMS = {
    "linear_logprob": logprob_problems,
    "lora_linear": lora_problems,
    "dequantize_nf4": nf4_problems,
    "gae": gae_problems,
}
COLUMNS = (
    "kernel", "shape", "case", "variant", "pass", "tokens", "p20_ms", "p50_ms", "p80_ms", "peak_mb",
    "percent_of_best", "bound",
)  # fmt: skip


def passes(case: Case) -> dict[str, Callable[[], object]]:
    """What is timed: forward; and, where something is differentiated, backward and both together."""
    if not case.leaves:
        return {"forward": case.forward}

    def output() -> Tensor:
        result = case.forward()
        return result[0] if isinstance(result, tuple) else result

    kept = output()
    upstream = torch.randn_like(kept)
    return {
        "forward": output,
        "backward": lambda: torch.autograd.grad(kept, case.leaves, upstream, retain_graph=True),
        "both": lambda: torch.autograd.grad(output(), case.leaves, upstream),
    }


def measure(
    problem: Problem, device: torch.device, seconds: float, best: dict[str, float]
) -> list[dict[str, object]]:
    """Rows of one problem. A baseline that cannot run here is left out, and says why; ours has to run."""
    runs: dict[str, dict[str, Callable[[], object]]] = {}
    for variant, case in problem.cases.items():
        try:
            found = passes(case)
            for run in found.values():
                run()
        except Exception as error:
            if variant == "csrlhf":
                raise
            tqdm.write(
                f"  {variant} cannot run here: {type(error).__name__}: {str(error).splitlines()[0][:150]}"
            )
            continue
        for name, run in found.items():
            runs.setdefault(name, {})[variant] = run
    rows = []
    for name, variants in runs.items():
        taken = interleaved_seconds(variants, device, seconds=seconds)
        for variant, (low, median, high) in taken.items():
            whole = name == "both" or "both" not in runs
            rows.append(
                {
                    "case": problem.name,
                    "variant": variant,
                    "pass": name,
                    "p20_ms": round(1e3 * low, 4),
                    "p50_ms": round(1e3 * median, 4),
                    "p80_ms": round(1e3 * high, 4),
                    "peak_mb": round(peak_extra_bytes(variants[variant], device) / 1e6, 3),
                    "percent_of_best": round(100 * problem.work / median / best[problem.bound], 1)
                    if whole
                    else "",
                    "bound": problem.bound,
                }
            )
    return rows


def run_bench_kernels(config: BenchKernelsConfig) -> dict[str, object]:
    """Measure, print, and write `kernels-<device>.csv` and `.html` to `config.out`.

    Returns {"device", "versions", "best", "rows", "csv", "page"}. Raises UserError for an unknown shape or kernel.
    """
    check_folder(config.out)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    shapes = config.shapes or (tuple(name for name in SHAPES if name != "laptop") if on_gpu else ("laptop",))
    for given, known in ((shapes, SHAPES), (config.kernels, PROBLEMS)):
        for name in given:
            if name not in known:
                raise UserError(f"bench kernels does not know {name!r}: expected one of {', '.join(known)}.")
    if on_gpu and not torch.cuda.is_available():
        raise UserError("bench kernels was asked for cuda, but PyTorch sees no GPU here.")
    if not on_gpu:
        print("No GPU: small shapes on the CPU, in float32. These numbers say nothing about a GPU.")
    tokens = config.tokens or (8192 if on_gpu else 512)
    seconds = config.seconds or (0.5 if on_gpu else 1.0)
    best = {
        "copy": copy_bandwidth(device, megabytes=1024 if on_gpu else 64),
        "matmul": matmul_rate(
            device, torch.bfloat16 if on_gpu else torch.float32, size=8192 if on_gpu else 1024
        ),
    }
    about = {"device": device_name(device), **versions()}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"measured: copy {best['copy'] / 1e9:.1f} GB/s, matrix product {best['matmul'] / 1e12:.3f} TFLOP/s")
    rows = []
    for kernel, shape in tqdm([(k, s) for k in config.kernels for s in shapes], desc="bench"):
        for problem in PROBLEMS[kernel](SHAPES[shape], tokens, device, config.compiled or on_gpu):
            for row in measure(problem, device, seconds, best):
                rows.append({"kernel": kernel, "shape": shape, "tokens": tokens, **row, **about})
            torch._dynamo.reset()
    print(table(rows))
    stem = "kernels-" + "".join(c if c.isalnum() else "-" for c in about["device"].lower()).strip("-")
    written = write_atomic(config.out / f"{stem}.csv", to_csv(rows, (*COLUMNS, *about)))
    page = write_atomic(config.out / f"{stem}.html", to_page(rows, about))
    print(f"Written: {written} and {page}")
    return {
        "device": about["device"],
        "versions": versions(),
        "best": best,
        "rows": rows,
        "csv": written,
        "page": page,
    }


def table(rows: list[dict[str, object]]) -> str:
    """The rows as text: forward and backward together, or forward where nothing is differentiated."""
    differentiated = {(r["kernel"], r["shape"], r["case"]) for r in rows if r["pass"] == "both"}
    lines = [
        f"{'kernel':15} {'shape':13} {'case':16} {'variant':40} {'p50 ms':>10} {'peak MB':>10} {'% best':>7}"
    ]
    for r in rows:
        wanted = "both" if (r["kernel"], r["shape"], r["case"]) in differentiated else "forward"
        if r["pass"] == wanted:
            lines.append(
                f"{r['kernel']:15} {r['shape']:13} {r['case']:16} {r['variant']:40} {r['p50_ms']:10.3f} "
                f"{r['peak_mb']:10.2f} {r['percent_of_best']:>7}"
            )
    return "\n".join(lines)


def to_csv(rows: list[dict[str, object]], columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_page(rows: list[dict[str, object]], about: dict[str, str]) -> str:
    """One self-contained page: times with their p20-p80 range, and peak memory, a group of bars a case."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=1,
        subplot_titles=("time, ms (bar: median; whisker: p20 to p80)", "peak extra memory, MB"),
    )
    for variant in dict.fromkeys(r["variant"] for r in rows):
        mine = [r for r in rows if r["variant"] == variant]
        labels = [f"{r['kernel']} {r['shape']} {r['case']} {r['pass']}" for r in mine]
        middle = [r["p50_ms"] for r in mine]
        whisker = {
            "type": "data",
            "symmetric": False,
            "array": [r["p80_ms"] - r["p50_ms"] for r in mine],
            "arrayminus": [r["p50_ms"] - r["p20_ms"] for r in mine],
        }
        figure.add_trace(
            go.Bar(x=labels, y=middle, name=variant, error_y=whisker, legendgroup=variant), row=1, col=1
        )
        memory = go.Bar(
            x=labels, y=[r["peak_mb"] for r in mine], name=variant, legendgroup=variant, showlegend=False
        )
        figure.add_trace(memory, row=2, col=1)
    title = ", ".join(f"{name} {value}" for name, value in about.items())
    figure.update_layout(title={"text": title, "font": {"size": 12}}, height=1100, barmode="group")
    figure.update_yaxes(type="log")
    return figure.to_html(include_plotlyjs=True, full_html=True)


if __name__ == "__main__":
    import tyro

    from csrlhf_kit.cli import run_command

    sys.exit(run_command(run_bench_kernels, tyro.cli(BenchKernelsConfig)))
