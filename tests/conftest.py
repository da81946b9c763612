"""Shared fixtures: a random tiny base with a small tokenizer, built once a session, no download."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # before torch: spinning threads starve a two-core machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import runpy
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from example_base import SENTENCES, build_random_base
from hypothesis import settings

settings.register_profile("kit", deadline=None)  # a busy machine is no failure
settings.load_profile("kit")

# No test, and no process that one starts, reaches a network: see guard/sitecustomize.py.
GUARD = Path(__file__).parent / "guard"
runpy.run_path(str(GUARD / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(GUARD), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny Qwen2 causal LM with its tokenizer (pad `<|pad|>`, eos `<|end|>`, chat
    template).
    """
    return build_random_base(tmp_path_factory.mktemp("random_base"))


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Six short requests and answers in the random tokenizer's language."""
    return list(SENTENCES)


@pytest.fixture
def bitsandbytes_unpacks():
    """Which 4-bit dequantiser bitsandbytes has on this CPU, for one test: its `definition` in plain torch, or the one of
    processors with AVX512, `by_rows`, which takes the scales of a row at row * (width // block).
    """
    pytest.importorskip("bitsandbytes")
    import math
    import warnings

    import torch
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as compiled
    from bitsandbytes.backends.utils import _get_4bit_code

    compute = getattr(compiled, "__wrapped__", compiled)  # the compiler is not asked

    def definition(packed, absmax, blocksize, quant_type, shape, dtype):
        code = _get_4bit_code(quant_type, packed.device)
        return compute(packed.view(torch.uint8).reshape(-1), absmax, code, blocksize, shape, dtype)

    def by_rows(packed, absmax, blocksize, quant_type, shape, dtype):
        rows, width = math.prod(shape[:-1]), shape[-1]
        taken = torch.arange(rows)[:, None] * (width // blocksize) + torch.arange(width) // blocksize
        ones = torch.ones_like(absmax)
        values = definition(packed, ones, blocksize, quant_type, shape, torch.float32).view(rows, width)
        return (values * absmax[taken]).view(*shape).to(dtype)

    kernels, library = {"definition": definition, "by_rows": by_rows}, []

    def use(name: str) -> None:
        for earlier in library:
            earlier._destroy()
        library[:] = [torch.library.Library("bitsandbytes", "FRAGMENT")]
        with warnings.catch_warnings():  # torch says that a kernel is replaced
            warnings.simplefilter("ignore")
            library[0].impl("dequantize_4bit", kernels[name], "CPU", allow_override=True)

    yield use
    for last in library:
        last._destroy()


@pytest.fixture(scope="session")
def seconds() -> Callable[[Callable[[], object]], float]:
    """CPU seconds of a call, the best of three: other processes may have the core. For ratios only."""

    def measure(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        return min(taken)

    return measure
