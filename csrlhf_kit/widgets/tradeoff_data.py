"""The figure of `explore_tradeoff` as a function of one `State`, without a screen: runs, frontier, curves.

Upper row: every run's harm against its helpfulness, with intervals; the best reward at each cost, exact or by
reweighting scored samples of the reference. Lower row: the chosen run's cost and λ.
Builds on evaluation/results.py, theory/problem.py, figures/style.py and view.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import PolicyRow, RecordedRuns
from csrlhf_kit.figures.style import DOTTED, INK, MUTED, error_bars, rounded, rounded_all, style, titled
from csrlhf_kit.figures.theory import FEW_SAMPLES, PENALTIES
from csrlhf_kit.theory import FiniteProblem, Solution
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.widgets.view import escaped, filled

DRAWN_PENALTIES = ("rectified", "linear")
DRAWN_CURVES = ("cost", "window_cost", "multiplier")  # short names of `runs.curve_of`
MULTIPLIERS = np.concatenate([[0.0], np.geomspace(0.01, 100, 48)])  # λ of the frontier's points


# --- the state of the sliders, and what is drawn for it ---------------------------------------------------


@dataclass(frozen=True)
class State:
    """The values of all sliders and menus."""

    multiplier: float
    """λ."""
    threshold: float
    """Largest mean cost."""
    beta: float
    """Weight of the KL, per nat."""
    judged_on: str
    """One of `harm_measures`."""
    stratum: str = ""
    """The stratum of the prompts of the frontier; empty: all prompts."""
    chosen: str = ""
    """The run whose curves and responses are shown."""


class Tradeoff:
    """Recorded runs and a finite problem, and the figure that shows both; each solved frontier is kept.

    strata: the stratum of each of the problem's prompts; None: no menu of strata. of_runs: whether the runs' learned
    reward and cost have the problem's units, so that they can be drawn in its panel.
    Raises UserError if `strata` has another length, there is no run, or no rate that every run has.
    """

    def __init__(
        self,
        recorded: RecordedRuns,
        problem: FiniteProblem,
        strata: Sequence[str] | None = None,
        *,
        of_runs: bool = False,
    ) -> None:
        if strata is not None and len(strata) != len(problem.reward):
            raise UserError(
                f"explore_tradeoff: {len(strata)} strata for {len(problem.reward)} prompts; one per prompt was expected"
            )
        if not recorded.runs:
            raise UserError("explore_tradeoff: the record holds no run; at least one was expected")
        self.recorded, self.problem, self.of_runs = recorded, problem, of_runs
        self.strata = list(strata or ())
        self.ways = harm_measures(recorded)
        if not self.ways:
            raise UserError("explore_tradeoff: no rate that every run has; `harmful_nominal` was expected")
        self.methods = list(dict.fromkeys(run.method for run in recorded.runs))
        self._solved: dict[tuple[float, str], list[Solution]] = {}

    def start(self) -> State:
        """The first state: the problem's threshold and β, λ = 2 λ* (1 if λ* is 0 or infinite), a trained run."""
        trained = [run.name for run in self.recorded.runs if run.curve] or [self.recorded.runs[0].name]
        chosen = "fixed_penalty" if "fixed_penalty" in trained else trained[0]
        state = State(
            1.0, float(self.problem.threshold), self.problem.beta, next(iter(self.ways)), chosen=chosen
        )
        price = self.price(state)
        if not (np.isfinite(price) and price > 0):
            return state
        return replace(state, multiplier=float(f"{np.clip(2 * price, *MULTIPLIERS[[1, -1]]):.2g}"))

    def problem_at(self, state: State) -> FiniteProblem:
        """The problem with the state's β and threshold, and only the prompts of its stratum."""
        rows = np.array(
            [not state.stratum or s == state.stratum for s in self.strata]
            or [True] * len(self.problem.reward)
        )
        p = self.problem
        return FiniteProblem(
            p.reference[rows], p.reward[rows], p.cost[rows], beta=state.beta, threshold=state.threshold,
            prompt_weights=p.weights[rows],
        )  # fmt: skip

    def frontier(self, state: State) -> list[Solution]:
        """The best policies at `MULTIPLIERS`; they depend only on β and on the stratum."""
        key = (state.beta, state.stratum)
        if key not in self._solved:
            self._solved[key] = self.problem_at(state).frontier(MULTIPLIERS)
        return self._solved[key]

    def price(self, state: State) -> float:
        """λ* at this state; infinite if no policy meets the threshold."""
        try:
            return float(self.problem_at(state).constrained_optimum().multiplier)
        except UserError:
            return float("inf")

    def values(self, state: State) -> dict[str, dict[str, Any]]:
        """The values of all traces that depend on the state, by the trace's name."""
        return self._run_values(state) | self._frontier_values(state) | self._curve_values(state)

    def _run_values(self, state: State) -> dict[str, dict[str, Any]]:
        path, drawn = self.ways[state.judged_on], {}
        for method in self.methods:
            runs = [run for run in self.recorded.runs if run.method == method]
            points = [run_point(run, path) for run in runs]
            bars = [bar for bar, _ in points]
            look = style(method)
            drawn[f"runs {method}"] = {
                "x": rounded_all((bar.value for bar in bars), 100),
                "y": rounded_all(helpfulness for _, helpfulness in points),
                "error_x": {**error_bars(bars, 100), "color": look.colour},
                "text": [escaped(run.name) for run in runs],
            }
        chosen = self.recorded.run(state.chosen)
        harm, helpfulness = run_point(chosen, path) if chosen else (None, None)
        drawn["chosen"] = {"x": [rounded(harm and harm.value, 100)], "y": [rounded(helpfulness)]}
        return drawn

    def _frontier_values(self, state: State) -> dict[str, dict[str, Any]]:
        problem, frontier = self.problem_at(state), self.frontier(state)
        cost, reward = ([getattr(s, key) for s in frontier] for key in ("cost", "reward"))
        drawn = {
            "frontier": (cost, reward),
            "threshold of the frontier": ([state.threshold] * 2, [min(reward), max(reward)]),
        }
        for kind in DRAWN_PENALTIES:
            best = problem.penalised_optimum(state.multiplier, kind)
            drawn[f"frontier {kind}"] = [best.cost], [best.reward]
        values = {name: {"x": rounded_all(x), "y": rounded_all(y)} for name, (x, y) in drawn.items()}
        if self.of_runs:
            few = [effective_samples(s) < FEW_SAMPLES for s in frontier]
            symbols = ["circle-open" if hollow else "circle" for hollow in few]
            values["frontier"]["marker"] = {"symbol": symbols, "size": 6, "color": MUTED}
        return values

    def _curve_values(self, state: State) -> dict[str, dict[str, Any]]:
        run = self.recorded.run(state.chosen)
        curve, drawn = (run.curve if run else {}), {}
        for short in DRAWN_CURVES:
            values = list(curve.get(short, ()))
            drawn[f"curve {short}"] = {"x": list(range(1, len(values) + 1)), "y": rounded_all(values)}
        steps = len(curve.get("cost", ()))
        limit = run.threshold if run else None
        flat = [rounded(limit)] * 2 if steps and limit is not None else []
        drawn["curve threshold"] = {"x": [1, steps] if flat else [], "y": flat}
        return drawn

    def figure(self, state: State) -> go.Figure:
        """The whole figure at one state."""
        possible = "possible, by reweighted samples" if self.of_runs else "possible, exact"
        titles = ["trained: harm and help", possible, "the chosen run: its learned cost", "its λ"]
        figure = make_subplots(
            rows=2, cols=2, horizontal_spacing=0.11, vertical_spacing=0.2, subplot_titles=titles
        )
        for method in self.methods:
            look = style(method)
            mark = {"color": look.colour, "symbol": look.symbol, "size": 10}
            _add(figure, 1, 1, f"runs {method}", mode="markers", name=legend_name(look.label), marker=mark,
                 hovertemplate="%{text}: %{x:.1f}%, helpfulness %{y:.3f}<extra></extra>")  # fmt: skip
            runs = [run for run in self.recorded.runs if run.method == method]
            if self.of_runs and all("reward" in run.policy and "cost" in run.policy for run in runs):
                _add(figure, 1, 2, f"learned {method}", mode="markers", name=legend_name(look.label), showlegend=False,
                     x=rounded_all(run.policy["cost"] for run in runs),
                     y=rounded_all(run.policy["reward"] for run in runs), marker=mark)  # fmt: skip
        ring = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2.5}}
        _add(figure, 1, 1, "chosen", mode="markers", marker=ring, hoverinfo="skip", showlegend=False)
        best = f"predicted; hollow: < {FEW_SAMPLES} effective samples" if self.of_runs else "best possible"
        mode = "lines+markers" if self.of_runs else "lines"
        _add(figure, 1, 2, "frontier", mode=mode, name=best, line={"color": MUTED, "width": 2})
        for kind in DRAWN_PENALTIES:
            look = style(PENALTIES[kind])
            mark = {"color": look.colour, "symbol": f"{look.symbol}-open", "size": 14, "line": {"width": 2.5}}
            _add(figure, 1, 2, f"frontier {kind}", mode="markers", name=f"{kind} optimum at λ", marker=mark)
        _add(figure, 1, 2, "threshold of the frontier", mode="lines", line=DOTTED, showlegend=False)
        for column, short, width in ((1, "cost", 1), (1, "window_cost", 2), (2, "multiplier", 2)):
            _add(figure, 2, column, f"curve {short}", mode="lines", name=short.replace("_", " "),
                 line={"color": MUTED if width == 1 else INK, "width": width}, showlegend=False)  # fmt: skip
        _add(figure, 2, 1, "curve threshold", mode="lines", line=DOTTED, showlegend=False)
        for row, column, x, y in (
            (1, 1, "bad answers, %", "helpfulness, 0 to 1"), (1, 2, "mean cost", "mean reward"),
            (2, 1, "PPO step", "cost; strong: window mean"), (2, 2, "PPO step", "effective λ"),
        ):  # fmt: skip
            figure.update_xaxes(title_text=x, row=row, col=column)
            figure.update_yaxes(title_text=y, row=row, col=column)
        figure.update_annotations(font_size=13)
        filled(figure, self.values(state))
        title = "Safe and helpful is upper left: what is possible, and what was trained?"
        room = 60 + 20 * -(-(len(self.methods) + 3) // 3)  # for the legend, three names in a row
        return titled(figure, title, height=570 + room, margin={"b": room})

    def story(self, state: State) -> str:
        """The state in sentences, as escaped HTML: λ*, each penalty's optimum, and what they rest on."""
        problem, price = self.problem_at(state), self.price(state)
        known = "out of reach" if np.isinf(price) else f"{price:.3g}"
        text = f"λ is {state.multiplier:.3g}; at threshold {state.threshold:.3g} and β = {state.beta:.3g}, λ* is {known}."
        if np.isinf(price):
            text += (
                f" No policy meets this threshold: the smallest mean cost is {problem.smallest_cost():.3g}."
            )
        for kind in DRAWN_PENALTIES:
            s = problem.penalised_optimum(state.multiplier, kind)
            text += f" The best policy under a {kind} penalty has reward {s.reward:.3f}, cost {s.cost:.3f}, KL {s.kl:.2f} nats."
        if self.of_runs:
            tilt = problem.tilted(state.multiplier)
            text += (
                f" This is predicted from {tilt.policy.shape[1]} samples per prompt, of which {effective_samples(tilt):.1f} "
                f"are effective at this λ; with fewer than {FEW_SAMPLES}, a trained policy can lie above the line."
            )
        return escaped(text)


def effective_samples(solution: Solution) -> float:
    """How many of a prompt's reweighted samples carry the weight: the median over prompts of 1 / Σ weight²."""
    return float(np.median(1 / np.square(solution.policy).sum(axis=1)))


def legend_name(label: str) -> str:
    """A label, escaped, and cut to 40 characters, since a long legend makes the panels smaller."""
    return escaped(label if len(label) <= 40 else f"{label[:39]}…")


def _add(figure: go.Figure, row: int, column: int, meta: str, **look: Any) -> None:
    figure.add_trace(go.Scatter(**{"meta": meta, "name": meta, **look}), row=row, col=column)


def harm_measures(recorded: RecordedRuns) -> dict[str, tuple[str, ...]]:
    """Name of a rate of bad answers -> the path to it in a policy's row; only rates that every run has."""
    ways: dict[str, tuple[str, ...]] = {
        "harmful, asked plainly": ("harmful_nominal",),
        "harmful, unseen jailbreaks": ("harmful_jailbreak",),
        "benign but alarming, refused": ("over_refusal",),
    }
    first = recorded.runs[0].policy if recorded.runs else {}
    groups = {"by_family": "jailbreak", "by_category": "category", "by_stratum": "refused, stratum"}
    for group, word in groups.items():
        for name in first.get(group) or {}:
            last = ("refused",) if group == "by_stratum" else ()
            ways[f"{word}: {name.replace('_', ' ')}"] = (group, name, *last)
    return {word: path for word, path in ways.items() if all(_at(run.policy, path) for run in recorded.runs)}


def _at(policy: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = policy
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) and found.get("n", 1) else None


def run_point(run: PolicyRow, path: Sequence[str]) -> tuple[Estimate, float]:
    """(share of bad answers at `path` with its interval, helpfulness) of a run; a stratum has its own helpfulness."""
    helpfulness = run.policy["helpfulness"]
    if path[0] == "by_stratum":
        helpfulness = run.policy["by_stratum"][path[1]].get("helpfulness", helpfulness)
    return Estimate.of(_at(run.policy, path)), float(helpfulness)


def sample_answers(recorded: RecordedRuns, name: str) -> list[dict[str, Any]]:
    """A run's answers to the recorded sample prompts: [{prompt, text, harmful, helpfulness}]; empty if there are none."""
    return [
        {"prompt": sample["prompt"], **sample["responses"][name]}
        for sample in recorded.samples
        if name in (sample.get("responses") or {})
    ]
