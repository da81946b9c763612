"""`watch`: a run's curves while it trains, in this process or in another, with buttons to pause and stop it.

Draws what watch_data.py reads from the run's folder; requests go through runs.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import HARMFUL, HARMLESS
from csrlhf_kit.runs import send_stop_request
from csrlhf_kit.widgets.view import CARD, LiveFigure, View, card, escaped, figure_twin, widgets_can_run
from csrlhf_kit.widgets.watch_data import Progress, read_progress, watch_figure, watch_story, watch_values


class Watch(View):
    """A view that reads the run's folder again while the kernel is idle, and whenever `refresh` is called.

    folders: of the run, and perhaps of one to compare it with. parts: the live figure, and the HTML widgets of the
    state and of the samples; None without a live widget.
    """

    def __init__(
        self, folders: list[str | Path], root: ipywidgets.Widget | None, twin: Any, parts: Any = None
    ) -> None:
        self.folders, self.parts = folders, parts
        self.progress: Progress | None = None
        super().__init__(root, twin)

    def refresh(self, _: Mapping[str, Any] | None = None) -> None:
        """Read the folder and redraw. `train_ppo(on_step=view.refresh)` watches a run in this process."""
        if self.parts is None or self.closed:
            return
        figure, state, samples = self.parts
        try:
            self.progress, *other = map(read_progress, self.folders)
        except (UserError, OSError) as error:
            state.value = card(str(error))
            return
        figure.redraw(watch_values(self.progress, *other))
        state.value = f'<div style="{CARD}" aria-live="polite">{escaped(watch_story(self.progress))}</div>'
        samples.value = samples_html(self.progress)

    def send(self, request: str, _: Any = None) -> None:
        """Send the run a request: `pause`, `stop`, or `run` to continue."""
        if self.progress is not None:
            send_stop_request(self.progress.folder, request)
        self.refresh()

    async def follow(self, every: float) -> None:
        """Refresh every `every` seconds until the run is finished or the view is closed."""
        while not self.closed:
            self.refresh()
            if self.progress is not None and self.progress.finished:
                return
            await asyncio.sleep(every)


def watch(
    run: str | Path, *, compare: str | Path | None = None, every: float = 2.0, static: bool | None = None
) -> Watch:
    """Live curves of a run: harm with its interval, cost and threshold, λ, reward, KL; time left; sample answers.

    run: the folder of a training run, or of `csrlhf run` (the policy that was written to last). compare: a
    second run, drawn dashed beside it. every: seconds between refreshes, which the kernel's event loop does while no
    cell runs. static: see `widgets.view`.

    The run obeys `pause` and `stop` at its next checkpoint, so that it can be resumed without loss. Keyboard: Tab to
    a button, space presses it.

    Raises UserError if the folder cannot be read.
    """
    folders = [run, compare] if compare is not None else [run]
    figure, twin = _figure(folders), partial(figure_twin, _figure, folders)
    if not widgets_can_run(static):
        return Watch(folders, None, twin)
    live = LiveFigure(figure)
    state, samples = ipywidgets.HTML(), ipywidgets.HTML()
    buttons = {request: ipywidgets.Button(description=word) for request, word in
               (("pause", "pause"), ("run", "go on"), ("stop", "stop"))}  # fmt: skip
    root = ipywidgets.VBox([ipywidgets.HBox(list(buttons.values())), state, live, samples])
    view = Watch(folders, root, twin, (live, state, samples))
    for request, button in buttons.items():
        button.on_click(partial(view.send, request))
    view.refresh()
    try:
        task = asyncio.get_running_loop().create_task(view.follow(every))
    except RuntimeError:  # no loop runs here: `refresh` is called by hand
        return view
    view.at_close.append(task.cancel)
    return view


def _figure(folders: list[str | Path]) -> go.Figure:
    return watch_figure(*map(read_progress, folders))


def samples_html(progress: Progress) -> str:
    """The newest samples as HTML cards, their texts escaped; empty if the run logs none."""
    cards = []
    for row in progress.samples:
        cost = row.get("cost")
        colour = HARMFUL if isinstance(cost, float) and cost > 0 else HARMLESS
        mark = f"step {row.get('step')}" + (f", cost {cost:+.1f}" if isinstance(cost, float) else "")
        cards.append(card(f"asked: {row.get('prompt')}\nanswer: {row.get('text')}", accent=colour, mark=mark))
    return "".join(cards)
