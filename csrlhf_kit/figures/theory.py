"""The figures of the exact theory: what the penalties do, from problems that are solved, not trained.

They take objects of `csrlhf_kit.theory` and follow `style.py`: one function per figure, and nothing random without a
seed. The rectified penalty has the style of the fixed-penalty method, the linear one that of the linear penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import DOTTED, INK, MUTED, ramp, rounded, rounded_all, shade, style, titled
from csrlhf_kit.theory import (
    DualTrajectory,
    FiniteProblem,
    FrontierPoint,
    Solution,
    equilibrium_violation,
    expected_hinge,
    simulate_gate,
)

KINDS = {"rectified": "rectified mean", "linear": "linear penalty", "per_sample": "per-sample hinge"}
PENALTIES = {"rectified": "fixed_penalty", "linear": "linear_penalty", "per_sample": "rectified_sample"}
FRONTIER_MULTIPLES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0)
FEW_SAMPLES = 5  # effective samples per prompt; with fewer, a mean depends on one or two responses


def penalty_landscape(
    problem: FiniteProblem, *, multiples: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 5.0)
) -> go.Figure:
    """The penalised objective along the best policies, left rectified, right linear.

    A curve is F - λ[E[cost] - threshold]₊ (or without the ₊) of the best policy at each mean cost, one for each λ in
    `multiples` of the optimal multiplier; a dot is its maximum. Rectified: above λ* the maximum stays in the kink at
    the threshold. Linear: it moves further to the left.
    """
    optimum = _active(problem)
    frontier = _frontier(problem, optimum, widest=2 * max(multiples))
    cost = np.array([solution.cost for solution in frontier])
    value = np.array([solution.objective for solution in frontier])
    titles = ["rectified: λ·max(E[cost] − threshold, 0)", "linear: λ·(E[cost] − threshold)"]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, column_titles=titles)
    colours, heights = ramp(len(multiples)), []
    for column, kind in enumerate(("rectified", "linear"), start=1):
        for colour, multiple in zip(colours, multiples, strict=True):
            penalty = multiple * optimum.multiplier
            excess = cost - problem.threshold
            curve = value - penalty * (np.maximum(excess, 0) if kind == "rectified" else excess)
            best = problem.penalised_optimum(penalty, kind)
            height = problem.penalised_value(best.policy, penalty, kind)
            heights.append(height)
            name = f"λ = {_times(multiple)}"
            figure.add_scatter(
                x=rounded_all(cost), y=rounded_all(curve), mode="lines", line={"color": colour, "width": 2},
                name=name, legendgroup=name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=[rounded(best.cost)], y=[rounded(height)], mode="markers",
                marker={"color": colour, "size": 10, "line": {"color": INK, "width": 1}},
                name=f"best at {name}", legendgroup=name, showlegend=False, row=1, col=column,
            )  # fmt: skip
        _threshold_line(figure, problem.threshold, row=1, col=column)
    span = max(heights) - float(value.min())  # shows every maximum
    figure.update_yaxes(range=[rounded(float(value.min()) - 0.25 * span), rounded(max(heights) + 0.1 * span)])
    figure.update_yaxes(title_text="penalised objective, reward units", col=1)
    edge = 0.03 * float(np.ptp(cost))
    limits = [rounded(float(cost.min()) - edge), rounded(float(cost.max()) + edge)]
    figure.update_xaxes(title_text="mean cost of the policy", range=limits)
    figure.update_annotations(font_size=13)
    return titled(
        figure,
        "Past λ* the rectified optimum stays in the kink; the linear one slides past it",
        caption="A line: the most that a policy of that mean cost can get under the penalty. Its dot: where training goes.",
        height=480,
    )


def penalty_frontier(problem: FiniteProblem, *, multiples: Sequence[float] = FRONTIER_MULTIPLES) -> go.Figure:
    """The best objective at each mean cost, and the optima of the three penalties, on or below it.

    Marks are the penalties' optima at `multiples` of λ*. Rectified optima move along the frontier and stop at the
    threshold; linear ones move on; those of the per-sample hinge leave the frontier.
    """
    optimum = _active(problem)
    frontier = _frontier(problem, optimum, widest=2 * max(multiples))
    figure = make_subplots(rows=1, cols=1)
    figure.add_scatter(
        x=rounded_all(solution.cost for solution in frontier),
        y=rounded_all(solution.objective for solution in frontier), mode="lines",
        line={"color": MUTED, "width": 2}, name="best possible",
    )  # fmt: skip
    for kind, method in PENALTIES.items():
        look = style(method)
        # Rings for the rectified penalty: its optima coincide with the linear ones up to λ*.
        rings = {"symbol": "circle-open", "size": 17, "line": {"width": 2.5}}
        shape = rings if kind == "rectified" else {"symbol": look.symbol, "size": 9}
        optima = [problem.penalised_optimum(m * optimum.multiplier, kind) for m in multiples]
        figure.add_scatter(
            x=rounded_all(solution.cost for solution in optima),
            y=rounded_all(solution.objective for solution in optima), mode="markers+text",
            marker={"color": look.colour, **shape}, name=KINDS[kind], text=_marks(kind, multiples),
            textposition="bottom right" if kind == "linear" else "top left",
            textfont={"color": INK, "size": 12}, customdata=[_times(m) for m in multiples],
            hovertemplate="λ = %{customdata}: cost %{x}, objective %{y}",
        )  # fmt: skip
    _threshold_line(figure, problem.threshold, row=1, col=1)
    figure.update_xaxes(title_text="mean cost of the policy")
    figure.update_yaxes(title_text="objective F = reward − β·KL, reward units")
    return titled(
        figure,
        "One penalty stops at the threshold; the other two run past it",
        caption=f"Marks: the policies that a penalty of {_times(min(multiples))} to {_times(max(multiples))} trains. The line: the "
        "most that any policy of that cost can have.",
        height=480,
    )


def violation_and_loss(problem: FiniteProblem, *, multiples: Sequence[float] | None = None) -> go.Figure:
    """Each penalty as λ grows: the violation above, the objective given up below.

    λ is in units of λ*, on a log axis. Exact means no violation *and* nothing given up, for every λ > λ*; a
    negative loss comes from a violation.
    """
    optimum = _active(problem)
    if multiples is None:
        multiples = np.geomspace(0.1, 10, 61)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for kind, method in PENALTIES.items():
        look = style(method)
        optima = [problem.penalised_optimum(float(m) * optimum.multiplier, kind) for m in multiples]
        panels = (
            [max(0.0, solution.cost - problem.threshold) for solution in optima],
            [optimum.objective - solution.objective for solution in optima],
        )
        for row, values in enumerate(panels, start=1):
            figure.add_scatter(
                x=rounded_all(multiples), y=rounded_all(_tidy(value) for value in values),
                mode="lines+markers", line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={"symbol": look.symbol, "size": 8, "maxdisplayed": 7}, name=KINDS[kind],
                legendgroup=kind, showlegend=row == 1, row=row, col=1,
            )  # fmt: skip
    for row in (1, 2):
        figure.add_vline(x=1, line=DOTTED, row=row, col=1)
    figure.add_hline(y=0, line={"color": MUTED, "width": 1}, row=2, col=1)
    ticks = [m for m in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if min(multiples) <= m <= max(multiples)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{m:g}" for m in ticks])
    figure.update_xaxes(title_text="penalty λ, in units of the optimal multiplier λ*", row=2, col=1)
    figure.update_yaxes(title_text="violation, cost units", row=1, col=1)
    figure.update_yaxes(title_text="objective given up, reward units", row=2, col=1)
    title = "Only the rectified penalty is both feasible and free of charge right of the dotted λ*"
    caption = "Given up: against the constrained optimum. What is below 0 is bought with a violation."
    return titled(figure, title, caption=caption, height=600)


def batch_hinge(
    problem: FiniteProblem,
    *,
    batches: Sequence[int] = (4, 8, 16, 32, 64, 128, 256, 512),
    repeats: int = 4000,
    seed: int = 0,
) -> go.Figure:
    """What a batch does to the exact penalty: a bias that falls like 1/√B, and 2λ* as the least safe penalty.

    Left: the mean of the batch hinge max(batch mean - threshold, 0) at the constrained optimum, where the true hinge
    is 0; the line is the Gaussian closed form, the dots are `repeats` simulated batches with two standard errors.
    Right: the violation at which training with such a gate settles.
    """
    optimum = _active(problem)
    joint = problem.weights[:, None] * optimum.policy
    spread = float(np.sqrt((joint * (problem.cost - optimum.cost) ** 2).sum()))
    titles = ["the charge at the constrained optimum", "where such a gate lets training settle"]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.13, column_titles=titles)
    look = style("fixed_penalty")
    sizes = np.geomspace(min(batches), max(batches), 40)
    figure.add_scatter(
        x=rounded_all(sizes), y=rounded_all(expected_hinge(0.0, spread / np.sqrt(sizes))), mode="lines",
        line={"color": look.colour, "width": 2}, name="closed form, 0.399·σ/√B", row=1, col=1,
    )  # fmt: skip
    seen = [simulate_gate(problem, optimum.policy, batch=b, repeats=repeats, seed=seed) for b in batches]
    figure.add_scatter(
        x=list(batches), y=rounded_all(estimate.hinge for estimate in seen),
        error_y={"type": "data", "array": rounded_all((e.hinge_error for e in seen), 2), "color": INK},
        mode="markers", marker={"color": INK, "symbol": "diamond", "size": 7}, name="simulated batches",
        row=1, col=1,
    )  # fmt: skip
    multiples = np.linspace(1.02, 6, 60)
    shown = [size for size in (8, 64, 512) if min(batches) <= size <= max(batches)] or [batches[0]]
    for dash, size in zip(("dash", "dashdot", "solid"), shown, strict=False):
        noise = spread / np.sqrt(size)
        settled = [
            equilibrium_violation(m * optimum.multiplier, multiplier=optimum.multiplier, noise=noise)
            for m in multiples
        ]
        figure.add_scatter(
            x=rounded_all(multiples), y=rounded_all(settled), mode="lines",
            line={"color": shade(size), "dash": dash, "width": 2}, name=f"B = {size}", row=1, col=2,
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": MUTED, "width": 1}, row=1, col=2)
    figure.add_vline(x=2, line=DOTTED, row=1, col=2)
    sizes = [rounded(size) for size in batches]
    figure.update_xaxes(type="log", tickvals=sizes, title_text="batch size B, episodes", row=1, col=1)
    low, high = (bound(e.hinge for e in seen) for bound in (min, max))
    ticks = [t for t in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005) if 0.8 * low <= t <= 1.2 * high]
    figure.update_yaxes(
        type="log", tickvals=ticks, title_text="bias of the batch hinge, cost units", row=1, col=1
    )
    figure.update_xaxes(title_text="penalty λ, in units of λ*", range=[0.9, 6.1], dtick=1, row=1, col=2)
    figure.update_yaxes(title_text="E[cost] − threshold, cost units", row=1, col=2)
    figure.update_annotations(font_size=13)
    return titled(figure, "A batch charges even feasible policies, and makes 2λ* look like the least needed")


def dual_trajectories(
    trajectories: Mapping[str, DualTrajectory], *, threshold: float, multiplier: float, steps: int = 160
) -> go.Figure:
    """Learning the multiplier, step by step: the effective multiplier above, the mean cost below.

    `trajectories` maps a method's name (`fixed_penalty`, `lagrangian`, `pid_lagrangian`, ...) to its result of
    `simulate_dual`. The dotted lines are the optimal multiplier and the threshold. Every one of the first `steps`
    is drawn, since leaving some out would change how a gate's switching looks.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, trajectory in trajectories.items():
        look = style(name)
        for row, values in enumerate((trajectory.eta, trajectory.cost), start=1):
            figure.add_scatter(
                x=list(range(len(values[:steps]))), y=rounded_all(values[:steps]), mode="lines+markers",
                line={"color": look.colour, "dash": look.dash, "width": 1.5},
                marker={"symbol": look.symbol, "size": 8, "maxdisplayed": 8}, name=look.label,
                legendgroup=name, showlegend=row == 1, row=row, col=1,
            )  # fmt: skip
    for row, level in ((1, multiplier), (2, threshold)):
        figure.add_hline(y=rounded(level), line=DOTTED, row=row, col=1)
    figure.update_xaxes(title_text="simulated training step", row=2, col=1)
    figure.update_yaxes(title_text="price acted on, reward per cost", row=1, col=1)
    figure.update_yaxes(title_text="mean cost, cost units", row=2, col=1)
    title = "How each method finds the dotted optimum: from which side, and with how many swings"
    caption = "Dotted: the optimal multiplier λ* above, the threshold below."
    return titled(figure, title, caption=caption, height=600)


def suggested_frontier(
    frontier: Sequence[FrontierPoint],
    policies: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    threshold: float,
) -> go.Figure:
    """What reference samples predict before any training, and what trained policies reach.

    Line: the best tilt at each multiplier (`suggest_penalty(...).frontier`), its mean learned reward against its
    cost (left) and its KL (right); hollow marks have fewer than 5 effective samples per prompt and are unreliable.
    `policies` as in `results.json`: {name: {reward, cost, kl, shortfall}}. A policy's bar ends at the largest reward
    that the line allows for its cost and KL; its length is the `shortfall`, if there is one.
    """
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    hollow = ["circle-open" if p.effective_samples < FEW_SAMPLES else "circle" for p in frontier]
    for column, key in enumerate(("cost", "kl"), start=1):
        figure.add_scatter(
            x=rounded_all(getattr(point, key) for point in frontier),
            y=rounded_all(point.reward for point in frontier), mode="lines+markers",
            line={"color": MUTED, "width": 2}, marker={"color": MUTED, "symbol": hollow, "size": 7},
            name="best, predicted from reference samples", legendgroup="frontier", showlegend=column == 1,
            text=[f"λ = {point.multiplier:.3g}" for point in frontier],
            hovertemplate="%{text}: %{x}, reward %{y}", row=1, col=column,
        )  # fmt: skip
        for name, policy in (policies or {}).items():
            look = style(name)
            trace = go.Scatter(
                x=[rounded(policy[key])], y=[rounded(policy["reward"])], mode="markers",
                marker={"color": look.colour, "symbol": look.symbol, "size": 12}, name=look.label,
                legendgroup=name, showlegend=column == 1,
            )  # fmt: skip
            if policy.get("shortfall") is not None:
                bar = {"color": look.colour, "thickness": 1.5, "width": 5}
                above = [rounded(max(0.0, policy["shortfall"]))]
                trace.error_y = {"type": "data", "symmetric": False, "array": above, "arrayminus": [0], **bar}
            figure.add_trace(trace, row=1, col=column)
    _threshold_line(figure, threshold, row=1, col=1)
    figure.update_xaxes(title_text="mean learned cost", row=1, col=1)
    figure.update_xaxes(title_text="KL to the reference, nats per answer", row=1, col=2)
    figure.update_yaxes(title_text="mean learned reward", col=1)
    bars = any(policy.get("shortfall") is not None for policy in (policies or {}).values())
    caption = "The bar above a mark reaches the most reward possible at its cost and KL." if bars else ""
    return titled(figure, "How far from the best possible trade do the policies end?", caption=caption)


def _active(problem: FiniteProblem) -> Solution:
    """The constrained optimum; these figures need a binding constraint (UserError otherwise)."""
    optimum = problem.constrained_optimum()
    if optimum.status != "active":
        raise UserError(f"this figure needs a constraint that binds; here it is {optimum.status}")
    return optimum


def _frontier(problem: FiniteProblem, optimum: Solution, *, widest: float) -> list[Solution]:
    """Tilts from the unconstrained optimum to `widest` times λ*, including λ*."""
    multiples = np.concatenate([[0], np.geomspace(0.02, 1, 50), np.geomspace(1, max(2.0, widest), 50)[1:]])
    return problem.frontier(optimum.multiplier * multiples)


def _threshold_line(figure: go.Figure, threshold: float, *, row: int, col: int) -> None:
    text = "\N{NO-BREAK SPACE}threshold"
    note = {"text": text, "font": {"size": 12}, "xanchor": "left", "y": 0.96}
    place = {"annotation_position": "top right", "row": row, "col": col}
    figure.add_vline(x=rounded(threshold), line=DOTTED, annotation=note, **place)


def _times(multiple: float) -> str:
    return {0.0: "0", 1.0: "λ*"}.get(float(multiple), f"{multiple:g} λ*")


def _marks(kind: str, multiples: Sequence[float]) -> list[str]:
    """Labels of the marks of `penalty_frontier`; few, since the marks lie close together below λ*."""
    if kind == "rectified":  # the last of the rings at the same place
        return ["" for _ in multiples[:-1]] + ["every λ ≥ λ*" if multiples[-1] >= 1 else ""]
    wanted = (2.0, 5.0) if kind == "linear" else ()  # the per-sample marks lie too close to these
    return [_times(m) if m in wanted else "" for m in multiples]


def _tidy(value: float) -> float:
    """Replace rounding errors of the solver around 0, which differ between machines, by 0."""
    return 0.0 if abs(value) < 1e-9 else value
