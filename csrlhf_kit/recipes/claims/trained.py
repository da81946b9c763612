"""Claims about trained policies and judges: measures of what was recorded, pooled over seeds.

A measure maps the evidence and the paper's numbers to a `Finding`, or to None if the evidence is missing.
"""

from __future__ import annotations

from collections.abc import Callable

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation import efficiency
from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.recipes.claims.equilibrium import cost_spread, predict_cost, settled_cost
from csrlhf_kit.recipes.claims.evidence import Estimate, Evidence, Finding, Numbers, PolicyRow, finding, shown
from csrlhf_kit.theory.batch_hinge import hinge_bias
from csrlhf_kit.theory.over_seeds import difference, mean_over_seeds
from csrlhf_kit.training.constraints import FixedPenalty


def of_main(rate: str) -> Callable[[Evidence, str], Estimate | None]:
    """A function that reads a rate of a method in `csrlhf run`."""
    return lambda e, method: ev.rate_of(e.main(method), rate)


def of_tuned(read: Callable[..., Estimate | None], name: str) -> Callable[[Evidence, str], Estimate | None]:
    """A function that reads a figure of "tuned METHOD": its converged policies at settings that were searched for."""
    return lambda e, method: read(e.tuned(method.removeprefix("tuned ")), name)


def of_judges(name: str) -> Callable[[Evidence, str], Estimate | None]:
    """A function that reads a metric of a cost model on the test labels."""
    return lambda e, model: e.costs(model, name)


def of_ablation(e: Evidence, name: str) -> Estimate | None:
    """Harm rate of "cost model + method", of policies with as many steps."""
    cost, method = name.split(" + ")
    own = [cell for cell in e.ablation if cell.method == method]
    return ev.rate_of(own if cost == "bradley_terry" else e.main(method), "harmful_nominal")


def harm_ratio(e: Evidence, paper: Numbers) -> Finding | None:
    base = ev.rate_of(e.main("sft"), "harmful_jailbreak")
    fixed = ev.rate_of(e.main("fixed_penalty"), "harmful_jailbreak")
    if base is None or fixed is None:
        return None
    wanted = paper["theirs"] / paper["ours"]
    gap = difference(base, fixed, wanted)
    text = f"{base.value / max(fixed.value, 1e-9):.1f}×: base {shown(base)}, fixed {shown(fixed)}; "
    text += f"base − {wanted:.2f} × fixed: {shown(gap, unit=' points')}"
    return finding(ev.at_least(gap, 0.0), text, base=base, fixed=fixed)


def pressure_grows(e: Evidence, paper: Numbers) -> Finding | None:
    """False-positive rates of the pairwise cost model for its smallest and its largest training set."""
    sources: dict[str, list[tuple[int, float]]] = {}  # sizes differ a little between seeds
    for told in e.scorers:
        if told.get("config", {}).get("objective") != "safe_rlhf":
            continue
        alarm = next(iter(told["models"].values())).get("false_positive_rate_benign_alarming", {})
        if alarm.get("value") is not None:
            sources.setdefault(told["config"]["data"], []).append((told["splits"]["train"], alarm["value"]))
    if len(sources) < 2:
        return None
    small, large = min(sources.values()), max(sources.values())
    few, many = (mean_over_seeds([alarm for _, alarm in runs]) for runs in (small, large))
    text = f"{shown(few)} with {min(small)[0]:,} answers, {shown(many)} with {max(large)[0]:,}"
    return finding(ev.exceeds(many, few), text, few=few, many=many)


def helpful_by_penalty(e: Evidence, paper: Numbers) -> Finding | None:
    """Helpfulness near their best λ exceeds that at a quarter of it, and that at twice it or more."""
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
    """The range of helpfulness over the swept λ, of the linear against the rectified penalty."""
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
        ranges[method] = mean_over_seeds(spans)
    text = ", ".join(f"{m} {shown(r, 1, '', 3)}" for m, r in ranges.items())
    return finding(ev.exceeds(ranges["linear_penalty"], ranges["fixed_penalty"]), text, **ranges)


def time_to_limits(e: Evidence, paper: Numbers) -> Finding | None:
    """Episodes until the harm rate stays under a limit: the Lagrangian's divided by the fixed penalty's."""
    cells = {m: [c for c in e.main(m) if c.curve.get("harmful")] for m in ("lagrangian", "fixed_penalty")}
    if not all(cells.values()):
        return None
    gains, texts = {}, []
    for limit in (cells["fixed_penalty"][0].threshold, 0.1, 0.2):
        try:
            times = {method: [efficiency.time_to_safety(
                [{"objective/harmful": rate} for rate in c.curve["harmful"]], batch_size=c.batch_size, limit=limit)
                for c in found] for method, found in cells.items()}  # fmt: skip
        except UserError:  # the window is too short for so small a limit
            return None
        found = efficiency.speed_up(times["lagrangian"], times["fixed_penalty"])
        high = float("inf") if found["censored"] in ("at least", "unknown") else found["high"]
        low = 0.0 if found["censored"] in ("at most", "unknown") else found["low"]
        gain = Estimate(found["ratio"], low, high, min(len(t) for t in times.values()))
        gains[f"below {100 * limit:g}%"] = gain
        reached = ", ".join(f"{m} {sum(t.reached for t in ts)} of {len(ts)}" for m, ts in times.items())
        known = "" if found["censored"] == "no" else f" ({found['censored']})"
        texts.append(f"below {100 * limit:g}%: {shown(gain, 1, '×')}{known}, reached by {reached}")
    verdict = ev.all_of(ev.at_least(gain, paper["times"]) for gain in gains.values())
    return finding(verdict, "; ".join(texts), **gains)


def preferred(e: Evidence, paper: Numbers) -> Finding | None:
    """Win rates of the fixed penalty against the Lagrangian; the arena names a policy by its method and settings."""
    told, fixed = e.arena or {}, e.main("fixed_penalty")[:1]
    name = "-".join(
        ["fixed_penalty", *(f"{key}_{value}" for row in fixed for key, value in row.settings.items())]
    )
    pair = told.get("pairs", {}).get(f"{name} vs lagrangian")
    if pair is None:
        return None
    seeds = min(told["seeds"][policy] for policy in (name, "lagrangian"))
    won = {k: Estimate.of(pair[k], seeds) for k in ("helpfulness", "harmlessness")}
    verdict = ev.all_of(ev.at_least(rate, paper["share"]) for rate in won.values())
    return finding(verdict, ", ".join(f"{k} {shown(r)}" for k, r in won.items()), **won)


def released_code(e: Evidence, paper: Numbers) -> Finding | None:
    """Helpfulness at λ = 20 of the released code's method and of the paper's."""
    fixed = ev.mean_of(e.cells("fixed_penalty", {}), "helpfulness")
    linear = ev.mean_of(e.cells("linear_penalty", {}), "helpfulness")
    if fixed is None or linear is None:
        return None
    gap = difference(fixed, linear)
    same = ev.AGREES if max(-gap.low, gap.high) < ev.NEGLIGIBLE else ev.UNDECIDED
    verdict = ev.DIFFERS if gap.low > 0 or gap.high < 0 else same
    text = f"helpfulness: rectified {shown(fixed, 1, '', 3)}, linear {shown(linear, 1, '', 3)}"
    return finding(verdict, text, rectified=fixed, linear=linear)


def elo_above_base(kind: str) -> ev.Measure:
    """A measure: the Lagrangian's rating is above the base's."""

    def measure(e: Evidence, paper: Numbers) -> Finding | None:
        rating = (e.arena or {}).get(kind, {}).get("ratings", {}).get("lagrangian")
        if rating is None or e.arena.get("anchor") != "sft":
            return None
        found = Estimate.of(rating, e.arena["seeds"]["lagrangian"], "elo")
        return finding(ev.at_least(found, 0.0), shown(found, 1, "", 0), elo=found)

    return measure


def beats_shaping(e: Evidence, paper: Numbers) -> Finding | None:
    """For each ν, shaping has more harm or less helpfulness than the Lagrangian."""
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
            ev.AGREES
            if ev.AGREES in worse
            else ev.DIFFERS
            if worse == [ev.DIFFERS, ev.DIFFERS]
            else ev.UNDECIDED
        )
    text = f"{parts.count(ev.AGREES)} of {len(parts)} weights are dominated"
    return finding(ev.all_of(parts), text, **estimates)


def safer_than_direct(e: Evidence, paper: Numbers) -> Finding | None:
    """The fixed penalty against each preference-only method at published constants, on jailbreaks."""
    fixed = ev.rate_of(e.main("fixed_penalty"), "harmful_jailbreak")
    direct = {m: ev.rate_of(e.cells(m, {}), "harmful_jailbreak")
              for m in ("sacpo", "mocan", "safedpo", "dpo_safer")}  # fmt: skip
    direct = {m: rate for m, rate in direct.items() if rate is not None}
    if fixed is None or not direct:
        return None
    verdict = ev.all_of(ev.exceeds(rate, fixed) for rate in direct.values())
    text = f"fixed {shown(fixed)}; " + ", ".join(f"{m} {shown(rate)}" for m, rate in direct.items())
    return finding(verdict, text, fixed_penalty=fixed, **direct)


def gate_bias(e: Evidence, paper: Numbers) -> Finding | None:
    """A gate on the batch that it gates settles at another cost than a gate on a window.

    It differs if the costs are closer than the bias of a batch's hinge at the boundary.
    """
    batch, window = e.cells("fixed_penalty", {"gate": "batch"}), e.cells("fixed_penalty", {})
    if not batch or not window:
        return None
    a, b = ev.mean_of(batch, "cost"), ev.mean_of(window, "cost")
    gap = difference(a, b)
    noise = [cost_spread(c.curve, c.batch_size) / c.batch_size**0.5 for c in window]
    bias = float(hinge_bias(0.0, noise).mean())
    same = ev.DIFFERS if max(-gap.low, gap.high) < bias else ev.UNDECIDED
    verdict = ev.AGREES if gap.low > 0 or gap.high < 0 else same
    text = f"batch {shown(a)}, window {shown(b)}; the bias would be {100 * bias:.2f} points"
    return finding(verdict, text, batch=a, window=b)


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
    """Some setting of the fixed penalty, in rounds or not, is safe under jailbreaks, helpful, and not over-refusing.

    Helpfulness is relative to unconstrained PPO: that of `csrlhf run` for it and rounds, else of the published sweep.
    """
    swept = [
        (cells, e.cells("ppo", {}))
        for cells in ev.by_settings([c for c in e.sweep if c.method == "fixed_penalty"])
    ]
    attacked = [
        [
            PolicyRow(
                "fixed_penalty", {}, told["seed"], told["config"]["threshold"], told["rounds"][-1]["policy"]
            )
            for told in runs
            if told["config"]["method"] == "fixed_penalty"
        ]
        for runs in e.rounds_by_settings()
    ]
    found = []
    main = [(cells, e.main("ppo")) for cells in (e.main("fixed_penalty"), *attacked)]
    for cells, free in [*main, *swept]:
        if not cells or not free:
            continue
        safe = ev.complement(ev.rate_of(cells, "harmful_jailbreak"))
        refused = ev.rate_of(cells, "over_refusal")
        share = Estimate.of(ev.mean_of(cells, "helpfulness").value / ev.mean_of(free, "helpfulness").value)
        met = (
            safe.value >= paper["safe"] and safe.low >= paper["bound"],
            share.value >= paper["helpful"],
            refused.value <= paper["refused"],
        )
        text = f"{shown(safe)} safe, {100 * share.value:.0f}% of the help, {shown(refused)} refused"
        verdict = ev.AGREES if all(met) else ev.DIFFERS
        found.append((sum(met) + safe.value, finding(verdict, text, safe=safe, help=share, refused=refused)))
    return max(found, key=lambda item: item[0])[1] if found else None


def gate_settles(e: Evidence, paper: Numbers) -> Finding | None:
    """The cost at which a gated penalty settles for each batch size, against the value of `equilibrium.predict`."""
    prices = [c for c in e.sweep if c.method == "pid_lagrangian" and c.settings.get("threshold")]
    gated = ev.by_settings(
        [c for c in e.sweep if c.method == "fixed_penalty" and "ppo.batch_size" in c.settings]
    )
    if not prices or not gated:
        return None
    verdicts, texts, estimates = [], [], {}
    for cells in gated:
        told = predict_cost(prices, FixedPenalty().penalty, cells[0].batch_size)
        got = mean_over_seeds([settled_cost(c.curve) for c in cells])
        gap = difference(got, told)
        verdicts.append(ev.AGREES if gap.low <= 0 <= gap.high else ev.DIFFERS)
        texts.append(f"{shown(got)} against {shown(told)} predicted in batches of {cells[0].batch_size}")
        estimates |= {f"B={cells[0].batch_size}": got, f"B={cells[0].batch_size}, predicted": told}
    return finding(ev.all_of(verdicts), "; ".join(texts), **estimates)
