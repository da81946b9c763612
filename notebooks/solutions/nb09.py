"""Reference solutions of notebook 09, and wrong ones that its checks must refuse."""

from __future__ import annotations

import math

import numpy as np

EXERCISES = {"9.1": "gap", "9.2": "strengths", "9.3": "verdict"}


def gap(first, second):
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    down = math.hypot(a - a_low, b_high - b)  # the first lower than measured, the second higher
    up = math.hypot(a_high - a, b - b_low)
    return a - b, a - b - down, a - b + up


def gap__adds_the_errors(first, second):
    """As if both erred fully, in opposite directions, at the same time."""
    return first[0] - second[0], first[1] - second[2], first[2] - second[1]


def gap__compares_end_with_end(first, second):
    """Low minus low, high minus high: the interval shrinks to nothing where both err alike."""
    return first[0] - second[0], first[1] - second[1], first[2] - second[2]


def gap__takes_the_wrong_sides(first, second):
    """The downward error of the second makes the difference larger, not smaller."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return a - b, a - b - math.hypot(a - a_low, b - b_low), a - b + math.hypot(a_high - a, b_high - b)


def strengths(wins):
    wins = np.asarray(wins, dtype=float)
    games = wins + wins.T
    odds = np.ones(len(wins))
    for _ in range(5000):
        odds = wins.sum(axis=1) / (games / (odds[:, None] + odds)).sum(axis=1)
        odds /= np.exp(np.log(odds).mean())
    return np.log(odds)


def strengths__logit_of_the_win_rate(wins):
    """Forgets against whom the games were won."""
    wins = np.asarray(wins, dtype=float)
    share = wins.sum(axis=1) / (wins + wins.T).sum(axis=1)
    theta = np.log(share / (1 - share))
    return theta - theta.mean()


def strengths__stops_after_a_step(wins):
    """One turn of the iteration is not its end."""
    wins = np.asarray(wins, dtype=float)
    odds = wins.sum(axis=1) / ((wins + wins.T) / 2).sum(axis=1)
    return np.log(odds) - np.log(odds).mean()


def strengths__odds_instead_of_their_logarithm(wins):
    """Right up to the last line."""
    wins = np.asarray(wins, dtype=float)
    games, odds = wins + wins.T, np.ones(len(wins))
    for _ in range(5000):
        odds = wins.sum(axis=1) / (games / (odds[:, None] + odds)).sum(axis=1)
        odds /= np.exp(np.log(odds).mean())
    return odds


def verdict(low, high, claimed):
    if low >= claimed:
        return "agrees"
    return "differs" if high < claimed else "undecided"


def verdict__not_shown_is_refuted(low, high, claimed):
    """The planted bug."""
    return "agrees" if low >= claimed else "differs"


def verdict__by_the_middle(low, high, claimed):
    """An interval is reported and then not used."""
    return "agrees" if (low + high) / 2 >= claimed else "differs"


def verdict__in_dubio_pro_claim(low, high, claimed):
    """Whatever has not been refuted is true."""
    return "differs" if high < claimed else "agrees"
