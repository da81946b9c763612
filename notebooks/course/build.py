"""Building it oneself: the exercises 3.4 to 7.4 write the functions of `constrained_ppo.py`, and 7.5 puts them together.

`check` keeps what solves one of them in `mine/`, beside the notebooks; `assemble` writes `mine/my_constrained_ppo.py`,
which is `notebooks/constrained_ppo.py` with each function that is there in place of its own. `side_by_side` trains the
two for a few steps, with the same seed, and returns what each measured.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.files import write_atomic

PIECES = {  # exercise -> the function of the file that it writes
    "3.4": "rectified_multiplier",
    "5.4": "gae",
    "5.5": "policy_loss",
    "6.4": "learned_multiplier",
    "7.4": "combine",
}
FILE = Path(__file__).resolve().parents[1] / "constrained_ppo.py"
MINE = Path("mine")
SIZES = {"steps": 3, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 12}


def keep(exercise: str, function: Callable[..., Any]) -> str:
    """Store the source of a function that solves one of `PIECES`; returns a sentence about it, or nothing."""
    name = PIECES.get(exercise)
    if name is None:
        return ""
    if function.__name__ != name:
        return f"To be part of your PPO it has to be called `{name}`, not `{function.__name__}`."
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:  # typed where no source is kept
        return "Its source could not be read, so it is not kept for your PPO."
    write_atomic(MINE / f"{name}.py", source)
    return f"It is kept as {MINE / name}.py, for your PPO."


def assemble() -> Path:
    """Write `mine/my_constrained_ppo.py` and say which of its functions are yours."""
    text, mine = FILE.read_text(encoding="utf-8"), []
    for name in PIECES.values():
        kept = MINE / f"{name}.py"
        if kept.is_file():
            node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
            lines = text.splitlines(keepends=True)
            lines[node.lineno - 1 : node.end_lineno] = [kept.read_text(encoding="utf-8").rstrip() + "\n"]
            text, mine = "".join(lines), [*mine, name]
    out = MINE / "my_constrained_ppo.py"
    write_atomic(out, text)
    theirs = [name for name in PIECES.values() if name not in mine]
    print(f"{out}: yours {', '.join(mine) or 'none yet'}; the course's {', '.join(theirs) or 'none'}")
    return out


def read_module(path: Path) -> ModuleType:
    """A Python file as a module of its own, whose name is that of no other file's."""
    name = f"read from {path.resolve()}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def side_by_side(path: Path, **options: Any) -> dict[str, list[dict[str, float]]]:
    """What `path` and the course's file measure in a few steps of training; options: fields of `Args`, such as `method`."""
    found = {}
    for label, file in (("yours", path), ("the course's", FILE)):
        module = read_module(file)
        args = replace(module.Args(), data=str(data_folder()), **{**SIZES, **options})
        found[label] = module.train(args, report=lambda line: None)
    return found
