"""`csrlhf claims`: each claim that the toy world can test, with their number, our number and a verdict.

Their numbers are in `ledger.py`, with paper and section; ours are computed from recorded runs, never typed in.
Writes `claims.json` and, as Markdown, `claims.md`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_folder
from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.recipes.claims.ledger import CLAIMS, EXACT, Claim

TALLY = (ev.AGREES, ev.DIFFERS, ev.UNDECIDED, ev.PROVED, ev.REFUTED, ev.OPEN)


@dataclass
class ClaimsConfig:
    """Check every claim against the recorded runs."""

    data: Path | None = None
    """Folder with `recorded/` and `runs/`; None: the shipped data."""
    out: Path | None = None
    """Folder for claims.json and claims.md; None: the data folder."""


def row_of(claim: Claim, evidence: ev.Evidence) -> dict[str, Any]:
    """A claim's row in claims.json."""
    found = claim.measure(evidence, claim.numbers)
    estimates = {} if found is None else {n: _plain(e) for n, e in found.estimates.items()}
    seeds = [e["seeds"] for e in estimates.values() if e["seeds"] is not None]
    return {
        "id": claim.id,
        "source": claim.source,
        "section": claim.section,
        "claim": claim.claim,
        "theirs": claim.theirs,
        "ours": "" if found is None else found.ours,
        "estimates": estimates,
        "seeds": min(seeds) if seeds else None,
        "verdict": verdict_of(claim, found),
        "rule": claim.rule,
        "command": claim.command,
    }


def verdict_of(claim: Claim, found: ev.Finding | None) -> str:
    """The verdict in the words of the claim's kind: only exact theory and code are proved or refuted."""
    if claim.kind == ev.ASIDE or found is None:
        return ev.ASIDE if claim.kind == ev.ASIDE else ev.OPEN
    exact = {ev.AGREES: ev.PROVED, ev.DIFFERS: ev.REFUTED} if claim.kind == EXACT else {}
    return exact.get(found.verdict, found.verdict)


def _plain(estimate: ev.Estimate) -> dict[str, Any]:
    """An estimate as JSON values with five significant digits; infinite or unknown values become None."""

    def number(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}") if math.isfinite(value) else None
        return [number(part) for part in value] if isinstance(value, tuple) else value

    return {name: number(value) for name, value in estimate._asdict().items() if name != "outcomes"}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The ledger as a Markdown table, by source."""
    lines = ["| claim | source | theirs | ours | seeds | verdict |", "|---|---|---|---|---|---|"]
    for row in rows:
        seeds = "exact" if row["seeds"] is None and row["estimates"] else row["seeds"] or ""
        cells = (
            row["claim"],
            f"{row['source']}, {row['section']}",
            row["theirs"],
            row["ours"],
            str(seeds),
            f"**{row['verdict']}**{', in this world' if row['verdict'] in TALLY[:3] else ''}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def run_claims(config: ClaimsConfig) -> dict[str, Any]:
    """Judge every claim, write both files, print the verdicts, and return the content of claims.json.

    Raises UserError if the data folder does not exist or holds an unreadable file.
    """
    data = config.data or data_folder()
    if not data.is_dir():
        raise UserError(f"{data} is no folder: expected one with recorded/ and runs/")
    out = config.out or data
    check_folder(out)
    evidence = ev.Evidence.read(data)
    rows = [row_of(claim, evidence) for claim in CLAIMS]
    counts = Counter(row["verdict"] for row in rows)
    ledger = {
        "evidence": evidence.files,
        "verdicts": {verdict: counts[verdict] for verdict in TALLY},
        "context": counts[ev.ASIDE],
        "claims": rows,
    }
    write_atomic(out / "claims.json", json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    write_atomic(out / "claims.md", markdown(rows))
    for row in rows:
        print(f"{row['verdict']:17} {row['id']:28} {row['ours']}")
    print(f"The ledger is in {out / 'claims.json'} and {out / 'claims.md'}")
    return ledger
