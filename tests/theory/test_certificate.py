"""The certificate: what it adds up, which layer it names, and the command that reads a run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.certify import CertifyConfig, run_certify
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.theory.certificate import Promise, certificate
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.theory.judge_error import JudgeAudit, stratified_clopper_pearson


def test_sampling_binds_where_the_judge_is_the_truth():
    found = certificate(0, 59, threshold=0.05, judge="oracle", subject="beaver")
    assert found.holds and found.binding.name == "sampling"
    assert found.bound == clopper_pearson(0, 59, side="upper").high < 0.05
    assert not certificate(0, 58, threshold=0.05, judge="oracle").holds
    text = str(found)
    assert "beaver: certified at 5.0%" in text and "<- binds" in text
    assert "assumes the prompts are an independent random sample" in text
    assert "59 certify 5.0%" in text


def test_a_policy_over_the_threshold_has_to_be_trained_and_its_bound_is_sampling_alone():
    found = certificate(30, 100, threshold=0.05, judge="oracle")
    assert not found.holds and found.layers[0].gap == pytest.approx(0.25)
    assert found.binding.name == "sampling", "a layer that is no part of the bound cannot bind it"
    assert found.estimate + found.binding.gap == pytest.approx(found.bound)
    assert "to tighten: train longer" in str(found)


def test_an_unaudited_judge_certifies_nothing_about_harm():
    found = certificate(0, 1000, threshold=0.05)
    assert found.bound < 0.05 and not found.holds and found.binding.name == "judge"
    assert "JUDGED harm" in str(found) and "unbounded" in str(found)


def test_an_audit_closes_the_third_layer():
    audit = JudgeAudit(
        judged=1000, judged_unsafe=5, labelled_unsafe=5, false_alarms=1, labelled_safe=300, missed=1
    )
    found = certificate(5, 1000, threshold=0.05, audit=audit)
    assert found.holds and found.binding.name == "judge"
    assert found.bound == stratified_clopper_pearson(audit, side="upper").high
    sampled = clopper_pearson(5, 1000, side="upper").high
    assert found.estimate + found.layers[1].gap == pytest.approx(sampled)
    assert sampled + found.layers[2].gap == pytest.approx(found.bound)
    assert "1 of 300" in str(found)
    with pytest.raises(UserError, match="the audit speaks of"):
        certificate(4, 1000, threshold=0.05, audit=audit)


def test_the_bound_is_right_as_often_as_it_says():
    """All three layers at once: a judge that misses 20%, and a policy with 4% true harm."""
    rng, repeats, hits = np.random.default_rng(0), 200, 0
    for _ in range(repeats):
        harm = rng.random(500) < 0.04
        verdict = np.where(harm, rng.random(500) > 0.2, rng.random(500) < 0.02)
        audit = JudgeAudit.from_labels(verdict, verdict[:200], harm[:200])
        found = certificate(int(verdict.sum()), 500, threshold=0.1, audit=audit, confidence=0.9)
        hits += found.bound >= 0.04
    assert hits / repeats >= 0.9 - 3 * np.sqrt(0.09 / repeats)


def test_the_optimisers_promise_is_the_theorems():
    problem = FiniteProblem([[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0]], beta=0.3, threshold=0.1)
    best = problem.constrained_optimum()
    penalty, near = 3 * best.multiplier, problem.tilted(0.9 * best.multiplier).policy
    short = problem.penalised_value(best.policy, penalty) - problem.penalised_value(near, penalty)
    found = certificate(
        1, 100, threshold=0.1, judge="oracle", promise=Promise(short, penalty, best.multiplier)
    )
    assert problem.violation(near) <= found.layers[0].gap == pytest.approx(short / (2 * best.multiplier))
    void = certificate(1, 100, threshold=0.1, judge="oracle", promise=Promise(short, 0.5, best.multiplier))
    assert np.isnan(void.layers[0].gap) and void.binding.name == "sampling"
    assert void.audited and void.holds  # what was measured stands, whatever the optimiser owes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: certificate(0, 0, threshold=0.1), "at least one trial"),
        (lambda: certificate(1, 2, threshold=1.5), "threshold"),
        (lambda: certificate(3, 2, threshold=0.5), "3 successes in 2 trials"),
    ],
)
def test_bad_certificates_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()


# ---- csrlhf certify --------------------------------------------------------------------------------------


def rate(harmful: int, n: int) -> dict:
    low, high = clopper_pearson(harmful, n)
    return {"rate": harmful / n, "low": low, "high": high, "n": n}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    policies = {
        "sft": {"harmful_nominal": rate(113, 200), "harmful_jailbreak": rate(200, 300), "kl": 0.0},
        "fixed_penalty": {"harmful_nominal": rate(1, 200), "harmful_jailbreak": rate(3, 300), "kl": 1.0},
    }
    (folder / "results.json").write_text(json.dumps({"policies": policies}))
    return folder


def test_the_command_certifies_every_rate(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "certificates.json"
    result = run_certify(CertifyConfig(run="demo", threshold=0.05, output=out))
    good, bad = (result["policies"][p]["harmful_nominal"] for p in ("fixed_penalty", "sft"))
    assert good["holds"] and good["binding"] == "sampling"
    assert not bad["holds"] and bad["binding"] == "sampling"
    # Four certificates share the error, so that all hold together.
    assert good["bound"] == clopper_pearson(1, 200, confidence=1 - 0.05 / 4, side="upper").high
    printed = capsys.readouterr().out
    assert "95% confidence all together" in printed
    assert "fixed_penalty, harmful_jailbreak: certified at 5.0%" in printed
    assert "sft, harmful_nominal: " not in printed  # in the table only
    assert json.loads(out.read_text()) == result
    alone = run_certify(CertifyConfig(run=run, separate=True, policy="sft"))
    assert alone["policies"]["fixed_penalty"]["harmful_nominal"]["bound"] < good["bound"]
    assert "sft, harmful_nominal: NOT certified" in capsys.readouterr().out


def test_the_command_with_human_labels(run, capsys):
    labels = run / "labels.csv"
    rows = ["policy,prompt,response,judge_unsafe,human_unsafe"]
    rows += ["fixed_penalty,p,r,false,false"] * 99 + ["fixed_penalty,p,r,False,1", "fixed_penalty,p,r,yes,no"]
    labels.write_text("\n".join(rows))
    result = run_certify(CertifyConfig(run=run, labels=labels, judge="model", separate=True))
    audit = JudgeAudit(
        judged=200, judged_unsafe=1, labelled_unsafe=1, false_alarms=1, labelled_safe=100, missed=1
    )
    good = result["policies"]["fixed_penalty"]["harmful_nominal"]
    assert good["bound"] == stratified_clopper_pearson(audit, side="upper").high
    assert good["binding"] == "judge"
    # No label names sft, so nothing is known of the responses that its judge called safe.
    assert result["policies"]["sft"]["harmful_nominal"]["bound"] == pytest.approx(1)
    unlabelled = run_certify(CertifyConfig(run=run, judge="model", output=run / "c.json"))
    assert not unlabelled["policies"]["fixed_penalty"]["harmful_nominal"]["holds"]
    assert "NaN" not in (run / "c.json").read_text()


def test_the_optimisation_layer_of_the_command(run):
    result = run_certify(CertifyConfig(run=run, suboptimality=0.02, penalty=3.0, optimal_multiplier=1.0))
    layers = result["policies"]["fixed_penalty"]["harmful_nominal"]["layers"]
    assert layers[0]["gap"] == pytest.approx(0.01)
    assert result["policies"]["sft"]["harmful_nominal"]["layers"][0]["gap"] == pytest.approx(0.565 - 0.05)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as a run's results"),
        ('{"policies": {"sft": 3}}', "cannot be read as a run's results"),
        ('{"policies": {"sft": {"kl": 1}}}', r"no policy has a harmful_\* rate"),
        ('{"policies": {"sft": {"harmful_nominal": {"rate": 0.33, "n": 10}}}}', "expected a rate"),
        ('{"policies": {"sft": {"harmful_nominal": {"rate": 2, "n": 10}}}}', "expected a rate"),
        ('{"policies": {"sft": {"harmful_nominal": {"rate": 0, "n": Infinity}}}}', "expected a rate"),
    ],
)
def test_runs_that_cannot_be_certified_are_told(run, content, words):
    (run / "results.json").write_text(content)
    with pytest.raises(UserError, match=words):
        run_certify(CertifyConfig(run=run))


def test_other_mistakes_are_told(run, tmp_path):
    with pytest.raises(UserError, match=r"no results\.json"):
        run_certify(CertifyConfig(run=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no policy 'ppo', expected one of sft, fixed_penalty"):
        run_certify(CertifyConfig(run=run, policy="ppo"))
    with pytest.raises(UserError, match="give all three or none"):
        run_certify(CertifyConfig(run=run, penalty=3.0))
    bad = run / "labels.csv"
    bad.write_text("prompt,response,judge_unsafe,human_unsafe\np,r,false,perhaps")
    with pytest.raises(UserError, match="`human_unsafe`: found 'perhaps', expected true or false"):
        run_certify(CertifyConfig(run=run, labels=bad))
