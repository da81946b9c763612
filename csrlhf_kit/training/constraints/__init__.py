"""How a cost limit enters PPO: the table of methods by name. The protocol is in base.py, the methods in the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csrlhf_kit.errors import UserError
from csrlhf_kit.training.constraints.base import Constraint
from csrlhf_kit.training.constraints.lagrangian import AugmentedLagrangian, Lagrangian, PIDLagrangian
from csrlhf_kit.training.constraints.penalties import (
    CRPO,
    P3O,
    AdaptivePenalty,
    FixedPenalty,
    LinearPenalty,
    RectifiedPrompt,
    RectifiedSample,
    RewardShaping,
)


@dataclass
class Unconstrained(Constraint):
    """max E[r] - beta KL: the cost is measured but not used. A = A_R."""


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
    """The constraint with a method's name and published constants.

    threshold: largest mean cost. penalty: lambda of fixed_penalty, linear_penalty, rectified_sample,
    rectified_prompt and p3o, and the first lambda of adaptive_penalty; the others ignore it.
    Raises UserError for an unknown name.
    """
    if method not in CONSTRAINTS:
        raise UserError(f"method {method!r} is unknown: expected one of {', '.join(CONSTRAINTS)}")
    kind: Any = CONSTRAINTS[method]
    return kind(threshold=threshold, **({"penalty": penalty} if hasattr(kind, "penalty") else {}))
