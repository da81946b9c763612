"""Notebook 07's sweep reads whatever is recorded: no sweep, one λ, one method, several λ with several seeds."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from course import tools
from csrlhf_kit.data.sources import data_folder

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_which_penalty_are_you_running.ipynb"


def sweep(folder: Path, methods: tuple[str, ...], penalties: tuple[float, ...], seeds: int) -> None:
    """A data folder with the recorded job and a sweep in the form that `csrlhf sweep` writes."""
    recorded = data_folder() / "recorded" / "results.json"
    (folder / "recorded").mkdir()
    shutil.copy(recorded, folder / "recorded")
    row = json.loads(recorded.read_text())["policies"]["fixed_penalty"]
    cells = []
    for method in methods:
        for penalty in penalties:
            for seed in range(seeds):
                policy = copy.deepcopy(row) | {"cost": 0.3 / (1 + penalty) + 0.001 * seed}
                cells.append(
                    {"method": method, "settings": {"penalty": penalty}, "seed": seed, "policy": policy}
                )
        cells.append({"method": method, "settings": {"gate": "ema"}, "seed": 0, "policy": row})  # no penalty
    if cells:
        (folder / "runs" / "penalties").mkdir(parents=True)
        told = {"threshold": 0.015, "cells": cells}
        (folder / "runs" / "penalties" / "sweep.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("methods", "penalties", "seeds"),
    [
        ((), (), 0),
        (("fixed_penalty",), (6.0,), 1),
        (("linear_penalty",), (1.0, 4.0), 1),
        (("fixed_penalty", "linear_penalty"), (0.5, 8.0, 64.0), 3),
    ],
    ids=["no sweep", "one cell", "one method", "both"],
)
def test_the_sweep_cells_show_every_recorded_policy(tmp_path, monkeypatch, capsys, methods, penalties, seeds):
    sweep(tmp_path, methods, penalties, seeds)
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")  # the notebook sets it; here it shall not outlive the test
    shown = []
    monkeypatch.setattr("csrlhf_kit.figures.static.show", lambda figure, caption="": shown.append(figure))
    first, *cells = tools.code_cells(tools.read(NOTEBOOK))
    space: dict = {}
    for cell in [first, *(c for c in cells if "swept" in c.source)]:
        exec(cell.source, space)
    out = capsys.readouterr().out
    marks = {trace.name: len(trace.x) for trace in shown[-1].data if trace.name.startswith("trained")}
    names = {"linear_penalty": "trained, linear", "fixed_penalty": "trained, rectified"}
    assert marks == {names[method]: len(penalties) * seeds for method in methods}
    assert out.count("no sweep is recorded") == 2 - len(methods)
    for method in methods:
        table = out.split(f"\n{method}\n")[1].splitlines()[1 : 1 + len(penalties)]
        assert [(float(line.split()[0]), int(line.split()[1])) for line in table] == [
            (penalty, seeds) for penalty in penalties
        ]
