"""The tables of docs/results.md: what they are made from, and how a figure and a row are written.

Intervals are those of `theory.over_seeds`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrlhf_kit.evaluation.results import PolicyRow, read_json
from csrlhf_kit.recipes.claims.evidence import Evidence, mean_of, rate_of, shown
from csrlhf_kit.recipes.experiments.plans import TUNED
from csrlhf_kit.theory.intervals import Estimate

MEASURES = {  # of a policy's row: the column's title
    "harmful_nominal": "harmful, asked plainly",
    "harmful_jailbreak": "harmful, unseen jailbreaks",
    "over_refusal": "benign but alarming, refused",
    "helpfulness": "helpfulness",
}
NO_BREAK = "\u00a0"  # a space at which no line ends
NAMES = {  # of a method: what a table calls it
    "sft": "the base",
    "ppo": "PPO, no constraint",
    "lagrangian": "Lagrangian, published constants",
    "pid_lagrangian": "Lagrangian, tuned",
    "linear_penalty": "linear penalty",
    "fixed_penalty": "**fixed penalty**",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a figure and its interval stay on one line."""
    lines = ("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    return re.sub(r"(?<=[\d%]) (?=\[)|(?<=[\d%],) (?=-?\d)", NO_BREAK, "\n".join(lines))


def needed(figure: Estimate | None) -> Estimate:
    """A figure that is there, since its policies are."""
    assert figure is not None
    return figure


def measured(cells: Sequence[PolicyRow], name: str) -> Estimate:
    """One of `MEASURES` over the seeds of a policy."""
    return needed((mean_of if name == "helpfulness" else rate_of)(cells, name))


def text_of(name: str, figure: Estimate) -> str:
    """A rate in percent, or helpfulness, with its interval."""
    if name == "helpfulness":  # Student's t knows no bounds
        return shown(figure._replace(low=max(figure.low, 0.0), high=min(figure.high, 1.0)), 1, "", 2)
    return shown(figure, unit="")


def tuned_penalty(row: PolicyRow) -> bool:
    """Whether it was trained at the penalty that the search found."""
    return row.method == "fixed_penalty" and (row.method, dict(row.settings)) in TUNED


def label(cells: Sequence[PolicyRow]) -> str:
    """What a table calls these policies."""
    one = cells[0]
    return (
        f"fixed penalty, tuned: λ = {one.settings['penalty']:g}" if tuned_penalty(one) else NAMES[one.method]
    )


def policies_table(groups: Sequence[Sequence[PolicyRow]]) -> str:
    """A row per policy over its seeds, a column per measure."""
    rows = [[label(cells), *(text_of(name, measured(cells, name)) for name in MEASURES)] for cells in groups]
    return table(["in percent", *MEASURES.values()], rows)


@dataclass(frozen=True)
class Records:
    """All that the pages are made from, read once."""

    data: Path
    """The data folder."""
    evidence: Evidence
    """What the ledger's verdicts rest on."""
    converged: list[dict[str, Any]]
    """The converged runs' `sweep.json`, one per seed."""
    claims: dict[str, dict[str, Any]]
    """The ledger's rows by their names."""

    @classmethod
    def read(cls, data: Path) -> Records:
        files = sorted(data.glob("runs/converged/*/sweep.json"))
        rows = read_json(data / "claims.json")["claims"]
        return cls(
            data, Evidence.read(data), [read_json(file) for file in files], {row["id"]: row for row in rows}
        )

    def recorded(self, pattern: str) -> list[Any]:
        """The records below `runs/` whose paths match, in the order of their names."""
        return [read_json(file) for file in sorted(self.data.glob(f"runs/{pattern}"))]


def quoted(row: Mapping[str, Any], name: str) -> str:
    """One of a claim's rates as text."""
    return shown(Estimate.of(row["estimates"][name], name="value"))
