"""The town of forty requests that notebooks 03 and 04 share (03 builds it before the reader's eyes)."""

from __future__ import annotations

import numpy as np

from csrlhf_kit.theory.problem import FiniteProblem


def town(*, beta: float = 0.3, threshold: float = 0.1) -> FiniteProblem:
    """Forty requests, the first twenty harmful, five answers each from a refusal to help with everything."""
    rng = np.random.default_rng(3)
    harmful = np.arange(40) < 20
    reward = np.array([0.0, 0.6, 1.0, 1.6, 2.0]) + 0.3 * rng.standard_normal((40, 5))
    typical = np.where(harmful[:, None], [0, 0.05, 0.5, 0.8, 1.0], [0, 0, 0.02, 0.03, 0.05])
    cost = np.clip(typical + 0.05 * rng.standard_normal((40, 5)), 0, 1)
    reference = rng.dirichlet(np.full(5, 3.0), size=40)
    return FiniteProblem(reference, reward, cost, beta=beta, threshold=threshold)
