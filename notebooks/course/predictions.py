"""Predictions: the learner chooses an outcome before it is computed, and the choices are scored at the end.

A notebook asks in prose, and the learner records one letter. `reveal` compares it with the outcome that the calling
cell has computed; no key is stored. Builds on nothing but errors.py.
"""

from __future__ import annotations

from typing import NamedTuple

from csrlhf_kit.errors import UserError


class Prediction(NamedTuple):
    """One question, what was chosen and, once it is known, what happened."""

    choice: str
    among: str
    outcome: str | None = None


class Predictions:
    """The recorded choices of one notebook."""

    def __init__(self) -> None:
        self.made: dict[str, Prediction] = {}

    def record(self, name: str, choice: str, *, among: str = "abc") -> None:
        """Record `choice`, one letter of `among`, for the question `name`; replaces an earlier choice.

        Raises UserError for another letter.
        """
        if choice not in tuple(among):
            raise UserError(f"{name}: {choice!r} is no choice, one of {', '.join(among)} was expected")
        self.made[name] = Prediction(choice, among)
        print(f"{name}: you chose ({choice}). Now let us see.")

    def reveal(self, name: str, outcome: str) -> None:
        """Print the computed `outcome`, a letter, beside the recorded choice.

        Raises UserError if no choice was recorded, or the outcome is none of the choices.
        """
        if name not in self.made:
            raise UserError(f"{name}: no choice was recorded; run the cell that records it first")
        if outcome not in tuple(self.made[name].among):
            raise UserError(
                f"{name}: the outcome {outcome!r} is none of the choices {', '.join(self.made[name].among)}"
            )
        self.made[name] = self.made[name]._replace(outcome=outcome)
        print(f"{name}: it is ({outcome}); you chose ({self.made[name].choice}).")

    def score(self) -> None:
        """Print each prediction beside its outcome, and how many were right."""
        known = {name: p for name, p in self.made.items() if p.outcome is not None}
        for name, prediction in known.items():
            right = "right" if prediction.choice == prediction.outcome else "a surprise"
            print(f"{name:<28} you ({prediction.choice})  outcome ({prediction.outcome})  {right}")
        print(f"Predictions right: {sum(p.choice == p.outcome for p in known.values())} of {len(known)}")
