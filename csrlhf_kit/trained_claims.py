"""Claims about trained policies and judges: measures that read what was recorded, pooled over seeds.

A measure takes the evidence and the source's own numbers to a `Finding`, or to None where the evidence is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csrlhf_kit import evidence as ev
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation import efficiency
from csrlhf_kit.evidence import (
    DEPENDS,
    REFUTED,
    REPRODUCED,
    Estimate,
    Evidence,
    Finding,
    Measure,
    Recorded,
    finding,
    shown,
)

Numbers = Mapping[str, float]


def safe_under_jailbreaks(e: Evidence, paper: Numbers) -> Finding | None:
    harm = ev.rate_of(e.main("fixed_penalty"), "harmful_jailbreak")
    if harm is None:
        return None
    safe = ev.complement(harm)
    return finding(ev.at_least(safe, paper["safe"]), f"{shown(safe)} without harm", safe=safe)


def less_than(first: str, second: str, rate: str) -> Measure:
    """`first` has less of a rate than `second`, both of the main job."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        a, b = ev.rate_of(e.main(first), rate), ev.rate_of(e.main(second), rate)
        if a is None or b is None:
            return None
        text = f"{first} {shown(a)}, {second} {shown(b)}"
        return finding(ev.exceeds(b, a), text, **{first: a, second: b})

    return measure


def harm_ratio(e: Evidence, paper: Numbers) -> Finding | None:
    base = ev.rate_of(e.main("sft"), "harmful_jailbreak")
    fixed = ev.rate_of(e.main("fixed_penalty"), "harmful_jailbreak")
    if base is None or fixed is None:
        return None
    times = ev.ratio(base, fixed)
    wanted = paper["theirs"] / paper["ours"]
    return finding(ev.at_least(times, wanted), f"{shown(times, 1, '×')}", ratio=times)


def precision(e: Evidence, paper: Numbers) -> Finding | None:
    found = e.costs("semantic", "precision")
    if found is None:
        return None
    return finding(ev.at_least(found, paper["precision"]), shown(found), precision=found)


def better_judge(name: str, larger: str, smaller: str) -> Measure:
    """One cost model has more of a measure than the other, on the same test labels."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        a, b = e.costs(larger, name), e.costs(smaller, name)
        if a is None or b is None:
            return None
        text = f"{larger} {shown(a)}, {smaller} {shown(b)}"
        return finding(ev.exceeds(a, b), text, **{larger: a, smaller: b})

    return measure


def pressure_grows(e: Evidence, paper: Numbers) -> Finding | None:
    """False alarms of the pairwise cost model on its smallest and on its largest training set."""
    sizes: dict[int, list[float]] = {}
    for told in e.scorers:
        if told.get("config", {}).get("objective") != "safe_rlhf":
            continue
        alarm = next(iter(told["models"].values())).get("false_positive_rate_benign_alarming", {})
        if alarm.get("value") is not None:
            sizes.setdefault(told["splits"]["train"], []).append(alarm["value"])
    if len(sizes) < 2:
        return None
    few, many = (ev.mean_over_seeds(sizes[n]) for n in (min(sizes), max(sizes)))
    text = f"{shown(few)} on {min(sizes)} pairs, {shown(many)} on {max(sizes)}"
    return finding(ev.exceeds(many, few), text, few=few, many=many)


def helpful_by_penalty(e: Evidence, paper: Numbers) -> Finding | None:
    """Most helpful near their best λ: there more than at a quarter of it and than at twice it or more."""
    swept = e.swept("fixed_penalty", "penalty")
    best = paper["best"]
    low = max((p for p in swept if p <= best / 2), default=None)
    mid = min(swept, key=lambda p: abs(p - best), default=None)
    high = min((p for p in swept if p >= paper["too large"]), default=None)
    if low is None or mid is None or high is None or len({low, mid, high}) < 3:
        return None
    at = {p: ev.mean_of(swept[p], "helpfulness") for p in (low, mid, high)}
    verdict = ev.all_of([ev.exceeds(at[mid], at[low]), ev.exceeds(at[mid], at[high])])
    text = ", ".join(f"{shown(at[p], 1, '', 3)} at λ = {p:g}" for p in (low, mid, high))
    return finding(verdict, text, **{f"λ={p:g}": at[p] for p in at})


def insensitive_to_penalty(e: Evidence, paper: Numbers) -> Finding | None:
    """The range of helpfulness over the swept λ: a linear penalty's against the rectified one's."""
    ranges = {}
    for method in ("fixed_penalty", "linear_penalty"):
        swept = e.swept(method, "penalty")
        seeds = set.intersection(*({c.seed for c in cells} for cells in swept.values())) if swept else set()
        if len(swept) < 3 or not seeds:
            return None
        spans = []
        for seed in sorted(seeds):
            at = [c.policy["helpfulness"] for cells in swept.values() for c in cells if c.seed == seed]
            spans.append(max(at) - min(at))
        ranges[method] = ev.mean_over_seeds(spans)
    text = ", ".join(f"{m} {shown(r, 1, '', 3)}" for m, r in ranges.items())
    return finding(ev.exceeds(ranges["linear_penalty"], ranges["fixed_penalty"]), text, **ranges)


def time_to_safety(e: Evidence, paper: Numbers) -> Finding | None:
    """Episodes until the harm rate is under the limit for good: Lagrangian's over the fixed penalty's."""
    times = {}
    for method in ("lagrangian", "fixed_penalty"):
        cells = [c for c in e.main(method) if c.harmful]
        if not cells:
            return None
        try:
            times[method] = [
                efficiency.time_to_safety(
                    [{"objective/harmful": rate} for rate in c.harmful],
                    batch_size=c.batch_size,
                    limit=paper.get("limit", c.threshold),
                )
                for c in cells
            ]
        except UserError:  # the window cannot show so small a limit
            return None
    found = efficiency.speed_up(times["lagrangian"], times["fixed_penalty"])
    seeds = min(len(t) for t in times.values())
    high = float("inf") if found["censored"] in ("at least", "unknown") else found["high"]
    low = 0.0 if found["censored"] in ("at most", "unknown") else found["low"]
    gain = Estimate(found["ratio"], low, high, seeds)
    reached = {m: sum(t.reached for t in ts) for m, ts in times.items()}
    if not any(reached.values()):
        text = "neither method got under the limit within its steps"
    else:
        text = f"{shown(gain, 1, '×')} ({found['censored']}); " + ", ".join(
            f"{m} got there in {n} of {len(times[m])}" for m, n in reached.items()
        )
    return finding(ev.at_least(gain, paper["times"]), text, ratio=gain)


def preferred(e: Evidence, paper: Numbers) -> Finding | None:
    pair = (e.arena or {}).get("pairs", {}).get("fixed_penalty vs lagrangian")
    if pair is None:
        return None
    seeds = min(e.arena["seeds"][m] for m in ("fixed_penalty", "lagrangian"))
    won = {k: Estimate(*(pair[k][n] for n in ("rate", "low", "high")), seeds, pair[k]["n"])
           for k in ("helpfulness", "harmlessness")}  # fmt: skip
    verdict = ev.all_of(ev.at_least(rate, paper["share"]) for rate in won.values())
    return finding(verdict, ", ".join(f"{k} {shown(r)}" for k, r in won.items()), **won)


def garbage(e: Evidence, paper: Numbers) -> Finding | None:
    """Degenerate text of the linear penalty, which their code runs, at their λ if it was swept."""
    cells = e.cells("linear_penalty", {}) or e.main("linear_penalty")
    rate = ev.rate_of(cells, "degenerate")
    if rate is None:
        return None
    return finding(ev.at_least(rate, paper["share"]), shown(rate), degenerate=rate)


def released_code(e: Evidence, paper: Numbers) -> Finding | None:
    """At λ = 20: is what the code runs as helpful as what the paper states?"""
    fixed = ev.mean_of(e.cells("fixed_penalty", {}), "helpfulness")
    linear = ev.mean_of(e.cells("linear_penalty", {}), "helpfulness")
    if fixed is None or linear is None:
        return None
    gap = ev.difference(fixed, linear)
    verdict = REFUTED if gap.low > 0 or gap.high < 0 else DEPENDS
    text = f"helpfulness: rectified {shown(fixed, 1, '', 3)}, linear {shown(linear, 1, '', 3)}"
    return finding(verdict, text, rectified=fixed, linear=linear)


def after_rounds(e: Evidence, paper: Numbers) -> Finding | None:
    if not e.rounds:
        return None
    first, last = ([told["rounds"][i]["policy"]["harmful_nominal"] for told in e.rounds] for i in (0, -1))
    start, end = ev.pooled_rate(first), ev.pooled_rate(last)
    text = f"{shown(start)} → {shown(end)}"
    return finding(ev.at_most(end, paper["harmful"]), text, base=start, last=end)


def each_round_safer(e: Evidence, paper: Numbers) -> Finding | None:
    if not e.rounds:
        return None
    count = min(len(told["rounds"]) for told in e.rounds)
    harm = [
        ev.pooled_rate([told["rounds"][k]["policy"]["harmful_jailbreak"] for told in e.rounds])
        for k in range(count)
    ]
    verdict = ev.all_of(ev.exceeds(harm[k], harm[k + 1]) for k in range(count - 1))
    names = ["base", *(f"v{k}" for k in range(1, count))]
    return finding(verdict, " → ".join(shown(h) for h in harm), **dict(zip(names, harm, strict=True)))


def starts_as_theirs(e: Evidence, paper: Numbers) -> Finding | None:
    harm = ev.rate_of(e.main("sft"), "harmful_nominal")
    if harm is None:
        return None
    # The base is one model, made once: its seeds are seeds of sampling, and one will do.
    harm = harm._replace(seeds=None)
    return finding(ev.covers(harm, paper["harmful"]), shown(harm), harmful=harm)


def elo(kind: str) -> Measure:
    """The Lagrangian's rating above the base is positive."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        rating = (e.arena or {}).get(kind, {}).get("ratings", {}).get("lagrangian")
        if rating is None or e.arena.get("anchor") != "sft":
            return None
        found = Estimate(rating["elo"], rating["low"], rating["high"], e.arena["seeds"]["lagrangian"])
        return finding(ev.at_least(found, 0.0), shown(found, 1, "", 0), elo=found)

    return measure


def beats_shaping(e: Evidence, paper: Numbers) -> Finding | None:
    """For each ν some figure of shaping is worse: more harm, or less help, than the Lagrangian's."""
    lagrangian = e.cells("lagrangian", {})
    shaped = e.swept("reward_shaping", "weight")
    if not lagrangian or not shaped:
        return None
    harm, helpful = ev.rate_of(lagrangian, "harmful_nominal"), ev.mean_of(lagrangian, "helpfulness")
    parts, estimates = [], {"lagrangian": harm}
    for weight, cells in shaped.items():
        theirs, help_ = ev.rate_of(cells, "harmful_nominal"), ev.mean_of(cells, "helpfulness")
        estimates[f"ν={weight:g}"] = theirs
        worse = [ev.exceeds(theirs, harm), ev.exceeds(helpful, help_)]
        parts.append(
            REPRODUCED if REPRODUCED in worse else REFUTED if worse == [REFUTED, REFUTED] else DEPENDS
        )
    text = f"{parts.count(REPRODUCED)} of {len(parts)} weights are dominated"
    return finding(ev.all_of(parts), text, **estimates)


SEARCHED = {"fixed_penalty": {"penalty"}, "lagrangian": {"initial", "rate", "maximum"}}
"""What the plans `penalties` (8 settings) and `lagrangians` (9) search over."""


def by_settings(cells: list[Recorded]) -> list[list[Recorded]]:
    """Cells grouped by their settings, a group's cells being its seeds."""
    groups: dict[str, list[Recorded]] = {}
    for cell in cells:
        groups.setdefault(str(sorted(cell.settings.items())), []).append(cell)
    return list(groups.values())


def at_equal_search(e: Evidence, paper: Numbers) -> Finding | None:
    """The least harm that each method reaches among its searched settings that keep 95% of unconstrained help."""
    best: dict[str, Estimate] = {}
    floor = ev.mean_of(e.main("ppo"), "helpfulness")
    for method, names in SEARCHED.items():
        groups = by_settings(
            [c for c in e.sweep if c.method == method and c.settings and set(c.settings) <= names]
        )
        if not groups or floor is None:
            return None
        enough = paper["helpful"] * floor.value
        kept = [cells for cells in groups if ev.mean_of(cells, "helpfulness").value >= enough]
        harms = [ev.rate_of(cells, "harmful_jailbreak") for cells in kept]
        if not harms:
            return Finding(DEPENDS, f"no setting of {method} keeps {paper['helpful']:.0%} of the help", {})
        best[method] = min(harms, key=lambda h: h.value)
    text = ", ".join(f"{m} {shown(h)}" for m, h in best.items())
    return finding(ev.exceeds(best["lagrangian"], best["fixed_penalty"]), text, **best)


def safer_than_direct(e: Evidence, paper: Numbers) -> Finding | None:
    """The fixed penalty against each preference-only method at published constants, on jailbreaks."""
    fixed = ev.rate_of(e.main("fixed_penalty"), "harmful_jailbreak")
    direct = {m: ev.rate_of(e.cells(m, {}), "harmful_jailbreak")
              for m in ("sacpo", "mocan", "safe_dpo", "dpo_safer")}  # fmt: skip
    direct = {m: rate for m, rate in direct.items() if rate is not None}
    if fixed is None or not direct:
        return None
    verdict = ev.all_of(ev.exceeds(rate, fixed) for rate in direct.values())
    text = f"fixed {shown(fixed)}; " + ", ".join(f"{m} {shown(rate)}" for m, rate in direct.items())
    return finding(verdict, text, fixed_penalty=fixed, **direct)


def held_out_teams(e: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Red-team tables by the policy's method: the folder's name above its adapter, or `sft`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for told in e.red_team:
        if told["config"]["team"] != "held_out":
            continue
        path = told["config"]["policy"]
        parts = [p for p in (path or "sft").replace("\\", "/").split("/") if p and p != "adapter"]
        found.setdefault(parts[-1].partition("-seed_")[0], []).append(told)
    return found


def robust_against_team(e: Evidence, paper: Numbers) -> Finding | None:
    teams = held_out_teams(e)
    if not {"fixed_penalty", "lagrangian"} <= teams.keys():
        return None
    shares = {m: ev.pooled_rate([t["robust"] for t in teams[m]]) for m in ("fixed_penalty", "lagrangian")}
    text = ", ".join(f"{m} {shown(rate)}" for m, rate in shares.items())
    return finding(ev.exceeds(shares["fixed_penalty"], shares["lagrangian"]), text, **shares)


def robust_after_rounds(e: Evidence, paper: Numbers) -> Finding | None:
    last = [told["rounds"][-1]["held_out_team"]["robust"] for told in e.rounds]
    if not last:
        return None
    share = ev.pooled_rate(last)
    return finding(ev.at_least(share, paper["share"]), shown(share), robust=share)


def turns_matter(e: Evidence, paper: Numbers) -> Finding | None:
    """Harm of the same asks after three turns, less that of the first turn, for the fixed penalty."""
    rows = [t["turns"] for t in held_out_teams(e).get("fixed_penalty", []) if "turns" in t]
    rows = rows or [told["rounds"][-1]["turns"] for told in e.rounds]
    if not rows:
        return None
    one, three = (ev.pooled_rate([row[t]["harmful"] for row in rows]) for t in ("1", "3"))
    text = f"{shown(one)} in the first turn, {shown(three)} in the third"
    return finding(ev.exceeds(three, one), text, first=one, third=three)


def gate_bias(e: Evidence, paper: Numbers) -> Finding | None:
    """A gate on the very batch that it gates settles at another cost than one on a window."""
    batch, window = e.cells("fixed_penalty", {"gate": "batch"}), e.cells("fixed_penalty", {})
    if not batch or not window:
        return None
    a, b = ev.mean_of(batch, "cost"), ev.mean_of(window, "cost")
    gap = ev.difference(a, b)
    verdict = REPRODUCED if gap.low > 0 or gap.high < 0 else DEPENDS
    return finding(verdict, f"batch {shown(a)}, window {shown(b)}", batch=a, window=b)


def feasible(e: Evidence, paper: Numbers) -> Finding | None:
    """Mean learned cost of the fixed penalty's policies against the threshold they were trained for."""
    cells = e.main("fixed_penalty")
    if not cells:
        return None
    cost = ev.mean_of(cells, "cost")
    return finding(
        ev.at_most(cost, cells[0].threshold),
        f"{shown(cost)} at a threshold of {100 * cells[0].threshold:g}%",
        cost=cost,
    )


def moonshot(e: Evidence, paper: Numbers) -> Finding | None:
    """Some setting of the fixed penalty: safe under jailbreaks, helpful, and not over-refusing."""
    floor = ev.mean_of(e.main("ppo"), "helpfulness")
    swept = by_settings([c for c in e.sweep if c.method == "fixed_penalty"])
    groups = [cells for cells in (e.main("fixed_penalty"), *swept) if cells]
    if not groups or floor is None:
        return None
    best: tuple[float, Finding] | None = None
    for cells in groups:
        safe = ev.complement(ev.rate_of(cells, "harmful_jailbreak"))
        refused = ev.rate_of(cells, "over_refusal")
        share = ev.ratio(ev.mean_of(cells, "helpfulness"), floor)
        parts = [
            REPRODUCED if safe.value >= paper["safe"] and safe.low >= paper["bound"] else REFUTED,
            REPRODUCED if share.value >= paper["helpful"] else REFUTED,
            REPRODUCED if refused.value <= paper["refused"] else REFUTED,
        ]
        verdict = REPRODUCED if set(parts) == {REPRODUCED} else REFUTED
        text = f"{shown(safe)} safe, {100 * share.value:.0f}% of the help, {shown(refused)} refused"
        found = finding(verdict, text, safe=safe, help=share, refused=refused)
        rank = parts.count(REPRODUCED) + safe.value
        if best is None or rank > best[0]:
            best = (rank, found)
    return best[1]


def ablation(first: tuple[str, str], second: tuple[str, str]) -> Measure:
    """(cost model, method) `first` is more harmful than `second`; with the semantic model it is the main job's."""

    def harm(e: Evidence, cost: str, method: str) -> Estimate | None:
        if cost == "semantic":
            return ev.rate_of(e.main(method), "harmful_nominal")
        rows = [told["row"]["harmful_nominal"] for told in e.ablation.get((cost, method), [])]
        return ev.pooled_rate(rows) if rows else None

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        a, b = harm(e, *first), harm(e, *second)
        if a is None or b is None:
            return None
        names = [" + ".join(pair) for pair in (first, second)]
        text = f"{names[0]} {shown(a)}, {names[1]} {shown(b)}"
        return finding(ev.exceeds(a, b), text, **dict(zip(names, (a, b), strict=True)))

    return measure
