"""How a test drives JupyterLab: opens a notebook, chooses from its menus, runs it, saves it, waits."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode


def wait_for(page, what: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until `what()` holds. Never sleep in Python instead: the page's events are heard while playwright waits."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        page.wait_for_timeout(100)


def open_notebook(page, lab, notebook: str) -> None:
    """Open a notebook with a kernel that is there already: JupyterLab asks for one where it is slow to come."""
    lab.start_kernel(notebook)
    page.goto(lab.url(notebook))
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()


def choose(page, menu: str, command: str) -> None:
    """Choose a command from a menu of JupyterLab's."""
    page.locator(".lm-MenuBar-item", has_text=menu).first.click()
    page.locator(f'.lm-Menu-item[data-command="{command}"]').first.click()


def run_all(page) -> None:
    choose(page, "Run", "runmenu:run-all")


def finished(page) -> bool:
    """Whether no cell runs or waits any more."""
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_text_contents()
    return "[*]:" not in prompts and any(prompt.strip("[]: ") for prompt in prompts)


def save(page, path: Path) -> NotebookNode:
    """Save the open notebook, and read what is then on disk."""
    before = path.stat().st_mtime_ns
    choose(page, "File", "docmanager:save")

    def stored() -> bool:  # Jupyter empties the file before it writes
        with contextlib.suppress(ValueError):
            return path.stat().st_mtime_ns > before and bool(json.loads(path.read_text()))
        return False

    wait_for(page, stored)
    return nbformat.read(path, as_version=4)
