"""What can be promised about a policy's harm, and what each promise rests on."""

from __future__ import annotations

from csrlhf_kit.intervals import (
    ConfidenceSequence,
    Interval,
    betting,
    clopper_pearson,
    empirical_bernstein,
    hoeffding,
    wilson,
)

__all__ = [
    "ConfidenceSequence",
    "Interval",
    "betting",
    "clopper_pearson",
    "empirical_bernstein",
    "hoeffding",
    "wilson",
]
