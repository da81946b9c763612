"""The Triton kernels without a GPU: interpreted against the torch references, and compiled for real ones."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import backend, gae

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed (it has no macOS or Windows build)", allow_module_level=True)


def test_the_interpreted_kernels():
    """Runs interpreted_kernels.py in a process whose Triton interprets."""
    path = Path(__file__).with_name("interpreted_kernels.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 40, result.stdout[-500:]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu(capability):
    """To machine code for Ampere and Hopper: needs no GPU, and catches what the interpreter forgives."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from csrlhf_kit.kernels import triton_kernels as kernels

    def compile_one(kernel, types, constants, **options):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm

    row = dict.fromkeys(("logits", "log_total", "picked", "entropy"), "*fp32")
    row |= {"bias": "*bf16", "targets": "*i64", "out": "*bf16", "vocabulary": "i32", "scale": "fp32"}
    quantised = {"packed": "*u8", "absmax": "*u8", "out": "*bf16", "size": "i32"}
    quantised |= dict.fromkeys(("code", "absmax2", "code2", "offset"), "*fp32")
    episode = dict.fromkeys(("rewards", "values", "advantages", "returns"), "*fp32")
    episode |= {"mask": "*u8", "length": "i32", "gamma": "fp32", "decay": "fp32"}

    def without(types, *names):
        return {name: kind for name, kind in types.items() if name not in names}

    nothing = {"bias": None}
    plain = {"absmax2": None, "code2": None, "offset": None}
    blocks = {"BLOCKSIZE": 64, "BLOCKSIZE2": 256, "BLOCKS": 64, "INTERPRETED": False}
    compile_one(kernels._statistics_kernel, row, {"BLOCK": 8192}, num_warps=16)
    compile_one(kernels._statistics_kernel, without(row, "bias"), {"BLOCK": 1024, "bias": None})
    gradient = {"BLOCK": 4096, "INTERPRETED": False}
    compile_one(kernels._gradient_kernel, row, gradient, num_warps=8)
    compile_one(kernels._gradient_kernel, without(row, *nothing), {**gradient, **nothing}, num_warps=8)
    code = compile_one(kernels._nf4_kernel, quantised, blocks, num_warps=8, enable_fp_fusion=False)
    assert (
        "fma.rn.f32" not in code["ptx"]
    )  # a fused product and sum would differ from bitsandbytes in the last bit
    single = {**without(quantised, *plain), "absmax": "*fp32"}
    compile_one(kernels._nf4_kernel, single, {**blocks, **plain}, num_warps=8, enable_fp_fusion=False)
    compile_one(kernels._gae_kernel, episode, {"BLOCK": 512})


def test_triton_is_never_used_unasked_on_a_cpu(monkeypatch):
    rewards = torch.zeros(1, 3)
    sys.modules.pop("csrlhf_kit.kernels.triton_kernels", None)
    gae(rewards, rewards, rewards)
    assert "csrlhf_kit.kernels.triton_kernels" not in sys.modules
    with pytest.raises(UserError, match="GPU"), backend("triton"):
        gae(rewards, rewards, rewards)
    monkeypatch.setenv("CSRLHF_KERNELS", "tritn")
    with pytest.raises(UserError, match="expected one of"):
        gae(rewards, rewards, rewards)


def test_importing_the_kernels_imports_neither_triton_nor_peft():
    check = "import sys, csrlhf_kit.kernels; sys.exit(any(n in sys.modules for n in ('triton', 'peft', 'bitsandbytes')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
