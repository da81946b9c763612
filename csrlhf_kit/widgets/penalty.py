"""`explore_penalty`: drag λ across λ* on a problem that is solved exactly. Draws what penalty_data.py computes."""

from __future__ import annotations

from functools import partial

import ipywidgets

from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.theory.example import town
from csrlhf_kit.widgets.penalty_data import penalty_figure, penalty_lab, penalty_story, penalty_values
from csrlhf_kit.widgets.view import CARD, LiveFigure, View, figure_twin, log_slider, widgets_can_run

BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)


def explore_penalty(
    problem: FiniteProblem | None = None,
    *,
    multiple: float = 1.5,
    batch: int = 32,
    static: bool | None = None,
) -> View:
    """The optima of the rectified, the linear and the per-sample penalty at a λ that you drag, exact and by batches.

    problem: a problem whose average constraint binds; None: the town of notebooks 03 and 04. multiple: λ at the
    start, in units of λ*. batch: episodes per estimate of the hinge, one of `BATCHES`. static: see `widgets.view`.

    Keyboard: Tab to a slider, arrow keys move it.

    Raises UserError if the constraint does not bind, or `multiple` or `batch` is not positive.
    """
    lab = penalty_lab(town() if problem is None else problem)
    twin = partial(figure_twin, penalty_figure, lab, multiple, batch)
    if not widgets_can_run(static):
        return View(None, twin)
    figure = LiveFigure(penalty_figure(lab, multiple, batch))
    wide = {"layout": ipywidgets.Layout(width="420px"), "style": {"description_width": "90px"}}
    penalty = log_slider(multiple, 0.1, 10, step=0.02, description="λ / λ*", readout_format=".2f", **wide)
    size = ipywidgets.SelectionSlider(options=BATCHES, value=batch, description="batch size B", **wide)
    story = ipywidgets.HTML()

    def move(_: object = None) -> None:
        figure.redraw(penalty_values(lab, penalty.value, size.value))
        story.value = f'<div style="{CARD}">{penalty_story(lab, penalty.value, size.value)}</div>'

    penalty.observe(move, "value")
    size.observe(move, "value")
    move()
    return View(ipywidgets.VBox([ipywidgets.HBox([penalty, size]), figure, story]), twin)
