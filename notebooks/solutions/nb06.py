"""Reference solutions of notebook 06, and wrong ones that its checks must refuse."""

from __future__ import annotations

import math

EXERCISES = {"6.1": "rate_for", "6.2": "calm_rate", "6.3": "pid", "6.4": "learned_multiplier"}


def rate_for(start, end, violation, steps):
    return (1 / start - 1 / end) / (violation * steps)


def rate_for__moves_lambda_itself(start, end, violation, steps):
    """Ascent on λ, not on its logarithm."""
    return (end - start) / (violation * steps)


def rate_for__forgets_the_factor(start, end, violation, steps):
    """Ascent on log λ at the same speed everywhere."""
    return math.log(end / start) / (violation * steps)


def rate_for__one_step(start, end, violation, steps):
    """The whole way at once."""
    return (1 / start - 1 / end) / violation


def calm_rate(response, multiplier, slope):
    pull = (1 - math.sqrt(1 - response)) ** 2 / response  # where the two eigenvalues meet
    return pull / (slope * multiplier**2)


def calm_rate__of_smooth_time(response, multiplier, slope):
    """The limit of small steps: too timid where the policy responds quickly."""
    return response / (4 * slope * multiplier**2)


def calm_rate__forgets_a_factor(response, multiplier, slope):
    """λ enters twice: by the chain rule, and because the step is one of its logarithm."""
    return (1 - math.sqrt(1 - response)) ** 2 / (response * slope * multiplier)


def calm_rate__the_other_root(response, multiplier, slope):
    """Where swinging from step to step begins."""
    return (1 + math.sqrt(1 - response)) ** 2 / (response * slope * multiplier**2)


def pid(violations, proportional, integral, derivative):
    accumulated, previous, multipliers = 0.0, violations[0], []
    for violation in violations:
        accumulated = max(0.0, accumulated + integral * violation)  # never in debt
        rise = max(0.0, violation - previous)
        previous = violation
        multipliers.append(max(0.0, proportional * violation + accumulated + derivative * rise))
    return multipliers


def pid__winds_up(violations, proportional, integral, derivative):
    """The planted bug: safe steps are saved up, and paid back by harm that is not charged."""
    accumulated, previous, multipliers = 0.0, violations[0], []
    for violation in violations:
        accumulated = accumulated + integral * violation
        rise = max(0.0, violation - previous)
        previous = violation
        multipliers.append(max(0.0, proportional * violation + accumulated + derivative * rise))
    return multipliers


def pid__never_comes_down(violations, proportional, integral, derivative):
    """An integral of the rectified violation: there is no way back."""
    accumulated, previous, multipliers = 0.0, violations[0], []
    for violation in violations:
        accumulated += integral * max(violation, 0.0)
        rise = max(0.0, violation - previous)
        previous = violation
        multipliers.append(max(0.0, proportional * violation + accumulated + derivative * rise))
    return multipliers


def pid__pays_for_falling(violations, proportional, integral, derivative):
    """The derivative in both directions: it lets go when the cost falls, however high the cost is."""
    accumulated, previous, multipliers = 0.0, violations[0], []
    for violation in violations:
        accumulated = max(0.0, accumulated + integral * violation)
        change = violation - previous
        previous = violation
        multipliers.append(max(0.0, proportional * violation + accumulated + derivative * change))
    return multipliers


def learned_multiplier(multiplier: float, violation: float, rate: float, maximum: float) -> float:
    """Dual ascent on log lambda: it climbs while the limit is broken, and falls again while it is kept."""
    return min(multiplier * math.exp(rate * multiplier * violation), maximum)


def learned_multiplier__climbs_in_lambda(multiplier, violation, rate, maximum):
    """Ascent on lambda, not on its logarithm."""
    return min(max(multiplier + rate * violation, 0.0), maximum)


def learned_multiplier__forgets_the_chain_rule(multiplier, violation, rate, maximum):
    """The gradient in log lambda is lambda times the violation."""
    return min(multiplier * math.exp(rate * violation), maximum)


def learned_multiplier__has_no_maximum(multiplier, violation, rate, maximum):
    """Right, until the limit is broken for long."""
    return multiplier * math.exp(rate * multiplier * violation)
