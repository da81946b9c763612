"""Claims that need no training: finite problems solved exactly (`theory`), and counts of data and of the papers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize_scalar

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.recipes.claims import evidence as ev
from csrlhf_kit.recipes.claims.evidence import Estimate, Evidence, Finding, Numbers, finding
from csrlhf_kit.theory.batch_hinge import batch_hinge_equilibrium
from csrlhf_kit.theory.over_seeds import mcnemar
from csrlhf_kit.theory.problem import FiniteProblem, Solution

PROBLEMS = 20


def problems(
    *, reward_bound: float = 1.0, cost_bound: float = 1.0
) -> Iterator[tuple[FiniteProblem, Solution]]:
    """Random problems whose constraint binds, each with its constrained optimum.

    Six prompts with eight responses each, rewards within ± reward_bound, costs in [0, cost_bound]; the threshold is
    half-way between the least cost and that of the unconstrained optimum.
    """
    generator = np.random.default_rng(0)
    for _ in range(PROBLEMS):
        reference = generator.dirichlet(np.ones(8), size=6)
        reward = reward_bound * generator.uniform(-1, 1, size=(6, 8))
        cost = cost_bound * generator.uniform(size=(6, 8))
        free = FiniteProblem(reference, reward, cost, beta=0.1 * reward_bound, threshold=cost_bound)
        threshold = 0.5 * (free.tilted(0.0).cost + free.smallest_cost())
        problem = FiniteProblem(reference, reward, cost, beta=0.1 * reward_bound, threshold=threshold)
        yield problem, problem.constrained_optimum()


def best_tilt(problem: FiniteProblem, penalty: float) -> Solution:
    """The maximiser of the rectified objective, found by a search over tilts instead of by the theory."""
    found = minimize_scalar(
        lambda price: -problem.penalised_value(problem.tilted(price).policy, penalty),
        bounds=(0.0, penalty),
        method="bounded",
        options={"xatol": 1e-10, "maxiter": 500},
    )
    return problem.tilted(float(found.x))


def exactness(e: Evidence, paper: Numbers) -> Finding:
    """How far the maximiser of F − λ[J_C − d]₊ is from the constrained optimum, for λ > λ*."""
    gaps = []
    for problem, optimum in problems():
        for factor in (1.05, 2.0, 50.0):
            found = best_tilt(problem, factor * optimum.multiplier)
            gaps += [abs(found.cost - optimum.cost), abs(found.objective - optimum.objective)]
    gap = Estimate.of(max(gaps))
    return finding(ev.at_most(gap, 1e-5), f"largest gap {gap.value:.1e} on {PROBLEMS} problems", gap=gap)


def domination(e: Evidence, paper: Numbers) -> Finding:
    """The violation at λ = 2 R_max / ε against ε = 2 R_max / λ, with costs that could exceed it four times."""
    bound, penalty = paper["R_max"], paper["penalty"]
    allowed = 2 * bound / penalty
    violations = [
        max(float(problem.violation(best_tilt(problem, penalty).policy)), 0.0)
        for problem, _ in problems(reward_bound=bound, cost_bound=8 * allowed)
    ]
    worst = Estimate.of(max(violations))
    text = f"largest violation {worst.value:.2g} of an allowed {allowed:g}"
    return finding(ev.at_most(worst, allowed), text, violation=worst)


def more_reward(e: Evidence, paper: Numbers) -> Finding:
    """How much more F the penalised optimum has than the constrained one, at λ > λ*."""
    gains = [
        best_tilt(problem, 2 * optimum.multiplier).objective - optimum.objective
        for problem, optimum in problems()
    ]
    gain = Estimate.of(max(gains))
    verdict = ev.AGREES if gain.value > 1e-6 else ev.DIFFERS
    return finding(verdict, f"largest gain {gain.value:.1e} above λ*", gain=gain)


def no_tuning_above(batch: int | None = None) -> ev.Measure:
    """A measure: the cost is the same at λ = 2, 10 and 50 λ*, with an exact gate or with one on a batch's mean."""

    def cost(problem: FiniteProblem, penalty: float) -> float:
        found = (
            batch_hinge_equilibrium(problem, penalty, batch=batch) if batch else best_tilt(problem, penalty)
        )
        return found.cost

    def measure(e: Evidence, paper: Numbers) -> Finding:
        spans = []
        for problem, optimum in problems():
            costs = [cost(problem, factor * optimum.multiplier) for factor in (2.0, 10.0, 50.0)]
            spans.append(max(costs) - min(costs))
        worst = Estimate.of(max(spans))
        return finding(ev.at_most(worst, 1e-5), f"the cost moves by up to {worst.value:.1e}", spread=worst)

    return measure


def linear_is_not_rectified(e: Evidence, paper: Numbers) -> Finding:
    """Share of problems on which the linear penalty's optimum has a cost below the threshold."""
    overshoots = []
    for problem, optimum in problems():
        penalty = max(paper["penalty"], 1.5 * optimum.multiplier)
        linear = problem.penalised_optimum(penalty, "linear")
        overshoots.append(linear.cost < optimum.cost - 1e-6 and linear.objective < optimum.objective - 1e-6)
    share = Estimate.of(float(np.mean(overshoots)))
    verdict = {0.0: ev.AGREES, 1.0: ev.DIFFERS}.get(share.value, ev.UNDECIDED)
    text = f"overshoots, and loses objective, on {sum(overshoots)} of {PROBLEMS} problems"
    return finding(verdict, text, share=share)


def gpt_comparison(e: Evidence, paper: Numbers) -> Finding:
    """McNemar's test on the paper's own counts: how many prompts broke both models is not published, so the range."""
    few, many = sorted(int(paper[name]) for name in ("ours", "theirs"))
    least, most = mcnemar(0, many - few), mcnemar(few, many)
    text = f"p between {least:.2f} and {most:.2f} on their own counts, whichever prompts broke both"
    return finding(ev.at_most(Estimate.of(most), 0.05), text, p=Estimate(most, least, most))


def pair_shares(e: Evidence, paper: Numbers) -> Finding:
    """How the shipped training pairs compare with PKU-SafeRLHF's."""
    pairs = read_records("shipped", PreferencePair, split="train").records

    def share(hits: list[bool]) -> Estimate:
        return Estimate.pooled([{"rate": sum(hits) / len(hits), "n": len(hits)}])._replace(seeds=None)

    found = {
        "astride": share([p.is_response_0_safe != p.is_response_1_safe for p in pairs]),
        "differ": share([p.better_response_id != p.safer_response_id for p in pairs]),
    }
    near = all(abs(found[name].value - paper[name]) <= ev.NEGLIGIBLE for name in found)
    verdict = ev.AGREES if near else ev.DIFFERS
    text = ", ".join(f"{name} {100 * rate.value:.1f}%" for name, rate in found.items())
    return finding(verdict, text, **found)
