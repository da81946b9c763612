"""Constrained RLHF on a finite response set, solved exactly.

    maximise  F(policy) = E[reward] - beta * KL(policy || reference)   subject to   E[cost] <= threshold

With finitely many responses, nothing is learnt or sampled: the optimum, its multiplier and the effect of every
penalty can be computed. PPO is measured against this, and the papers' theorems can be checked here.

All of it rests on one fact: the policy  reference * exp((reward - multiplier * cost) / beta), normalised per
prompt, maximises F - multiplier * E[cost], and its cost falls as the multiplier grows. Such a policy is called a
tilt (of the reference, by the multiplier). float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are first used
from scipy.special import logsumexp, xlogy

from csrlhf_kit.errors import UserError

Penalty = Literal["rectified", "linear", "per_sample"]
Status = Literal["slack", "active", "tight", "given"]
_TIGHT = 1e-13  # a threshold this close to the smallest cost (relative to the spread of costs) equals it


@dataclass(frozen=True)
class Solution:
    """A policy and its reward, cost and KL (nats), averaged over prompts by their weights."""

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
    multiplier: float
    """The multiplier by which this policy is a tilt."""
    status: Status = "given"
    """slack: the constraint is met anyway; active: it binds; tight: only the least possible cost meets it."""


class FiniteProblem:
    """One constrained problem over prompts and their responses.

    reference: (prompts, responses) probabilities, zero where a prompt has fewer responses; a single prompt
    may be given as (responses,). reward, cost: the same shape. beta: the KL weight in reward units, above 0.
    threshold: the largest allowed mean cost. prompt_weights: (prompts,) positive, normalised here; None: equal.

    Raises UserError for shapes, signs or values that are not as described.
    """

    def __init__(
        self,
        reference: np.ndarray,
        reward: np.ndarray,
        cost: np.ndarray,
        *,
        beta: float,
        threshold: float,
        prompt_weights: np.ndarray | None = None,
    ) -> None:
        self.reference = np.atleast_2d(np.asarray(reference, dtype=np.float64))
        prompts = len(self.reference)
        self.reward = self._table("reward", reward)
        self.cost = self._table("cost", cost)
        self.beta = float(beta)
        weights = np.ones(prompts) if prompt_weights is None else np.asarray(prompt_weights, dtype=np.float64)
        limit = np.asarray(threshold, dtype=np.float64)
        total = self.reference.sum(axis=1, keepdims=True)
        if not (self.reference >= 0).all() or np.abs(total - 1).max() > 1e-6:
            raise UserError("reference: each row must hold probabilities that sum to 1")
        if not (np.isfinite(self.beta) and self.beta > 0):
            raise UserError(f"beta is {beta}; a finite number above 0 was expected")
        if weights.shape != (prompts,) or not (np.isfinite(weights) & (weights > 0)).all():
            raise UserError(f"prompt_weights: {prompts} positive numbers were expected, one per prompt")
        if limit.shape != () or not np.isfinite(limit):
            raise UserError(f"threshold is {threshold}; one finite number was expected")
        self.reference = self.reference / total
        self.weights = weights / weights.sum()
        self.threshold = float(limit)
        with np.errstate(divide="ignore"):
            self._log_reference = np.log(self.reference)
        allowed = np.where(self.reference > 0, self.cost, np.inf)
        self._least = allowed.min(axis=1)  # (prompts,) the smallest possible cost of each prompt
        self._excess = np.where(self.reference > 0, self.cost - self._least[:, None], 0.0)
        self._room = self._mean(-self._least) + self.threshold  # threshold above the smallest possible cost

    def _table(self, name: str, values: np.ndarray) -> np.ndarray:
        table = np.atleast_2d(np.asarray(values, dtype=np.float64))
        if table.shape != self.reference.shape:
            raise UserError(
                f"{name} has shape {table.shape}; that of reference, {self.reference.shape}, was expected"
            )
        if not np.isfinite(table[self.reference > 0]).all():
            raise UserError(f"{name}: every response that the reference can give needs a finite number")
        return np.where(self.reference > 0, table, 0.0)

    def _mean(self, values: np.ndarray) -> float:
        """(prompts,) -> their weighted mean."""
        return float(self.weights @ values)

    # ---- evaluating a policy ----------------------------------------------------------------------------

    def evaluate(self, policy: np.ndarray, multiplier: float = np.nan, status: Status = "given") -> Solution:
        """The `Solution` of a policy (prompts, responses) within the reference's support, else UserError."""
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
            policy=pi, reward=reward, cost=float(self.weights @ (pi * self.cost).sum(axis=1)), kl=kl,
            objective=reward - self.beta * kl, multiplier=multiplier, status=status,
        )  # fmt: skip

    def violation(self, policy: np.ndarray) -> float:
        """E[cost] - threshold for a policy (prompts, responses)."""
        return self._mean((np.atleast_2d(policy) * self._excess).sum(axis=1)) - self._room

    def penalised_value(self, policy: np.ndarray, penalty: float, kind: Penalty = "rectified") -> float:
        """The objective F minus a penalty of one of the three kinds (see `penalised_optimum`)."""
        if kind == "rectified":
            burden = np.maximum(self.violation(policy), 0)
        else:
            table = self._rectified_cost() if kind == "per_sample" else self.cost - self.threshold
            burden = float(self.weights @ (np.atleast_2d(policy) * table).sum(axis=1))
        return self.evaluate(policy).objective - penalty * burden

    def dual(self, multiplier: float) -> float:
        """Dual function, max over policies of F - multiplier * (E[cost] - threshold): convex, minimal at the optimum.

        Equals beta * E_x log E_reference exp((reward - multiplier * (cost - threshold)) / beta), so that scored
        reference samples are enough to estimate it. Source: CAN, arXiv 2405.19544.
        """
        scores = self.reward - multiplier * (self.cost - self.threshold)
        return self.beta * float(self.weights @ logsumexp(self._log_reference + scores / self.beta, axis=1))

    # ---- the optima -------------------------------------------------------------------------------------

    def tilted(self, multiplier: float) -> Solution:
        """The maximiser of F - multiplier * E[cost]. Raises UserError for a negative multiplier."""
        if not multiplier >= 0:
            raise UserError(f"multiplier is {multiplier}; a number of at least 0 was expected")
        return self.evaluate(self._tilt(multiplier, self._excess), multiplier)

    def smallest_cost(self) -> float:
        """The smallest E[cost] of any policy within the reference's support."""
        return self._mean(self._least)

    def constrained_optimum(self) -> Solution:
        """The best feasible policy; its `multiplier` is the optimal one: 0 if slack, infinite if tight.

        Raises UserError, which states the smallest reachable cost, if no policy is feasible.
        """
        if self._room < -_TIGHT * self._spread():
            raise UserError(
                f"no policy meets threshold {self.threshold:.6g}: "
                f"the smallest reachable cost is {self.smallest_cost():.6g}"
            )
        price = self._solve_multiplier()
        status: Status = "tight" if np.isinf(price) else "active" if price > 0 else "slack"
        return self.evaluate(self._tilt(price, self._excess), price, status)

    def penalised_optimum(self, penalty: float, kind: Penalty = "rectified") -> Solution:
        """The maximiser of `penalised_value`, for three penalties that the literature calls by one name:

        - rectified, F - penalty * [E[cost] - threshold]+ (CS-RLHF's theory, P3O): the constrained optimum
          *itself* for every penalty above the optimal multiplier; below it, the tilt by the penalty, which is
          infeasible. The solution's `multiplier` is the smaller of the two.
        - linear, F - penalty * E[cost] (CS-RLHF's released code): a tilt by the whole penalty; overshoots.
        - per_sample, F - penalty * E[(cost - threshold)+] (RePO's idea): safe samples cannot make up for unsafe
          ones; because of the KL term, no finite penalty makes it zero.

        No policy need be feasible. Raises UserError for a negative penalty or another kind.
        """
        if not penalty >= 0:
            raise UserError(f"penalty is {penalty}; a number of at least 0 was expected")
        if kind == "linear":
            return self.tilted(penalty)
        if kind == "per_sample":
            return self.evaluate(self._tilt(penalty, self._rectified_cost()), penalty)
        if kind != "rectified":
            raise UserError(f"kind is {kind!r}; 'rectified', 'linear' or 'per_sample' was expected")
        price = min(self._solve_multiplier(), float(penalty))
        return self.evaluate(self._tilt(price, self._excess), price)

    def frontier(self, multipliers: np.ndarray) -> list[Solution]:
        """The tilt by each multiplier (multipliers,): no policy has a larger F at the same cost."""
        return [self.tilted(float(multiplier)) for multiplier in multipliers]

    def slater_bound(self, policy: np.ndarray) -> float:
        """(F* - F(policy)) / (threshold - E[cost]), an upper bound on the optimal multiplier.

        So one known safe policy, such as the one that always refuses, tells which penalty is large enough.
        Raises UserError unless the policy's cost is below the threshold.
        """
        slack = -self.violation(policy)
        if not slack > 0:
            raise UserError("slater_bound: the policy must be strictly feasible (cost below the threshold)")
        best, given = self.constrained_optimum().policy, np.atleast_2d(np.asarray(policy, dtype=np.float64))
        return self._mean(self._objective_by_prompt(best) - self._objective_by_prompt(given)) / slack

    # ---- computing ---------------------------------------------------------------------------------------

    def _spread(self) -> float:
        return max(float(self._excess.max()), np.finfo(float).tiny)

    def _rectified_cost(self) -> np.ndarray:
        return np.where(self.reference > 0, np.maximum(self.cost - self.threshold, 0), 0.0)

    def _objective_by_prompt(self, policy: np.ndarray) -> np.ndarray:
        ratio = np.divide(policy, self.reference, out=np.ones_like(policy), where=self.reference > 0)
        return (policy * self.reward - self.beta * xlogy(policy, ratio)).sum(axis=1)

    def _tilt(self, multiplier: float, cost: np.ndarray) -> np.ndarray:
        """reference * exp((reward - multiplier * cost) / beta), normalised, for `cost` >= 0.

        An infinite multiplier keeps only the responses of cost 0."""
        burden = np.multiply(multiplier, cost, out=np.zeros_like(cost), where=cost > 0)  # inf * 0 = 0 here
        scores = np.where(self.reference > 0, self.reward - burden, -np.inf)
        logits = self._log_reference + scores / self.beta
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weight / weight.sum(axis=1, keepdims=True)

    def _cost_above(self, price: float) -> float:
        """E[cost above the smallest] of a tilt."""
        return self._mean((self._tilt(price, self._excess) * self._excess).sum(axis=1))

    def _solve_multiplier(self) -> float:
        """The multiplier at which the tilt's cost equals the threshold; 0 if slack, inf if there is none.

        Brent's method on the logarithm of the cost above the smallest, which is nearly linear since costs decay
        exponentially in the multiplier.
        """
        room, spread, tiny = self._room, self._spread(), np.finfo(float).tiny
        if self._cost_above(0.0) <= max(room, 0):
            return 0.0
        if room <= _TIGHT * spread:
            return np.inf
        high = self.beta / spread
        while self._cost_above(high) > room:
            high *= 4

        def excess(price: float) -> float:
            return float(np.log(max(self._cost_above(price), tiny) / room))

        return float(scipy.optimize.brentq(excess, 0.0, high, xtol=tiny))


def violation_bound(suboptimality: float, *, penalty: float, multiplier: float) -> float:
    """Largest violation after inexact optimisation: suboptimality / (penalty - multiplier).

    If the rectified objective of a policy is within `suboptimality` of its maximum, then [E[cost] - threshold]+ is
    at most this for a penalty above the optimal multiplier; below, there is no bound (infinity). Proof: F(policy)
    <= F* + multiplier * [violation]+ by Lagrangian duality, and F(policy) - penalty * [violation]+ >= F* -
    suboptimality. Raises UserError for a negative suboptimality.
    """
    if suboptimality < 0:
        raise UserError(f"suboptimality is {suboptimality}; a number of at least 0 was expected")
    return suboptimality / (penalty - multiplier) if penalty > multiplier else np.inf
