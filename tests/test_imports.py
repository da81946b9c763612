"""No import of the package says anything or reaches a network, on any processor, whatever else is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import importlib, pkgutil, socket, sys, warnings

def refuse(*arguments, **options):
    raise AssertionError(f"a socket was opened for {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import csrlhf_kit

class AsWithAVX512BF16:
    def find_spec(self, name, path=None, target=None):
        if name == "bitsandbytes.backends.cpu.ops":
            sys.modules["bitsandbytes.functional"].has_avx512bf16 = lambda: True

sys.meta_path.insert(SLOT, AsWithAVX512BF16())
"""

EVERY_MODULE = """
for module in pkgutil.walk_packages(csrlhf_kit.__path__, "csrlhf_kit."):
    if not module.name.endswith(".triton_kernels"):  # needs triton
        importlib.import_module(module.name)
from bitsandbytes.nn import Linear4bit
assert Linear4bit(4, 4).support_avx512bf16_for_cpu, "it was forced too late"
"""

FOUR_BIT = """
from csrlhf_kit.models.base import load_base
import torch
model = load_base(sys.argv[1], quantization="nf4", device="cpu")
logits = model(input_ids=torch.arange(4, 12)[None]).logits
assert logits.isfinite().all()
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A folder with a package `kernels` that writes down when somebody asks it for native code."""
    folder = tmp_path / "with kernels"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(
        "from pathlib import Path\n\n"
        "def get_kernel(*arguments, **options):\n"
        "    (Path(__file__).parent / 'asked').touch()\n"
        "    raise OSError('no hub here')\n"
    )
    return folder


def run(code: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("position", [0, 1])
def test_every_module_is_imported_quietly_and_offline(position, kernels, random_base):
    """As on such a processor, without and with the package `kernels`, wherever the test's finder stands."""
    pytest.importorskip("bitsandbytes")
    code = PRELUDE.replace("SLOT", str(position)) + EVERY_MODULE + FOUR_BIT * position
    found = run(code, str(random_base), path=kernels if position else None)
    assert (found.returncode, found.stderr) == (0, "")
    assert not (kernels / "kernels" / "asked").exists()


@pytest.mark.parametrize("before", ["", "import kernels as first\n"])
def test_the_package_kernels_can_be_imported_all_the_same(before, kernels):
    pytest.importorskip("bitsandbytes")
    code = before + PRELUDE.replace("SLOT", "0") + "import peft, kernels\nassert kernels.get_kernel\n"
    found = run(code + ("assert kernels is first" if before else ""), path=kernels)
    assert (found.returncode, found.stderr) == (0, "")
    assert not (kernels / "kernels" / "asked").exists()
