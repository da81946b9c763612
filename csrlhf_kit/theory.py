"""Constrained RLHF where everything can be computed: the front door.

- `FiniteProblem` (finite.py): the constrained problem on finitely many responses, solved exactly; the three
  penalties, Slater's bound, `violation_bound`.
- the batch hinge (hinge.py): what the exact penalty becomes when a batch estimates the mean cost.
- dual ascent (dual_ascent.py): the methods that learn the multiplier, simulated without a network.
- `suggest_penalty` (suggest.py): the multiplier before training, from scored reference samples.
"""

from csrlhf_kit.dual_ascent import PID, FixedGate, LogLagrangian, Trajectory, simulate_dual
from csrlhf_kit.finite import FiniteProblem, Solution, violation_bound
from csrlhf_kit.hinge import (
    GateEstimate,
    batch_hinge_equilibrium,
    effective_multiplier,
    equilibrium_violation,
    expected_hinge,
    hinge_bias,
    simulate_gate,
)
from csrlhf_kit.suggest import FrontierPoint, Suggestion, best_reward, suggest_penalty

__all__ = [
    "PID",
    "FiniteProblem",
    "FixedGate",
    "FrontierPoint",
    "GateEstimate",
    "LogLagrangian",
    "Solution",
    "Suggestion",
    "Trajectory",
    "batch_hinge_equilibrium",
    "best_reward",
    "effective_multiplier",
    "equilibrium_violation",
    "expected_hinge",
    "hinge_bias",
    "simulate_dual",
    "simulate_gate",
    "suggest_penalty",
    "violation_bound",
]
