"""Claims about policies under attack: red-team rounds, the held-out red team, conversations of several turns.

Measures as in `trained.py`, on what `csrlhf rounds` and `csrlhf red-team` recorded.
"""

from __future__ import annotations

from typing import Any

from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.recipes.claims.evidence import Evidence, Finding, Numbers, PolicyRow, finding, shown
from csrlhf_kit.theory.over_seeds import mean_over_seeds, rate_over_seeds


def after_rounds(e: Evidence, paper: Numbers) -> Finding | None:
    if not e.rounds:
        return None
    runs = e.rounds_by_settings()[0]
    first, last = ([told["rounds"][i]["policy"]["harmful_nominal"] for told in runs] for i in (0, -1))
    start, end = rate_over_seeds(first), rate_over_seeds(last)
    text = f"{shown(start)} → {shown(end)}"
    return finding(ev.exceeds(start, end), text, base=start, last=end)


def each_round_safer(e: Evidence, paper: Numbers) -> Finding | None:
    if not e.rounds:
        return None
    runs = e.rounds_by_settings()[0]
    count = min(len(told["rounds"]) for told in runs)
    harm = [
        rate_over_seeds([told["rounds"][k]["policy"]["harmful_jailbreak"] for told in runs])
        for k in range(count)
    ]
    verdict = ev.all_of(ev.exceeds(harm[k], harm[k + 1]) for k in range(count - 1))
    names = ["base", *(f"v{k}" for k in range(1, count))]
    return finding(verdict, " → ".join(shown(h) for h in harm), **dict(zip(names, harm, strict=True)))


def robust_after_rounds(e: Evidence, paper: Numbers) -> Finding | None:
    """Robustness after the last round at the recorded defaults; other settings are reported too, with helpfulness."""
    if not e.rounds:
        return None
    shares, texts = [], []
    for runs in e.rounds_by_settings():
        last = [told["rounds"][-1] for told in runs]
        shares.append(rate_over_seeds([row["held_out_team"]["robust"] for row in last]))
        help_ = mean_over_seeds([row["policy"]["helpfulness"] for row in last]).value
        asked = runs[0]["config"]
        settings = f"threshold {asked['threshold']:g}, λ = {asked['penalty']:g}, seeds: {len(runs)}"
        texts.append(f"{shown(shares[-1])} at helpfulness {help_:.2f} ({settings})")
    return finding(ev.at_least(shares[0], paper["share"]), "; ".join(texts), robust=shares[0])


def held_out_teams(e: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Red-team tables by the policy's method, with which the folder above its adapter begins, or `sft`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for told in e.red_team:
        if told["config"]["team"] != "held_out":
            continue
        path = told["config"]["policy"]
        parts = [p for p in (path or "sft").replace("\\", "/").split("/") if p and p != "adapter"]
        found.setdefault(parts[-1].partition("-")[0], []).append(told)
    return found


def robust_against_team(e: Evidence, method: str) -> ev.Estimate | None:
    tables = held_out_teams(e).get(method)
    return rate_over_seeds([t["robust"] for t in tables]) if tables else None


def some_method_holds(e: Evidence, paper: Numbers) -> Finding | None:
    """The most robust setting of the sweeps, and of those that keep enough of unconstrained helpfulness."""
    free = ev.mean_of(e.cells("ppo", {}), "helpfulness")
    groups = ev.by_settings(c for c in e.sweep if "robust" in c.policy)
    if not groups or free is None:
        return None

    def held(cells: list[PolicyRow]) -> ev.Estimate:
        return ev.rate_of(cells, "robust")

    def told(cells: list[PolicyRow]) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in cells[0].settings.items())
        help_ = ev.mean_of(cells, "helpfulness").value
        return f"{cells[0].method}{f' ({chosen})' if chosen else ''} {shown(held(cells))} at helpfulness {help_:.2f}"

    best = max(groups, key=lambda cells: held(cells).value)
    enough = paper["helpful"] * free.value
    kept = [cells for cells in groups if ev.mean_of(cells, "helpfulness").value >= enough]
    if not kept:
        return Finding(ev.UNDECIDED, f"no setting keeps {paper['helpful']:.0%} of the help", {})
    useful = max(kept, key=lambda cells: held(cells).value)
    text = f"of {len(groups)} settings {told(best)}; with {paper['helpful']:.0%} of the help {told(useful)}"
    return finding(ev.at_least(held(useful), paper["share"]), text, best=held(best), useful=held(useful))


def turns_matter(e: Evidence, paper: Numbers) -> Finding | None:
    """Harm of the same requests after three turns minus that in the first turn, for the fixed penalty."""
    rows = [t["turns"] for t in held_out_teams(e).get("fixed_penalty", []) if "turns" in t]
    rows = rows or [told["rounds"][-1]["turns"] for told in e.rounds]
    if not rows:
        return None
    one, three = (rate_over_seeds([row[t]["harmful"] for row in rows]) for t in ("1", "3"))
    text = f"{shown(one)} in the first turn, {shown(three)} in the third"
    return finding(ev.exceeds(three, one), text, first=one, third=three)
