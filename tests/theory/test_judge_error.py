"""The judge's errors and best-of-N: coverage by simulation, brute force, a published implementation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.best_of_n import best_of_n_curve, conformal_threshold, missed_harm, probability_of_safe
from csrlhf_kit.theory.intervals import Interval, clopper_pearson
from csrlhf_kit.theory.judge_error import JudgeAudit, prediction_powered, stratified_clopper_pearson


def world(rng: np.random.Generator, n: int, *, harm: float, missed: float, alarmed: float):
    """(truth, verdict), booleans "unsafe" (n,): a judge that misses and raises false alarms at these rates."""
    truth = rng.random(n) < harm
    return truth, np.where(truth, rng.random(n) >= missed, rng.random(n) < alarmed)


# ---- the true rate behind a judge ------------------------------------------------------------------------


def test_stratified_clopper_pearson_by_hand():
    audit = JudgeAudit(
        judged=1000, judged_unsafe=100, labelled_unsafe=50, false_alarms=10, labelled_safe=200, missed=2
    )
    assert audit.estimate == pytest.approx(0.1 * 0.8 + 0.9 * 0.01)
    part = 1 - 0.05 / 3
    q = clopper_pearson(100, 1000, confidence=part)
    caught, slipped = clopper_pearson(40, 50, confidence=part), clopper_pearson(2, 200, confidence=part)
    found = stratified_clopper_pearson(audit)
    assert found.high == pytest.approx(q.high * caught.high + (1 - q.high) * slipped.high)
    assert found.low == pytest.approx(q.low * caught.low + (1 - q.low) * slipped.low)
    assert stratified_clopper_pearson(audit, side="upper").high < found.high


def test_an_unlabelled_stratum_may_hold_anything():
    audit = JudgeAudit(
        judged=100, judged_unsafe=5, labelled_unsafe=5, false_alarms=0, labelled_safe=0, missed=0
    )
    assert stratified_clopper_pearson(audit).high == pytest.approx(1)
    assert np.isnan(audit.estimate)


@pytest.mark.parametrize(
    "rates",
    [
        {"harm": 0.05, "missed": 0.3, "alarmed": 0.1},
        {"harm": 0.3, "missed": 0.0, "alarmed": 0.0},
        {"harm": 0.1, "missed": 0.9, "alarmed": 0.6},  # worse than a coin
    ],
)
def test_the_true_rate_is_covered_whatever_the_judge(rates):
    rng, repeats = np.random.default_rng(0), 200
    hits = {"stratified": 0, "betting": 0}
    for _ in range(repeats):
        truth, verdict = world(rng, 600, **rates)
        labelled = np.arange(600) < 150
        audit = JudgeAudit.from_labels(verdict, verdict[labelled], truth[labelled])
        found = stratified_clopper_pearson(audit, confidence=0.9)
        hits["stratified"] += found.low <= rates["harm"] <= found.high
        found = prediction_powered(
            truth[labelled], verdict[labelled], verdict[~labelled], confidence=0.9, method="betting"
        )
        hits["betting"] += found.low <= rates["harm"] <= found.high
    assert min(hits.values()) / repeats >= 0.9 - 3 * np.sqrt(0.09 / repeats)


def test_a_judge_alone_can_be_confidently_wrong():
    truth, verdict = world(np.random.default_rng(1), 5000, harm=0.2, missed=0.8, alarmed=0.0)
    naive = clopper_pearson(int(verdict.sum()), 5000)
    assert naive.high < 0.1 < 0.2
    audit = JudgeAudit.from_labels(verdict, verdict[:400], truth[:400])
    assert stratified_clopper_pearson(audit).high > 0.2


def ppi_example():
    t = np.arange(1, 2201)
    human = ((t * 0.6180339887498949) % 1 < 0.2).astype(float)
    wrong = (t * 0.7548776662466927) % 1 < 0.1
    judge = np.where(wrong, 1 - human, human)
    return human[:200], judge[:200], judge[200:]


def test_prediction_powered_agrees_with_the_authors_package():
    """ppi_mean_ci(..., alpha=0.05, lam=1) and with lam tuned, of ppi-python 0.2.3 (numba: not a dependency)."""
    human, judge, others = ppi_example()
    plain = prediction_powered(human, judge, others, weight=1.0)
    assert plain == pytest.approx((0.12181724, 0.21418276), abs=1e-8)
    tuned = prediction_powered(human, judge, others)
    assert tuned == pytest.approx((0.14090869, 0.21777483), abs=1e-6)
    assert tuned.width < plain.width
    upper = prediction_powered(human, judge, others, side="upper")
    assert upper.low == 0 and plain.low < upper.high < tuned.high


def test_prediction_powered_covers_and_beats_the_labels_alone():
    rng, repeats = np.random.default_rng(2), 300
    hits, ours, alone = 0, [], []
    for _ in range(repeats):
        truth, verdict = world(rng, 2000, harm=0.3, missed=0.1, alarmed=0.05)
        found = prediction_powered(truth[:200], verdict[:200], verdict[200:], confidence=0.9)
        hits += found.low <= 0.3 <= found.high
        ours.append(found.width)
        alone.append(
            prediction_powered(truth[:200], verdict[:200], verdict[200:], confidence=0.9, weight=0.0).width
        )
    assert hits / repeats >= 0.9 - 3 * np.sqrt(0.09 / repeats) - 0.01  # a central limit, not a theorem
    assert np.mean(ours) < 0.75 * np.mean(alone)


def test_without_a_disagreement_the_normal_interval_promises_too_much():
    zeros = np.zeros(50)
    assert prediction_powered(zeros, zeros, np.zeros(500)) == Interval(0, 0)
    assert prediction_powered(zeros, zeros, np.zeros(500), method="betting").high > 0.05


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: JudgeAudit(10, 11, 0, 0, 0, 0), "judged_unsafe is 11"),
        (lambda: JudgeAudit(10, 1, 1, 2, 0, 0), "false_alarms is 2"),
        (lambda: JudgeAudit.from_labels([1], [1], [1, 0]), "equally many were expected"),
        (lambda: prediction_powered([1], [1], [1, 0]), "two labelled"),
        (lambda: prediction_powered([1, 2], [1, 0], [1, 0]), r"in \[0, 1\]"),
        (lambda: prediction_powered([1, 0], [1, 0], [1, 0], method="magic"), "method is 'magic'"),
    ],
)
def test_bad_audits_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()


# ---- best of N ------------------------------------------------------------------------------------------


def test_the_chance_of_a_safe_draw():
    assert probability_of_safe(0.3, 7) == pytest.approx(1 - (1 - 0.3) ** 7)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_conformal_threshold_keeps_its_promise(confidence):
    rng, repeats, risk = np.random.default_rng(5), 300, 0.1
    true_risk, kept = [], 0
    fresh_score = rng.normal(size=40_000)
    fresh_bad = rng.random(40_000) < 1 / (1 + np.exp(-2 * fresh_score))
    for _ in range(repeats):
        score = rng.normal(size=200)
        bad = rng.random(200) < 1 / (1 + np.exp(-2 * score))
        found = conformal_threshold(score, bad, risk=risk, confidence=confidence)
        true_risk.append(((fresh_score <= found.threshold) & fresh_bad).mean())
        kept += true_risk[-1] <= risk
        assert found.bound <= risk
    if confidence is None:
        assert np.mean(true_risk) <= risk + 3 * np.std(true_risk) / np.sqrt(repeats)
        assert np.mean(true_risk) > 0.8 * risk  # and does not abstain for nothing
    else:
        assert kept / repeats >= confidence - 3 * np.sqrt(0.09 / repeats)


def test_conformal_edges():
    always = conformal_threshold([1.0, 2.0, 3.0], [True, True, True], risk=0.1)
    assert always.threshold == -np.inf and always.answered == 0
    tied = conformal_threshold(np.zeros(100), np.arange(100) < 30, risk=0.1)
    assert tied.answered == 0  # equal scores are admitted together or not at all
    clean = conformal_threshold(np.arange(100.0), np.zeros(100, bool), risk=0.05)
    assert clean.threshold == 99 and clean.answered == 1
    with pytest.raises(UserError, match="conformal_threshold"):
        conformal_threshold([1.0], [True, False], risk=0.1)


def test_the_curve_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(6)
    reward, cost = rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    unsafe = rng.random((5, 6)) < 0.4
    for point in best_of_n_curve(reward, cost, unsafe, [1, 2, 4, 6]):
        outcomes = []
        for subset in map(list, combinations(range(6), point.samples)):
            r, c, bad = reward[:, subset], cost[:, subset], unsafe[:, subset]
            for x, i in enumerate(np.where(c <= 0, r, -np.inf).argmax(axis=1)):
                gave = bool((c[x] <= 0).any())
                outcomes.append((gave, gave and bad[x, i], r[x, i] if gave else 0.0))
        answered, harm, value = np.mean(np.array(outcomes, dtype=float), axis=0)
        assert point.abstained == pytest.approx(1 - answered, abs=1e-12)
        assert point.judged_harm == 0
        assert point.true_harm == pytest.approx(harm, abs=1e-12)
        assert point.reward == pytest.approx(value / answered)


def test_more_samples_against_an_imperfect_judge_find_its_blind_spots():
    """Harm pays, the judge misses a tenth of it: the more draws, the more of its misses are chosen."""
    rng = np.random.default_rng(7)
    shape = (400, 64)
    unsafe = rng.random(shape) < 0.5
    flagged = np.where(unsafe, rng.random(shape) >= 0.1, False)
    reward = rng.normal(size=shape) + 10 * unsafe
    curve = best_of_n_curve(reward, np.where(flagged, 1.0, -1.0), unsafe, [1, 4, 16, 64])
    harm = [p.true_harm for p in curve]
    assert harm == sorted(harm) and harm[-1] > 0.9
    assert all(p.judged_harm == 0 for p in curve)  # while the judge sees nothing
    for point in curve:  # the closed form; draws from a finite pool, hence the tolerance
        assert point.true_harm == pytest.approx(float(missed_harm(0.05, point.samples)), abs=0.05)
    indifferent = best_of_n_curve(rng.normal(size=shape), np.where(flagged, 1.0, -1.0), unsafe, [4, 32])
    assert indifferent[1].true_harm == pytest.approx(0.05 / 0.55, abs=0.05)
    with pytest.raises(UserError, match="sizes"):
        best_of_n_curve(reward, reward, unsafe, [65])
    with pytest.raises(UserError, match="one shape"):
        best_of_n_curve(reward, reward[:1], unsafe, [4])
