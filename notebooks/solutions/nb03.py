"""Reference solutions of notebook 03, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"3.1": "slater_bound", "3.2": "dual", "3.3": "rectified_value", "3.4": "rectified_multiplier"}


def slater_bound(problem, policy):
    best, safe = problem.constrained_optimum(), problem.evaluate(policy)
    return (best.objective - safe.objective) / (problem.threshold - safe.cost)


def slater_bound__forgets_the_kl(problem, policy):
    """Compares rewards, not objectives."""
    best, safe = problem.constrained_optimum(), problem.evaluate(policy)
    return (best.reward - safe.reward) / (problem.threshold - safe.cost)


def slater_bound__divides_by_the_threshold(problem, policy):
    """Right only for a policy that costs nothing."""
    best, safe = problem.constrained_optimum(), problem.evaluate(policy)
    return (best.objective - safe.objective) / problem.threshold


def slater_bound__starts_from_the_unconstrained_optimum(problem, policy):
    """A bound too, but not the one asked for: F of the wrong policy."""
    best, safe = problem.tilted(0.0), problem.evaluate(policy)
    return (best.objective - safe.objective) / (problem.threshold - safe.cost)


def dual(problem, multiplier):
    scores = (problem.reward - multiplier * (problem.cost - problem.threshold)) / problem.beta
    largest = scores.max(axis=1, keepdims=True)  # exp of the largest is then exp(0)
    mean = (problem.reference * np.exp(scores - largest)).sum(axis=1)
    return problem.beta * problem.weights @ (largest[:, 0] + np.log(mean))


def dual__overflows(problem, multiplier):
    """Right on paper; exp(1200) is infinite."""
    scores = (problem.reward - multiplier * (problem.cost - problem.threshold)) / problem.beta
    return problem.beta * problem.weights @ np.log((problem.reference * np.exp(scores)).sum(axis=1))


def dual__forgets_the_threshold(problem, multiplier):
    """The log-partition of the tilt, not the dual."""
    scores = (problem.reward - multiplier * problem.cost) / problem.beta
    return problem.beta * problem.weights @ np.log((problem.reference * np.exp(scores)).sum(axis=1))


def dual__forgets_the_weights(problem, multiplier):
    """A plain mean over prompts."""
    scores = (problem.reward - multiplier * (problem.cost - problem.threshold)) / problem.beta
    return problem.beta * np.log((problem.reference * np.exp(scores)).sum(axis=1)).mean()


def rectified_value(problem, policy, penalty):
    objective = problem.evaluate(policy).objective
    mean_cost = problem.weights @ (policy * problem.cost).sum(axis=1)
    violation = max(mean_cost - problem.threshold, 0.0)  # first the mean, then the hinge
    return objective - penalty * violation


def rectified_value__rectifies_each_answer(problem, policy, penalty):
    """The planted bug: the hinge of each answer, then the mean."""
    objective = problem.evaluate(policy).objective
    excess = np.maximum(problem.cost - problem.threshold, 0.0)
    violation = problem.weights @ (policy * excess).sum(axis=1)
    return objective - penalty * violation


def rectified_value__rectifies_each_prompt(problem, policy, penalty):
    """The hinge of each prompt's mean, then the mean over prompts."""
    objective = problem.evaluate(policy).objective
    excess = np.maximum((policy * problem.cost).sum(axis=1) - problem.threshold, 0.0)
    return objective - penalty * problem.weights @ excess


def rectified_value__never_rectifies(problem, policy, penalty):
    """The linear penalty."""
    objective = problem.evaluate(policy).objective
    mean_cost = problem.weights @ (policy * problem.cost).sum(axis=1)
    return objective - penalty * (mean_cost - problem.threshold)


def rectified_multiplier(violation: float, penalty: float) -> float:
    """lambda of this step's update, from J_C - d: the gradient of lambda max(J_C - d, 0) is all or nothing."""
    return penalty if violation > 0 else 0.0


def rectified_multiplier__grows_with_the_violation(violation, penalty):
    """The penalty itself, not its gradient."""
    return penalty * max(violation, 0.0)


def rectified_multiplier__is_linear(violation, penalty):
    """Pays below the limit, too: the linear penalty."""
    return penalty
