"""How a cost limit enters PPO: one small class per method, one shared protocol.

Notation: J_C = E[c] is the mean cost of an episode, d the `threshold`, and the constraint is J_C <= d (both
papers write J_C = E[C] + d, so that their "d" is minus this threshold). A_R and A_C are the advantages of
reward and cost.

PPO calls, once a step and in this order: `observe` with the raw costs (and the group that each episode's
prompt belongs to), `shape` and `shape_rewards` on the episodes' costs and rewards, `combine` on the two
advantages; and `extra_loss` in each mini-batch. Another method overrides what it changes and touches no
other file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError


@dataclass
class Constraint:
    """What all methods share: the threshold, and the mean cost over a window of recent episodes."""

    threshold: float = 0.0
    """Largest mean cost allowed, in the unit of the costs (probability or logit)."""
    window: int = 128
    """Number of recent episodes whose mean cost estimates J_C."""
    recent: list[float] = field(default_factory=list, init=False, repr=False)

    kl_in_costs: ClassVar[bool] = True
    """Whether costs carry +beta * KL, which keeps the KL weight at beta in (A_R - lambda A_C) / (1 +
    lambda).
    """

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"window is {self.window}: expected at least one episode")

    @property
    def window_cost(self) -> float:
        """Mean cost of the last `window` episodes; nan before the first."""
        return math.fsum(self.recent) / len(self.recent) if self.recent else math.nan

    @property
    def violation(self) -> float:
        """Window mean minus threshold; positive where the constraint is broken."""
        return self.window_cost - self.threshold

    @property
    def multiplier(self) -> float:
        """Effective multiplier of the latest step: the lambda that the gradient feels."""
        return 0.0

    def shape(self, costs: Tensor) -> Tensor:
        """Episode costs (batch,) as the cost critic and the cost advantages shall see them."""
        return costs

    def shape_rewards(self, rewards: Tensor, costs: Tensor) -> Tensor:
        """Episode rewards (batch,) as the reward critic and the reward advantages shall see them."""
        return rewards

    def observe(self, costs: Tensor, groups: Sequence[str] | None = None) -> None:
        """Take in the episode costs (batch,) of this step; called once a step, before all else.

        groups: the group of each episode's prompt (PPO's default: the prompt itself), for those that look.
        """
        self.recent = (self.recent + costs.double().tolist())[-self.window :]
        self.update(costs)

    def update(self, costs: Tensor) -> None:
        """Change the multiplier, once a step, after the window has been extended."""

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        """The advantages (batch, length) that PPO's clipped objective uses: (A_R - lambda A_C) / (1 +
        lambda).
        """
        return _mix(reward_advantages, cost_advantages, self.multiplier)

    def extra_loss(self, ratio: Tensor, cost_advantages: Tensor, actions: Tensor) -> Tensor | None:
        """An extra loss on the ratios (batch, length) of a mini-batch, in cost units per episode; None for
        none.
        """
        return None

    def stats(self) -> dict[str, float]:
        """What a step's metrics say about the constraint."""
        names = ("multiplier", "window_cost", "threshold")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """What was chosen, as JSON values: the method's name and its options, none of its state."""
        chosen = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.init}
        return {"name": type(self).__name__, **chosen}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as JSON values (exact: floats survive a round trip)."""
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            if name not in state:
                raise UserError(f"the constraint's state has no {name!r}: expected a {type(self).__name__}'s")
            setattr(self, name, state[name])


def _mix(reward_advantages: Tensor, cost_advantages: Tensor, multiplier: float | Tensor) -> Tensor:
    return (reward_advantages - multiplier * cost_advantages) / (1.0 + multiplier)


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0 or math.isinf(value):
            raise UserError(f"{name} is {value}: expected a finite number >= 0")


@dataclass
class Unconstrained(Constraint):
    """max E[r] - beta KL: the cost is watched, not used. A = A_R."""


@dataclass
class FixedPenalty(Constraint):
    """The rectified penalty: max E[r] - beta KL - lambda [J_C - d]_+ with lambda fixed and large.

    Its gradient is that of a linear penalty where J_C > d, and the reward's alone where not:
    A = (A_R - g lambda A_C) / (1 + g lambda), g = 1[J_C estimate > d].
    The ReLU is of an expectation, so g needs an estimate of J_C that says little about the batch whose
    gradient it gates (a hinge of a batch mean is biased, Jensen). CS-RLHF (Pandit et al. 2025, arXiv
    2510.03520) states this objective; its released code runs `LinearPenalty`.

    How exact: the theorem's "any lambda above lambda* has the constrained optimum" asks for J_C itself and
    for no division by 1 + g lambda. With J_C itself this class settles, for any lambda above m*, on the tilt
    pi_ref exp((r - m* c) / (beta (1 + m*))) that just meets d: the division spares the KL, so that this is
    the constrained optimum of KL weight beta (1 + m*). With an estimate, the gate is open on a share of the
    steps that depends on its noise, and lambda decides on which side of d the cost settles (`hinge.py`;
    `suggest_penalty(..., normalised=True)` finds m* and a lambda).
    """

    penalty: float = 20.0
    """lambda, fixed. With an exact gate all values above the (normalised) optimal multiplier act alike; with a
    noisy one, too small settles above the threshold and too large below."""
    gate: Literal["window", "batch", "half", "ema"] = "window"
    """Estimate behind the gate: window mean, this batch, the other half of this batch, or a moving
    average.
    """
    ema_decay: float = 0.8
    """Weight of the past in the moving average, per step."""
    ema: float | None = field(default=None, init=False, repr=False)
    open_share: float = field(default=0.0, init=False, repr=False)
    gates: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(penalty=self.penalty)
        if self.gate not in ("window", "batch", "half", "ema"):
            raise UserError(f"gate is {self.gate!r}: expected window, batch, half or ema")

    @property
    def strength(self) -> float:
        """lambda of the coming update, where the gate is open."""
        return self.penalty

    @property
    def multiplier(self) -> float:
        return self.strength * self.open_share

    def update(self, costs: Tensor) -> None:
        mean = float(costs.double().mean())
        self.ema = mean if self.ema is None else self.ema_decay * self.ema + (1 - self.ema_decay) * mean
        estimates = {"window": self.window_cost, "batch": mean, "ema": self.ema}
        if self.gate == "half":  # each half is gated by the mean cost of the other
            half = costs.shape[0] // 2
            self.gates = torch.empty_like(costs)
            self.gates[:half] = float(costs[half:].mean() > self.threshold)
            self.gates[half:] = float(costs[:half].mean() > self.threshold)
        else:
            self.gates = torch.full_like(costs, float(estimates[self.gate] > self.threshold))
        self.open_share = float(self.gates.mean())

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return _mix(reward_advantages, cost_advantages, self.strength * self.gates.unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ema": self.ema, "open_share": self.open_share}


@dataclass
class AdaptivePenalty(FixedPenalty):
    """A rectified penalty that is raised until the window is feasible, and never lowered.

    Exactness asks for penalty > lambda* and no more, but lambda* is unknown: start low, and multiply by
    `growth` whenever the window has been infeasible for `patience` steps and its violation has not fallen by
    the share `progress` meanwhile. From below, ceil(log(lambda* / penalty) / log(growth)) raises suffice, and
    the last one exceeds lambda* by at most the factor `growth`. Beyond lambda* the penalised maximum *is* the
    constrained optimum, whatever the penalty, so there is nothing to come down for; a Lagrange multiplier, by
    contrast, has to. Without the test of progress a policy that is on its way, held back by its step size
    only, would be charged for the optimiser's slowness, and with lambda / (1 + lambda) near 1 the reward
    would count for nothing.

    Sources: Nocedal & Wright 2006, Numerical Optimization, section 17.2 (increase the penalty until the
    minimiser is feasible); Byrd, Nocedal & Waltz 2008, "Steering exact penalty methods" (increase it only
    where the step makes too little progress).
    """

    penalty: float = 1.0
    """lambda before the first raise, > 0."""
    growth: float = 2.0
    """Factor of a raise, > 1."""
    patience: int = 5
    """Infeasible steps in a row that are looked at together."""
    progress: float = 0.1
    """Share of the violation that these steps must have removed; otherwise lambda is raised."""
    maximum: float = 100.0
    """lambda is not raised beyond this: no policy may be feasible at all."""
    current: float = field(default=0.0, init=False, repr=False)
    infeasible: int = field(default=0, init=False, repr=False)
    mark: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.penalty <= self.maximum:
            raise UserError(f"penalty is {self.penalty}: expected 0 < penalty <= maximum ({self.maximum})")
        if not self.growth > 1 or self.patience < 1 or not 0 <= self.progress < 1:
            raise UserError(
                f"growth, patience, progress are {self.growth}, {self.patience}, {self.progress}: "
                "expected growth > 1, patience >= 1 and 0 <= progress < 1"
            )
        self.current = self.penalty

    @property
    def strength(self) -> float:
        return self.current

    def update(self, costs: Tensor) -> None:
        super().update(costs)
        if self.violation <= 0:
            self.infeasible, self.mark = 0, None
            return
        self.mark = self.violation if self.mark is None else self.mark
        self.infeasible += 1
        if self.infeasible == self.patience:
            if self.violation > (1 - self.progress) * self.mark:
                self.current = min(self.growth * self.current, self.maximum)
            self.infeasible, self.mark = 0, self.violation

    def state_dict(self) -> dict[str, Any]:
        own = {"current": self.current, "infeasible": self.infeasible, "mark": self.mark}
        return super().state_dict() | own


@dataclass
class LinearPenalty(Constraint):
    """A fixed linear penalty: max E[r] - beta KL - lambda E[c]; the threshold has no effect.

    A = (A_R - lambda A_C) / (1 + lambda). What CS-RLHF's released trainer runs (lambda = 20).
    """

    penalty: float = 20.0
    """lambda, fixed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(penalty=self.penalty)

    @property
    def multiplier(self) -> float:
        return self.penalty


@dataclass
class RectifiedSample(LinearPenalty):
    """A penalty on each sample's excess: max E[r] - beta KL - lambda E[(c - d)_+].

    An unsafe answer cannot be paid for by safe ones. The idea of RePO (Peng et al. 2024, arXiv 2410.19933),
    per sample instead of per prompt, with lambda fixed. With the KL term no finite lambda is exact: unsafe
    mass decays, but never to zero.
    """

    def shape(self, costs: Tensor) -> Tensor:
        return (costs - self.threshold).clamp_min(0.0)


@dataclass
class RectifiedPrompt(LinearPenalty):
    """A constraint on every prompt: max E[r] - beta KL - lambda E_x[(J_C(x) - d)_+], J_C(x) = E[c | x].

    RePO's objective (Peng et al. 2024, arXiv 2410.19933): a prompt that is answered unsafely cannot be paid
    for by another. Its gradient gates each prompt, A = (A_R - g lambda A_C) / (1 + g lambda), g = 1[J_C(x) >
    d]. An episode is gated by the mean cost of the *other* answers to its prompt in the batch (PPO's
    `samples_per_prompt`), which says nothing about its own; a prompt that is answered once is gated by that
    answer, the best that is known of it.
    """

    gates: Tensor | None = field(default=None, init=False, repr=False)
    open_share: float = field(default=0.0, init=False, repr=False)

    @property
    def multiplier(self) -> float:
        return self.penalty * self.open_share

    def observe(self, costs: Tensor, groups: Sequence[str] | None = None) -> None:
        place = {group: index for index, group in enumerate(dict.fromkeys(groups or ()))}
        index = torch.tensor([place[g] for g in groups] if groups else list(range(len(costs))))
        index = index.to(costs.device)
        counts = torch.bincount(index)[index]
        totals = torch.zeros_like(costs).index_add(0, index, costs)[index]
        others = torch.where(counts > 1, (totals - costs) / (counts - 1).clamp_min(1), costs)
        self.gates = (others > self.threshold).to(costs.dtype)
        self.open_share = float(self.gates.mean())
        super().observe(costs, groups)

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return _mix(reward_advantages, cost_advantages, self.penalty * self.gates.unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"open_share": self.open_share}


@dataclass
class RewardShaping(Constraint):
    """max E[r - nu c] - beta KL: plain PPO on a reward from which the cost has been taken off.

    Safe RLHF's ablation (Dai et al. 2023, arXiv 2310.12773; nu in {0.01 ... 100}). Against `LinearPenalty`:
    one critic for the sum instead of one for each part, and nothing is divided by 1 + nu, so that the KL
    weighs less and less beside r - nu c as nu grows. The threshold has no effect.
    """

    weight: float = 1.0
    """nu, rewards for one unit of cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(weight=self.weight)

    @property
    def multiplier(self) -> float:
        return self.weight

    def shape_rewards(self, rewards: Tensor, costs: Tensor) -> Tensor:
        return rewards - self.weight * costs

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return reward_advantages


@dataclass
class Lagrangian(Constraint):
    """Dual ascent: min over lambda >= 0 of the maximum of E[r] - beta KL - lambda (J_C - d).

    log lambda <- log lambda + eta lambda (J_C - d), lambda <= lambda_max; A = (A_R - lambda A_C) / (1 +
    lambda). The factor lambda is the chain rule through the logarithm, as Safe RLHF codes it (Dai et al.
    2023, arXiv 2310.12773; defaults: lambda 1, eta 0.1, lambda_max 5, window 128).
    """

    initial: float = 1.0
    """lambda before the first step, > 0."""
    rate: float = 0.1
    """eta, step size of log lambda."""
    maximum: float = 5.0
    """lambda_max."""
    scaled: bool = True
    """Keep the factor lambda in the update; without it log lambda moves at the same speed at every lambda."""
    log_multiplier: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(rate=self.rate)
        if not 0 < self.initial <= self.maximum:
            raise UserError(f"initial is {self.initial}: expected 0 < initial <= maximum ({self.maximum})")
        self.log_multiplier = math.log(self.initial)

    @property
    def multiplier(self) -> float:
        return math.exp(self.log_multiplier)

    def update(self, costs: Tensor) -> None:
        speed = self.rate * (self.multiplier if self.scaled else 1.0)
        self.log_multiplier = min(self.log_multiplier + speed * self.violation, math.log(self.maximum))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"log_multiplier": self.log_multiplier}


@dataclass
class PIDLagrangian(Constraint):
    """lambda = [K_p D + I + K_d (D - D_previous)_+]_+ with D = J_C - d and I <- [I + K_i D]_+, capped at
    lambda_max.

    The proportional and derivative terms damp the oscillation of plain dual ascent (Stooke et al. 2020, arXiv
    2007.03964, Algorithm 2). Gains as in OmniSafe. A = (A_R - lambda A_C) / (1 + lambda).
    """

    proportional: float = 0.1
    """K_p."""
    integral: float = 0.01
    """K_i."""
    derivative: float = 0.01
    """K_d."""
    initial: float = 0.0
    """The integral I before the first step."""
    maximum: float = 100.0
    """lambda_max."""
    accumulated: float = field(default=0.0, init=False, repr=False)
    previous: float | None = field(default=None, init=False, repr=False)
    current: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        gains = {"proportional": self.proportional, "integral": self.integral, "derivative": self.derivative}
        _not_negative(**gains, initial=self.initial)
        self.accumulated = self.current = self.initial

    @property
    def multiplier(self) -> float:
        return self.current

    def update(self, costs: Tensor) -> None:
        violation = self.violation
        rise = 0.0 if self.previous is None else max(violation - self.previous, 0.0)
        self.accumulated = min(max(self.accumulated + self.integral * violation, 0.0), self.maximum)
        value = self.proportional * violation + self.accumulated + self.derivative * rise
        self.current, self.previous = min(max(value, 0.0), self.maximum), violation

    def state_dict(self) -> dict[str, Any]:
        own = {"accumulated": self.accumulated, "previous": self.previous, "current": self.current}
        return super().state_dict() | own


@dataclass
class AugmentedLagrangian(Constraint):
    """max E[r] - beta KL - ([mu + rho D]_+^2 - mu^2) / (2 rho) with D = J_C - d, then mu <- [mu + rho D]_+.

    The gradient's multiplier is lambda = [mu + rho D]_+ (Hestenes 1969; Powell 1969; Rockafellar 1973),
    which is also the next mu. A = (A_R - lambda A_C) / (1 + lambda).
    """

    rho: float = 1.0
    """Curvature of the penalty, and step size of the multiplier."""
    initial: float = 0.0
    """mu before the first step."""
    current: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(rho=self.rho, initial=self.initial)
        self.current = self.initial

    @property
    def multiplier(self) -> float:
        return self.current

    def update(self, costs: Tensor) -> None:
        self.current = max(self.current + self.rho * self.violation, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"current": self.current}


@dataclass
class P3O(Constraint):
    """min -L_clip(A_R) + kappa [E(sum_t (ratio_t - 1) A_C,t) + J_C - d]_+: the penalty is in PPO's surrogate.

    At ratio 1 this is the gate of `FixedPenalty`; within a step the surrogate also sees its own progress, and
    the penalty switches off when the predicted cost reaches the threshold. Of the clipped and the free ratio
    the more pessimistic counts, as in PPO (Zhang et al. 2022, arXiv 2205.11814; kappa 20 as in OmniSafe).
    Ratio - 1 instead of the paper's ratio: E(A_C) = 0 holds for a perfect critic only, and an early critic's
    error would be taken for a violation. Costs carry no KL term here, since nothing divides it out again.
    """

    penalty: float = 20.0
    """kappa."""
    clip: float = 0.2
    """Clip range of the cost surrogate's ratio."""

    kl_in_costs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(penalty=self.penalty, clip=self.clip)

    @property
    def multiplier(self) -> float:
        """kappa where the penalty is on at the start of the step, else 0."""
        return self.penalty if self.violation > 0 else 0.0

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return reward_advantages

    def extra_loss(self, ratio: Tensor, cost_advantages: Tensor, actions: Tensor) -> Tensor:
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        change = torch.maximum((ratio - 1) * cost_advantages, (clipped - 1) * cost_advantages)
        per_episode = (change * actions).sum(1).mean()
        return self.penalty * torch.relu(per_episode + self.violation)


@dataclass
class CRPO(Constraint):
    """Primal only: where J_C > d + eta, A = -A_C (descend the cost); else A = A_R (ascend the reward).

    Xu et al. 2021, arXiv 2011.05869, Algorithm 1. Costs carry +beta KL, so the KL weight is beta in both
    phases. There
    is no multiplier: 1 is reported in the cost phase, where the reward counts for nothing, and 0 in the
    reward phase.
    """

    tolerance: float = 0.0
    """eta, slack before the cost phase starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative(tolerance=self.tolerance)

    @property
    def multiplier(self) -> float:
        return 1.0 if self.violation > self.tolerance else 0.0

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return -cost_advantages if self.violation > self.tolerance else reward_advantages


CONSTRAINTS: dict[str, type[Constraint]] = {  # by the name that results, figures and commands use
    "ppo": Unconstrained,
    "fixed_penalty": FixedPenalty,
    "linear_penalty": LinearPenalty,
    "adaptive_penalty": AdaptivePenalty,
    "rectified_sample": RectifiedSample,
    "rectified_prompt": RectifiedPrompt,
    "reward_shaping": RewardShaping,
    "lagrangian": Lagrangian,
    "pid_lagrangian": PIDLagrangian,
    "augmented_lagrangian": AugmentedLagrangian,
    "p3o": P3O,
    "crpo": CRPO,
}


def make_constraint(method: str, *, threshold: float, penalty: float) -> Constraint:
    """The constraint that a method's name stands for, at its published constants.

    penalty: for the methods that have one (fixed_penalty, linear_penalty, rectified_sample, rectified_prompt,
    p3o; for adaptive_penalty it is the first lambda).

    Raises UserError for a name that `CONSTRAINTS` does not know.
    """
    if method not in CONSTRAINTS:
        raise UserError(f"method {method!r} is unknown: expected one of {', '.join(CONSTRAINTS)}")
    kind = CONSTRAINTS[method]
    return kind(threshold=threshold, **({"penalty": penalty} if hasattr(kind, "penalty") else {}))
