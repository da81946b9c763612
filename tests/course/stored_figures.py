"""The course's stored figures as data, and the table of what their titles and captions claim.

A test file makes a `Claims` for some notebooks and enters one small function for each figure, under its exact title
and caption. Nothing is executed: figures are read from the notebooks' outputs, each file once. Only where a figure
waits for the learner's curve, and the title speaks of that curve, does `Claims` draw it with the reference solution.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from course import exercises
from course.solutions import read_solutions, solutions_path
from course.tools import PLOTLY
from csrlhf_kit.theory.intervals import clopper_pearson

STORED = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
WAITING = "Your curve appears here as soon as the function above returns something."
TWIN = "Static twin: nothing can be dragged or clicked here; open the notebook with a kernel (make lab) for that."
YOURS, NOT_YET = "yours", "yours (will appear here)"


class Trace(NamedTuple):
    """One series; x and y are numbers, or names on an axis of categories."""

    x: np.ndarray
    y: np.ndarray
    text: list[str]
    ends: tuple[np.ndarray, np.ndarray]
    """Where the error bars end: low, high; empty without bars."""
    colour: Any

    def at(self, place: float | str) -> float:
        """The value at `place`, which must be one of x."""
        (found,) = np.flatnonzero(self.x == place if isinstance(place, str) else np.isclose(self.x, place))
        return float(self.y[found])

    def line(self, place: float) -> float:
        """The value at `place` on the line between the points."""
        order = np.argsort(self.x)
        return float(np.interp(place, self.x[order], self.y[order]))

    def where(self, chosen: np.ndarray) -> np.ndarray:
        """The values at the chosen places: at least one."""
        assert chosen.any(), "the figure has no such place any more"
        return self.y[chosen]


class Figure:
    """A figure: `figure["a name"]` is a series, `figure["a name", "x2"]` the one in the second panel."""

    def __init__(self, drawn: dict[str, Any], notebook: str, cell: int = 0, prose: str = "") -> None:
        self.data, self.layout, self.notebook, self.cell = (
            drawn["data"],
            drawn["layout"],
            notebook,
            cell,
        )
        title = drawn["layout"].get("title", {})
        self.title, self.caption = _plain(title.get("text")), _plain(title.get("subtitle", {}).get("text"))
        self.prose = prose
        """The page's text from this figure to the next heading."""

    @property
    def names(self) -> list[str]:
        return [trace.get("name") or "" for trace in self.data]

    def __getitem__(self, key: str | tuple[str, str]) -> Trace:
        name, axis = (key, "x") if isinstance(key, str) else key
        (found,) = [t for t in self.data if (t.get("name") or "") == name and (t.get("xaxis") or "x") == axis]
        look = found.get("line") or found.get("marker") or {}
        flat, bars = ("x", found["error_x"]) if found.get("error_x") else ("y", found.get("error_y") or {})
        x, y = _values(found["x"]), _values(found["y"])
        middle, high = x if flat == "x" else y, _values(bars.get("array", []))
        ends = (middle - _values(bars.get("arrayminus", high)), middle + high) if len(high) else (high, high)
        return Trace(
            x, y, found.get("text") or [], ends, (found.get("marker") or {}).get("color") or look.get("color")
        )

    @property
    def traces(self) -> dict[str, Trace]:
        """The first panel's named series."""
        return {t["name"]: self[t["name"]] for t in self.data if (t.get("xaxis") or "x") == "x"}

    @property
    def heights(self) -> list[float]:
        """Where the dotted horizontal lines are, the lowest first."""
        return sorted({s["y0"] for s in self._lines() if s["xref"].endswith("domain") and s["y0"] == s["y1"]})

    @property
    def across(self) -> float:
        """The height of the one dotted horizontal line."""
        (height,) = self.heights
        return height

    @property
    def down(self) -> float:
        """The place of the one dotted vertical line."""
        (place,) = {s["x0"] for s in self._lines() if s["yref"].endswith("domain") and s["x0"] == s["x1"]}
        return place

    def _lines(self) -> list[dict[str, Any]]:
        lines = [s for s in self.layout.get("shapes", []) if s["line"].get("dash") == "dot"]
        return [{"xref": "x", "yref": "y", **line} for line in lines]

    def told(self, number: str) -> float:
        """`number`, which the page names between this figure and the next heading."""
        assert number in self.prose, f"the page no longer says {number} after this figure"
        return float(number)


def _plain(text: str | None) -> str:
    return html.unescape((text or "").replace("<br>", " "))


def _values(stored: Any) -> np.ndarray:
    """Numbers or names; plotly stores some arrays as base64, and a gap as null."""
    if isinstance(stored, dict):
        return np.frombuffer(base64.b64decode(stored["bdata"]), dtype=stored["dtype"]).astype(float)
    if any(isinstance(value, str) for value in stored):
        return np.array(stored, dtype=object)
    return np.array([np.nan if value is None else value for value in stored], dtype=float)


@cache
def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells of a stored notebook, their sources joined; each file is read once."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


@cache
def figures_of(path: Path) -> list[Figure]:
    """The figures that a notebook stores, in their order."""
    cells = cells_of(path)
    return [
        Figure(output["data"][PLOTLY], path.name[:2], place, _until_heading(cells[place:]))
        for place, cell in enumerate(cells)
        for output in cell.get("outputs", [])
        if PLOTLY in output.get("data", {})
    ]


def _until_heading(cells: list[dict[str, Any]]) -> str:
    text = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    return re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]


class Claim(NamedTuple):
    """What was entered for one figure."""

    caption: str
    """The caption that was checked."""
    solved: str
    check: Callable[[Figure], None]


@dataclass
class Claims:
    """What the figures of `notebooks` claim, and which of them claim nothing."""

    notebooks: tuple[str, ...]
    nothing: dict[str, tuple[str, ...]]
    """Notebook -> titles of figures that ask, name axes or wait for the learner, and claim nothing."""
    entered: dict[tuple[str, str], Claim] = field(default_factory=dict)
    """(notebook, title) -> the claim."""

    def says(
        self,
        notebook: str,
        title: str,
        caption: str = "",
        *,
        solved: str = "",
    ) -> Callable[[Callable[[Figure], None]], Callable[[Figure], None]]:
        """Enter the check of one figure.

        solved: an exercise; the check gets its picture with the reference solution's curve.
        """

        def enter(check: Callable[[Figure], None]) -> Callable[[Figure], None]:
            assert (notebook, title) not in self.entered, f"{title!r} is entered twice"
            self.entered[notebook, title] = Claim(caption, solved, check)
            return check

        return enter

    def figures(self) -> list[Figure]:
        return [f for path in STORED if path.name[:2] in self.notebooks for f in figures_of(path)]

    def cases(self) -> list[Any]:
        """A parameter for each stored figure with a claim."""
        cases = []
        for figure in self.figures():
            if figure.title not in self.nothing.get(figure.notebook, ()):
                name = f"{figure.notebook}-{figure.cell}-{figure.title[:40]}"
                cases.append(pytest.param(figure, id=name))
        return cases

    def hold(self, figure: Figure) -> None:
        """The test of one figure: its claim was entered, its caption is the one that was checked, and it holds."""
        name = f"figure {figure.title!r} of notebook {figure.notebook}"
        claim = self.entered.get((figure.notebook, figure.title))
        if claim is None:
            pytest.fail(f"{name} has no claim checked: add one")
        if claim.solved:
            drawn = with_solution(claim.solved)
            if drawn.title != figure.title:
                pytest.fail(f"{name} is stored with another title than it is drawn with")
            figure = drawn
        elif figure.caption.replace(TWIN, "").replace(WAITING, "").strip() != claim.caption:
            pytest.fail(f"{name} has a new caption: look whether it holds, and enter it")
        claim.check(figure)

    def stale(self) -> set[str]:
        """Titles that were entered and belong to no figure any more."""
        there = {(figure.notebook, figure.title) for figure in self.figures()}
        quiet = {
            title
            for notebook, titles in self.nothing.items()
            for title in titles
            if (notebook, title) not in there
        }
        used = {self.entered[key].check for key in there & self.entered.keys()}
        return quiet | {title for (_, title), claim in self.entered.items() if claim.check not in used}


def with_solution(exercise: str) -> Figure:
    """An exercise's picture with the reference solution's curve in it."""
    (path,) = [path for path in STORED if path.name[:2] == f"{int(exercise.split('.')[0]):02d}"]
    reference = read_solutions(solutions_path(path))[exercise].reference
    drawn = exercises._part(exercise, "picture")(reference)
    return Figure(json.loads(drawn.to_json()), path.name[:2])


def rises(values: np.ndarray, slack: float = 0.0) -> bool:
    """Whether no step leads down by more than `slack`, and the last value is above the first."""
    return bool((np.diff(values) >= -slack).all() and values[-1] > values[0])


def falls(values: np.ndarray, slack: float = 0.0) -> bool:
    """Whether no step leads up by more than `slack`, and the last value is below the first."""
    return rises(-np.asarray(values), slack)


def near(value: Any, other: Any, within: float) -> bool:
    """Whether the two differ by at most `within`, everywhere."""
    return bool((np.abs(np.asarray(value) - np.asarray(other)) <= within).all())


def exact(rates: Trace, n: int | Sequence[int]) -> None:
    """The bars are the exact 95% intervals of these rates, in %, of `n` answers each, or of so many per rate."""
    for rate, low, high, count in zip(rates.x, *rates.ends, np.broadcast_to(n, rates.x.shape), strict=True):
        interval = clopper_pearson(round(rate * count / 100), int(count))
        assert near([low, high], [100 * interval.low, 100 * interval.high], 0.02)


def crossings(values: np.ndarray, level: float) -> int:
    """How often the values pass from one side of `level` to the other."""
    return int(np.abs(np.diff(values > level)).sum())
