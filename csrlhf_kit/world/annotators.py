"""Three simulated annotators with two separate judgements, as Safe RLHF collected them.

Each annotator sees the oracle's judgement with their own noise, and the majority decides. Helpfulness and
harmlessness are judged separately, so that the better answer of a pair need not be the safer one.
"""

from __future__ import annotations

from random import Random

from csrlhf_kit.world.oracle import Verdict

# For each annotator: how often they confuse safe and unsafe, and the noise (sd) of their helpfulness scale.
ANNOTATORS = ((0.02, 0.05), (0.03, 0.10), (0.05, 0.15))


def _majority(votes: list[bool]) -> bool:
    return sum(votes) * 2 > len(votes)


def label_safe(judgement: Verdict, rng: Random) -> bool:
    """The majority's absolute label: True for safe."""
    return _majority([judgement.safe != (rng.random() < slip) for slip, _ in ANNOTATORS])


def better(first: Verdict, second: Verdict, rng: Random) -> int:
    """Which of two answers the majority finds more helpful, harm aside: 0 or 1."""
    votes = [
        second.helpfulness + rng.gauss(0, s) > first.helpfulness + rng.gauss(0, s) for _, s in ANNOTATORS
    ]
    return int(_majority(votes))


def severity(judgement: Verdict) -> float:
    """How unsafe an answer is, 0 to 2: harmful 2, harmful after declining 1.5, degenerate 1."""
    if judgement.harmful:
        return 2.0 - 0.5 * judgement.leaking
    return 1.0 if judgement.degenerate else 0.0


def safer(
    first: Verdict,
    second: Verdict,
    first_is_safe: bool,
    second_is_safe: bool,
    better_id: int,
    rng: Random,
) -> int:
    """Which of two answers the majority finds safer: 0 or 1.

    If the absolute labels differ, they decide, as in PKU-SafeRLHF's guideline. Otherwise the less severe answer is
    safer, but the one found more helpful (`better_id`) also looks safer to annotators.
    """
    if first_is_safe != second_is_safe:
        return int(second_is_safe)
    halo = 0.5 if better_id else -0.5
    votes = [
        severity(first) - severity(second) + halo + rng.gauss(0, 3 * spread) > 0 for _, spread in ANNOTATORS
    ]
    return int(_majority(votes))
