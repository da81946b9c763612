"""The figure of `explore_penalty`, without a screen: one finite problem, three penalties, the hinge of a batch.

`penalty_lab` computes once what the sliders do not change; a redraw needs three exact optima, one equilibrium and
arithmetic on arrays. Builds on theory/ (problem, batch_hinge), figures/style.py and view.py.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import DOTTED, INK, MUTED, rounded, rounded_all, style, titled
from csrlhf_kit.figures.theory import KINDS, PENALTIES
from csrlhf_kit.theory import (
    FiniteProblem,
    Solution,
    batch_hinge_equilibrium,
    expected_hinge,
    hinge_bias,
)
from csrlhf_kit.widgets.view import filled

MULTIPLES = np.geomspace(0.1, 10, 41)  # λ / λ* in the middle panel


@dataclass(frozen=True)
class PenaltyLab:
    """A problem with a binding average constraint, and what does not depend on the sliders."""

    problem: FiniteProblem
    optimum: Solution
    frontier_cost: np.ndarray  # (points,), mean costs of the best policies, falling
    frontier_value: np.ndarray  # (points,), their objectives F
    per_sample: np.ndarray  # (points,), their E[(cost - threshold)+]
    sweeps: dict[str, np.ndarray]  # kind of penalty -> mean costs of its optima at `MULTIPLES`
    spread: float  # standard deviation of an episode's cost at the constrained optimum
    settled: dict[int, np.ndarray] = field(default_factory=dict)  # batch size -> (points,), see `gate`

    @property
    def multiplier(self) -> float:
        """λ*."""
        return float(self.optimum.multiplier)


def penalty_lab(problem: FiniteProblem) -> PenaltyLab:
    """Solve the problem at λ* and along the frontier. Raises UserError if the constraint does not bind."""
    optimum = problem.constrained_optimum()
    if optimum.status != "active":
        raise UserError(
            f"explore_penalty: the constraint is {optimum.status}; one that binds was expected (another threshold)"
        )
    star = float(optimum.multiplier)
    multipliers = np.concatenate([[0.0], np.geomspace(0.02, 1, 30), np.geomspace(1, 12, 20)[1:]])
    frontier = problem.frontier(star * multipliers)
    hinge = np.maximum(problem.cost - problem.threshold, 0) * (problem.reference > 0)
    joint = problem.weights[:, None] * optimum.policy
    return PenaltyLab(
        problem=problem,
        optimum=optimum,
        frontier_cost=np.array([s.cost for s in frontier]),
        frontier_value=np.array([s.objective for s in frontier]),
        per_sample=np.array([problem.weights @ (s.policy * hinge).sum(axis=1) for s in frontier]),
        sweeps={
            kind: np.array([problem.penalised_optimum(m * star, kind).cost for m in MULTIPLES])
            for kind in KINDS
        },
        spread=float(np.sqrt((joint * (problem.cost - optimum.cost) ** 2).sum())),
    )


@dataclass(frozen=True)
class PenaltyPoint:
    """The numbers for one setting of the sliders."""

    penalty: float
    """λ."""
    optima: dict[str, Solution]
    """Kind of penalty -> its exact optimum."""
    noise: float
    """Standard deviation of a batch's mean cost at the constrained optimum."""
    bias: float
    """Mean of the batch's hinge at the constrained optimum, whose exact hinge is 0: 0.399 times `noise`."""
    settled: Solution
    """The equilibrium of training with the batch's gate."""


def penalty_point(lab: PenaltyLab, multiple: float, batch: int) -> PenaltyPoint:
    """Exact optima at `multiple` times λ*, and bias and equilibrium for batches of `batch` episodes.

    Raises UserError if either is not positive.
    """
    if not multiple > 0 or batch < 1:
        raise UserError(
            f"explore_penalty: multiple {multiple} and batch {batch}; positive ones were expected"
        )
    penalty, noise = multiple * lab.multiplier, lab.spread / np.sqrt(batch)
    return PenaltyPoint(
        penalty=penalty,
        optima={kind: lab.problem.penalised_optimum(penalty, kind) for kind in KINDS},
        noise=float(noise),
        bias=float(hinge_bias(0.0, noise)),
        settled=batch_hinge_equilibrium(lab.problem, penalty, batch=batch),
    )


def landscape(lab: PenaltyLab, penalty: float, kind: str) -> np.ndarray:
    """The penalised objective of each policy on the frontier, (points,): F minus `penalty` times its excess."""
    excess = lab.frontier_cost - lab.problem.threshold
    burden = {"rectified": np.maximum(excess, 0), "linear": excess, "per_sample": lab.per_sample}[kind]
    return lab.frontier_value - penalty * burden


def gate(lab: PenaltyLab, batch: int) -> np.ndarray:
    """The mean costs at which training with a batch's hinge settles, (points,), at every other of `MULTIPLES`."""
    if batch not in lab.settled:
        penalties = MULTIPLES[::2] * lab.multiplier
        costs = [batch_hinge_equilibrium(lab.problem, penalty, batch=batch).cost for penalty in penalties]
        lab.settled[batch] = np.array(costs)
    return lab.settled[batch]


def penalty_values(lab: PenaltyLab, multiple: float, batch: int) -> dict[str, dict[str, Any]]:
    """Trace's name -> its x and y at one setting of the sliders."""
    point = penalty_point(lab, multiple, batch)
    drawn: dict[str, tuple[Any, Any]] = {"now": ([multiple, multiple], [-1e3, 1e3])}
    for kind in KINDS:
        best = point.optima[kind]
        height = lab.problem.penalised_value(best.policy, point.penalty, kind)
        drawn[f"landscape {kind}"] = lab.frontier_cost, landscape(lab, point.penalty, kind)
        drawn[f"optimum {kind}"] = [best.cost], [height]
        drawn[f"now {kind}"] = [multiple], [best.cost]
    violation = _violations(lab)
    drawn["gate"] = MULTIPLES[::2], gate(lab, batch)
    drawn["gate now"] = [multiple], [point.settled.cost]
    drawn["hinge of the batch"] = violation, expected_hinge(violation, point.noise)
    drawn["bias"] = [0.0], [point.bias]
    return {name: {"x": rounded_all(x), "y": rounded_all(y)} for name, (x, y) in drawn.items()}


def penalty_figure(lab: PenaltyLab, multiple: float = 1.5, batch: int = 32) -> go.Figure:
    """Three panels at one setting: penalised objective by cost, optimal cost by λ, and the hinge of a batch."""
    figure = make_subplots(
        rows=1,
        cols=3,
        horizontal_spacing=0.085,
        column_titles=["what training climbs", "where it ends; dotted: λ*", "what a batch charges"],
    )
    for kind, method in PENALTIES.items():
        look, word = style(method), KINDS[kind]
        line = {"color": look.colour, "dash": look.dash, "width": 2}
        sweep = {"x": rounded_all(MULTIPLES), "y": rounded_all(lab.sweeps[kind])}
        _line(figure, 1, f"landscape {kind}", word, line)
        _line(figure, 2, f"sweep {kind}", word, line, legend=False, **sweep)
        for column, name in ((1, f"optimum {kind}"), (2, f"now {kind}")):
            _mark(figure, column, name, look.colour, look.symbol, f"optimum, {word}")
    gate = {"color": INK, "dash": "dot", "width": 2}
    hinge = rounded_all(_violations(lab))
    _line(figure, 2, "now", "λ now", {"color": MUTED, "width": 1}, legend=False)
    _line(figure, 2, "gate", "with a batch's hinge", gate)
    _mark(figure, 2, "gate now", INK, "x", "with a batch's hinge")
    blue = {"color": style("fixed_penalty").colour, "width": 2}
    exact = rounded_all(max(v, 0.0) for v in hinge)
    _line(figure, 3, "hinge", "the hinge itself", blue, legend=False, x=hinge, y=exact)
    _line(figure, 3, "hinge of the batch", "mean of the batch's hinge", gate, legend=False)
    _mark(figure, 3, "bias", INK, "x", "bias at the threshold")
    _axes(figure, lab)
    filled(figure, penalty_values(lab, multiple, batch))
    title = "Drag λ across λ*: the rectified optimum stops at the threshold, the others do not"
    return titled(figure, title, height=430, margin={"b": 110})


def _violations(lab: PenaltyLab) -> np.ndarray:
    return np.linspace(-lab.spread, lab.spread, 61)


def _line(
    figure: go.Figure, column: int, meta: str, name: str, line: Any, *, legend: bool = True, **xy: Any
) -> None:
    trace = go.Scatter(
        mode="lines", line=line, name=name, meta=meta, legendgroup=name, showlegend=legend, **xy
    )
    figure.add_trace(trace, row=1, col=column)


def _mark(figure: go.Figure, column: int, meta: str, colour: str, symbol: str, name: str) -> None:
    marker = {"color": colour, "symbol": symbol, "size": 12, "line": {"color": INK, "width": 1}}
    trace = go.Scatter(mode="markers", marker=marker, name=name, meta=meta, showlegend=False)
    figure.add_trace(trace, row=1, col=column)


def _axes(figure: go.Figure, lab: PenaltyLab) -> None:
    """Axes that stand still while λ moves, so that the eye sees the curves move."""
    threshold, cost, value = rounded(lab.problem.threshold), lab.frontier_cost, lab.frontier_value
    figure.add_vline(x=threshold, line=DOTTED, row=1, col=1)
    figure.add_hline(y=threshold, line=DOTTED, row=1, col=2)
    figure.add_vline(x=1, line=DOTTED, row=1, col=2)
    edge, span = 0.04 * float(np.ptp(cost)), float(np.ptp(value))
    costs = rounded_all([cost.min() - edge, cost.max() + edge])
    values = rounded_all([value.min() - 0.6 * span, value.max() + 0.6 * span])
    charges = rounded_all([-0.05 * lab.spread, lab.spread])
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    log = {"type": "log", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks], "range": [-1.05, 1.05]}
    figure.update_xaxes(title_text="mean cost of the policy", range=costs, row=1, col=1)
    figure.update_yaxes(title_text="penalised objective", range=values, row=1, col=1)
    figure.update_xaxes(title_text="λ / λ*", **log, row=1, col=2)
    figure.update_yaxes(title_text="mean cost", range=costs, row=1, col=2)
    figure.update_xaxes(title_text="E[cost] − threshold", row=1, col=3)
    figure.update_yaxes(title_text="charge per unit of λ", range=charges, row=1, col=3)
    figure.update_annotations(font_size=13)


def penalty_story(lab: PenaltyLab, multiple: float, batch: int) -> str:
    """The same setting in sentences, as escaped HTML."""
    point, best = penalty_point(lab, multiple, batch), lab.optimum.objective

    def ends(policy: Solution) -> str:
        gap, loss = policy.cost - lab.problem.threshold, best - policy.objective
        side = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} the threshold"
        price = f" and gives up {loss:.3f} reward units" if loss >= 0.0005 else ""
        return ("on the threshold" if abs(gap) < 0.0005 else side) + price

    side = "above" if multiple > 1 else "at" if multiple == 1 else "below"
    kinds = "; ".join(f"with the {word}, {ends(point.optima[kind])}" for kind, word in KINDS.items())
    return html.escape(
        f"λ is {point.penalty:.3g}, {multiple:.2f} times λ* ({side} it). Training ends: {kinds}. "
        f"A batch of {batch} charges {point.bias:.3f} λ even where nothing is violated; with its hinge, training ends "
        f"{ends(point.settled)}."
    )
