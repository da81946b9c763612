"""Reference solutions of notebook 10, and wrong ones that its checks must refuse."""

from __future__ import annotations

from random import Random

import numpy as np

EXERCISES = {"10.1": "holds_after", "10.2": "rate_of_a_try", "10.3": "add_twins"}


def holds_after(rates, tries):
    return np.mean((1 - np.asarray(rates)) ** tries)


def holds_after__from_the_mean(rates, tries):
    """Jensen: the mean of powers is not the power of the mean."""
    return (1 - np.mean(rates)) ** tries


def holds_after__one_try(rates, tries):
    """What an evaluation with one answer a request reports."""
    return 1 - np.mean(rates)


def holds_after__breaks_after(rates, tries):
    """The share that is broken."""
    return 1 - np.mean((1 - np.asarray(rates)) ** tries)


def rate_of_a_try(tries, broken):
    return np.sum(broken) / np.sum(tries)


def rate_of_a_try__mean_of_the_broken(tries, broken):
    """Forgets all the tries that came to nothing."""
    return 1 / np.mean(np.asarray(tries)[np.asarray(broken)])


def rate_of_a_try__share_of_requests(tries, broken):
    """The share of requests that broke, whatever it took."""
    return np.mean(broken)


def rate_of_a_try__first_tries_only(tries, broken):
    """Not wrong, but it throws away all tries but the first."""
    return np.mean((np.asarray(tries) == 1) & np.asarray(broken))


def add_twins(finds, benign_requests, families, rng):
    records = []
    for request, stack in finds:
        records.append((request, stack, True))
        records.append((rng.choice(benign_requests), stack, False))  # the very wrappers of the find
    return records


def add_twins__asked_plainly(finds, benign_requests, families, rng):
    """Every wrapper in the new data is then harmful."""
    records = []
    for request, stack in finds:
        records += [(request, stack, True), (rng.choice(benign_requests), (), False)]
    return records


def add_twins__wrappers_at_random(finds, benign_requests, families, rng):
    """The planted bug."""
    records = []
    for request, stack in finds:
        twin = tuple(rng.choice(families) for _ in stack)
        records += [(request, stack, True), (rng.choice(benign_requests), twin, False)]
    return records


def add_twins__the_request_itself(finds, benign_requests, families, rng):
    """Calls the harmful request benign."""
    return [record for request, stack in finds for record in ((request, stack, True), (request, stack, False))]


def add_twins__one_for_all(finds, benign_requests, families, rng):
    """The same draw for every find, and a fixed seed besides."""
    twin = Random(0).choice(benign_requests)
    return [record for request, stack in finds for record in ((request, stack, True), (twin, stack, False))]
