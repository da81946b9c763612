"""The course's notebooks: execute and store them, check the stored ones, and write a student edition.

In `notebooks/`, `python -m course.tools execute *.ipynb` runs each notebook from top to bottom in a fresh kernel and
stores it with its outputs; `... check *.ipynb` says what is wrong with the stored ones; `... student *.ipynb --out
FOLDER` writes copies without solutions and outputs. `make test` runs the stored notebooks again with nbval, which
compares every output. Cells without outputs, or with images only, pass in any case; `problems` counts them.
Builds on solutions.py, nbformat and nbclient.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nbformat
import psutil
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course.links import refresh_links
from course.solutions import refresh_solutions, solution_problems, student_edition
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_folder

MAX_LINES = 25  # of a code cell; longer code belongs in the package, with a test
MAX_BYTES = 300_000  # of a notebook; GitHub shows notebooks up to this size at once
MIN_COMPARED = 0.8  # least share of code cells with an output that nbval compares

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"
# Types of output that nbval 0.11 does not compare: a live widget has a random id, and images differ in their bytes.
NOT_COMPARED = {WIDGET_VIEW, "image/png", "image/jpeg"}
HIDDEN = "hide-input"  # a cell of asserts: JupyterLab shows its output and folds its code away
UNCOMPARED_TAGS = {"nbval-ignore-output", "nbval-skip"}
_ROOTS = "home|Users|root|tmp|var|opt|mnt|usr|srv|private|work|content|data"
ABSOLUTE_PATH = re.compile(rf"(?<![\w.:/<…-])/(?:{_ROOTS})/[\w.-]+|\b[A-Za-z]:\\{{1,2}}\w+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOT_A_RESULT = re.compile(
    r"\]\([^)]*\)|arXiv[: ]\d{4}\.\d{5}|Exercise \d+\.\d+|chapter \d+|section \d+\.\d+|`[^`]*`"
)
BAR = re.compile(r"\d+%\|.{0,12}\| *\d+/\d+ \[")  # tqdm's progress bar; a stored one never moves
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def execute(path: str | Path, *, timeout: float = 600.0) -> NotebookNode:
    """Run a notebook from top to bottom in a fresh `python3` kernel whose folder is the notebook's.

    Returns:
        The executed and normalised notebook. Nothing is written: that is `store`.

    Raises:
        UserError: a cell failed or took more than `timeout` seconds; names the notebook and the cell.
    """
    return _execute(path, timeout)[0]


def _execute(path: str | Path, timeout: float) -> tuple[NotebookNode, int]:
    """The result of `execute`, and the kernel's largest memory (resident bytes) after any cell."""
    path = Path(path)
    notebook = read(path)
    refresh_solutions(notebook, path)
    refresh_links(notebook, path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    peak = 0

    def weigh(**_: Any) -> None:
        nonlocal peak
        kernel = psutil.Process(client.km.provisioner.pid)
        peak = max(peak, kernel.memory_info().rss)

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        resources={"metadata": {"path": str(path.parent.resolve())}},
        record_timing=False,
        store_widget_state=False,
        on_cell_executed=weigh,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reached = sum(cell.execution_count is not None for cell in code_cells(notebook))
        raise UserError(f"{path}: code cell {reached} failed: {_last_lines(error)}") from None
    return normalised(notebook), peak


def store(notebook: NotebookNode, path: str | Path) -> Path:
    """Write a notebook as nbformat does, and as a whole: a killed process leaves the old file."""
    return write_atomic(path, nbformat.writes(notebook) + "\n")


def read(path: str | Path) -> NotebookNode:
    """Read a notebook, converted to format 4. Raises UserError if there is none, or the file is no notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{path}: no such notebook") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        raise UserError(f"{path}: this is not a notebook ({_last_lines(error)})") from None


def normalised(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed in place, without what differs between runs or machines.

    Cells keep their source, outputs and tags, and are numbered; the notebook keeps the kernel's name and the language.
    The state of widgets is removed, since GitHub calls a notebook with a part of it invalid. References to live
    widgets are removed if the output has another form: without a kernel they would show an error.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": sorted(tags)} if tags else {})
        if is_hidden(cell):
            cell.metadata.jupyter = nbformat.from_dict({"source_hidden": True})
        cell["id"] = f"cell-{place:03d}"
        if cell.cell_type != "code":
            continue
        cell.outputs = _joined_streams(cell.outputs)
        for output in cell.outputs:
            output.pop("transient", None)
            if "data" in output:
                output.metadata = nbformat.from_dict({})
                if set(output.data) - {WIDGET_VIEW}:
                    output.data.pop(WIDGET_VIEW, None)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_hidden(cell: NotebookNode) -> bool:
    """Is the cell's code folded away?"""
    return HIDDEN in cell.metadata.get("tags", ())


def is_compared(cell: NotebookNode) -> bool:
    """Whether nbval compares any output of this code cell.

    It compares nothing for a cell without output, with only images or a live widget, or with a tag or comment that
    excludes it.
    """
    if UNCOMPARED_TAGS & set(cell.metadata.get("tags", ())) or re.search(
        r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|PYTEST_VALIDATE_IGNORE_OUTPUT|NBVAL_SKIP)\s*$",
        cell.source,
        re.MULTILINE,
    ):
        return False
    for output in cell.outputs:
        if output.output_type == "stream" and output.text.strip():
            return True
        if output.output_type == "error" or set(output.get("data", {})) - NOT_COMPARED:
            return True
    return False


def compared_share(notebook: NotebookNode) -> float:
    """Share of code cells with an output that nbval compares, in [0, 1]."""
    cells = code_cells(notebook)
    return sum(map(is_compared, cells)) / max(1, len(cells))


def problems(path: str | Path) -> list[str]:
    """A sentence for each rule that a stored notebook breaks; raises UserError as `read`."""
    path = Path(path)
    notebook = read(path)
    cells = code_cells(notebook)
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"is {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are allowed")
    found += solution_problems(notebook, path)
    if "widgets" in notebook.metadata:
        found.append("has metadata.widgets, which GitHub takes for an invalid notebook")
    if not cells:
        found.append("has no code cell")
    for place, cell in enumerate(cells, start=1):
        found += [f"code cell {place} {problem}" for problem in _cell_problems(cell, place)]
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            found += [f"cell {place} {problem}" for problem in _text_problems(cell.source)]
    found += [
        f"says a number that no code near it computes or names, {n}" for n in unbacked_numbers(notebook)
    ]
    if cells and compared_share(notebook) < MIN_COMPARED:
        idle = [str(place) for place, cell in enumerate(cells, start=1) if not is_compared(cell)]
        found.append(
            f"lets nbval compare the output of only {compared_share(notebook):.0%} of its code cells, "
            f"expected {MIN_COMPARED:.0%}; nothing is compared in code cells {', '.join(idle)}"
        )
    return [f"{path.name}: {problem}" for problem in found]


def unbacked_numbers(notebook: NotebookNode, *, reach: int = 3) -> list[str]:
    """Decimals and percentages in prose that no code cell within `reach` cells names or shows.

    A number in a sentence must be computed near it, so that the sentence cannot become wrong unnoticed when a result
    changes. Numbers of papers, chapters and exercises do not count.
    """
    found = []
    cells = notebook.cells
    seen = list(itertools.accumulate(not is_hidden(cell) for cell in cells))  # hidden cells add no distance
    for place, cell in enumerate(cells):
        if cell.cell_type != "markdown" or any("solution" in tag for tag in cell.metadata.get("tags", ())):
            continue
        code = [
            c
            for c, at in zip(cells, seen, strict=True)
            if c.cell_type == "code" and abs(at - seen[place]) <= reach
        ]
        shown = [output.get("text", "") for c in code for output in c.outputs]
        shown += [output.data.get("text/plain", "") for c in code for output in c.outputs if "data" in output]
        backing = {
            float(number) for number in _NUMBER.findall("\n".join([*(c.source for c in code), *shown]))
        }
        prose = _NOT_A_RESULT.sub(" ", cell.source).replace("\\%", "%").replace(" %", "%")
        for number in re.findall(r"(?<![\w.])(?:\d+\.\d+%?|\d+%)", prose):
            value = float(number.rstrip("%"))
            if value not in backing and not (number.endswith("%") and round(value / 100, 9) in backing):
                found.append(f"cell {place}: {number}")
    return found


def _cell_problems(cell: NotebookNode, place: int) -> list[str]:
    found = []
    if not cell.source.strip():
        return ["is empty"]
    if cell.execution_count != place:
        found.append(f"has execution count {cell.execution_count}, expected {place}: run from top to bottom")
    lines = len(cell.source.splitlines())
    if lines > MAX_LINES:
        found.append(f"has {lines} lines, at most {MAX_LINES} are allowed")
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"writes to stderr: {_last_lines(output.text)}")
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", ()):
            found.append(f"ends in an error: {output.ename}")
        data = output.get("data", {})
        if PLOTLY in data and "image/svg+xml" not in data:
            found.append("shows a plotly figure without its static twin: use csrlhf_kit.figures.static.show")
        if set(data) == {WIDGET_VIEW}:
            found.append("shows a widget that has no form without a kernel")
    shown = [output.get("text", "") for output in cell.outputs]
    shown += [value for output in cell.outputs for value in _strings(output.get("data", {}))]
    if any(map(BAR.search, shown)):
        found.append(
            "shows a progress bar that stands still: run what draws it under IPython's capture_output"
        )
    found += _text_problems("\n".join([cell.source, *shown]))
    return found


def _text_problems(text: str) -> list[str]:
    found = []
    if match := ABSOLUTE_PATH.search(text):
        found.append(f"names a path of one machine: {match[0]}")
    if match := ADDRESS.search(text):
        found.append(f"shows a memory address, which changes at every run:{match[0]}")
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _joined_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """`outputs` with neighbouring pieces of one stream joined, since the kernel splits a stream at any moment."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _last_lines(text: object, count: int = 1) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(text))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return " ".join(lines[-count:]) if lines else type(text).__name__


@dataclass
class Execute:
    """Run notebooks in fresh kernels and store them with their outputs."""

    notebooks: tyro.conf.Positional[tuple[Path, ...]]
    """The notebooks, in the order in which they are run."""
    timeout: float = 600.0
    """Seconds that one cell may take."""


@dataclass
class Check:
    """Say what is wrong with stored notebooks; exit status 1 if anything is."""

    notebooks: tyro.conf.Positional[tuple[Path, ...]]
    """The notebooks to check."""


@dataclass
class Student:
    """Write copies for a class: without solutions and without outputs."""

    notebooks: tyro.conf.Positional[tuple[Path, ...]]
    """The notebooks to copy."""
    out: Path = Path("student")
    """Folder of the copies."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit status: 1 if a notebook breaks a rule, 2 if one cannot be read or run, else 0."""
    command = tyro.cli(
        Annotated[Execute, tyro.conf.subcommand("execute")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Student, tyro.conf.subcommand("student")],
        args=arguments,
        prog="python -m course.tools",
    )
    bad: list[str] = []
    try:
        check_folder(getattr(command, "out", None))
        for path in command.notebooks:
            if isinstance(command, Student):
                print(store(student_edition(read(path)), command.out / path.name))
                continue
            if isinstance(command, Execute):
                started = time.monotonic()
                notebook, peak = _execute(path, command.timeout)
                store(notebook, path)
                print(
                    f"{path}: {len(notebook.cells)} cells, {compared_share(notebook):.0%} compared, "
                    f"{path.stat().st_size / 1000:.0f} kB, {time.monotonic() - started:.0f} s, "
                    f"{peak / 1e6:.0f} MB"
                )
            bad += problems(path)
        if isinstance(command, Student):  # the copies find it beside themselves
            aside = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(__file__).parent, command.out / "course", ignore=aside, dirs_exist_ok=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for problem in bad:
        print(problem, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
