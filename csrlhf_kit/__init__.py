"""CS-RLHF Kit: constrained RLHF that a student can run tonight and a researcher can trust."""

import logging
import os
import sys
from importlib.abc import MetaPathFinder

# libgomp's idle threads spin by default: if another process is busy, a training step then takes seconds
# instead of milliseconds. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"


class _OfflineBitsandbytes(MetaPathFinder):
    """Keeps the import of bitsandbytes quiet and off the network, whoever imports it (peft always does).

    On a CPU with AVX512-BF16, importing its CPU operators downloads native code through the package `kernels`,
    or logs a warning if that fails. The kit never runs that code: see `kernels.linear4bit`.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "bitsandbytes.backends.cpu.ops":
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in later)), None)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _without_kernels(execute, module)
        return spec


def _without_kernels(execute, module):
    loaded = {"kernels": sys.modules["kernels"]} if "kernels" in sys.modules else {}
    sys.modules["kernels"] = None  # importing it fails now
    try:
        execute(module)
    finally:
        del sys.modules["kernels"]
        sys.modules.update(loaded)


sys.meta_path.insert(0, _OfflineBitsandbytes())
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
