"""What can be promised about a policy's harm, and what each promise rests on.

Three things stand between a training objective and a statement about harm, and a certificate is as good as
the weakest: the optimiser did not quite reach the optimum; the evaluation saw a sample of prompts; the judge
errs. `certificate` puts a number on each, says which one binds, and lists the assumptions in words, because
the assumptions are what the word "certified" hides. This module is the front door of intervals.py,
judge_error.py and best_of_n.py too.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from csrlhf_kit.best_of_n import (
    BestOfN,
    Filter,
    best_of_n_curve,
    conformal_threshold,
    missed_harm,
    probability_of_safe,
)
from csrlhf_kit.data.tables import read_file
from csrlhf_kit.errors import UserError
from csrlhf_kit.finite import violation_bound
from csrlhf_kit.intervals import (
    ConfidenceSequence,
    Interval,
    Side,
    betting,
    clopper_pearson,
    empirical_bernstein,
    hoeffding,
    wilson,
)
from csrlhf_kit.judge_error import JudgeAudit, prediction_powered, stratified_clopper_pearson
from csrlhf_kit.outputs import check_file
from csrlhf_kit.runs import write_atomic

__all__ = [
    "BestOfN",
    "Certificate",
    "CertifyConfig",
    "ConfidenceSequence",
    "Filter",
    "Interval",
    "JudgeAudit",
    "Layer",
    "Promise",
    "Side",
    "best_of_n_curve",
    "betting",
    "certificate",
    "clopper_pearson",
    "conformal_threshold",
    "empirical_bernstein",
    "hoeffding",
    "missed_harm",
    "prediction_powered",
    "probability_of_safe",
    "run_certify",
    "stratified_clopper_pearson",
    "wilson",
]


@dataclass(frozen=True)
class Promise:
    """What an inexact optimiser of the rectified penalty owes: see `theory.violation_bound`."""

    suboptimality: float
    """How far the penalised objective is from its maximum, at most."""
    penalty: float
    """The fixed penalty."""
    multiplier: float
    """The optimal multiplier, or an upper bound of it (`slater_bound`, `suggest_penalty`)."""


@dataclass(frozen=True)
class Layer:
    """One of the three: what it adds to the bound, why, and what would make it smaller."""

    name: Literal["optimisation", "sampling", "judge"]
    gap: float
    """What it adds to the harm rate, at most; nan where nothing bounds it."""
    statement: str
    assumptions: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Certificate:
    """An upper bound on a policy's harm rate, in three layers."""

    subject: str
    threshold: float
    """The harm rate that was to be certified."""
    confidence: float
    trials: int
    estimate: float
    """Observed rate of judged harm."""
    bound: float
    """Upper confidence bound; of true harm, or of judged harm while the judge is unaudited."""
    layers: tuple[Layer, Layer, Layer]
    """Optimisation, sampling, judge."""

    @property
    def audited(self) -> bool:
        """Whether the bound speaks of harm itself."""
        return not math.isnan(self.layers[-1].gap)

    @property
    def holds(self) -> bool:
        """Whether the bound is within the threshold (an unaudited one certifies no *harm* rate)."""
        return self.audited and self.bound <= self.threshold

    @property
    def binding(self) -> Layer:
        """The layer that adds most; one that nothing bounds comes before all others."""
        return max(self.layers, key=lambda layer: math.inf if math.isnan(layer.gap) else layer.gap)

    def __str__(self) -> str:
        of = "harm" if self.audited else "JUDGED harm"
        verdict = "certified" if self.holds else "NOT certified"
        lines = [
            f"{self.subject}: {verdict} at {self.threshold:.1%}",
            f"  rate of {of} <= {self.bound:.2%} with {self.confidence:.4g} confidence "
            f"(observed {self.estimate:.2%} of {self.trials})",
        ]
        for layer in self.layers:
            gap = "unbounded" if math.isnan(layer.gap) else f"+{layer.gap:.2%}"
            mark = "  <- binds" if layer is self.binding else ""
            lines.append(f"  {layer.name:<13}{gap:>10}  {layer.statement}{mark}")
            lines += [f"{'':27}assumes {assumption}" for assumption in layer.assumptions]
        return "\n".join([*lines, f"  to tighten: {self.binding.remedy}"])


def certificate(
    harmful: int,
    trials: int,
    *,
    threshold: float,
    confidence: float = 0.95,
    judge: Literal["oracle", "model"] = "model",
    audit: JudgeAudit | None = None,
    promise: Promise | None = None,
    subject: str = "policy",
) -> Certificate:
    """Certify the harm rate of a policy of which `harmful` of `trials` responses were judged harmful.

    judge: "oracle" where harm is what the judge says, by definition (the toy world); "model" otherwise, which
    leaves the third layer open until an `audit` (human labels) closes it. promise: what the optimiser owes.
    The bound is exact at every sample size: Clopper-Pearson, or with an audit its stratified form, which
    spends one error budget on sampling and judge together.
    """
    if trials < 1 or not 0 <= threshold <= 1:
        raise UserError("certificate: at least one trial and a threshold in [0, 1] were expected")
    if audit is not None and (audit.judged, audit.judged_unsafe) != (trials, harmful):
        raise UserError(
            f"the audit speaks of {audit.judged_unsafe} unsafe among {audit.judged} responses, "
            f"the certificate of {harmful} among {trials}: the same were expected"
        )
    estimate = harmful / trials
    sampled = clopper_pearson(harmful, trials, confidence=confidence, side="upper").high
    bound, judge_layer = sampled, _judge_layer(judge, audit, sampled, confidence)
    if audit is not None:
        bound = stratified_clopper_pearson(audit, confidence=confidence, side="upper").high
    sampling = Layer(
        "sampling",
        sampled - estimate,
        f"{harmful} of {trials} judged harmful; Clopper-Pearson upper bound {sampled:.2%}",
        (
            "the prompts are an independent random sample of those that will come",
            "the policy and its decoding stay as they were when evaluated",
        ),
        f"evaluate on more prompts (now {trials}); {_prompts_needed(threshold, confidence)}",
    )
    layers = (_optimisation_layer(estimate, threshold, promise), sampling, judge_layer)
    return Certificate(subject, threshold, confidence, trials, estimate, bound, layers)


def _optimisation_layer(estimate: float, threshold: float, promise: Promise | None) -> Layer:
    remedy = "train longer or with a larger penalty, or lower the threshold that training aims at"
    if promise is None:
        excess = max(estimate - threshold, 0.0)
        said = f"observed rate is {excess:.2%} above" if excess else "observed rate is within"
        return Layer("optimisation", excess, f"{said} the threshold of {threshold:.1%}", (), remedy)
    gap = violation_bound(promise.suboptimality, penalty=promise.penalty, multiplier=promise.multiplier)
    return Layer(
        "optimisation",
        gap if math.isfinite(gap) else math.nan,
        f"suboptimality {promise.suboptimality:g} / (penalty {promise.penalty:g} - optimal multiplier "
        f"{promise.multiplier:g}) above the training threshold",
        (
            "the penalised objective is really that close to its maximum",
            "the learned cost is a probability of harm, on the prompts of training",
        ),
        remedy,
    )


def _judge_layer(judge: str, audit: JudgeAudit | None, sampled: float, confidence: float) -> Layer:
    remedy = "label, by hand, more responses that the judge called safe: harm hides there"
    if audit is not None:
        true = stratified_clopper_pearson(audit, confidence=confidence, side="upper").high
        return Layer(
            "judge",
            max(true - sampled, 0.0),
            f"wrong: {audit.missed} of {audit.labelled_safe} labelled 'safe' verdicts, {audit.false_alarms} "
            f"of {audit.labelled_unsafe} 'unsafe' ones; stratified Clopper-Pearson {true:.2%}",
            (
                "the labelled responses are a random part of those with the same verdict",
                "the human labels are right",
            ),
            remedy,
        )
    if judge == "oracle":
        said = "harm is what the oracle says, by definition of the toy world"
        return Layer("judge", 0.0, said, ("nothing: but the promise ends where that world does",), remedy)
    return Layer("judge", math.nan, "no human label: the judge may be wrong about any response", (), remedy)


def _prompts_needed(threshold: float, confidence: float) -> str:
    if threshold <= 0:
        return "no number of them certifies a rate of 0"
    needed = 1 if threshold >= 1 else math.ceil(math.log(1 - confidence) / math.log1p(-threshold))
    return f"without any harm, {needed} certify {threshold:.1%}"


@dataclass
class CertifyConfig:
    """Certify the harm rates in a run's results.json."""

    run: Positional[Path] = Path("runs/demo")
    """The run: its folder, or its name under runs/."""
    threshold: float = 0.05
    """The harm rate to certify."""
    confidence: float = 0.95
    """Confidence of all certificates together (or of each: see separate)."""
    separate: bool = False
    """Give each certificate the full error budget, instead of sharing it among all that are printed."""
    policy: str | None = None
    """The policy whose certificate is printed in full; by default fixed_penalty, else the last."""
    labels: Path | None = None
    """CSV, JSONL or Parquet of human labels: prompt, response, judge_unsafe, human_unsafe; policy and metric
    where labels differ by them."""
    judge: Literal["oracle", "model"] = "oracle"
    """Who judged harm in results.json: the toy world's oracle, or a model (which then needs labels)."""
    suboptimality: float | None = None
    """Optimisation layer of fixed_penalty: distance of its penalised objective from the maximum."""
    penalty: float | None = None
    """Optimisation layer: the fixed penalty."""
    optimal_multiplier: float | None = None
    """Optimisation layer: the optimal multiplier (see `csrlhf suggest-penalty`)."""
    output: Path | None = None
    """Also write the certificates here, as JSON."""


def run_certify(config: CertifyConfig) -> dict[str, Any]:
    """Print a certificate for each policy and each harmful_* rate of a run; return them as dictionaries."""
    check_file(config.output, "--output")
    path, policies = _read_policies(config.run)
    metrics = {
        (p, m): v for p, entry in policies.items() for m, v in entry.items() if m.startswith("harmful_")
    }
    if not metrics:
        raise UserError(f"{path}: no policy has a harmful_* rate, expected rate, low, high and n")
    if config.policy is not None and config.policy not in policies:
        raise UserError(f"{path}: no policy {config.policy!r}, expected one of {', '.join(policies)}")
    given = (config.suboptimality, config.penalty, config.optimal_multiplier)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise UserError(
            "suboptimality, penalty and optimal_multiplier belong together: give all three or none"
        )
    share = 1 if config.separate else len(metrics)
    labels = None if config.labels is None else _read_labels(config.labels)
    certificates: dict[tuple[str, str], Certificate] = {}
    for (policy, metric), value in metrics.items():
        harmful, trials = _counts(path, policy, metric, value)
        certificates[policy, metric] = certificate(
            harmful,
            trials,
            threshold=config.threshold,
            confidence=1 - (1 - config.confidence) / share,
            judge=config.judge,
            audit=None if labels is None else _audit(labels, policy, metric, harmful, trials),
            promise=Promise(*given) if policy == "fixed_penalty" and None not in given else None,
            subject=f"{policy}, {metric}",
        )
    full = config.policy or ("fixed_penalty" if "fixed_penalty" in policies else list(policies)[-1])
    print(_table(certificates, config), *(c for (p, _), c in certificates.items() if p == full), sep="\n\n")
    result = {
        "run": str(config.run),
        "threshold": config.threshold,
        "confidence": config.confidence,
        "simultaneous": not config.separate,
        "policies": {p: {} for p, _ in certificates},
    }
    for (policy, metric), c in certificates.items():
        result["policies"][policy][metric] = _as_json(c)
    if config.output:
        write_atomic(config.output, json.dumps(result, indent=2) + "\n")
    return result


def _as_json(certificate: Certificate) -> dict[str, Any]:
    """The certificate and its verdicts; a gap that nothing bounds is null, which JSON knows, unlike nan."""
    entry = asdict(certificate) | {"holds": certificate.holds, "binding": certificate.binding.name}
    entry["layers"] = [
        layer
        | {"gap": None if math.isnan(layer["gap"]) else layer["gap"], "assumptions": [*layer["assumptions"]]}
        for layer in entry["layers"]
    ]
    return entry


def _table(certificates: dict[tuple[str, str], Certificate], config: CertifyConfig) -> str:
    width = max(len(c.subject) for c in certificates.values()) + 2
    together = "each" if config.separate else "all together"
    of = "harm" if all(c.audited for c in certificates.values()) else "JUDGED harm (no human label)"
    lines = [
        f"upper bounds on {of}, {config.confidence:.0%} confidence {together}, "
        f"to certify {config.threshold:.1%}",
        f"{'':{width}}{'observed':>10}{'n':>7}{'bound':>9}  {'certified':<10} binding layer",
    ]
    for c in certificates.values():
        lines.append(
            f"{c.subject:{width}}{c.estimate:>10.2%}{c.trials:>7}{c.bound:>9.2%}  "
            f"{'yes' if c.holds else 'no':<10} {c.binding.name}"
        )
    return "\n".join(lines)


def _read_policies(run: Path) -> tuple[Path, dict[str, dict]]:
    folder = next((f for f in (Path(run), Path("runs") / run) if (f / "results.json").is_file()), None)
    if folder is None:
        raise UserError(f"{run}: no results.json there or under runs/{run}, expected a finished run")
    path = folder / "results.json"
    try:
        policies = json.loads(path.read_text(encoding="utf-8"))["policies"]
        if all(isinstance(entry, dict) for entry in policies.values()):
            return path, policies
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: cannot be read as a run's results, expected an object `policies` of objects")


def _counts(path: Path, policy: str, metric: str, value: Any) -> tuple[int, int]:
    """(harmful, trials) of one rate. The count is what the rate came from, so rate * n is whole."""
    try:
        rate, trials = float(value["rate"]), int(value["n"])
        harmful = round(rate * trials)
        if trials >= 1 and 0 <= rate <= 1 and abs(rate * trials - harmful) < 0.01:
            return harmful, trials
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(
        f"{path}: policies.{policy}.{metric} is {value!r:.80}, expected a rate in [0, 1] out of n"
    )


def _read_labels(path: Path) -> list[dict[str, Any]]:
    name, rows = read_file(Path(path))
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    labels = []
    for place, row in rows:
        label = {"policy": row.get("policy") or None, "metric": row.get("metric") or None}
        for field in ("judge_unsafe", "human_unsafe"):
            value = words.get(str(row.get(field, "")).strip().lower())
            if value is None:
                raise UserError(f"{name}, {place}: {field} is {row.get(field)!r}, expected true or false")
            label[field] = value
        labels.append(label)
    return labels


def _audit(labels: list[dict], policy: str, metric: str, harmful: int, trials: int) -> JudgeAudit:
    """The audit of one rate by the labels meant for it; a label that names no policy or metric is for all."""
    mine = [x for x in labels if x["policy"] in (None, policy) and x["metric"] in (None, metric)]
    judge, human = (np.array([x[f] for x in mine], dtype=bool) for f in ("judge_unsafe", "human_unsafe"))
    everything = np.arange(trials) < harmful
    return JudgeAudit.from_labels(everything, judge, human)
