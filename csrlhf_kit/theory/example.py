"""A small `FiniteProblem` with forty requests, used by notebooks 03 (which builds it step by step) and 04."""

from __future__ import annotations

import numpy as np

from csrlhf_kit.theory.problem import FiniteProblem


def town(*, beta: float = 0.3, threshold: float = 0.1) -> FiniteProblem:
    """Forty prompts, the first twenty harmful, with five responses each, from a refusal to full help."""
    rng = np.random.default_rng(3)
    harmful = np.arange(40) < 20
    reward = np.array([0.0, 0.6, 1.0, 1.6, 2.0]) + 0.3 * rng.standard_normal((40, 5))
    typical = np.where(harmful[:, None], [0, 0.05, 0.5, 0.8, 1.0], [0, 0, 0.02, 0.03, 0.05])
    cost = np.clip(typical + 0.05 * rng.standard_normal((40, 5)), 0, 1)
    reference = rng.dirichlet(np.full(5, 3.0), size=40)
    return FiniteProblem(reference, reward, cost, beta=beta, threshold=threshold)
