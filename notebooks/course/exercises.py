"""Exercises with an instant answer: `look` draws what the learner's function computes, `check` says if it is right.

For exercise 3.1 they call `picture_1` and `check_1` of `nb03.py`. `picture_N(attempt)` returns a figure, also if the
attempt fails. `check_N(attempt)` returns None if the attempt is right, raises `NotStarted` if it returns None, and
`Mistake` with a sentence for the learner if it is wrong. `look` and `check` never raise what an attempt raises: they
say what it was, and in which line. `SPOILERS` of such a file names what an attempt may not call, since it is the answer.
These files hold no solution, so they can be given to a class. The solutions, and wrong ones that each check must
refuse, are in `notebooks/solutions/`. Builds on the package's figures.
"""

from __future__ import annotations

import functools
import importlib
import linecache
import textwrap
import traceback
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Literal, NamedTuple

import numpy as np

from course.build import keep
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.static import show

__all__ = [
    "Mistake",
    "NotStarted",
    "Verdict",
    "answer",
    "check",
    "drawn",
    "look",
    "progress",
    "same",
    "verdict",
]

Attempt = Callable[..., Any]
_STATES: dict[str, str] = {}  # exercise -> the state that `check` printed last in this session


class Mistake(Exception):
    """An attempt is wrong; the message tells the learner, in a sentence, what to look at."""


class NotStarted(Exception):
    """The attempt returned None or `...`: nothing has been written yet."""


class Verdict(NamedTuple):
    """The outcome of a check."""

    state: Literal["not started", "not yet", "solved"]
    message: str


def look(name: str, attempt: Attempt) -> None:
    """Draw what `attempt` computes for exercise `name` ("3.1"), and say what it raised, if it did.

    Raises UserError if there is no such exercise.
    """
    raised: list[Exception] = []

    @functools.wraps(attempt)
    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            return attempt(*arguments, **options)
        except Exception as error:
            raised.append(error)
            raise

    show(_part(name, "picture")(watched))
    if raised:
        print(f"Exercise {name} · nothing of yours to draw: {_told(raised[0], attempt)}")


def check(name: str, attempt: Attempt) -> None:
    """Print whether `attempt` solves exercise `name`, and if not, what is wrong. Raises as `look`."""
    found = verdict(name, attempt)
    _STATES[name] = found.state
    message = keep(name, attempt) if found.state == "solved" else found.message
    said = f"Exercise {name} · {found.state}" + (f": {message}" if message else ".")
    print("\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in said.splitlines()))


def verdict(name: str, attempt: Attempt) -> Verdict:
    """What `check` prints, as a value."""
    examine = _part(name, "check")
    try:
        examine(attempt)
    except NotStarted:
        return Verdict("not started", "the function returns None. Replace the line that says so.")
    except Mistake as mistake:
        return Verdict("not yet", str(mistake))
    except Exception as error:  # the learner's code may raise anything; the notebook goes on
        return Verdict("not yet", _told(error, attempt))
    if borrowed := sorted(_spoilers(name) & set(_names(getattr(attempt, "__code__", None)))):
        return Verdict("not yet", f"it calls `{borrowed[0]}`, which is the answer itself: write your own")
    return Verdict("solved", "")


def _told(error: Exception, attempt: Attempt) -> str:
    """What an attempt raised, and the line of it that did."""
    said = f"it raises {type(error).__name__}"
    code = getattr(attempt, "__code__", None)
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code is code:
            text = linecache.getline(code.co_filename, line).strip()
            said += f" in its line {line - code.co_firstlineno + 1}" + (f", `{text}`" if text else "")
            break
    return f"{said}: {error}"


def _names(code: CodeType | None) -> Iterator[str]:
    """The names of functions and attributes that a function's code looks up, those of functions inside it too."""
    if code is not None:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from _names(constant)


def _spoilers(name: str) -> set[str]:
    """What solves an exercise already, by the table of its notebook."""
    notebook, _, number = name.partition(".")
    module = importlib.import_module(f"{__package__}.nb{int(notebook):02d}")
    return set(getattr(module, "SPOILERS", {}).get(number, ()))


def progress(notebook: int) -> None:
    """Print how many of this notebook's exercises were solved in this session."""
    mine = {name: state for name, state in _STATES.items() if name.split(".")[0] == str(notebook)}
    solved = sum(state == "solved" for state in mine.values())
    print(f"Exercises solved: {solved} of {len(mine)}")


def answer(attempt: Attempt, *arguments: Any, **options: Any) -> Any:
    """The attempt's result; NotStarted if it is None or `...`."""
    result = attempt(*arguments, **options)
    if result is None or result is ...:
        raise NotStarted
    return result


def drawn(attempt: Attempt, *arguments: Any, **options: Any) -> Any:
    """The attempt's result for a picture; None if it is missing or the attempt raises anything."""
    try:
        return answer(attempt, *arguments, **options)
    except Exception:
        return None


def same(found: Any, expected: Any, what: str, *, tolerance: float = 1e-6, hint: str = "") -> None:
    """Raise Mistake unless `found` equals `expected` in shape and, element by element, in value.

    tolerance: largest difference, relative to the largest expected value, or to 1 if that is larger. what: the case,
    for the sentence. hint: a sentence added to it.
    """
    try:
        values = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise Mistake(f"{what}: a number was expected, your function gives {found!r:.60}") from None
    wanted = np.asarray(expected, dtype=np.float64)
    if values.shape != wanted.shape:
        raise Mistake(f"{what}: shape {wanted.shape} was expected, your function gives {values.shape}")
    off = np.abs(values - wanted)
    if not np.isfinite(values).all() or off.max(initial=0) > tolerance * max(
        1.0, np.abs(wanted).max(initial=0)
    ):
        place = np.unravel_index(int(np.argmax(np.where(np.isfinite(off), off, np.inf))), wanted.shape)
        raise Mistake(
            f"{what}: {wanted[place]:.4g} was expected, your function gives {values[place]:.4g}."
            + (f" {hint}" if hint else "")
        )


def _part(name: str, kind: str) -> Callable[[Attempt], Any]:
    notebook, _, number = name.partition(".")
    try:
        return getattr(importlib.import_module(f"{__package__}.nb{int(notebook):02d}"), f"{kind}_{number}")
    except (ValueError, ModuleNotFoundError, AttributeError):
        raise UserError(f"there is no exercise {name!r}; a name such as '3.1' was expected") from None
