"""`csrlhf doctor`: what this machine has and lacks for the kit, one sentence per item, with the remedy.

Nothing is trained or fetched. What every command needs counts as missing; what only some need is noted.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.runs import processor_name

_GIB = 2**30
MEMORY, DISK = 2, 1  # GiB that `csrlhf run` takes, with room to spare


@dataclass
class DoctorConfig:
    """Check what this machine has and lacks for the kit."""

    out: Path = Path("runs")
    """Where runs will be written, to check that disk."""


def run_doctor(config: DoctorConfig) -> list[tuple[str, str]]:
    """Print and return (mark, sentence) for each item. Raises UserError at the end if one is missing."""
    found = []
    for mark, sentence in (*libraries(), *pytorch(), *bitsandbytes(), *room(config.out), *shipped()):
        found.append((mark, sentence))
        print(f"{mark:8}{sentence}", flush=True)
    missing = sum(mark == "missing" for mark, _ in found)
    if missing:
        raise UserError(f"not usable yet: mend the {missing} marked missing above, then ask again")
    print("\nUsable. `csrlhf run` trains and judges every method on the toy world.")
    return found


def libraries() -> Iterator[tuple[str, str]]:
    """Python, and the libraries that the kit requires."""
    yield "ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}."
    try:
        wanted = [Requirement(line) for line in metadata.requires("csrlhf-kit") or ()]
    except metadata.PackageNotFoundError:
        yield "note", "The kit is not installed, only on the path: `pip install -e .` brings what it needs."
        return
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    unmet = []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement} (found {version or 'none'})")
    if unmet:
        yield "missing", f"Libraries: {', '.join(unmet)}. Install the kit again: `pip install csrlhf-kit`."
    else:
        yield "ok", f"All {len(wanted)} libraries that the kit asks for are installed."


def pytorch() -> Iterator[tuple[str, str]]:
    """PyTorch, its threads, the processor, and the GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "missing", f"PyTorch does not load ({' '.join(str(error).split())}): install it again."
        return
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = f"PyTorch {torch.__version__}; threads: {threads}, cores: {cores}."
    if threads > cores:
        yield "note", f"{told} Threads will wait for one another: set OMP_NUM_THREADS={cores}."
    else:
        yield "ok", told
    yield "ok", processor(torch)
    if not torch.cuda.is_available():
        yield "note", "No GPU: the toy world and the notebooks need none; models of a billion parameters do."
        return
    for index in range(torch.cuda.device_count()):
        free, total = (x / _GIB for x in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        yield "ok", f"GPU {index}: {name}, {free:.1f} of {total:.1f} GiB free; `csrlhf plan` says what fits."
    if util.find_spec("triton") is None:
        yield (
            "note",
            "No Triton: kernels run as plain PyTorch. `pip install 'csrlhf-kit[kernels]'` brings it.",
        )


def processor(torch: Any) -> str:
    """What determines the speed and the last digits of results on a CPU."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not there before PyTorch 2.11
    features = {"avx2": "AVX2", "avx512_f": "AVX512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
    has = [word for name, word in features.items() if known.get(name)]
    lacks = [word for name, word in features.items() if known and not known.get(name)]
    told = f"Processor: {processor_name(torch)}; "
    told += f"has {', '.join(has) or 'none of the wide instructions that were looked for'}; "
    told += f"lacks {', '.join(lacks)}; " if lacks else ""
    used = torch.backends.cpu.get_cpu_capability()
    return f"{told}PyTorch uses {used}. Another processor gives a trained model other digits."


def bitsandbytes() -> Iterator[tuple[str, str]]:
    """The library for 4-bit bases and 8-bit optimisers: looked for, not imported."""
    spec = util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        told = (
            "No bitsandbytes: --quantization nf4 and 8-bit optimizers need it (`pip install bitsandbytes`)."
        )
        yield "note", told
        return
    folder = Path(spec.origin).parent
    if not any(folder.glob("libbitsandbytes_cpu.*")):
        yield "note", f"bitsandbytes in {folder} has no library for CPUs: 4 bit works on a GPU only."
        return
    yield "ok", f"bitsandbytes {metadata.version('bitsandbytes')} in {folder}: 4 bit works."


def room(out: Path) -> Iterator[tuple[str, str]]:
    """Memory, disk, and whether results can be written."""
    memory = psutil.virtual_memory()
    told = f"Memory: {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free."
    if memory.available < MEMORY * _GIB:
        yield "note", f"{told} The main job wants {MEMORY}: close other programs, or take `--workers 1`."
    else:
        yield "ok", told
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield "missing", f"Disk: {folder} cannot be written to. Work in a folder of your own, or give --out."
    elif free < DISK:
        yield (
            "missing",
            f"Disk: {free:.2f} GiB free in {folder}; a run wants {DISK}. Make room, or give --out.",
        )
    else:
        yield "ok", f"Disk: {free:.1f} GiB free in {folder}."


def shipped() -> Iterator[tuple[str, str]]:
    """The toy world's data, its base, and the recorded run that the notebooks show."""
    top = data_folder()
    remedy = "set CSRLHF_DATA to the data folder of the kit's repository"
    spoilt = differing(top / "world")
    if spoilt:
        made = f"`csrlhf make-data --out {top / 'world'}`"
        told = f"Data: {', '.join(spoilt)} in {top / 'world'} missing, or not as made"
        yield "missing", f"{told}: {remedy}, or run {made}."
    else:
        yield "ok", f"Data: the toy world is in {top / 'world'}."
    lost = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (top / "tiny_base" / name).is_file()]  # fmt: skip
    if lost:
        made = f"`csrlhf make-base --out {top / 'tiny_base'}` (15 minutes)"
        yield "missing", f"Base: no {', '.join(lost)} in {top / 'tiny_base'}: {remedy}, or run {made}."
    else:
        yield "ok", f"Base: the tiny model is in {top / 'tiny_base'}."
    if not (top / "recorded" / "results.json").is_file():
        yield "note", f"Recorded run: none in {top / 'recorded'}; several notebooks show it: {remedy}."


def differing(folder: Path) -> list[str]:
    """Files that are missing in a folder, or differ from its SHA256SUMS."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
    except OSError:
        return ["SHA256SUMS"]
    named = [line.split(maxsplit=1)[::-1] for line in lines]
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None  # noqa: E731
    return [name for name, expected in named if digest(folder / name) != expected]
