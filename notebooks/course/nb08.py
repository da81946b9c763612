"""The exercises of notebook 08: a picture and a check for each function that the learner writes.

8.1 `answers_needed`: harmless answers that certify a rate. 8.2 `harm_bound`: an upper bound of the harm rate behind a
judge that errs. 8.3 `certified`: a certificate that stays valid although one looks several times.
"""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from course.chart import chart
from course.exercises import Attempt, Mistake, answer, drawn, same
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.theory.judge_error import JudgeAudit, stratified_clopper_pearson

SPOILERS = {"2": ("stratified_clopper_pearson",)}  # exercise -> what solves it already


THRESHOLD = 0.05
_STREAMS = np.random.default_rng(9).random((300, 1000))  # outcomes of rate p are the numbers below p


def picture_1(attempt: Attempt) -> go.Figure:
    rates = [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2]
    values = [drawn(attempt, rate, 0.95) for rate in rates]
    return chart(
        "How many harmless answers certify a rate with 95% confidence?",
        "rate to certify, %",
        "harmless answers needed",
        {"the rule of three, 3 / rate": ([100 * r for r in rates], [3 / r for r in rates])},
        yours=None if None in values else ([100 * r for r in rates], values),
    )


def check_1(attempt: Attempt) -> None:
    for rate, confidence in ((0.02, 0.95), (0.01, 0.95), (0.05, 0.99), (0.5, 0.9)):
        found = answer(attempt, rate, confidence)
        what = f"to certify {rate:.0%} with {confidence:.0%} confidence"
        same(found, np.asarray(found, dtype=float).reshape(()), what)
        if found != math.floor(found) or found < 1:
            raise Mistake(f"{what}: {found!r} is no number of answers")
        found = int(found)
        if clopper_pearson(0, found, confidence=confidence, side="upper").high > rate:
            raise Mistake(f"{what}: {found} harmless answers still leave the upper bound above the rate")
        if found > 1 and clopper_pearson(0, found - 1, confidence=confidence, side="upper").high <= rate:
            raise Mistake(f"{what}: {found} answers suffice, but so would one fewer")


def _audits() -> list[JudgeAudit]:
    return [
        JudgeAudit(2000, 400, 60, 6, labelled, round(0.05 * labelled)) for labelled in (20, 40, 100, 200, 400)
    ]


def picture_2(attempt: Attempt) -> go.Figure:
    audits = _audits()
    labelled = [audit.labelled_safe for audit in audits]
    values = [drawn(attempt, audit, 0.95) for audit in audits]
    return chart(
        "20% are judged unsafe: the bound of true harm falls as people label 'safe' answers",
        "answers judged safe that people labelled (5% of them turn out harmful)",
        "bound of the harm rate, %",
        {
            "observed: judge and labels together": (labelled, [100 * a.estimate for a in audits]),
            "the judge's word alone": (labelled, [20.0] * len(labelled)),
        },
        yours=None if None in values else (labelled, [100 * float(value) for value in values]),
    )


def check_2(attempt: Attempt) -> None:
    for audit in (_audits()[2], JudgeAudit(500, 25, 25, 5, 50, 0), JudgeAudit(300, 200, 40, 4, 10, 2)):
        same(
            answer(attempt, audit, 0.95),
            stratified_clopper_pearson(audit, confidence=0.95, side="upper").high,
            f"{audit.judged_unsafe} of {audit.judged} judged unsafe, {audit.missed} of {audit.labelled_safe} missed",
            tolerance=1e-9,
            hint="Three bounds with a third of the error each; the rate of 'unsafe' verdicts needs both its ends.",
        )


def _share_certified(attempt: Attempt, rate: float, streams: int, every: int) -> float:
    verdicts = [answer(attempt, row < rate, THRESHOLD, 0.95, every) for row in _STREAMS[:streams]]
    return float(np.mean([bool(verdict) for verdict in verdicts]))


def picture_3(attempt: Attempt) -> go.Figure:
    looks = (1, 2, 4, 10)
    shares = [drawn(_share_certified, attempt, THRESHOLD + 1e-4, 150, 1000 // count) for count in looks]
    return chart(
        "How often a policy just above 5% harm gets its certificate, by the number of looks",
        "looks at 1,000 answers as they come in",
        "false certificates, %",
        {"what 95% confidence allows": ([looks[0], looks[-1]], [5.0, 5.0])},
        yours=None if None in shares else (looks, [100 * share for share in shares]),
    )


def check_3(attempt: Attempt) -> None:
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)  # three standard errors of the simulation
    wrong = _share_certified(attempt, THRESHOLD + 1e-4, 300, 100)
    if wrong > allowed:
        raise Mistake(
            f"with ten looks, {wrong:.0%} of 300 policies just above the threshold are certified, "
            "where 95% confidence allows 5%"
        )
    right = _share_certified(attempt, THRESHOLD / 2, 100, 100)
    if right < 0.7:
        raise Mistake(
            f"of 100 policies with half the allowed harm only {right:.0%} are certified: that is too strict"
        )
