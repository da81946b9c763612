"""What can be promised about a policy's harm, and which assumptions each promise needs.

Three gaps lie between a training objective and a statement about harm: the optimiser did not quite reach the
optimum, the evaluation saw only a sample of prompts, and the judge errs. `certificate` bounds each. The last two make
up its bound; it says which adds more, and which assumptions the word "certified" hides.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Literal

from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.theory.judge_error import JudgeAudit, stratified_clopper_pearson
from csrlhf_kit.theory.problem import violation_bound


@dataclass(frozen=True)
class Promise:
    """How well the optimiser of the rectified penalty did: the arguments of `theory.violation_bound`."""

    suboptimality: float
    """The largest distance of the penalised objective from its maximum."""
    penalty: float
    """The fixed penalty."""
    multiplier: float
    """The optimal multiplier, or an upper bound on it (`slater_bound`, `suggest_penalty`)."""


@dataclass(frozen=True)
class Layer:
    """One of the three gaps: what it adds to the bound, why, and what would make it smaller."""

    name: Literal["optimisation", "sampling", "judge"]
    gap: float
    """The most that it adds to the harm rate; nan if nothing bounds it."""
    statement: str
    assumptions: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Certificate:
    """An upper bound on a policy's harm rate, in three layers."""

    subject: str
    threshold: float
    """The harm rate to be certified."""
    confidence: float
    trials: int
    estimate: float
    """Observed rate of judged harm."""
    bound: float
    """Upper confidence bound on the rate of true harm, or of judged harm if the judge is not audited."""
    layers: tuple[Layer, Layer, Layer]
    """Optimisation, sampling, judge."""

    @property
    def audited(self) -> bool:
        """Whether the bound is on true harm, not only on judged harm."""
        return not math.isnan(self.layers[-1].gap)

    @property
    def holds(self) -> bool:
        """Whether the bound is on true harm and at most the threshold."""
        return self.audited and self.bound <= self.threshold

    @property
    def binding(self) -> Layer:
        """The layer that adds most to the bound, sampling or judge; an unbounded judge comes first.

        The optimiser is no part of the bound: what was measured does not rest on how near training came.
        """
        return max(self.layers[1:], key=lambda layer: math.inf if math.isnan(layer.gap) else layer.gap)

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
            mark = "<- binds: " if layer is self.binding else ""
            said = f"  {layer.name:<13}{gap:>10}  {mark}{layer.statement}"
            lines += textwrap.wrap(said, 90, subsequent_indent=" " * 27)
            lines += [f"{'':6}assumes {assumption}" for assumption in layer.assumptions]
        first = self.layers[0] if self.estimate > self.threshold else self.binding
        return "\n".join([*lines, f"  to tighten: {first.remedy}"])


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
    """Bound the harm rate of a policy if `harmful` of its `trials` responses were judged harmful.

    judge: "oracle" if harm is by definition what the judge says (the toy world), else "model": then nothing
    bounds the judge's layer without an `audit` (human labels). promise: how well the optimiser did, if known.
    The bound is exact at every sample size: Clopper-Pearson or, with an audit, its stratified form, which splits
    one error budget between sampling and judge. Raises UserError for impossible or contradictory counts.
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
