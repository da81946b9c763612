"""Theory: constrained RLHF where everything can be computed. Imports numpy and scipy only, and reads no file.

- problem.py: the constrained problem on finitely many responses, solved exactly; penalties and bounds.
- batch_hinge.py: what the exact penalty becomes when a batch estimates the mean cost.
- dual_ascent.py: the methods that learn the multiplier, simulated without a network.
- suggest.py, reweighting.py: the multiplier before training, from scored reference samples.
- certificate.py, intervals.py, judge_error.py, best_of_n.py: what can be promised about harm.
"""

from csrlhf_kit.theory.batch_hinge import (
    GateEstimate,
    batch_hinge_equilibrium,
    effective_multiplier,
    equilibrium_violation,
    expected_hinge,
    hinge_bias,
    simulate_gate,
)
from csrlhf_kit.theory.dual_ascent import PID, DualTrajectory, FixedGate, LogLagrangian, simulate_dual
from csrlhf_kit.theory.problem import FiniteProblem, Solution, violation_bound
from csrlhf_kit.theory.suggest import FrontierPoint, Suggestion, best_reward, suggest_penalty

__all__ = [
    "PID", "DualTrajectory", "FiniteProblem", "FixedGate", "FrontierPoint", "GateEstimate", "LogLagrangian",
    "Solution", "Suggestion", "batch_hinge_equilibrium", "best_reward", "effective_multiplier",
    "equilibrium_violation", "expected_hinge", "hinge_bias", "simulate_dual", "simulate_gate",
    "suggest_penalty", "violation_bound",
]  # fmt: skip
