"""`explore_tradeoff`: recorded runs beside the best possible policies, with sliders for λ, threshold and β.

Draws what tradeoff_data.py computes; the records are read by evaluation/results.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import RecordedRuns, read_recorded
from csrlhf_kit.figures.style import HARMFUL, HARMLESS
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.theory.example import town
from csrlhf_kit.widgets.tradeoff_data import MULTIPLIERS, State, Tradeoff, sample_answers
from csrlhf_kit.widgets.view import (
    CARD,
    LiveFigure,
    View,
    card,
    escaped,
    figure_twin,
    folded,
    log_slider,
    widgets_can_run,
)

TOWN = ["harmful"] * 20 + ["harmless"] * 20


def explore_tradeoff(
    results: str | Path | Mapping[str, Any] | None = None,
    *,
    problem: FiniteProblem | None = None,
    strata: Sequence[str] | None = None,
    static: bool | None = None,
) -> View:
    """Harm and helpfulness of every recorded run beside the best possible ones; click a run for its curves.

    results: the folder of a run or a sweep, or a folder with several of them (`data/runs`); a results.json or
    sweep.json, or its parsed content; None: the shipped record. problem: the problem of the frontier; None: the
    record's scored samples, reweighted, if it has kept them (a run's own folder has), else the town of notebooks 03
    and 04, exact. strata: the stratum of each prompt of `problem`, for a menu. static: see `widgets.view`.

    Keyboard: Tab to a slider or menu, arrow keys move it; the menu `run` does what a click on a point does.

    Raises UserError if the record cannot be read, or `strata` does not fit `problem`.
    """
    board = tradeoff_board(results, problem, strata)
    state = board.start()
    root = _controls(board, state) if widgets_can_run(static) else None
    return View(root, partial(figure_twin, board.figure, state))


def tradeoff_board(results: Any, problem: FiniteProblem | None, strata: Sequence[str] | None) -> Tradeoff:
    """The record and the problem that `explore_tradeoff` shows, from its arguments; raises its errors."""
    recorded = read_recorded(results)
    if problem is not None:
        return Tradeoff(recorded, problem, strata)
    if strata is not None:
        raise UserError("explore_tradeoff: strata belong to a problem; one was expected")
    if recorded.problem is not None:
        return Tradeoff(recorded, recorded.problem, of_runs=True)
    return Tradeoff(recorded, town(), TOWN)


def _controls(board: Tradeoff, start: State) -> ipywidgets.Widget:
    figure = LiveFigure(board.figure(start))
    wide = {"layout": ipywidgets.Layout(width="300px"), "style": {"description_width": "70px"}}
    menu = {"layout": ipywidgets.Layout(width="330px"), "style": {"description_width": "75px"}}
    costs = [solution.cost for solution in board.frontier(start)]
    lowest, highest = max(1e-4, min(*costs, start.threshold)), max(*costs, 2 * start.threshold)
    look = {"readout_format": ".3g", **wide}
    main = [way for way in board.ways if ": " not in way] or list(board.ways)[:1]
    rest = [("(as above)", ""), *((way, way) for way in board.ways if way not in main)]
    strata = [("all prompts", ""), *((s, s) for s in dict.fromkeys(board.strata))]
    parts = {
        "chosen": ipywidgets.Dropdown(options=[run.name for run in board.recorded.runs], value=start.chosen, description="run", **menu),
        "judged_on": ipywidgets.Dropdown(options=main, value=start.judged_on, description="judged on", **menu),
        "multiplier": log_slider(start.multiplier, MULTIPLIERS[1], MULTIPLIERS[-1], step=0.04, description="λ", **look),
        "part": ipywidgets.Dropdown(options=rest, value="", description="or a part", **menu),
        "stratum": ipywidgets.Dropdown(options=strata, value="", description="frontier of", **menu),
        "threshold": log_slider(start.threshold, lowest, highest, step=0.02, description="threshold", **look),
        "beta": log_slider(start.beta, start.beta / 10, start.beta * 10, step=0.05, description="β", **look),
    }  # fmt: skip
    story, said = ipywidgets.HTML(), ipywidgets.HTML()

    def move(_: object = None) -> None:
        chosen = {name: part.value for name, part in parts.items()}
        part = chosen.pop("part")
        state = replace(start, **chosen | ({"judged_on": part} if part else {}))
        figure.redraw(board.values(state))
        story.value = f'<div style="{CARD}">{board.story(state)}</div>'
        said.value = answers_html(board.recorded, state.chosen)

    for part in parts.values():
        part.observe(move, "value")
    figure.on_click(partial(choose_run, board.recorded, parts["chosen"]))
    move()
    shown, more = (ipywidgets.HBox(list(parts.values())[half]) for half in (slice(3), slice(3, None)))
    for box in (shown, more):
        box.layout.flex_flow = "row wrap"
    return ipywidgets.VBox([shown, folded("more", more), figure, story, said])


def choose_run(recorded: RecordedRuns, menu: ipywidgets.Dropdown, trace: str, point: int) -> None:
    """Choose the clicked run in `menu`, given the clicked trace and point; other traces than runs are ignored."""
    runs = [run.name for run in recorded.runs if f"runs {run.method}" == trace]
    if 0 <= point < len(runs):
        menu.value = runs[point]


def answers_html(recorded: RecordedRuns, name: str) -> str:
    """The responses of the run `name` as HTML cards, their texts escaped."""
    found = sample_answers(recorded, name)
    if not found:
        return card(f"{name}: the record holds no responses of this run.")
    cards = []
    for row in found:
        colour, verdict = (HARMFUL, "harmful") if row.get("harmful") else (HARMLESS, "not harmful")
        mark = f"{verdict}, helpfulness {row.get('helpfulness', float('nan')):.2f} (oracle)"
        cards.append(card(f"asked: {row['prompt']}\nanswer: {row['text']}", accent=colour, mark=mark))
    heads = f"<p><b>What {escaped(name)} says.</b> The oracle counts the task's name and each fitting step; it reads no grammar.</p>"
    grid = "display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 8px;"
    return f'{heads}<div style="{grid}">{"".join(cards)}</div>'
