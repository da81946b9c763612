"""Reference solutions of notebook 12, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"12.1": "mean_state", "12.2": "alpha", "12.3": "split_jailbreaks"}


def mean_state(states, answer):
    total = (states * answer[:, :, None]).sum(axis=1)  # (batch, hidden)
    return total / answer.sum(axis=1, keepdims=True)


def mean_state__over_the_length(states, answer):
    """The longer the padding, the smaller the state."""
    return (states * answer[:, :, None]).mean(axis=1)


def mean_state__of_the_dialogue(states, answer):
    """Reads the request as well, and the padding."""
    return states.mean(axis=1)


def mean_state__last_token(states, answer):
    """What transformers' classifiers read."""
    last = answer.shape[1] - 1 - np.argmax(answer[:, ::-1], axis=1)
    return states[np.arange(len(states)), last]


def alpha(ratings):
    raters, items = ratings.shape
    unsafe = ratings.sum(axis=0)  # (items,)
    observed = np.mean(2 * unsafe * (raters - unsafe) / (raters * (raters - 1)))  # pairs that differ in an item
    ones, n = unsafe.sum(), raters * items
    expected = 2 * ones * (n - ones) / (n * (n - 1))  # pairs that differ if labels are dealt out anew
    return 1 - observed / expected


def alpha__share_of_equal_labels(ratings):
    """High wherever one label is rare."""
    raters, unsafe = len(ratings), ratings.sum(axis=0)
    return 1 - np.mean(2 * unsafe * (raters - unsafe) / (raters * (raters - 1)))


def alpha__with_replacement(ratings):
    """A label may meet itself: nearly right for many answers, wrong for few."""
    raters, unsafe, share = len(ratings), ratings.sum(axis=0), ratings.mean()
    return 1 - np.mean(2 * unsafe * (raters - unsafe) / (raters * (raters - 1))) / (2 * share * (1 - share))


def alpha__mean_of_kappas(ratings):
    """Cohen's κ of each two raters, averaged: each rater's own share of unsafe labels is forgiven."""
    kappas = []
    for i in range(len(ratings)):
        for j in range(i):
            a, b = ratings[i], ratings[j]
            by_chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
            kappas.append(((a == b).mean() - by_chance) / (1 - by_chance))
    return np.mean(kappas)


def split_jailbreaks(jailbreaks, rng):
    families = sorted({family for family, _ in jailbreaks})
    rng.shuffle(families)
    held = set(families[::2])
    training = [(family, text) for family, text in jailbreaks if family not in held]
    return training, [(family, text) for family, text in jailbreaks if family in held]


def split_jailbreaks__by_text(jailbreaks, rng):
    """The planted bug."""
    mixed = list(jailbreaks)
    rng.shuffle(mixed)
    return mixed[::2], mixed[1::2]


def split_jailbreaks__half_of_each_family(jailbreaks, rng):
    """Stratified, which is right for classes and wrong for what has to be held out."""
    return jailbreaks[::2], jailbreaks[1::2]


def split_jailbreaks__one_family(jailbreaks, rng):
    """A test of one family says nothing about families."""
    held = rng.choice(sorted({family for family, _ in jailbreaks}))
    return [j for j in jailbreaks if j[0] != held], [j for j in jailbreaks if j[0] == held]


def split_jailbreaks__drops_some(jailbreaks, rng):
    """Families are apart, but the largest are on neither side."""
    return [j for j in jailbreaks if j[0] in ("story", "payload")], [j for j in jailbreaks if j[0] in ("politeness", "translation")]  # fmt: skip
