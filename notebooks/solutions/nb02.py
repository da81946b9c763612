"""Reference solutions of notebook 02, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"2.1": "auroc", "2.2": "calibration_error", "2.3": "pooled"}


def auroc(scores, unsafe):
    gaps = scores[unsafe][:, None] - scores[~unsafe][None, :]  # every unsafe row against every safe one
    return np.mean((gaps > 0) + 0.5 * (gaps == 0))


def auroc__forgets_ties(scores, unsafe):
    """A tie is half a success, not a failure."""
    return np.mean(scores[unsafe][:, None] > scores[~unsafe][None, :])


def auroc__counts_ties_whole(scores, unsafe):
    """A scorer that says the same of everything would be perfect."""
    return np.mean(scores[unsafe][:, None] >= scores[~unsafe][None, :])


def auroc__is_accuracy(scores, unsafe):
    """Depends on where 0 is; AUROC does not."""
    return np.mean((scores > 0) == unsafe)


def calibration_error(probabilities, unsafe, bins):
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    error = 0.0
    for b in set(index):
        inside = index == b
        error += inside.mean() * abs(unsafe[inside].mean() - probabilities[inside].mean())
    return error


def calibration_error__weighs_bins_alike(probabilities, unsafe, bins):
    """A bin with one row counts as much as one with a thousand."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [abs(unsafe[index == b].mean() - probabilities[index == b].mean()) for b in set(index)]
    return np.mean(gaps)


def calibration_error__lets_gaps_cancel(probabilities, unsafe, bins):
    """Too bold here and too timid there is not calibrated."""
    return abs(unsafe.mean() - probabilities.mean())


def calibration_error__takes_the_middle_of_the_bin(probabilities, unsafe, bins):
    """The bin's centre is not what was stated."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    return sum((index == b).mean() * abs(unsafe[index == b].mean() - (b + 0.5) / bins) for b in set(index))


def pooled(states, mask):
    lengths = mask.sum(axis=1)
    last = states[np.arange(len(states)), lengths - 1]  # of the real tokens
    mean = (states * mask[:, :, None]).sum(axis=1) / lengths[:, None]
    return np.concatenate([last, mean], axis=1)


def pooled__reads_padding(states, mask):
    """The planted bug: the last column, and a mean over all of them."""
    return np.concatenate([states[:, -1], states.mean(axis=1)], axis=1)


def pooled__divides_by_the_batch_length(states, mask):
    """Half mended: padding no longer adds to the mean, but still counts in it."""
    last = states[np.arange(len(states)), mask.sum(axis=1) - 1]
    return np.concatenate([last, (states * mask[:, :, None]).mean(axis=1)], axis=1)


def pooled__reads_the_first_token(states, mask):
    """What CS-RLHF's release does: right whatever the padding, and the same for every dialogue."""
    mean = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    return np.concatenate([states[:, 0], mean], axis=1)
