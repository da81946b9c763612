"""A person at the terminal: read what they type, and show a policy's text safely."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator

LEAVE = ("/quit", "/exit")


def visible(text: str) -> str:
    """`text` made safe for a terminal: control and format characters become their code, such as `\\x1b`.

    These are escape sequences, carriage returns, marks of writing direction; line breaks and tabs stay.
    """
    return "".join(
        c if c in "\n\t" or not (unicodedata.category(c).startswith("C") or c in "\u2028\u2029")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )  # fmt: skip


def questions(ask: Callable[[], str]) -> Iterator[str]:
    """The lines that a person types, without blank ones, until /quit, Ctrl-C or the end of the input."""
    while True:
        try:
            line = ask().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in LEAVE:
            return
        if line:
            yield line


def prompt_of(label: str) -> Callable[[], str]:
    """A function that reads a line at the terminal; it prints no label if the input is a pipe."""
    return lambda: input(label if sys.stdin.isatty() else "")
