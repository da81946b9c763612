"""The course's notebooks that use widgets, in a real JupyterLab: run all, and every widget is drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from driving import finished, open_notebook, run_all, save, wait_for

from course.tools import WIDGET_VIEW, code_cells, read

COURSE = Path(__file__).parents[2] / "notebooks"
SHOWN = re.compile(r"^(?:annotate|arena|explore_penalty|explore_tradeoff|inspect_cost|watch)\(", re.M)
WITH_WIDGETS = [
    path.name for path in sorted(COURSE.glob("*.ipynb")) if "csrlhf_kit.widgets" in path.read_text()
]


@pytest.mark.parametrize("name", WITH_WIDGETS)
def test_a_notebook_of_the_course(lab, page, shoot, name):
    folder = lab.folder / "course"
    shutil.copytree(COURSE, folder, dirs_exist_ok=True)
    records = Path("benchmarks", "results")  # 08 and 09 read one beside the course
    shutil.copytree(COURSE.parent / records, lab.folder / records, dirs_exist_ok=True)
    notebook = read(folder / name)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / name)
    open_notebook(page, lab, f"course/{name}")
    run_all(page)
    wait_for(page, lambda: finished(page), seconds=1200)

    ran = code_cells(save(page, folder / name))
    said = [output for cell in ran for output in cell.outputs]
    assert [o for o in said if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert all(cell.execution_count for cell in ran)
    shown = [
        place for place, cell in enumerate(ran) if any(WIDGET_VIEW in o.get("data", {}) for o in cell.outputs)
    ]
    assert shown == [place for place, cell in enumerate(ran) if SHOWN.search(cell.source)] != []
    for place in shown:
        widget = page.locator(".jp-Notebook .jp-CodeCell").nth(place).locator(".jp-Cell-outputArea")
        widget.scroll_into_view_if_needed()
        widget.locator(".widget-box").first.wait_for()
        shoot(f"{name[:2]}-cell-{place}", widget)
    assert page.locator(".jp-Notebook", has_text="Error displaying widget").count() == 0
    assert page.watch.errors == [] and page.watch.strangers == []
