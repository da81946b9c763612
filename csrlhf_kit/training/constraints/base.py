"""How a cost limit enters PPO: the protocol that all methods share.

Notation: J_C = E[c] is the mean cost per episode, d the `threshold`, and the constraint is J_C <= d (CS-RLHF and
Safe RLHF write J_C = E[C] + d, so that their "d" is minus this threshold). A_R and A_C are the advantages of
reward and cost, A their combination.

PPO calls, once per step and in this order: `observe` with the raw costs (and the group of each episode's
prompt), `shape` and `shape_rewards` on the episodes' costs and rewards, and `combine` on the two advantages; and
`extra_loss` per mini-batch. A method is a small class that overrides what it changes (`penalties.py`,
`lagrangian.py`), and a name in `__init__.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from csrlhf_kit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Constraint:
    """What all methods share: the threshold, and the mean cost over a window of recent episodes."""

    threshold: float = 0.0
    """d: largest mean cost allowed, in the unit of the costs (probability or logit)."""
    window: int = 128
    """Number of recent episodes whose mean cost estimates J_C."""
    recent: list[float] = field(default_factory=list, init=False, repr=False)

    not_negative: ClassVar[tuple[str, ...]] = ()
    """Settings that must be finite and at least 0."""
    kl_in_costs: ClassVar[bool] = True
    """Whether costs include +beta * KL, which keeps the KL weight at beta in (A_R - lambda A_C) / (1 + lambda)."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"window is {self.window}: expected at least one episode")
        for name in self.not_negative:
            value = getattr(self, name)
            if not value >= 0 or math.isinf(value):
                raise UserError(f"{name} is {value}: expected a finite number >= 0")

    @property
    def window_cost(self) -> float:
        """Mean cost of the last `window` episodes; nan before the first."""
        return math.fsum(self.recent) / len(self.recent) if self.recent else math.nan

    @property
    def violation(self) -> float:
        """Window mean minus threshold; positive if the constraint is violated."""
        return self.window_cost - self.threshold

    @property
    def multiplier(self) -> float:
        """Effective multiplier of the latest step: the lambda in its gradient."""
        return 0.0

    def shape(self, costs: Tensor) -> Tensor:
        """Episode costs (batch,) for the cost critic and the cost advantages."""
        return costs

    def shape_rewards(self, rewards: Tensor, costs: Tensor) -> Tensor:
        """Episode rewards (batch,) for the reward critic and the reward advantages."""
        return rewards

    def observe(self, costs: Tensor, groups: Sequence[str] | None = None) -> None:
        """Take in the episode costs (batch,) of this step; called once per step, before all else.

        groups: the group of each episode's prompt (PPO's default: the prompt itself); most methods ignore it.
        """
        self.recent = (self.recent + costs.double().tolist())[-self.window :]
        self.update(costs)

    def update(self, costs: Tensor) -> None:
        """Change the multiplier; called once per step, after the window has been extended."""

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        """The advantages (batch, length) for PPO's clipped objective, by default from `mix`."""
        return mix(reward_advantages, cost_advantages, self.multiplier)

    def extra_loss(self, ratio: Tensor, cost_advantages: Tensor, response_mask: Tensor) -> Tensor | None:
        """An extra loss (a scalar, in cost units per episode) on a mini-batch's ratios (batch, length), or None."""
        return None

    def stats(self) -> dict[str, float]:
        """The constraint's part of a step's metrics."""
        names = ("multiplier", "window_cost", "threshold")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """The class's name and options as JSON values, without its state."""
        chosen = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.init}
        return {"name": type(self).__name__, **chosen}

    def state_dict(self) -> dict[str, Any]:
        """The state: the `init=False` fields as JSON values, which keep floats exact."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if not spec.init}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            if name not in state:
                raise UserError(f"the constraint's state has no {name!r}: expected a {type(self).__name__}'s")
            setattr(self, name, state[name])


def mix(reward_advantages: Tensor, cost_advantages: Tensor, multiplier: float | Tensor) -> Tensor:
    """(A_R - lambda A_C) / (1 + lambda), all (batch, length); multiplier: lambda, one number or (batch, 1)."""
    return (reward_advantages - multiplier * cost_advantages) / (1.0 + multiplier)
