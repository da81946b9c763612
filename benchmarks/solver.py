"""Seconds from a finite problem to its optimal multiplier.

    python benchmarks/solver.py            # under a minute on one core

Writes benchmarks/results/solver.csv: one row a number of prompts, CPU seconds (best of five).
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy

from csrlhf_kit.files import write_atomic
from csrlhf_kit.theory import FiniteProblem

RESULTS = Path(__file__).parent / "results"
RESPONSES = 64


def make_problem(prompts: int) -> FiniteProblem:
    """Costs that rise with reward, and a threshold that binds."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(prompts, RESPONSES))
    cost = 0.7 * reward + rng.normal(size=(prompts, RESPONSES))
    reference = rng.dirichlet(np.ones(RESPONSES), prompts)
    return FiniteProblem(reference, reward, cost, beta=0.1, threshold=-0.5)


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
        problem = make_problem(prompts)
        multiplier, seconds = measure(lambda p=problem: p.constrained_optimum().multiplier)
        row = {"prompts": prompts, "responses": RESPONSES, "beta": problem.beta}
        rows.append(row | {"multiplier": f"{multiplier:.9f}", "seconds": f"{seconds:.4f}"} | versions)
        print(*rows[-1].values())
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(RESULTS / "solver.csv", text.getvalue())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
