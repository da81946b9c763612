"""Time, memory, and what this machine could do at best: the yardsticks of every benchmark."""

from __future__ import annotations

import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

QUANTILES = (0.2, 0.5, 0.8)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    runs: dict[str, Callable[[], object]], device: torch.device, *, seconds: float = 1.0, warm_up: int = 2
) -> dict[str, tuple[float, float, float]]:
    """p20, p50 and p80 of each run's time in seconds; the runs take turns, so that all see the same machine.

    On a GPU the time is between two events of its own clock, after the L2 cache was overwritten.
    seconds: how long to measure each run, at least three times.
    """
    flush = torch.empty(64 << 20, dtype=torch.int32, device=device) if device.type == "cuda" else None
    for run in runs.values():
        for _ in range(warm_up):
            run()
    synchronise(device)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(next(iter(taken.values()))) < 3 or time.perf_counter() - start < seconds * len(runs):
        for name, run in runs.items():
            taken[name].append(_once(run, flush))
    return {
        name: tuple(
            torch.tensor(times, dtype=torch.float64)
            .quantile(torch.tensor(QUANTILES, dtype=torch.float64))
            .tolist()
        )
        for name, times in taken.items()
    }


def _once(run: Callable[[], object], flush: torch.Tensor | None) -> float:
    if flush is None:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    flush.zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors took during `run` beyond what was allocated before it.

    On a GPU from the caching allocator's counters; on a CPU from the profiler's record of every allocation.
    """
    run()  # first calls allocate workspaces that stay
    gc.collect()  # what an earlier run left in reference cycles, freed during this one, would lower the peak
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak


def copy_bandwidth(device: torch.device, *, megabytes: int) -> float:
    """Measured bytes a second, read plus written, of copying a large tensor."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    median = interleaved_seconds({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"][1]
    return 2 * source.numel() / median


def matmul_rate(device: torch.device, dtype: torch.dtype, *, size: int) -> float:
    """Measured floating-point operations a second of a large square matrix product."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    median = interleaved_seconds({"matmul": lambda: left @ right}, device, seconds=0.5)["matmul"][1]
    return 2 * size**3 / median


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of what takes part in a measurement; 'absent' where a library is not installed."""
    found = {}
    for name in ("torch", "triton", "bitsandbytes", "peft", "transformers", "liger-kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
