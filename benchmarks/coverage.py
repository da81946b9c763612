"""How often each interval is right, and how wide: the study behind the guarantees.

    python benchmarks/coverage.py            # about 5 minutes on one core
    python benchmarks/coverage.py --quick    # half a minute, same columns, more Monte Carlo error
    python benchmarks/coverage.py --draw     # only the figures, from the tables that are there

Writes three tables under benchmarks/results/, and figures (.svg) of the first two:
    coverage.csv             intervals for a mean: truth x method x sample size
    coverage_judge.csv       the true harm rate behind a judge: judge x method
    coverage_suggest.csv     suggest_penalty's interval for the optimal multiplier: design x samples
Nominal is 95% everywhere; `error` is the Monte Carlo standard error of the coverage.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import scipy
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it only

from benchmarks.coverage_figures import interval_coverage, read_coverage
from csrlhf_kit.figures.static import static_svg
from csrlhf_kit.files import write_atomic
from csrlhf_kit.theory import FiniteProblem, suggest_penalty
from csrlhf_kit.theory.intervals import (
    ConfidenceSequence,
    Interval,
    betting,
    clopper_pearson,
    empirical_bernstein,
    hoeffding,
    wilson,
)
from csrlhf_kit.theory.judge_error import JudgeAudit, prediction_powered, stratified_clopper_pearson

RESULTS = Path(__file__).parent / "results"
CONFIDENCE = 0.95

Draw = Callable[[np.random.Generator, int], np.ndarray]
TRUTHS: dict[str, tuple[float, Draw]] = {
    "yes/no 0.02": (0.02, lambda rng, n: (rng.random(n) < 0.02).astype(float)),
    "yes/no 0.5": (0.5, lambda rng, n: (rng.random(n) < 0.5).astype(float)),
    "beta(10, 90)": (0.1, lambda rng, n: rng.beta(10, 90, n)),
    "beta(0.2, 1.8)": (0.1, lambda rng, n: rng.beta(0.2, 1.8, n)),
    "uniform": (0.5, lambda rng, n: rng.random(n)),
}


def of_rate(method: Callable) -> Callable[[np.ndarray], Interval]:
    return lambda x: method(int(x.sum()), len(x), confidence=CONFIDENCE)


METHODS: dict[str, Callable[[np.ndarray], Interval]] = {
    "wilson": of_rate(wilson),
    "clopper_pearson": of_rate(clopper_pearson),
    "hoeffding": lambda x: hoeffding(x, confidence=CONFIDENCE),
    "empirical_bernstein": lambda x: empirical_bernstein(x, confidence=CONFIDENCE),
    "betting": lambda x: betting(x, confidence=CONFIDENCE),
    "confidence_sequence": lambda x: ConfidenceSequence(confidence=CONFIDENCE).update(x),
}


def score(intervals: Iterable[Interval], truth: float) -> dict[str, float]:
    """Coverage with its Monte Carlo standard error, and mean width."""
    ends = np.array(list(intervals))
    hit = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    width = np.diff(ends, axis=1)
    return {
        "coverage": round(float(hit.mean()), 4),
        "error": round(float(np.sqrt(max(hit.mean() * (1 - hit.mean()), 1e-4) / len(hit))), 4),
        "mean_width": round(float(width[np.isfinite(width)].mean()), 5),
        "repeats": len(hit),
    }


def study_means(repeats: int) -> Iterable[dict]:
    """A confidence sequence never widens, so it is right at *all* times if and only if it is at the last."""
    for name, (truth, draw) in TRUTHS.items():
        for n in (50, 200, 1000):
            samples = [draw(np.random.default_rng([1, n, i]), n) for i in range(repeats)]
            for method, interval in METHODS.items():
                if method in ("wilson", "clopper_pearson") and not name.startswith("yes/no"):
                    continue
                yield {"truth": name, "n": n, "method": method, **score(map(interval, samples), truth)}


JUDGES = {
    "good": {"harm": 0.05, "missed": 0.1, "alarmed": 0.02},
    "blind": {"harm": 0.1, "missed": 0.8, "alarmed": 0.02},
    "jumpy": {"harm": 0.05, "missed": 0.1, "alarmed": 0.4},
    "perfect": {"harm": 0.2, "missed": 0.0, "alarmed": 0.0},
}


def study_judges(repeats: int) -> Iterable[dict]:
    judged, labelled = 2000, 300
    for name, rates in JUDGES.items():
        found: dict[str, list[Interval]] = {}
        for i in range(repeats):
            rng = np.random.default_rng([2, i])
            harm = rng.random(judged) < rates["harm"]
            verdict = np.where(
                harm, rng.random(judged) >= rates["missed"], rng.random(judged) < rates["alarmed"]
            )
            mine, judge, others = harm[:labelled], verdict[:labelled], verdict[labelled:]
            audit = JudgeAudit.from_labels(verdict, judge, mine)
            powered = {m: prediction_powered(mine, judge, others, method=m) for m in ("normal", "betting")}
            for method, interval in {
                "judge alone": clopper_pearson(int(verdict.sum()), judged),
                "labels alone": clopper_pearson(int(mine.sum()), labelled),
                "stratified_clopper_pearson": stratified_clopper_pearson(audit),
                "prediction_powered normal": powered["normal"],
                "prediction_powered betting": powered["betting"],
            }.items():
                found.setdefault(method, []).append(interval)
        for method, intervals in found.items():
            yield {"judge": name, **rates, "method": method, **score(intervals, rates["harm"])}


def study_suggestions(repeats: int) -> Iterable[dict]:
    """Prompts drawn from 2,000 (bootstrap over prompts), or 20 given prompts (bootstrap over responses)."""
    for resample, prompts, population in (("prompts", 100, 2000), ("responses", 20, 20)):
        rng = np.random.default_rng(3)
        reward = rng.normal(size=(population, 16))
        cost = rng.normal(size=(population, 16)) + 0.5 * reward
        reference = rng.dirichlet(np.ones(16), population)
        problem = FiniteProblem(reference, reward, cost, beta=0.5, threshold=-0.3)
        truth = problem.constrained_optimum().multiplier
        for samples in (8, 16, 64) if resample == "prompts" else (32, 128, 512):
            found = []
            for i in range(repeats):
                rows = rng.integers(population, size=prompts) if resample == "prompts" else np.arange(prompts)
                u = rng.random((prompts, samples, 1))
                drawn = (u > reference[rows].cumsum(axis=1)[:, None, :-1]).sum(axis=2)
                scores = (np.take_along_axis(x[rows], drawn, 1) for x in (reward, cost))
                suggestion = suggest_penalty(
                    *scores, beta=0.5, threshold=-0.3, resample=resample, bootstrap=500, seed=i
                )
                found.append(suggestion)
            yield {
                "resample": resample,
                "prompts": prompts,
                "samples": samples,
                "true_multiplier": round(truth, 5),
                "mean_estimate": round(float(np.mean([s.multiplier for s in found])), 5),
                "mean_uncorrected": round(float(np.mean([s.multiplier + s.bias for s in found])), 5),
                **score([s.interval for s in found], truth),
            }


def save(name: str, rows: Iterable[dict]) -> None:
    start, table = time.time(), list(tqdm(rows, desc=name))
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*table[0], *versions], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | versions for row in table)
    write_atomic(RESULTS / f"{name}.csv", text.getvalue())
    print(f"{name}: {len(table)} rows in {time.time() - start:.0f} s")


def draw() -> None:
    for name, axes in {"coverage": {}, "coverage_judge": {"group": "judge", "panel": None}}.items():
        figure = interval_coverage(read_coverage(RESULTS / f"{name}.csv"), **axes)
        write_atomic(RESULTS / f"{name}.svg", static_svg(figure))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    parser.add_argument("--draw", action="store_true", help="no simulation, only the figures")
    asked = parser.parse_args()
    if not asked.draw:
        share = 0.1 if asked.quick else 1
        save("coverage_suggest", study_suggestions(int(200 * share)))
        save("coverage_judge", study_judges(int(1000 * share)))
        save("coverage", study_means(int(1000 * share)))
    draw()


if __name__ == "__main__":
    main()
