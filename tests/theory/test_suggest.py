"""The penalty before training: estimates against the finite problem the samples came from."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.suggest_penalty import SuggestPenaltyConfig, read_scores, run_suggest_penalty
from csrlhf_kit.theory import FiniteProblem, best_reward, suggest_penalty
from csrlhf_kit.theory.batch_hinge import batch_hinge_equilibrium
from csrlhf_kit.theory.reweighting import optimal_multiplier, tilt

BETA, THRESHOLD = 0.5, -0.3


def population(prompts: int, seed: int = 0) -> FiniteProblem:
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(prompts, 16))
    cost = rng.normal(size=(prompts, 16)) + 0.5 * reward
    return FiniteProblem(rng.dirichlet(np.ones(16), prompts), reward, cost, beta=BETA, threshold=THRESHOLD)


def scored(problem: FiniteProblem, rows: np.ndarray, samples: int, rng: np.random.Generator):
    """(reward, cost), each (rows, samples), of responses drawn from the reference."""
    cumulative = problem.reference[rows].cumsum(axis=1)
    drawn = (rng.random((len(rows), samples, 1)) > cumulative[:, None, :-1]).sum(axis=2)
    return np.take_along_axis(problem.reward[rows], drawn, 1), np.take_along_axis(
        problem.cost[rows], drawn, 1
    )


def covered(resample: str, samples: int, replications: int) -> int:
    """How many of so many intervals cover the true multiplier; the full study is benchmarks/coverage.py."""
    everything = population(10 if resample == "responses" else 1000)
    truth = everything.constrained_optimum().multiplier
    rng, hits = np.random.default_rng(7), 0
    for seed in range(replications):
        rows = np.arange(10) if resample == "responses" else rng.integers(1000, size=100)
        reward, cost = scored(everything, rows, samples, rng)
        found = suggest_penalty(
            reward, cost, beta=BETA, threshold=THRESHOLD, resample=resample, bootstrap=200, seed=seed
        )
        hits += found.interval.low <= truth <= found.interval.high
    return hits


@pytest.mark.parametrize(("resample", "samples"), [("prompts", 32), ("responses", 256)])
def test_the_interval_covers_the_true_multiplier(resample, samples):
    # 200 replications at nominal 95%; below 90% would be 3 binomial standard errors short.
    assert covered(resample, samples, 200) >= 180


def test_many_samples_find_the_multiplier_and_the_frontier():
    everything = population(50)
    best = everything.constrained_optimum()
    reward, cost = scored(everything, np.arange(50), 2000, np.random.default_rng(1))
    found = suggest_penalty(reward, cost, beta=BETA, threshold=THRESHOLD, resample="responses", bootstrap=200)
    assert found.multiplier == pytest.approx(best.multiplier, rel=0.04)
    assert found.interval.low < best.multiplier < found.interval.high
    assert not found.warnings
    for point in found.frontier:
        truth = everything.tilted(point.multiplier)
        assert point.cost == pytest.approx(truth.cost, abs=0.05)
        assert point.reward == pytest.approx(truth.reward, abs=0.05)
        assert point.kl == pytest.approx(truth.kl, abs=0.08)
        assert point.effective_samples <= 2000
    assert found.recommended == pytest.approx(2 * found.multiplier)
    assert found.rule.startswith("2 x the optimal multiplier")
    # The rule does what it says: under a batch gate of any size this penalty settles on the threshold.
    for batch in (16, 128):
        settled = batch_hinge_equilibrium(everything, found.recommended, batch=batch)
        assert settled.cost == pytest.approx(THRESHOLD, abs=0.02)


def test_the_bias_of_few_samples_is_seen_and_removed():
    everything = population(1000)
    truth = everything.constrained_optimum().multiplier
    rng, raw, corrected = np.random.default_rng(3), [], []
    for seed in range(20):
        reward, cost = scored(everything, rng.integers(1000, size=300), 8, rng)
        found = suggest_penalty(reward, cost, beta=BETA, threshold=THRESHOLD, bootstrap=50, seed=seed)
        corrected.append(found.multiplier)
        raw.append(found.multiplier + found.bias)
    assert np.mean(raw) > truth + 0.03  # self-normalised weights cannot move as far as the true ones
    assert abs(np.mean(corrected) - truth) < 0.6 * abs(np.mean(raw) - truth)


def test_a_normalised_trainer_has_its_own_multiplier():
    everything = population(30, seed=4)
    threshold = 0.5 * everything.tilted(0.0).cost
    problem = FiniteProblem(
        everything.reference, everything.reward, everything.cost, beta=BETA, threshold=threshold
    )
    multiplier = optimal_multiplier(problem, normalised=True)
    # Its tilt by hand: (r - m c) / (1 + m) at the KL weight beta.
    logits = np.log(problem.reference)
    logits += (problem.reward - multiplier * problem.cost) / (BETA * (1 + multiplier))
    policy = np.exp(logits)
    policy /= policy.sum(axis=1, keepdims=True)
    assert np.allclose(tilt(problem, multiplier, True).policy, policy)
    assert problem.evaluate(policy).cost == pytest.approx(threshold, abs=1e-9)
    # The same policy is the plain tilt of a problem whose KL weighs (1 + m) times as much.
    heavy = FiniteProblem(
        problem.reference, problem.reward, problem.cost, beta=BETA * (1 + multiplier), threshold=threshold
    )
    assert heavy.constrained_optimum().multiplier == pytest.approx(multiplier, rel=1e-6)
    reward, cost = scored(everything, np.arange(30), 2000, np.random.default_rng(5))
    found = suggest_penalty(
        reward, cost, beta=BETA, threshold=threshold, normalised=True, resample="responses", bootstrap=200
    )
    assert found.interval.low <= multiplier <= found.interval.high
    if multiplier < 0.9:
        share = 0.5 * found.recommended / (1 + found.recommended)
        assert share / (1 - share) == pytest.approx(found.multiplier)


def test_the_normalised_rule_settles_on_the_threshold_in_simulated_training():
    """Damped steps towards r / beta while the gate is closed, (r - penalty * c) / (1 + penalty) / beta while open.

    The logits' mean is then a normalised tilt, whose share w of cost moves towards gate * penalty / (1 + penalty).
    """
    base = population(10, seed=8)
    threshold = 0.6 * base.tilted(0.0).cost + 0.4 * tilt(base, 1.0, True).cost
    problem = FiniteProblem(base.reference, base.reward, base.cost, beta=BETA, threshold=threshold)
    multiplier = optimal_multiplier(problem, normalised=True)
    assert 0 < multiplier < 0.9
    penalty = 2 * multiplier / (1 - multiplier)
    rng, w, costs = np.random.default_rng(0), 0.0, []
    for _ in range(1200):
        policy = tilt(problem, w / (1 - w), True).policy
        drawn = rng.choice(problem.cost.ravel(), size=32, p=(policy / len(policy)).ravel())
        w += 0.03 * ((drawn.mean() > threshold) * penalty / (1 + penalty) - w)
        costs.append(float((policy * problem.cost).sum(axis=1).mean()))
    assert np.mean(costs[300:]) == pytest.approx(threshold, abs=0.03)


@pytest.mark.parametrize("normalised", [False, True])
def test_each_point_of_the_frontier_is_the_best_at_its_own_cost_and_kl(normalised):
    reward, cost = np.random.default_rng(7).normal(size=(2, 12, 32))
    found = suggest_penalty(
        reward, cost, beta=BETA, threshold=-0.3, normalised=normalised, bootstrap=20, seed=0
    )
    assert len({point.multiplier for point in found.frontier}) > 10
    for point in found.frontier:
        assert point.kl_weight == pytest.approx(BETA * (1 + point.multiplier if normalised else 1))
        best = best_reward(reward, cost, at_cost=point.cost, at_kl=point.kl)
        assert best == pytest.approx(point.reward, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_reward_within_two_limits_is_that_of_a_general_solver(seed):
    """SLSQP over the policy itself; and no loose end: a tilt is the best at its own cost and KL."""
    rng = np.random.default_rng(seed)
    reward, cost = rng.normal(size=(2, 3, 6))
    uniform = np.full((3, 6), 1 / 6)
    problem = FiniteProblem(uniform, reward, cost, beta=rng.uniform(0.2, 2), threshold=0.0)
    tilted = problem.tilted(rng.uniform(0.1, 2))
    assert best_reward(reward, cost, at_cost=tilted.cost, at_kl=tilted.kl) == pytest.approx(
        tilted.reward, abs=1e-6
    )
    at = problem.evaluate(0.5 * uniform + 0.5 * tilted.policy)

    def limits(z: np.ndarray) -> np.ndarray:
        p = z.reshape(3, 6)
        kl = (p * np.log(np.maximum(p, 1e-300) / uniform)).sum(axis=1).mean()
        return np.array([at.cost - (p * cost).sum(axis=1).mean(), at.kl - kl])

    rows = np.repeat(np.eye(3), 6, axis=1)
    found = minimize(
        lambda z: -(z.reshape(3, 6) * reward).sum(axis=1).mean(),
        at.policy.ravel(),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 18,
        constraints=[{"type": "ineq", "fun": limits}, {"type": "eq", "fun": lambda z: rows @ z - 1}],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    best = best_reward(reward, cost, at_cost=at.cost, at_kl=at.kl)
    assert best == pytest.approx(-found.fun, abs=1e-5)


def test_limits_that_no_policy_meets_are_told():
    reward, cost = np.random.default_rng(0).normal(size=(2, 5, 8))
    with pytest.raises(UserError, match="no policy of cost -9 within 1 nats"):
        best_reward(reward, cost, at_cost=-9.0, at_kl=1.0)
    # Within no nats at all there is the reference alone.
    assert best_reward(reward, cost, at_cost=9.0, at_kl=1e-9) == pytest.approx(reward.mean(), abs=1e-3)


def test_a_reference_that_is_safe_already_needs_no_penalty():
    rng = np.random.default_rng(0)
    found = suggest_penalty(rng.normal(size=(30, 8)), rng.uniform(-2, -1, (30, 8)), beta=1, threshold=0)
    assert found.multiplier == 0 and found.interval == (0, 0) and found.recommended == 0
    assert "already meets" in found.rule


def test_what_the_samples_cannot_support_is_said():
    rng = np.random.default_rng(0)
    reward, cost = rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    found = suggest_penalty(3 * reward, cost, beta=0.1, threshold=-0.9, bootstrap=100)
    said = " ".join(found.warnings)
    assert "effective samples" in said and "nats from the reference" in said and "too few" in said
    assert all(f"warning: {w}" in str(found) for w in found.warnings)
    with pytest.raises(UserError, match="smallest reachable cost is"):
        suggest_penalty(reward, cost, beta=0.1, threshold=-5)


def test_ragged_samples_are_those_that_are_there():
    rng = np.random.default_rng(2)
    reward, cost = rng.normal(size=(20, 10)), rng.normal(size=(20, 10))
    short = suggest_penalty(reward[:, :7], cost[:, :7], beta=1, threshold=-0.2, bootstrap=50)
    reward[:, 7:] = cost[:, 7:] = np.nan
    padded = suggest_penalty(reward, cost, beta=1, threshold=-0.2, bootstrap=50)
    assert padded.multiplier + padded.bias == pytest.approx(short.multiplier + short.bias, rel=1e-9)
    assert padded.samples == 7


@pytest.mark.parametrize(
    ("reward", "cost", "change", "words"),
    [
        ([[1, 2]], [[1, 2, 3]], {}, "one shape"),
        ([[1, np.nan]], [[1, 2]], {}, "nan in the same places"),
        ([[1, np.nan]], [[1, np.nan]], {}, "at least two"),
        ([[1, 2]], [[1, 2]], {"beta": 0}, "positive KL weight"),
        ([[1, 2]], [[1, 2]], {"resample": "words"}, "resample"),
        ([[1, 2]], [[1, 2]], {"confidence": 2}, "confidence"),
    ],
)
def test_scores_that_make_no_problem_are_told(reward, cost, change, words):
    with pytest.raises(UserError, match=words):
        suggest_penalty(np.array(reward), np.array(cost), **({"beta": 1, "threshold": 1.5} | change))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_command_reads_prints_and_writes(tmp_path, capsys, suffix):
    reward, cost = scored(population(25), np.arange(25), 12, np.random.default_rng(1))
    rows = [
        {"prompt": f"prompt {x}", "reward": float(reward[x, i]), "cost": float(cost[x, i])}
        for i in range(12)
        for x in range(25)
    ]
    file, out = tmp_path / f"scores.{suffix}", tmp_path / "suggestion.json"
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        with file.open("w", newline="") as f:
            writer = csv.DictWriter(f, ["prompt", "reward", "cost"])
            writer.writeheader()
            writer.writerows(rows)
    assert np.allclose(read_scores(file), (reward, cost))
    result = run_suggest_penalty(SuggestPenaltyConfig(file, BETA, THRESHOLD, bootstrap=100, output=out))
    printed = capsys.readouterr().out
    assert f"recommended penalty {result['recommended']:.4g}" in printed
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    direct = suggest_penalty(reward, cost, beta=BETA, threshold=THRESHOLD, bootstrap=100)
    assert result["multiplier"] == pytest.approx(direct.multiplier)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a", "reward": 1}'], r"scores\.jsonl, line 1: field `cost` is missing"),
        (['{"prompt": "a", "reward": "high", "cost": 1}'], r"line 1: reward is 'high'"),
        (['{"prompt": "a", "reward": 1, "cost": 1}'], "has one sample"),
        ([f'{{"prompt": "a", "reward": 1{"0" * 400}, "cost": 1}}'], "expected a finite number"),
    ],
)
def test_score_files_that_cannot_be_used_are_told(tmp_path, lines, words):
    file = tmp_path / "scores.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=words):
        read_scores(file)
