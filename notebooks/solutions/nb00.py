"""Reference solutions of notebook 00, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"0.1": "shares", "0.2": "unbeaten", "0.3": "gated_push"}


def shares(answers):
    asked = [a for a in answers if a["asked_for_harm"]]
    alarming = [a for a in answers if a["sounds_alarming"] and not a["asked_for_harm"]]
    harm = sum(a["harmful"] for a in asked) / len(asked)
    over_refusal = sum(a["refused"] for a in alarming) / len(alarming)
    return harm, over_refusal


def shares__of_all_answers(answers):
    """The more harmless requests are asked, the safer everybody looks."""
    harm = sum(a["harmful"] for a in answers) / len(answers)
    return harm, sum(a["refused"] for a in answers) / len(answers)


def shares__counts_good_refusals(answers):
    """Takes a refused harmful request for an over-refusal."""
    asked = [a for a in answers if a["asked_for_harm"]]
    alarming = [a for a in answers if a["sounds_alarming"]]
    harm = sum(a["harmful"] for a in asked) / len(asked)
    return harm, sum(a["refused"] for a in alarming) / len(alarming)


def shares__over_all_harmless_requests(answers):
    """Thousands of plain requests hide the few that sound alarming."""
    asked = [a for a in answers if a["asked_for_harm"]]
    benign = [a for a in answers if not a["asked_for_harm"]]
    harm = sum(a["harmful"] for a in asked) / len(asked)
    return harm, sum(a["refused"] for a in benign) / len(benign)


def unbeaten(points):
    def beats(one, other):
        (harm, help_), (harm_2, help_2) = one, other
        return harm <= harm_2 and help_ >= help_2 and one != other

    return [name for name, point in points.items() if not any(beats(p, point) for p in points.values())]


def unbeaten__better_in_both_only(points):
    """Keeps a policy that is as safe as another one and less helpful."""
    return [
        name
        for name, (harm, help_) in points.items()
        if not any(h < harm and u > help_ for h, u in points.values())
    ]


def unbeaten__twins_beat_each_other(points):
    """At least as good in both: so two equal policies throw each other out."""
    return [
        name
        for name, (harm, help_) in points.items()
        if not any(h <= harm and u >= help_ for other, (h, u) in points.items() if other != name)
    ]


def unbeaten__the_safest_only(points):
    """One number is looked at."""
    least = min(harm for harm, _ in points.values())
    return [name for name, (harm, _) in points.items() if harm == least]


def gated_push(reward_advantage, cost_advantage, recent_costs, threshold, penalty):
    price = penalty if np.mean(recent_costs) > threshold else 0.0  # all of it, or nothing
    return (reward_advantage - price * cost_advantage) / (1 + price)


def gated_push__a_gate_that_never_shuts(reward_advantage, cost_advantage, recent_costs, threshold, penalty):
    """The planted bug: what was cut off at 0 is never below 0."""
    excess = max(np.mean(recent_costs) - threshold, 0.0)
    price = penalty if excess >= 0 else 0.0
    return (reward_advantage - price * cost_advantage) / (1 + price)


def gated_push__divides_all_the_same(reward_advantage, cost_advantage, recent_costs, threshold, penalty):
    """With the gate shut the reward counts for a quarter, and the KL for four times as much."""
    price = penalty if np.mean(recent_costs) > threshold else 0.0
    return (reward_advantage - price * cost_advantage) / (1 + penalty)


def gated_push__charges_by_the_excess(reward_advantage, cost_advantage, recent_costs, threshold, penalty):
    """A quadratic penalty: next to nothing is due near the threshold."""
    price = penalty * max(np.mean(recent_costs) - threshold, 0.0)
    return (reward_advantage - price * cost_advantage) / (1 + price)
