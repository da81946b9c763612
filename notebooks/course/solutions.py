"""The exercises' solutions: read from `notebooks/solutions/nb03.py`, where they are tested, and shown in notebooks.

Such a file holds `EXERCISES = {"3.1": "slater_bound", ...}`; the function of that name is the reference
solution, and functions named `slater_bound__forgets_the_slack` are wrong ones that the exercise's check must
refuse (with a docstring that says what is wrong). A markdown cell tagged `solution-3.1` shows the reference
solution, collapsed; its text is generated here. The student edition of a notebook has no such cells.
"""

from __future__ import annotations

import ast
import copy
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from course.build import read_module
from csrlhf_kit.errors import UserError

_TAG = re.compile(r"solution-(\d+\.\d+)")


@dataclass(frozen=True)
class Solution:
    """One exercise: its reference solution and the wrong variants."""

    name: str
    """As in `check("3.1", ...)`."""
    reference: Callable
    wrong: dict[str, Callable]
    """What is wrong -> the wrong solution."""
    source: str
    """The reference solution's source, dedented."""
    imports: str
    """The file's own import lines, for a reader who wants to run the source."""


def solutions_path(notebook: Path) -> Path:
    """`notebooks/03_how_large.ipynb` -> `notebooks/solutions/nb03.py`."""
    return Path(notebook).parent / "solutions" / f"nb{Path(notebook).name[:2]}.py"


def read_solutions(path: Path) -> dict[str, Solution]:
    """Exercise -> its solutions, from one file. Raises UserError if the file is missing or has another form."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of solutions")
    text, module = path.read_text(encoding="utf-8"), read_module(path)
    tree = ast.parse(text)
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = {}
    for name, function in getattr(module, "EXERCISES", {}).items():
        if function not in nodes:
            raise UserError(f"{path}: exercise {name} names a function {function!r} that is not there")
        source = textwrap.dedent(ast.get_source_segment(text, nodes[function]))
        wrong = {
            other.removeprefix(f"{function}__").replace("_", " "): getattr(module, other)
            for other in nodes
            if other.startswith(f"{function}__")
        }
        found[name] = Solution(name, getattr(module, function), wrong, source, _imports(tree, text, source))
    if not found:
        raise UserError(f"{path}: EXERCISES is missing or empty, expected {{'3.1': 'function', ...}}")
    return found


def _imports(tree: ast.Module, text: str, source: str) -> str:
    """The import lines of the file whose names the solution uses."""
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    lines = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            kept = [alias for alias in node.names if (alias.asname or alias.name).split(".")[0] in used]
            if kept:
                lines.append(ast.unparse(type(node)(**{**vars(node), "names": kept})))
    return "\n".join(lines)


def collapsed(solution: Solution) -> str:
    """The markdown of a solution cell."""
    code = f"{solution.imports}\n\n\n{solution.source}" if solution.imports else solution.source
    return (
        f"<details><summary><b>Solution of exercise {solution.name}</b></summary>\n\n"
        f"```python\n{code}\n```\n\n</details>"
    )


def solution_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that show solutions, by exercise."""
    tagged = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", ()):
            if match := _TAG.fullmatch(tag):
                tagged[match[1]] = cell
    return tagged


def refresh_solutions(notebook: NotebookNode, path: Path) -> None:
    """Generate the text of each solution cell again, in place; a notebook without such cells stays as it is.

    path: the notebook's. Raises UserError if the file of solutions lacks an exercise.
    """
    cells = solution_cells(notebook)
    if not cells:
        return
    solutions = read_solutions(solutions_path(path))
    for name, cell in cells.items():
        if name not in solutions:
            raise UserError(f"{solutions_path(path)}: no solution of exercise {name}, which {path} shows")
        cell.source = collapsed(solutions[name])


def solution_problems(notebook: NotebookNode, path: Path) -> list[str]:
    """A sentence for each solution cell that differs from the file of solutions, and each exercise without one."""
    cells = solution_cells(notebook)
    if not cells and not solutions_path(path).is_file():
        return []
    solutions = read_solutions(solutions_path(path))
    found = [f"shows no solution of exercise {name}" for name in solutions if name not in cells]
    for name, cell in cells.items():
        if name not in solutions or cell.source != collapsed(solutions[name]):
            found.append(f"shows a solution of exercise {name} that is not the one in solutions/")
    return found


def student_edition(notebook: NotebookNode) -> NotebookNode:
    """A copy without solutions and without outputs, so that learners predict results that they have not seen."""
    edition = copy.deepcopy(notebook)
    hidden = {id(cell) for cell in solution_cells(edition).values()}
    edition.cells = [cell for cell in edition.cells if id(cell) not in hidden]
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return edition
