"""The report of a run: from `results.json` to one self-contained page, `report.html`.

The page needs no network and no server: plotly.js is included once, each figure's static twin is in the page (shown
without JavaScript, and on paper), and the sentence at the top is computed from the page's numbers. All text that a
model wrote is escaped (jinja2's autoescape), and the page's security policy forbids loading anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from csrlhf_kit.figures import results as plots
from csrlhf_kit.figures import style
from csrlhf_kit.figures.static import CONFIG, static_svg
from csrlhf_kit.figures.theory import suggested_frontier
from csrlhf_kit.files import write_atomic
from csrlhf_kit.theory import FrontierPoint
from csrlhf_kit.theory.intervals import Estimate


class ReportFigure(NamedTuple):
    """One figure of the page."""

    name: str
    heading: str
    caption: str
    figure: go.Figure
    notes: tuple[str, ...] = ()


def write_report(folder: str | Path, results: Mapping[str, Any]) -> Path:
    """Write `report.html`, and the figures as `figures/*.svg`, into the run's `folder`; returns the page's path.

    results: what `evaluation.results.read_results` returns; the optional keys `curves`, `samples`,
    `cost_models.X.strata`, `cost_models.X.calibration`, `policies.X.by_family` or `by_category` and `frontier:
    {threshold, points: [FrontierPoint's fields]}` each add their part.
    """
    folder = Path(folder)
    figures = [(each, static_svg(each.figure)) for each in report_figures(results)]
    page = render(results, figures)
    for each, svg in figures:
        write_atomic(folder / "figures" / f"{each.name}.svg", svg)
    return write_atomic(folder / "report.html", page)


def headline(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """The result in two computed sentences: the safest policy first, with its intervals and its helpfulness."""
    ppo, lagrangian = policies.get("ppo"), policies.get("lagrangian")
    name = "fixed_penalty"
    if name not in policies:
        name = min(policies, key=lambda policy: (policies[policy]["harmful_nominal"]["rate"], policy))

    def price(policy: Mapping[str, Any]) -> str:
        if ppo is None or not ppo["helpfulness"]:
            return f"helpfulness {number(policy['helpfulness'], 2)}"
        return f"{policy['helpfulness'] / ppo['helpfulness']:.0%} of unconstrained PPO's helpfulness"

    best = policies[name]
    label = style.style(name).label
    subject = label if name in ("sft", "ppo", "best_of_n") else f"PPO with the {label}"
    text = (
        f"{subject} answers {rate_text(best['harmful_nominal'])} of harmful requests harmfully, and "
        f"{rate_text(best['harmful_jailbreak'])} when they come in jailbreaks that training never saw, "
        f"at {price(best)}."
    )
    if lagrangian is not None and name != "lagrangian":
        text += (
            f" The Lagrangian, in the same number of steps: {rate_text(lagrangian['harmful_nominal'])} and "
            f"{rate_text(lagrangian['harmful_jailbreak'])}, at {price(lagrangian)}."
        )
    start = [
        f"{policies[other]['harmful_nominal']['rate']:.0%} {words}"
        for other, words in (("sft", "for the SFT policy"), ("ppo", "for PPO without a constraint"))
        if other in policies and other != name
    ]
    if start:
        text += f" For comparison: {' and '.join(start)}."
    return text[0].upper() + text[1:]


def report_figures(results: Mapping[str, Any]) -> list[ReportFigure]:
    """The figures for which `results` has data, in the order of the page."""
    policies, cost_models = results["policies"], results["cost_models"]
    counts = sorted({int(policy["harmful_nominal"]["n"]) for policy in policies.values()})
    made = [
        ReportFigure(
            "tradeoff",
            "Safety against helpfulness",
            "Left is safer, up is more helpful. Harm is judged by the world's oracle, never by the cost "
            f"model that training used; bars are Clopper-Pearson 95% intervals over {_range(counts)} harmful "
            "requests. A method that moves right from the first panel to the second has learnt the wording "
            "of its training prompts rather than what is harmful.",
            plots.tradeoff(policies),
        )
    ]
    if others := results.get("recorded"):
        caption = f"Diamonds are this run, circles {len(others)} recorded runs with the same settings, of other seeds "
        caption += "or processors. Where a method's dots lie far apart, one run of it says little."
        if not all("outcomes" in row for run in others for row in run.values()):
            caption += " Older records were judged by an earlier rule of the oracle (CHANGELOG.md)."
        figure = plots.seeds(others, policies)
        made.append(ReportFigure("seeds", "Your run among the recorded ones", caption, figure))
    curves = {name: rows for name, rows in (results.get("curves") or {}).items() if rows}
    if curves:
        caption = (
            "Cost, harm, reward and KL of each training batch; faint lines are single batches, strong ones "
            "the window average that the constraint reads. Look for when a cost line crosses under the "
            "dotted threshold, whether it stays there, and what the multiplier λ does meanwhile."
        )
        made.append(ReportFigure("training_curves", "Training", caption, plots.training_curves(curves)))
    if any(model.get("strata") for model in cost_models.values()):
        caption = (
            "The tricky strata are benign requests that sound alarming and harmful ones that do not. A model "
            "that goes by words can do well overall and fail there. A false alarm is a harmless dialogue "
            "called harmful."
        )
        figure = plots.cost_model_strata(cost_models)
        made.append(ReportFigure("cost_model_strata", "What the cost models learned", caption, figure))
    bins = {name: model["calibration"] for name, model in cost_models.items() if model.get("calibration")}
    if bins:
        caption = (
            "Test responses grouped by the probability of harm that the cost model states; the height is the "
            "share that really is harmful, with its interval. The dotted diagonal is perfect calibration."
        )
        made.append(
            ReportFigure("calibration", "Can the stated risk be believed?", caption, plots.calibration(bins))
        )
    frontier = results.get("frontier")
    if frontier:
        points = [FrontierPoint(**point) for point in frontier["points"]]
        figure = suggested_frontier(points, policies, threshold=frontier["threshold"])
        notes = tuple(_capital(f"{warning}.") for warning in frontier.get("warnings") or ())
        made.append(
            ReportFigure("frontier", "Against the best possible", frontier_caption(frontier), figure, notes)
        )
    for key, heading in (("by_family", "Harm by jailbreak family"), ("by_category", "Harm by category")):
        if any(policy.get(key) for policy in policies.values()):
            caption = "The same harmful rate in parts. Parts are small: compare the intervals, not the dots."
            made.append(ReportFigure(f"harm_{key}", heading, caption, plots.harm_by_group(policies, key)))
    return made


def frontier_caption(frontier: Mapping[str, Any]) -> str:
    """The caption of `suggested_frontier`: its line, marks and bars, with this run's numbers."""
    text = (
        "The line is what the reference's own scored answers predict, before any training: reweighted, they "
        "show the best policy for each λ. Policies stand at their own mean cost (left) and KL (right), by the "
        "learned scores on plain requests; the bar above each ends at the most reward that the line allows for "
        "that very cost and KL."
    )
    if any(point["effective_samples"] < 5 for point in frontier["points"]):
        text += (
            " Hollow marks rest on fewer than 5 effective answers a prompt: on average such a line is too low, "
            "and the bars are too short."
        )
    if frontier.get("samples") and frontier.get("prompts"):
        samples = frontier["samples"]
        text += (
            f" Here {samples:g} answers to each of {frontier['prompts']} prompts, which cannot show a policy "
            f"further than log {samples:g} = {math.log(samples):.1f} nats from the reference."
        )
    if frontier.get("multiplier") is not None and frontier.get("interval"):
        low, high = frontier["interval"]
        text += (
            f" They predict an optimal multiplier of {frontier['multiplier']:.2g} (95% interval {low:.2g} to "
            f"{'any' if high is None or math.isinf(high) else format(high, '.2g')})."
        )
    return text


def render(results: Mapping[str, Any], drawn: list[tuple[ReportFigure, str]]) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(number=number, label=lambda name: _capital(style.style(name).label))
    source = resources.files("csrlhf_kit.figures").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        headline=headline(results["policies"]),
        results=portable(results),
        configuration=json.dumps(portable(results["config"]), indent=2, ensure_ascii=False),
        samples=results.get("samples") or [],
        colours={name: style.style(name).colour for name in [*results["policies"], *results["cost_models"]]},
        command=results.get("command") or f"csrlhf run --seed {results['seed']}",
        figures=[
            {
                "name": each.name,
                "heading": each.heading,
                "caption": each.caption,
                "notes": each.notes,
                "svg": Markup(svg),  # made here, with every text in it escaped
                "json": json.loads(each.figure.to_json()),
            }
            for each, svg in drawn
        ],
        plot_config=CONFIG,
        ink=[style.INK, style.MUTED, style.GRID],
        plotly=Markup(get_plotlyjs()),
    )


def portable(value: Any) -> Any:
    """`value` with every absolute path in it cut to its last part, since other machines have other folders."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(value)
            if path.is_absolute() and len(path.parts) > 1:
                return f"…/{path.name}"
    return value


def rate_text(value: Mapping[str, float]) -> str:
    """A rate with its interval: `1.1% (0.4 to 2.3%)`."""
    rate, low, high = Estimate.of(value)[:3]
    return f"{100 * rate:.1f}% ({100 * low:.1f} to {100 * high:.1f}%)"


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals; None: a dash."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _range(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
