"""The line at the top and at the end of each notebook that leads to its neighbours, the list and the glossary."""

from __future__ import annotations

import re
from pathlib import Path

from nbformat import NotebookNode

_COURSE = re.compile(r"\d\d_\w+\.ipynb")
_LINE = re.compile(r"\n*^(?:\[← [^\n]*|\[All notebooks\][^\n]*)$", re.MULTILINE)
LIST, GLOSSARY = "00_start_here.ipynb#The-map", "../docs/glossary.md"


def links(path: Path) -> str:
    """The line of links of the notebook at `path`: to the one before, the list, the glossary, the one after."""
    names = sorted(p.name for p in path.parent.glob("*.ipynb") if _COURSE.fullmatch(p.name))
    place = names.index(path.name)
    parts = [f"[← {name[:2]}]({name})" for name in names[max(0, place - 1) : place]]
    parts += [f"[All notebooks]({LIST})", f"[Symbols and words]({GLOSSARY})"]
    parts += [f"[{name[:2]} →]({name})" for name in names[place + 1 : place + 2]]
    return " · ".join(parts)


def refresh_links(notebook: NotebookNode, path: Path) -> None:
    """Write the line under the title and at the very end; nothing outside of the course's folder."""
    if not (path.parent / LIST.split("#")[0]).exists():
        return
    first, last = notebook.cells[0], notebook.cells[-1]
    title, _, rest = _LINE.sub("", first.source).partition("\n")
    first.source = f"{title}\n\n{links(path)}\n{rest}"
    last.source = f"{_LINE.sub('', last.source)}\n\n{links(path)}"
