"""Every figure of the head-to-head: functions from results to a `plotly.graph_objects.Figure`.

Colours, markers and layout are in `style.py`; `csrlhf_kit.figures.static` draws the same figures without JavaScript.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit.figures.style import DOTTED, GRID, error_bars, rounded, rounded_all, style, titled
from csrlhf_kit.theory.intervals import Estimate


def tradeoff(policies: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Harm against helpfulness, one point per policy: nominal requests left, unseen jailbreaks right.

    `policies` as in `results.json`: name -> {harmful_nominal, harmful_jailbreak, helpfulness, ...}. The horizontal
    bars are Clopper-Pearson 95% intervals. The best corner is the upper left.
    """
    panels = ("harmful_nominal", "harmful_jailbreak")
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05,
        column_titles=["requests as they come", "in jailbreak families never trained on"],
    )  # fmt: skip
    for name, policy in policies.items():
        look = style(name)
        for column, key in enumerate(panels, start=1):
            point = Estimate.of(policy[key])
            figure.add_scatter(
                x=[rounded(point.value, 100)], y=[rounded(policy["helpfulness"])],
                error_x={**error_bars([point], 100), "color": look.colour}, mode="markers",
                marker={"color": look.colour, "symbol": look.symbol, "size": 12}, name=look.label,
                legendgroup=name, showlegend=column == 1,
                hovertemplate="%{x:.1f}% harmful, helpfulness %{y:.3f}", row=1, col=column,
            )  # fmt: skip
    widest = max(
        (Estimate.of(policy[key]).high for policy in policies.values() for key in panels), default=1.0
    )
    helpfulness = [policy["helpfulness"] for policy in policies.values()] or [0.0, 1.0]
    low, high = min(helpfulness), max(helpfulness)
    room = max(0.05, 0.15 * (high - low))
    figure.update_xaxes(title_text="harmful answers to harmful requests, %")
    figure.update_xaxes(range=[rounded(-4 * widest), rounded(104 * widest)])
    figure.update_yaxes(range=[rounded(low - room), rounded(high + room)])
    figure.update_yaxes(title_text="helpfulness to benign requests, 0 to 1", col=1)
    figure.update_annotations(font_size=13)
    return titled(figure, "Safe and helpful is the upper left corner: who gets there, and who stays there?")


SEED_PANELS = {  # of a policy's row; what the panel shows, and the scale
    "harmful_nominal": ("harmful, asked plainly, %", 100),
    "harmful_jailbreak": ("harmful, unseen jailbreaks, %", 100),
    "over_refusal": ("refused though benign, %", 100),
    "helpfulness": ("helpfulness, 0 to 1", 1),
}


def seeds(
    recorded: Sequence[Mapping[str, Mapping[str, Any]]], yours: Mapping[str, Mapping[str, Any]] | None = None
) -> go.Figure:
    """One dot per method and recorded run in four measures, and this run's on top: how much hangs on the seed.

    recorded: the policies of each run, name -> row, as in `results.json`; yours: those of one more.
    """
    figure = make_subplots(rows=1, cols=4, shared_yaxes=True, horizontal_spacing=0.03)
    names = list(yours or recorded[0])
    runs = [
        ("recorded runs", recorded, "circle-open", 7),
        ("this run", [yours] if yours else [], "diamond", 11),
    ]
    for column, (key, (title, scale)) in enumerate(SEED_PANELS.items(), start=1):
        for label, group, symbol, size in runs:
            points = [
                (float(Estimate.of(run[name][key]).value), place + 0.5 * ((i + 0.5) / len(group) - 0.5), name)
                for i, run in enumerate(group)
                for place, name in enumerate(names)
                if name in run
            ]
            figure.add_scatter(
                x=rounded_all((value for value, _, _ in points), scale), y=rounded_all(at for _, at, _ in points),
                mode="markers", name=label, showlegend=False, text=[style(name).label for *_, name in points],
                marker={"color": [style(name).colour for *_, name in points], "symbol": symbol, "size": size},
                hovertemplate="%{text}: %{x}", row=1, col=column,
            )  # fmt: skip
        most = scale * max(
            Estimate.of(run[name][key]).value for run in [*recorded, yours or {}] for name in run
        )
        figure.update_xaxes(
            title_text=title, range=[rounded(-0.05 * most), rounded(1.08 * most)], row=1, col=column
        )
    ticks = {"tickvals": list(range(len(names))), "ticktext": [style(name).label for name in names]}
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False, ticks="", **ticks)
    return titled(
        figure, "How much hangs on the seed? One dot per run", height=160 + 50 * len(names), margin={"l": 130}
    )


CURVE_PANELS = (  # (keys of a metrics row, in order of preference; what the panel shows)
    ("objective/cost", "mean learned cost"),
    ("constraint/multiplier", "effective multiplier λ"),
    ("objective/harmful", "harmful answers, estimated, %"),
    ("objective/reward", "mean learned reward"),
    ("objective/kl", "KL to the reference, nats"),
)


def training_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> go.Figure:
    """Each method's training, step by step: cost against the threshold, λ, harm, reward and KL.

    `curves` maps a policy to its metrics rows (`step`, `objective/cost`, `constraint/multiplier`, ...). A metric
    that no row has gets no panel. In the cost panel the faint line is the batch of each step, the strong line
    `constraint/window_cost`, the average that the gate uses, and the dotted line the threshold.
    """

    def has(key: str) -> bool:
        return any(row.get(key) is not None for rows in curves.values() for row in rows)

    panels = [(key, label) for key, label in CURVE_PANELS if has(key)]
    lead = len(panels) % 2  # if the number of panels is odd, the first has a row of its own
    rows_of_panels = max(1, (len(panels) + lead) // 2)
    figure = make_subplots(
        rows=rows_of_panels,
        cols=2,
        specs=[[{"colspan": 2}, None] if lead and row == 0 else [{}, {}] for row in range(rows_of_panels)],
        horizontal_spacing=0.11,
        vertical_spacing=0.24 / rows_of_panels,
    )
    named: set[str] = set()
    for index, (key, label) in enumerate(panels):
        place = index + lead if index else 0
        row, column = place // 2 + 1, place % 2 + 1
        scale = 100 if key == "objective/harmful" else 1
        for name, steps in curves.items():
            strong = "constraint/window_cost" if key == "objective/cost" else key
            if strong != key and any(step.get(strong) is not None for step in steps):
                figure.add_trace(_curve(name, steps, key, scale, faint=True), row=row, col=column)
            else:
                strong = key
            if not any(step.get(strong) is not None for step in steps):
                continue
            trace = _curve(name, steps, strong, scale).update(showlegend=name not in named)
            named.add(name)
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(title_text="PPO step", row=row, col=column)
        figure.update_yaxes(title_text=label, row=row, col=column)
        if key == "objective/cost":
            thresholds = {step.get("constraint/threshold") for steps in curves.values() for step in steps}
            for threshold in sorted(t for t in thresholds if t is not None):
                figure.add_hline(y=rounded(threshold), line=DOTTED, row=row, col=column)
    title = "Does the cost come under its dotted threshold, and what λ does that take?"
    return titled(figure, title, height=120 + 250 * rows_of_panels)


def _curve(
    name: str, steps: Sequence[Mapping[str, Any]], key: str, scale: float, *, faint: bool = False
) -> go.Scatter:
    look = style(name)
    return go.Scatter(
        x=[step["step"] for step in steps], y=rounded_all((step.get(key) for step in steps), scale),
        mode="lines" if faint else "lines+markers",
        line={"color": look.colour, "dash": "solid" if faint else look.dash, "width": 1 if faint else 2},
        marker=None if faint else {"symbol": look.symbol, "size": 7, "maxdisplayed": 7},
        opacity=0.35 if faint else None, name=look.label, legendgroup=name, showlegend=False,
        hoverinfo="skip" if faint else None,
    )  # fmt: skip


METRICS = {
    "auroc": "AUROC, %",
    "accuracy": "accuracy, %",
    "recall": "harm found (recall), %",
    "false_positive_rate": "false alarms, %",
}


def cost_model_strata(
    cost_models: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = ("auroc", "false_positive_rate")
) -> go.Figure:
    """Each cost model on each stratum, one panel per metric: where does meaning beat keywords?

    Reads `cost_models.X.strata: {stratum: {metric: {rate, low, high, n}}}`. For AUROC, the overall values `auroc`
    (all) and `auroc_tricky` (benign but alarming with covertly harmful) have their own rows, with the bounds in
    `cost_models.X.intervals: {auroc: [low, high], ...}`, if there are any.
    """
    values: dict[str, dict[str, dict[str, Estimate]]] = {metric: {} for metric in metrics}
    for name, model in cost_models.items():
        for metric in metrics:
            rows: dict[str, Estimate] = {}
            if metric == "auroc":
                bounds = model.get("intervals") or {}
                for row, key in (("all", "auroc"), ("tricky", "auroc_tricky")):
                    if model.get(key) is not None:
                        rows[row] = Estimate(model[key], *bounds.get(key, [model[key]] * 2))
            for stratum, numbers in (model.get("strata") or {}).items():
                if numbers.get(metric) is not None:
                    rows[stratum.replace("_", " ")] = Estimate.of(numbers[metric])
            values[metric][name] = rows
    shown = [metric for metric in metrics if any(values[metric].values())]
    figure = make_subplots(rows=1, cols=max(1, len(shown)), horizontal_spacing=0.22)
    for column, metric in enumerate(shown, start=1):
        label = METRICS.get(metric, metric.replace("_", " ") + ", %")
        rates = [v.low for series in values[metric].values() for v in series.values()]
        # 0.5 is the AUROC of chance; no useful value is near 0, so the axis need not start there.
        _dots(figure, values[metric], column, label, lowest=min(0.5, *rates) if metric == "auroc" else 0.0)
    rows = max((len(set().union(*values[metric].values())) for metric in shown), default=1)
    return titled(
        figure,
        "Who can tell what sounds alarming from what is harmful: words or meaning?",
        height=190 + 60 * rows,
        margin={"l": 130},
    )


def harm_by_group(policies: Mapping[str, Mapping[str, Any]], key: str = "by_family") -> go.Figure:
    """Each policy's harm rate in every group; `key` is `by_family` (jailbreaks) or `by_category`."""
    values = {
        name: {
            group.replace("_", " ").replace(",", ", "): Estimate.of(value)
            for group, value in (policy.get(key) or {}).items()
            if value.get("n", 1) > 0  # groups without requests are left out
        }
        for name, policy in policies.items()
    }
    values = {name: groups for name, groups in values.items() if groups}
    worst_first = sorted(
        set().union(*values.values()),
        key=lambda group: (-fmean(v[group].value for v in values.values() if group in v), group),
    )
    figure = make_subplots(rows=1, cols=1)
    _dots(figure, values, 1, "harmful answers to harmful requests, %", worst_first)
    what = "jailbreak family" if key == "by_family" else "category of harm"
    longest = max((len(group) for group in worst_first), default=0)
    return titled(
        figure,
        f"Where does safety leak? Harmful answers by {what}, worst average on top",
        height=200 + (14 + 9 * max(1, len(values))) * max(1, len(worst_first)),
        margin={"l": 40 + 7 * min(longest, 40)},
    )


def _dots(
    figure: go.Figure,
    values: Mapping[str, Mapping[str, Estimate]],
    column: int,
    axis_title: str,
    groups: Sequence[str] | None = None,
    lowest: float = 0.0,
) -> None:
    """Draw series -> group -> rate as dots with intervals, groups as rows, series side by side in a row.

    Positions are numbers, not categories, so that the series do not hide each other and every renderer agrees.
    """
    if groups is None:
        groups = list(dict.fromkeys(group for series in values.values() for group in series))
    spread = 0.64 / max(1, len(values))
    for place, (name, series) in enumerate(values.items()):
        look = style(name)
        present = [(index, group) for index, group in enumerate(groups) if group in series]
        points = [series[group] for _, group in present]
        offset = (place - (len(values) - 1) / 2) * spread
        figure.add_scatter(
            x=rounded_all((point.value for point in points), 100),
            y=rounded_all(index + offset for index, _ in present),
            error_x={**error_bars(points, 100), "color": look.colour}, mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 9}, name=look.label,
            legendgroup=name, showlegend=column == 1, text=[group for _, group in present],
            hovertemplate="%{text}: %{x:.1f}%", row=1, col=column,
        )  # fmt: skip
    highest = max((v.high for series in values.values() for v in series.values()), default=1.0)
    span = 100 * (highest - lowest)
    limits = [rounded(100 * lowest - 0.04 * span), rounded(100 * highest + 0.04 * span)]
    figure.update_xaxes(title_text=axis_title, range=limits, row=1, col=column)
    figure.update_yaxes(
        tickvals=list(range(len(groups))), ticktext=list(groups), range=[len(groups) - 0.5, -0.5],
        showgrid=False, ticks="", row=1, col=column,
    )  # fmt: skip
    for edge in range(1, len(groups)):
        figure.add_hline(y=edge - 0.5, line={"color": GRID, "width": 1}, row=1, col=column)


def calibration(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Predicted against observed harm: a calibrated cost model lies on the dotted diagonal.

    `bins` maps a cost model to its bins, each {predicted: mean predicted probability, rate, low, high, n}.
    """
    figure = make_subplots(rows=1, cols=1)
    figure.add_shape(type="line", x0=0, y0=0, x1=100, y1=100, line=DOTTED)
    for name, rows in bins.items():
        look = style(name)
        points = [Estimate.of(row) for row in rows]
        figure.add_scatter(
            x=rounded_all((row["predicted"] for row in rows), 100),
            y=rounded_all((point.value for point in points), 100),
            error_y={**error_bars(points, 100), "color": look.colour}, mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2}, name=look.label,
            marker={"symbol": look.symbol, "size": 9}, hovertemplate="stated %{x:.1f}%, observed %{y:.1f}%",
        )  # fmt: skip
    figure.update_xaxes(title_text="probability of harm, as the cost model states it, %", range=[-2, 102])
    figure.update_yaxes(title_text="share that is harmful, %", range=[-2, 102])
    return titled(figure, "On the diagonal, a stated 30% means 30%; above it, harm is understated")
