"""Reference solutions of notebook 11, and wrong ones that its checks must refuse."""

from __future__ import annotations

import numpy as np

EXERCISES = {"11.1": "bits_per_weight", "11.2": "log_total", "11.3": "dequantise"}


def bits_per_weight(block, group=None):
    scale = 32 if group is None else 8 + 32 / group  # bits that each block's scale takes
    return 4 + scale / block


def bits_per_weight__forgets_the_scales(block, group=None):
    """Four bits are four bits, says the brochure."""
    return 4.0


def bits_per_weight__keeps_the_scales_in_full(block, group=None):
    """Never quantises them a second time."""
    return 4 + 32 / block


def bits_per_weight__second_scale_for_every_weight(block, group=None):
    """The second scale is shared by `group` blocks, not by `group` weights."""
    return 4 + 32 / block if group is None else 4 + 8 / block + 32 / group


def log_total(hidden, weight, chunk):
    total = np.full(len(hidden), -np.inf)
    for start in range(0, len(weight), chunk):
        logits = hidden @ weight[start : start + chunk].T  # (tokens, chunk), and nothing larger
        top = logits.max(axis=1)
        part = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        total = np.logaddexp(total, part)
    return total


def log_total__all_at_once(hidden, weight, chunk):
    """Right, and as large as what it should replace."""
    logits = hidden @ weight[: len(weight)].T
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def log_total__overflows(hidden, weight, chunk):
    """exp(1000) is infinite."""
    total = np.zeros(len(hidden))
    for start in range(0, len(weight), chunk):
        total += np.exp(hidden @ weight[start : start + chunk].T).sum(axis=1)
    return np.log(total)


def log_total__drops_the_last_chunk(hidden, weight, chunk):
    """A vocabulary is seldom a multiple of the chunk."""
    total = np.full(len(hidden), -np.inf)
    for start in range(0, len(weight) - chunk + 1, chunk):
        logits = hidden @ weight[start : start + chunk].T
        top = logits.max(axis=1)
        total = np.logaddexp(total, top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))
    return total


def log_total__adds_logarithms(hidden, weight, chunk):
    """Multiplies the chunks' totals instead of adding them."""
    total = np.zeros(len(hidden))
    for start in range(0, len(weight), chunk):
        logits = hidden @ weight[start : start + chunk].T
        top = logits.max(axis=1)
        total += top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return total


def dequantise(packed, absmax, code, block):
    high, low = packed >> 4, packed & 15
    index = np.stack([high, low], axis=-1).reshape(-1)  # the high nibble is the even element
    return code[index] * np.repeat(absmax, block)


def dequantise__low_nibble_first(packed, absmax, code, block):
    """The planted bug."""
    low, high = packed & 15, packed >> 4
    index = np.stack([low, high], axis=-1).reshape(-1)
    return code[index] * np.repeat(absmax, block)


def dequantise__scales_in_turn(packed, absmax, code, block):
    """Gives neighbours in a block different scales."""
    index = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    return code[index] * np.tile(absmax, block)


def dequantise__without_scales(packed, absmax, code, block):
    """Everything between -1 and 1."""
    return code[np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)]
