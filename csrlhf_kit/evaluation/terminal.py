"""A person at the terminal: what they type, and what a policy says shown without power over the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator

LEAVE = ("/quit", "/exit")


def visible(text: str) -> str:
    """`text` without power over a terminal: control and format characters (escape sequences, carriage returns,
    marks that turn the writing direction) become their code, `\\x1b`; line breaks and tabs stay.
    """
    return "".join(
        c if c in "\n\t" or not (unicodedata.category(c).startswith("C") or c in "\u2028\u2029")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )  # fmt: skip


def asked(ask: Callable[[], str]) -> Iterator[str]:
    """What the person types, line by line, until they leave (Ctrl-C, too) or the input ends; no blank lines."""
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
    """A question at the terminal; nothing is printed where the input is a pipe."""
    return lambda: input(label if sys.stdin.isatty() else "")
