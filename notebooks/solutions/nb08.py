"""Reference solutions of notebook 08, and wrong ones that its checks must refuse."""

from __future__ import annotations

import math

from csrlhf_kit.theory.intervals import clopper_pearson

EXERCISES = {"8.1": "answers_needed", "8.2": "harm_bound", "8.3": "certified"}


def answers_needed(rate, confidence):
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def answers_needed__rule_of_three(rate, confidence):
    """An approximation, for 95% only."""
    return math.ceil(3 / rate)


def answers_needed__rounds_down(rate, confidence):
    """One answer short."""
    return math.floor(math.log(1 - confidence) / math.log(1 - rate))


def answers_needed__two_sided(rate, confidence):
    """Pays for a lower bound that nobody asked for."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(1 - rate))


def harm_bound(audit, confidence):
    part = 1 - (1 - confidence) / 3  # three rates are bounded at once
    caught = audit.labelled_unsafe - audit.false_alarms
    if_unsafe = clopper_pearson(caught, audit.labelled_unsafe, confidence=part, side="upper").high
    if_safe = clopper_pearson(audit.missed, audit.labelled_safe, confidence=part, side="upper").high
    shares = clopper_pearson(audit.judged_unsafe, audit.judged, confidence=part)
    return max(q * if_unsafe + (1 - q) * if_safe for q in shares)


def harm_bound__forgets_what_the_judge_missed(audit, confidence):
    """Takes 'safe' verdicts at their word."""
    part = 1 - (1 - confidence) / 3
    caught = audit.labelled_unsafe - audit.false_alarms
    if_unsafe = clopper_pearson(caught, audit.labelled_unsafe, confidence=part, side="upper").high
    return clopper_pearson(audit.judged_unsafe, audit.judged, confidence=part).high * if_unsafe


def harm_bound__spends_the_error_three_times(audit, confidence):
    """Each of three bounds at full confidence: together they promise less."""
    caught = audit.labelled_unsafe - audit.false_alarms
    if_unsafe = clopper_pearson(caught, audit.labelled_unsafe, confidence=confidence, side="upper").high
    if_safe = clopper_pearson(audit.missed, audit.labelled_safe, confidence=confidence, side="upper").high
    shares = clopper_pearson(audit.judged_unsafe, audit.judged, confidence=confidence)
    return max(q * if_unsafe + (1 - q) * if_safe for q in shares)


def harm_bound__believes_the_estimate(audit, confidence):
    """An estimate is no bound."""
    return audit.estimate


def certified(outcomes, threshold, confidence=0.95, every=100):
    looks = len(outcomes) // every
    each = 1 - (1 - confidence) / looks  # the error is shared by all looks
    for seen in range(every, len(outcomes) + 1, every):
        harmful = int(outcomes[:seen].sum())
        if clopper_pearson(harmful, seen, confidence=each, side="upper").high <= threshold:
            return True
    return False


def certified__looks_as_often_as_it_likes(outcomes, threshold, confidence=0.95, every=100):
    """The planted bug."""
    for seen in range(every, len(outcomes) + 1, every):
        harmful = int(outcomes[:seen].sum())
        if clopper_pearson(harmful, seen, confidence=confidence, side="upper").high <= threshold:
            return True
    return False


def certified__believes_the_observed_rate(outcomes, threshold, confidence=0.95, every=100):
    """No bound at all: right half of the time."""
    return bool(outcomes.mean() <= threshold)


def certified__never(outcomes, threshold, confidence=0.95, every=100):
    """Makes no mistake, and no certificate."""
    return False
