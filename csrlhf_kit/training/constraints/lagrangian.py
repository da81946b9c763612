"""Constraints whose multiplier is learnt: by dual ascent, by a PID controller, and by the augmented Lagrangian.

Notation and protocol: `base.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from csrlhf_kit.errors import UserError
from csrlhf_kit.training.constraints.base import Constraint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Lagrangian(Constraint):
    """Dual ascent: min over lambda >= 0 of the maximum of E[r] - beta KL - lambda (J_C - d).

    log lambda <- log lambda + eta lambda (J_C - d), lambda <= lambda_max; A = (A_R - lambda A_C) / (1 +
    lambda). The factor lambda comes from the chain rule through the logarithm, as in Safe RLHF's code (Dai et al.
    2023, arXiv 2310.12773; defaults: lambda 1, eta 0.1, lambda_max 5, window 128).
    """

    initial: float = 1.0
    """lambda before the first step, > 0."""
    rate: float = 0.1
    """eta: step size of log lambda, per unit of cost."""
    maximum: float = 5.0
    """lambda_max."""
    scaled: bool = True
    """Keep the factor lambda in the update; without it log lambda moves equally fast at every lambda."""
    log_multiplier: float = field(default=0.0, init=False, repr=False)
    not_negative: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.initial <= self.maximum:
            raise UserError(f"initial is {self.initial}: expected 0 < initial <= maximum ({self.maximum})")
        self.log_multiplier = math.log(self.initial)

    @property
    def multiplier(self) -> float:
        return math.exp(self.log_multiplier)

    def update(self, costs: Tensor) -> None:
        speed = self.rate * (self.multiplier if self.scaled else 1.0)
        self.log_multiplier = min(self.log_multiplier + speed * self.violation, math.log(self.maximum))


@dataclass
class PIDLagrangian(Constraint):
    """lambda = [K_p D + I + K_d (D - D_previous)_+]_+ with D = J_C - d and I <- [I + K_i D]_+, capped at
    lambda_max.

    The proportional and derivative terms damp the oscillation of plain dual ascent (Stooke et al. 2020, arXiv
    2007.03964, Algorithm 2). The default gains are OmniSafe's. A = (A_R - lambda A_C) / (1 + lambda).
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
    not_negative: ClassVar[tuple[str, ...]] = ("proportional", "integral", "derivative", "initial")

    def __post_init__(self) -> None:
        super().__post_init__()
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
    not_negative: ClassVar[tuple[str, ...]] = ("rho", "initial")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.current = self.initial

    @property
    def multiplier(self) -> float:
        return self.current

    def update(self, costs: Tensor) -> None:
        self.current = max(self.current + self.rho * self.violation, 0.0)
