"""Seconds from a finite problem to its optimal multiplier, with and without KL, beside a general solver.

    python benchmarks/solver.py            # under a minute on one core

Writes benchmarks/results/solver.csv: prompts x beta x solver, CPU seconds (best of five). HiGHS solves the
linear programme of beta = 0 by a general method; the kit sorts the edges of concave hulls (knapsack.py).
"""

from __future__ import annotations

import csv
import io
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
from scipy import sparse
from scipy.optimize import linprog

from csrlhf_kit.runs import write_atomic
from csrlhf_kit.theory import FiniteProblem

RESULTS = Path(__file__).parent / "results"
RESPONSES = 64


def make_problem(prompts: int, beta: float) -> FiniteProblem:
    """Costs that rise with reward, and a threshold that binds."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(prompts, RESPONSES))
    cost = 0.7 * reward + rng.normal(size=(prompts, RESPONSES))
    reference = rng.dirichlet(np.ones(RESPONSES), prompts)
    return FiniteProblem(reference, reward, cost, beta=beta, threshold=-0.5)


def highs(problem: FiniteProblem) -> float:
    """Multiplier of the linear programme by HiGHS."""
    prompts, responses = problem.reference.shape
    n, rows = prompts * responses, np.repeat(np.arange(prompts), responses)
    found = linprog(
        -(problem.weights[:, None] * problem.reward).ravel(),
        A_ub=sparse.csr_array((problem.weights[:, None] * problem.cost).reshape(1, n)),
        b_ub=[problem.threshold],
        A_eq=sparse.csr_array((np.ones(n), (rows, np.arange(n))), (prompts, n)),
        b_eq=np.ones(prompts),
        bounds=(0, 1),
        method="highs",
    )
    return float(-found.ineqlin.marginals[0])


def measure(solve: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """The multiplier and the least CPU seconds of `repeats`."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        multiplier = solve()
        seconds.append(time.process_time() - start)
    return multiplier, min(seconds)


def main() -> None:
    rows = []
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()}
    for prompts in (100, 1000, 10_000):
        for beta in (0.0, 0.1):
            problem = make_problem(prompts, beta)
            solvers = {"csrlhf_kit": lambda p=problem: p.constrained_optimum().multiplier}
            if beta == 0 and prompts <= 1000:
                solvers["highs"] = lambda p=problem: highs(p)
            for name, solve in solvers.items():
                multiplier, seconds = measure(solve)
                row = {"prompts": prompts, "responses": RESPONSES, "beta": beta, "solver": name}
                rows.append(row | {"multiplier": f"{multiplier:.9f}", "seconds": f"{seconds:.4f}"} | versions)
                print(*rows[-1].values())
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(RESULTS / "solver.csv", text.getvalue())


if __name__ == "__main__":
    main()
