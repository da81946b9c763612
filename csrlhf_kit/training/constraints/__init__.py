"""Every constrained method by its name."""

from __future__ import annotations

from dataclasses import dataclass

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
    """max E[r] - beta KL: the cost is watched, not used. A = A_R."""


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
