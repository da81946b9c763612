"""Different thresholds for different prompts: one constraint per group. Builds on any constraint of the room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from csrlhf_kit.errors import UserError
from csrlhf_kit.training.constraints.base import Constraint
from csrlhf_kit.training.constraints.penalties import RectifiedPrompt


@dataclass
class PerGroup(Constraint):
    """One constraint for each group of prompts: J_C(group) <= d_group, a window and a multiplier each.

    CS-RLHF names its single threshold for every context as a limitation; here the group of a prompt (its category,
    stratum or source) chooses. An episode's advantages are combined with the multiplier or gate of its own group,
    which depends on that group's costs only. Groups without a constraint of their own share the one named "".
    Works with any method that acts through the advantages and groups no answers itself.
    """

    constraints: dict[str, Constraint] = field(default_factory=dict)
    """Group -> its constraint; the one of "" is for all other groups."""
    current: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" not in self.constraints:
            raise UserError('constraints has no "": expected a constraint for the groups that are not named')
        for group, constraint in self.constraints.items():
            in_loss = type(constraint).extra_loss is not Constraint.extra_loss
            if in_loss or isinstance(constraint, PerGroup | RectifiedPrompt):
                raise UserError(
                    f"group {group!r} has a {type(constraint).__name__}: expected a method that acts through "
                    "the advantages and groups no answers itself"
                )
        self.threshold = self.constraints[""].threshold
        self.parts: list[tuple[Constraint, Tensor]] = []  # (constraint, its rows), of the last step

    @property
    def violation(self) -> float:
        """The worst group's violation; nan before the first episode."""
        seen = [constraint.violation for constraint in self.constraints.values() if constraint.recent]
        return max(seen, default=math.nan)

    @property
    def multiplier(self) -> float:
        """Mean of the groups' multipliers over the latest step's episodes."""
        return self.current

    def observe(self, costs: Tensor, groups: Sequence[str] | None = None) -> None:
        if groups is None or len(groups) != len(costs):
            raise UserError(f"{len(costs)} episodes came without groups: expected the group of each prompt")
        names = [group if group in self.constraints else "" for group in groups]
        self.parts = []
        for name in dict.fromkeys(names):
            rows = torch.tensor([i for i, n in enumerate(names) if n == name], device=costs.device)
            self.parts.append((self.constraints[name], rows))
            self.constraints[name].observe(costs[rows])
        super().observe(costs, groups)
        self.current = math.fsum(c.multiplier * len(rows) for c, rows in self.parts) / len(costs)

    def shape(self, costs: Tensor) -> Tensor:
        return self._each("shape", costs)

    def shape_rewards(self, rewards: Tensor, costs: Tensor) -> Tensor:
        return self._each("shape_rewards", rewards, costs)

    def combine(self, reward_advantages: Tensor, cost_advantages: Tensor) -> Tensor:
        return self._each("combine", reward_advantages, cost_advantages)

    def _each(self, method: str, *tensors: Tensor) -> Tensor:
        """Apply `method` of each group's constraint to that group's rows; the result is in the batch's order."""
        whole = torch.empty_like(tensors[0])
        for constraint, rows in self.parts:
            whole[rows] = getattr(constraint, method)(*(tensor[rows] for tensor in tensors))
        return whole

    def stats(self) -> dict[str, float]:
        each = {
            f"{name}/{group or 'other'}": getattr(constraint, name)
            for group, constraint in self.constraints.items()
            for name in ("multiplier", "window_cost")
            if constraint.recent
        }
        return super().stats() | each

    def settings(self) -> dict[str, Any]:
        own = {group: constraint.settings() for group, constraint in self.constraints.items()}
        return super().settings() | {"constraints": own}

    def state_dict(self) -> dict[str, Any]:
        inner = {group: constraint.state_dict() for group, constraint in self.constraints.items()}
        return super().state_dict() | {"inner": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("inner", {}).keys() != self.constraints.keys():
            raise UserError("the constraint's state is of other groups: expected those of this PerGroup")
        for group, constraint in self.constraints.items():
            constraint.load_state_dict(state["inner"][group])
        self.recent, self.current = state["recent"], state["current"]
