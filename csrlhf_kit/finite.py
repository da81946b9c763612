"""Constrained RLHF on a finite response set, solved exactly.

    maximise  F(policy) = E[reward] - beta * KL(policy || reference)   subject to   E[cost] <= threshold

With finitely many responses nothing is learnt and nothing is sampled: the optimum, the multiplier that
prices the constraint and the effect of every penalty are numbers. That makes it the yardstick for PPO, and
the place where the papers' theorems can be computed instead of believed. float64 throughout.

The one fact behind all of it: the policy  reference * exp((reward - multiplier * cost) / beta), normalised
per prompt, maximises F - multiplier * E[cost], and its cost falls as the multiplier grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp, xlogy

from csrlhf_kit.errors import UserError
from csrlhf_kit.knapsack import best_mixture

Penalty = Literal["rectified", "linear", "per_sample"]
Status = Literal["slack", "active", "tight", "given"]
_MOST_STEPS = 200
_TIGHT = 1e-13  # thresholds this close (relative to the spread of costs) to the smallest cost are at it


@dataclass(frozen=True)
class Solution:
    """A policy and what it is worth. Averages are over prompts with their weights; KL is in nats."""

    policy: np.ndarray
    """(prompts, responses); each row sums to 1."""
    reward: float
    """E[reward]."""
    cost: float
    """E[cost]."""
    kl: float
    """KL(policy || reference), the mean over prompts."""
    objective: float
    """F = reward - beta * kl, without any penalty."""
    multiplier: float | np.ndarray
    """The price of cost at which this policy is the best tilt; (prompts,) under per-prompt constraints."""
    status: Status = "given"
    """slack: the constraint costs nothing; active: it binds; tight: only the least cost satisfies it."""


class FiniteProblem:
    """One constrained problem over prompts and their responses.

    reference: (prompts, responses) probabilities, zero where a prompt has fewer responses; a single prompt
    may be given as (responses,). reward, cost: the same shape. beta: the KL weight in reward units; 0 makes
    it a linear programme (knapsack.py). threshold: the largest allowed mean cost, or (prompts,) of them if `per_prompt`.
    prompt_weights: (prompts,) positive, normalised here; equal by default.

    Raises UserError for shapes, signs or numbers that make no problem.
    """

    def __init__(
        self,
        reference: np.ndarray,
        reward: np.ndarray,
        cost: np.ndarray,
        *,
        beta: float,
        threshold: float | np.ndarray,
        prompt_weights: np.ndarray | None = None,
        per_prompt: bool = False,
    ) -> None:
        self.reference = np.atleast_2d(np.asarray(reference, dtype=np.float64))
        prompts = len(self.reference)
        self.reward = self._table("reward", reward)
        self.cost = self._table("cost", cost)
        self.beta = float(beta)
        self.per_prompt = per_prompt
        weights = np.ones(prompts) if prompt_weights is None else np.asarray(prompt_weights, dtype=np.float64)
        limit = np.asarray(threshold, dtype=np.float64)
        total = self.reference.sum(axis=1, keepdims=True)
        if not (self.reference >= 0).all() or np.abs(total - 1).max() > 1e-6:
            raise UserError("reference: each row must hold probabilities that sum to 1")
        if not (np.isfinite(self.beta) and self.beta >= 0):
            raise UserError(f"beta is {beta}; a finite number of at least 0 was expected")
        if weights.shape != (prompts,) or not (np.isfinite(weights) & (weights > 0)).all():
            raise UserError(f"prompt_weights: {prompts} positive numbers were expected, one a prompt")
        if limit.shape not in ([(), (prompts,)] if per_prompt else [()]) or not np.isfinite(limit).all():
            raise UserError(
                "threshold: one finite number was expected (or one a prompt with per_prompt=True)"
            )
        self.reference = self.reference / total
        self.weights = weights / weights.sum()
        self.threshold = np.broadcast_to(limit, (prompts,)) if per_prompt else float(limit)
        with np.errstate(divide="ignore"):
            self._log_reference = np.log(self.reference)
        allowed = np.where(self.reference > 0, self.cost, np.inf)
        self._least = allowed.min(axis=1)  # (prompts,) the smallest cost that each prompt can reach
        self._excess = np.where(self.reference > 0, self.cost - self._least[:, None], 0.0)
        self._room = self._to_group(-self._least) + self.threshold  # what the constraint leaves above that

    def _table(self, name: str, values: np.ndarray) -> np.ndarray:
        table = np.atleast_2d(np.asarray(values, dtype=np.float64))
        if table.shape != self.reference.shape:
            raise UserError(
                f"{name} has shape {table.shape}; that of reference, {self.reference.shape}, was expected"
            )
        if not np.isfinite(table[self.reference > 0]).all():
            raise UserError(f"{name}: every response that the reference can give needs a finite number")
        return np.where(self.reference > 0, table, 0.0)

    def _to_group(self, per_prompt: np.ndarray) -> float | np.ndarray:
        """(prompts,) -> what one constraint sees: the prompt itself, or the weighted mean of all."""
        return per_prompt if self.per_prompt else float(self.weights @ per_prompt)

    # ---- what a policy is worth -------------------------------------------------------------------------

    def evaluate(
        self, policy: np.ndarray, multiplier: float | np.ndarray = np.nan, status: Status = "given"
    ) -> Solution:
        """The Solution record of any policy, (prompts, responses). `multiplier` is stored, not used."""
        pi = np.atleast_2d(np.asarray(policy, dtype=np.float64))
        if pi.shape != self.reference.shape or (pi < -1e-12).any() or np.abs(pi.sum(axis=1) - 1).max() > 1e-8:
            raise UserError(
                f"policy: {self.reference.shape} probabilities were expected, each row summing to 1"
            )
        if pi[self.reference == 0].max(initial=0) > 0:
            raise UserError(
                "policy: it gives a response that the reference never gives, so its KL is infinite"
            )
        pi = np.maximum(pi, 0)
        reward = float(self.weights @ (pi * self.reward).sum(axis=1))
        ratio = np.divide(pi, self.reference, out=np.ones_like(pi), where=self.reference > 0)
        kl = max(0.0, float(self.weights @ xlogy(pi, ratio).sum(axis=1)))
        return Solution(
            policy=pi,
            reward=reward,
            cost=float(self.weights @ (pi * self.cost).sum(axis=1)),
            kl=kl,
            objective=reward - self.beta * kl,
            multiplier=multiplier,
            status=status,
        )

    def violation(self, policy: np.ndarray) -> float | np.ndarray:
        """E[cost] - threshold, of the average or, under per-prompt constraints, of each prompt."""
        return self._to_group((np.atleast_2d(policy) * self._excess).sum(axis=1)) - self._room

    def penalised_value(self, policy: np.ndarray, penalty: float, kind: Penalty = "rectified") -> float:
        """F - penalty * burden: the rectified mean cost, the mean rectified cost or the plain mean cost."""
        if kind == "rectified":
            violation = np.maximum(self.violation(policy), 0)
            burden = float(self.weights @ violation) if self.per_prompt else violation
        else:
            table = self._rectified_cost() if kind == "per_sample" else self.cost - self._limit()
            burden = float(self.weights @ (np.atleast_2d(policy) * table).sum(axis=1))
        return self.evaluate(policy).objective - penalty * burden

    def dual(self, multiplier: float | np.ndarray) -> float:
        """D = max over policies of F - multiplier * (E[cost] - threshold); convex, least at the optimum.

        beta * E_x log E_reference exp((reward - multiplier * (cost - threshold)) / beta): one dimension, no
        policy, only scores of reference samples. Source: CAN, arXiv 2405.19544.
        """
        price = self._per_prompt(multiplier)
        scores = self.reward - price * (self.cost - self._limit())
        if self.beta == 0:
            return float(self.weights @ np.where(self.reference > 0, scores, -np.inf).max(axis=1))
        return self.beta * float(self.weights @ logsumexp(self._log_reference + scores / self.beta, axis=1))

    # ---- the optima -------------------------------------------------------------------------------------

    def tilted(self, multiplier: float | np.ndarray) -> Solution:
        """The maximiser of F - multiplier * E[cost]; at beta = 0 the best response, ties as the reference."""
        if not (np.asarray(multiplier) >= 0).all():
            raise UserError(f"multiplier is {multiplier}; a number of at least 0 was expected")
        return self.evaluate(self._tilt(multiplier, self._excess), multiplier)

    def smallest_cost(self) -> float | np.ndarray:
        """The least E[cost] that any policy within the reference's support reaches."""
        return self._to_group(self._least)

    def constrained_optimum(self) -> Solution:
        """The best feasible policy; `.multiplier` is the constraint's price at it (0 where it is slack).

        Where only the least cost is allowed (tight) the price is infinite under KL. Raises UserError, naming
        the smallest reachable cost, where nothing is feasible.
        """
        room, spread = np.atleast_1d(self._room), max(float(self._excess.max()), np.finfo(float).tiny)
        if (room < -_TIGHT * spread).any():
            worst = int(np.argmin(room))
            where = f" for prompt {worst}" if self.per_prompt else ""
            least, limit = np.atleast_1d(self.smallest_cost())[worst], np.atleast_1d(self.threshold)[worst]
            raise UserError(
                f"no policy meets threshold {limit:.6g}{where}: the smallest reachable cost is {least:.6g}"
            )
        if self.beta == 0:
            return self._without_kl()
        price = self._solve_multiplier()
        tight = np.isinf(price)
        statuses = np.where(tight, "tight", np.where(price > 0, "active", "slack"))
        status = next(s for s in ("tight", "active", "slack") if (statuses == s).any())
        multiplier = price if self.per_prompt else float(price[0])
        return self.evaluate(self._tilt(multiplier, self._excess), multiplier, status)

    def penalised_optimum(self, penalty: float, kind: Penalty = "rectified") -> Solution:
        """The maximiser of `penalised_value`. Three penalties that the literature calls by one name:

        - rectified, F - penalty * [E[cost] - threshold]+ (CS-RLHF's theory, P3O): the constrained optimum
          *itself* once the penalty exceeds that optimum's multiplier, whatever the penalty; below it, the
          tilt by the penalty, which is infeasible. `.multiplier` is the effective price, min(penalty, price).
        - linear, F - penalty * E[cost] (CS-RLHF's released code): a tilt by the whole penalty; overshoots.
        - per_sample, F - penalty * E[(cost - threshold)+] (RePO's idea): safe samples cannot pay for unsafe
          ones; under KL no finite penalty makes it zero.

        Needs no feasible policy: an unreachable threshold is approached as closely as the penalty pays for.
        """
        if not penalty >= 0:
            raise UserError(f"penalty is {penalty}; a number of at least 0 was expected")
        if kind == "linear":
            return self.tilted(penalty)
        if kind == "per_sample":
            return self.evaluate(self._tilt(penalty, self._rectified_cost()), penalty)
        if kind != "rectified":
            raise UserError(f"kind is {kind!r}; 'rectified', 'linear' or 'per_sample' was expected")
        if self.beta == 0:
            return self._without_kl(penalty)
        price = np.minimum(self._solve_multiplier(), penalty)
        multiplier = price if self.per_prompt else float(price[0])
        return self.evaluate(self._tilt(multiplier, self._excess), multiplier)

    def frontier(self, multipliers: np.ndarray) -> list[Solution]:
        """The best tilt at each multiplier: no policy has more F at the same cost."""
        return [self.tilted(float(multiplier)) for multiplier in multipliers]

    def slater_bound(self, policy: np.ndarray) -> float | np.ndarray:
        """(F* - F(policy)) / (threshold - E[cost]) >= the optimal multiplier, for a strictly feasible policy.

        One safe policy that you already own, say the one that always refuses, thus bounds the penalty that
        is large enough. Under per-prompt constraints F splits by prompt and there is a bound for each.
        """
        slack = -np.asarray(self.violation(policy))
        if not (slack > 0).all():
            raise UserError("slater_bound: the policy must be strictly feasible (cost below the threshold)")
        best, given = self.constrained_optimum().policy, np.atleast_2d(np.asarray(policy, dtype=np.float64))
        gap = self._to_group(self._objective_by_prompt(best) - self._objective_by_prompt(given)) / slack
        return gap if self.per_prompt else float(gap)

    # ---- how ---------------------------------------------------------------------------------------------

    def _per_prompt(self, value: float | np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64).reshape(-1, 1), (len(self.reference), 1))

    def _limit(self) -> np.ndarray:
        return self._per_prompt(self.threshold)

    def _rectified_cost(self) -> np.ndarray:
        return np.where(self.reference > 0, np.maximum(self.cost - self._limit(), 0), 0.0)

    def _objective_by_prompt(self, policy: np.ndarray) -> np.ndarray:
        ratio = np.divide(policy, self.reference, out=np.ones_like(policy), where=self.reference > 0)
        return (policy * self.reward - self.beta * xlogy(policy, ratio)).sum(axis=1)

    def _tilt(self, multiplier: float | np.ndarray, cost: np.ndarray) -> np.ndarray:
        """reference * exp((reward - multiplier * cost) / beta), normalised. `cost` >= 0; an infinite
        price keeps only the responses that cost 0."""
        price = self._per_prompt(multiplier)
        burden = np.multiply(price, cost, out=np.zeros_like(cost), where=cost > 0)  # inf * 0 = 0 here
        scores = np.where(self.reference > 0, self.reward - burden, -np.inf)
        if self.beta == 0:
            best = scores.max(axis=1, keepdims=True)
            weight = self.reference * (scores >= best - 1e-12 * (1 + np.abs(best)))
        else:
            logits = self._log_reference + scores / self.beta
            weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weight / weight.sum(axis=1, keepdims=True)

    def _cost_and_slope(self, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[cost above the least] of the tilt and its derivative, -Var(cost)/beta: each (constraints,)."""
        policy = self._tilt(price, self._excess)
        mean = (policy * self._excess).sum(axis=1)
        variance = (policy * (self._excess - mean[:, None]) ** 2).sum(axis=1)
        return np.atleast_1d(self._to_group(mean)), np.atleast_1d(self._to_group(-variance / self.beta))

    def _solve_multiplier(self) -> np.ndarray:
        """(constraints,) prices at which the tilt's cost is the threshold; 0 if slack, inf if out of reach.

        Newton on the logarithm of the cost above the least (costs decay exponentially in the price, so the
        logarithm is nearly straight), kept inside a bracket by bisection. All constraints move together.
        """
        room = np.atleast_1d(np.asarray(self._room, dtype=np.float64))
        low, price = np.zeros_like(room), np.zeros_like(room)
        cost, slope = self._cost_and_slope(low)
        spread = max(float(self._excess.max()), np.finfo(float).tiny)
        unreachable = room <= _TIGHT * spread
        slack = cost <= np.maximum(room, 0)
        todo = ~slack & ~unreachable
        high = np.full_like(room, np.inf)
        step = self.beta / spread
        for _ in range(_MOST_STEPS):
            if not todo.any():
                break
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                newton = price + np.log(cost / room) * cost / -slope
            high = np.where(todo & (cost <= room), np.minimum(high, price), high)
            low = np.where(todo & (cost > room), np.maximum(low, price), low)
            middle = np.where(np.isinf(high), 4 * low + step, (low + high) / 2)
            proposal = np.where(
                (newton > low) & (newton < np.minimum(high, 16 * low + 16 * step)), newton, middle
            )
            price = np.where(todo, proposal, price)
            cost, slope = self._cost_and_slope(price)
            close = np.abs(cost - room) <= 4 * np.finfo(float).eps * np.maximum(room, cost)
            todo &= ~close & (np.isinf(high) | (high - low > 4 * np.finfo(float).eps * low))
        return np.where(slack, 0.0, np.where(unreachable, np.inf, price))

    def _without_kl(self, penalty: float = np.inf) -> Solution:
        """beta = 0: the best mixture of responses, with the constraint or with a priced violation."""
        room = np.maximum(self._room, 0) if np.isinf(penalty) else self._room
        policy, price = best_mixture(
            self._excess,
            self.reward,
            self.reference > 0,
            weights=self.weights,
            room=room,
            penalty=penalty,
        )
        status = "active" if (price > 0).any() else "slack"
        return self.evaluate(policy, price if self.per_prompt else float(price[0]), status)


def violation_bound(suboptimality: float, *, penalty: float, multiplier: float) -> float:
    """How far an inexact optimiser can be from feasible: suboptimality / (penalty - multiplier).

    If the rectified objective of a policy is within `suboptimality` of its maximum, then [E[cost] -
    threshold]+ is at most this, for a penalty above the optimal multiplier; below it there is no promise
    (infinity). Because F(policy) <= F* + multiplier * [violation]+ by Lagrangian duality, while
    F(policy) - penalty * [violation]+ >= F* - suboptimality.
    """
    if suboptimality < 0:
        raise UserError(f"suboptimality is {suboptimality}; a number of at least 0 was expected")
    return suboptimality / (penalty - multiplier) if penalty > multiplier else np.inf
