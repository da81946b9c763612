"""Constraints whose strength is chosen, not learnt: fixed and rising penalties, and CRPO's switch.

Notation and protocol: `base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from csrlhf_kit.errors import UserError
from csrlhf_kit.training.constraints.base import Constraint, mix

if TYPE_CHECKING:  # here and below: the names of methods are told by `--help`, which waits for no torch
    from torch import Tensor


@dataclass
class FixedPenalty(Constraint):
    """The rectified penalty: max E[r] - beta KL - lambda [J_C - d]_+ with lambda fixed and large.

    Its gradient is that of a linear penalty if J_C > d, and the reward's alone otherwise:
    A = (A_R - g lambda A_C) / (1 + g lambda), g = 1[J_C estimate > d].
    The ReLU is applied to an expectation, so the estimate behind g should be nearly independent of the batch
    whose gradient it gates (by Jensen's inequality, the hinge of a batch mean is biased). CS-RLHF (Pandit et al.
    2025, arXiv 2510.03520) states this objective; its released code runs `LinearPenalty`.

    How exact: the theorem "any lambda above lambda* has the constrained optimum" needs the exact J_C and no
    division by 1 + g lambda. With the exact J_C and the division, any lambda above m* settles on the tilt pi_ref
    exp((r - m* c) / (beta (1 + m*))) that just meets d, the constrained optimum for the KL weight beta (1 + m*),
    since the division leaves out the KL. With an estimate, the gate is open on a share of the steps that depends
    on its noise, and lambda decides on which side of d the cost settles (`theory/batch_hinge.py`;
    `suggest_penalty(..., normalised=True)` finds m* and a lambda).
    """

    penalty: float = 20.0
    """lambda, fixed. With an exact gate, all values above the (normalised) optimal multiplier give the same result;
    with a noisy gate, a small value settles above the threshold and a large one below."""
    gate: Literal["window", "batch", "half", "ema"] = "window"
    """Estimate behind the gate: window mean, this batch, the other half of this batch, or a moving average."""
    ema_decay: float = 0.8
    """Weight of the old value in each step of the moving average."""
    ema: float | None = field(default=None, init=False, repr=False)
    open_share: float = field(default=0.0, init=False, repr=False)
    gates = None  # (batch,), of the step observed last; no field, since no checkpoint needs it
    not_negative: ClassVar[tuple[str, ...]] = ("penalty",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate not in ("window", "batch", "half", "ema"):
            raise UserError(f"gate is {self.gate!r}: expected window, batch, half or ema")

    @property
    def strength(self) -> float:
        """lambda of the next update if the gate is open."""
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
            self.gates = costs.new_empty(costs.shape)
            self.gates[:half] = float(costs[half:].mean() > self.threshold)
            self.gates[half:] = float(costs[:half].mean() > self.threshold)
        else:
            self.gates = costs.new_full(costs.shape, float(estimates[self.gate] > self.threshold))
        self.open_share = float(self.gates.mean())

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        assert self.gates is not None  # `observe` comes first
        return mix(reward_advantages, cost_advantages, self.strength * self.gates.unsqueeze(1))


@dataclass
class AdaptivePenalty(FixedPenalty):
    """A rectified penalty that is raised until the window is feasible, and never lowered.

    Exactness needs only penalty > lambda*, but lambda* is unknown: start low, and multiply by `growth` whenever
    the window has been infeasible for `patience` steps in which its violation has not fallen by the share
    `progress`. At most ceil(log(lambda* / penalty) / log(growth)) raises are needed, and the last one exceeds
    lambda* by at most the factor `growth`. Above lambda* the penalised maximum is the constrained optimum for
    every penalty, so lambda need not fall again, unlike a Lagrange multiplier. Without the test of progress,
    lambda would also rise while the policy improves slowly, and with lambda / (1 + lambda) near 1 the reward
    would have no weight.

    Sources: Nocedal & Wright 2006, Numerical Optimization, section 17.2 (increase the penalty until the
    minimiser is feasible); Byrd, Nocedal & Waltz 2008, "Steering exact penalty methods" (increase it only
    where the step makes too little progress).
    """

    penalty: float = 1.0
    """lambda before the first raise, > 0."""
    growth: float = 2.0
    """Factor of each raise, > 1."""
    patience: int = 5
    """Number of consecutive infeasible steps after which progress is tested."""
    progress: float = 0.1
    """Share of the violation that these steps must remove; otherwise lambda is raised."""
    maximum: float = 100.0
    """Largest lambda, reached if no policy is feasible."""
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


@dataclass
class LinearPenalty(Constraint):
    """A fixed linear penalty: max E[r] - beta KL - lambda E[c]; the threshold has no effect.

    A = (A_R - lambda A_C) / (1 + lambda). CS-RLHF's released trainer runs this (lambda = 20).
    """

    penalty: float = 20.0
    """lambda, fixed."""
    not_negative: ClassVar[tuple[str, ...]] = ("penalty",)

    @property
    def multiplier(self) -> float:
        return self.penalty


@dataclass
class RectifiedSample(LinearPenalty):
    """A penalty on each sample's excess: max E[r] - beta KL - lambda E[(c - d)_+].

    Safe answers cannot compensate for an unsafe one. The idea of RePO (Peng et al. 2024, arXiv 2410.19933), per
    sample instead of per prompt, with lambda fixed. With the KL term no finite lambda is exact: the probability
    of unsafe answers falls, but never to zero.
    """

    def shape(self, costs: Tensor) -> Tensor:
        return (costs - self.threshold).clamp_min(0.0)


@dataclass
class RectifiedPrompt(LinearPenalty):
    """A constraint on every prompt: max E[r] - beta KL - lambda E_x[(J_C(x) - d)_+], J_C(x) = E[c | x].

    RePO's objective (Peng et al. 2024, arXiv 2410.19933): other prompts cannot compensate for one that is
    answered unsafely. Its gradient gates each prompt: A = (A_R - g lambda A_C) / (1 + g lambda), g = 1[J_C(x) >
    d]. J_C(x) is estimated by the mean cost of the *other* answers to the prompt in the batch (PPO's
    `samples_per_prompt`), which are independent of the episode; with a single answer, by that answer itself.
    """

    open_share: float = field(default=0.0, init=False, repr=False)
    gates = None  # (batch,), of the step observed last

    @property
    def multiplier(self) -> float:
        return self.penalty * self.open_share

    def observe(self, costs: Tensor, groups: Sequence[str] | None = None) -> None:
        import torch

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
        assert self.gates is not None  # `observe` comes first
        return mix(reward_advantages, cost_advantages, self.penalty * self.gates.unsqueeze(1))


@dataclass
class RewardShaping(Constraint):
    """max E[r - nu c] - beta KL: plain PPO on the reward minus the weighted cost.

    Safe RLHF's ablation (Dai et al. 2023, arXiv 2310.12773; nu in {0.01 ... 100}). Unlike `LinearPenalty`, it has
    one critic for the sum instead of one for each part, and does not divide by 1 + nu, so that the KL weighs
    less compared with r - nu c as nu grows. The threshold has no effect.
    """

    weight: float = 1.0
    """nu: reward subtracted per unit of cost."""
    not_negative: ClassVar[tuple[str, ...]] = ("weight",)

    @property
    def multiplier(self) -> float:
        return self.weight

    def shape_rewards(self, rewards: Tensor, costs: Tensor) -> Tensor:
        return rewards - self.weight * costs

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return reward_advantages


@dataclass
class P3O(Constraint):
    """min -L_clip(A_R) + kappa [E(sum_t (ratio_t - 1) A_C,t) + J_C - d]_+: the penalty is in PPO's surrogate.

    At ratio 1 this is the gate of `FixedPenalty`; within a step the surrogate follows the policy, and the penalty
    switches off once the predicted cost reaches the threshold. Of the clipped and the unclipped ratio the more
    pessimistic counts, as in PPO (Zhang et al. 2022, arXiv 2205.11814; kappa 20 as in OmniSafe). The paper has
    ratio instead of ratio - 1; but E(A_C) = 0 holds only for a perfect critic, and an early critic's error would
    count as a violation. Costs include no KL term here, since nothing divides it out again. Each micro-batch has a
    hinge of its own, so that this method alone depends on `microbatch_size`, unless it is `minibatch_size`.
    """

    penalty: float = 20.0
    """kappa."""
    clip: float = 0.2
    """Clip range of the cost surrogate's ratio."""
    kl_in_costs: ClassVar[bool] = False
    not_negative: ClassVar[tuple[str, ...]] = ("penalty", "clip")

    @property
    def multiplier(self) -> float:
        """kappa if the penalty is on at the start of the step, else 0."""
        return self.penalty if self.violation > 0 else 0.0

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return reward_advantages

    def extra_loss(self, ratio: Tensor, cost_advantages: Tensor, response_mask: Tensor) -> Tensor:
        import torch

        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        change = torch.maximum((ratio - 1) * cost_advantages, (clipped - 1) * cost_advantages)
        per_episode = (change * response_mask).sum(1).mean()
        return self.penalty * torch.relu(per_episode + self.violation)


@dataclass
class CRPO(Constraint):
    """Primal only: if J_C > d + eta, A = -A_C (descend the cost); else A = A_R (ascend the reward).

    Xu et al. 2021, arXiv 2011.05869, Algorithm 1. Costs include +beta KL, so the KL weight is beta in both
    phases. There is no multiplier: 1 is reported in the cost phase, and 0 in the reward phase.
    """

    tolerance: float = 0.0
    """eta: the violation above which the cost phase starts."""
    not_negative: ClassVar[tuple[str, ...]] = ("tolerance",)

    @property
    def multiplier(self) -> float:
        return 1.0 if self.violation > self.tolerance else 0.0

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return -cost_advantages if self.violation > self.tolerance else reward_advantages
