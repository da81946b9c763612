"""The house: ten rooms on six floors, imports that lead downwards only, files of a size that can be read.

Everything is told by reading the sources, so that an import inside a function counts like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "csrlhf_kit"
FLOORS = (  # from the ground up; a room, or a file of the hall, is on one of them
    ("__init__", "errors", "files", "contents"),
    ("theory", "data", "kernels", "distributed", "outputs"),
    ("world", "models", "figures", "runs"),
    ("training", "evaluation"),
    ("recipes", "widgets"),
    ("cli",),
)
UPWARD: set[tuple[str, str]] = set()  # (importing, imported) modules that may break the rule: none
FAMILIES = ("experiments", "claims")  # rooms within recipes/: jobs of several files
# The most files in the hall, lines of a file, lines of the package; lower them when you can.
HALL, FILE, LINES = 8, 400, 24_564
FLOOR = {name: floor for floor, names in enumerate(FLOORS, 1) for name in names}
SOURCES = {
    file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    """The room that a module is in; a file of the hall is a room of its own."""
    return module.split(".")[0]


def in_hall(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file()


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, anywhere in the file."""
    found: dict[str, set[str]] = {}
    for module, file in SOURCES.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute here"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        own = {name.removeprefix("csrlhf_kit.") for name in names if name.startswith("csrlhf_kit.")}
        found[module] = {name if name in SOURCES else name.rpartition(".")[0] or "__init__" for name in own}
    return found


def test_every_room_and_every_file_of_the_hall_has_a_floor():
    assert {room(module) for module in SOURCES} <= FLOOR.keys()
    assert len([name for name in FLOOR if in_hall(name)]) <= HALL
    assert len({room(module) for module in SOURCES if not in_hall(room(module))}) <= 10


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_imports_from_its_own_room_and_from_lower_floors(module):
    mine = room(module)
    for other in imports()[module]:
        theirs = room(other)
        own = mine == theirs or (in_hall(mine) and in_hall(theirs) and FLOOR[theirs] == FLOOR[mine])
        if (module, other) not in UPWARD:
            assert own or FLOOR[theirs] < FLOOR[mine], f"{module} imports {other}"


def test_no_circle_between_modules_nor_between_rooms():
    rooms: dict[str, set[str]] = {}
    for module, others in imports().items():
        rooms.setdefault(room(module), set()).update(room(other) for other in others)
    for graph in (imports(), {name: others - {name} for name, others in rooms.items()}):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as circle:
            pytest.fail(f"a circle: {' -> '.join(circle.args[1])}")


def test_no_recipe_imports_another():
    """A command is one file; what several commands need is on a lower floor. The experiments and the claims are
    jobs of several files: each imports its own. `options.py` is what commands can be told, apart for `--help`'s sake.
    """

    def job(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[: 2 if parts[1:2] and parts[1] in FAMILIES else 3])

    for module, others in imports().items():
        if room(module) == "recipes":
            own = (job(module), "recipes.options")
            foreign = {other for other in others if room(other) == "recipes" and job(other) not in own}
            assert not foreign, f"{module} imports {foreign}"


def test_files_can_be_read_in_one_go_and_the_package_does_not_grow():
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in SOURCES.items()}
    assert {name: n for name, n in lines.items() if n > FILE} == {}
    assert sum(lines.values()) <= LINES, (
        "take something away, or say in the change why the package has to grow"
    )


def test_no_public_name_means_two_things():
    """A function, class or constant of a module's top level is defined in one module; methods are no such names."""
    places: dict[str, list[str]] = {}
    for module, file in SOURCES.items():
        names: set[str] = set()
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                stored = [
                    part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
                ]
                names |= {part.id for part in stored if isinstance(part.ctx, ast.Store)}
        for name in names:
            places.setdefault(name, []).append(module)
    assert {n: found for n, found in places.items() if len(found) > 1 and not n.startswith("_")} == {}


def test_theory_can_be_read_without_pytorch():
    heavy = {"torch", "transformers", "pandas", "plotly", "matplotlib", "sklearn"}
    code = f"import sys, csrlhf_kit.theory; assert not {heavy!r} & set(sys.modules), sorted(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
