"""Predict first: a choice that is recorded before the result is computed, and scored at the end.

Guessing before looking is what makes a surprise visible. A notebook asks in prose, the learner changes one
letter, and `reveal` compares it with what the *computation* said, never with a stored key.
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
        """Seal `choice`, one letter of `among`, for the question `name`. Recording again replaces it."""
        if choice not in tuple(among):
            raise UserError(f"{name}: {choice!r} is no choice, one of {', '.join(among)} was expected")
        self.made[name] = Prediction(choice, among)
        print(f"{name}: you chose ({choice}). Now let us see.")

    def reveal(self, name: str, outcome: str) -> None:
        """Say what happened, which the calling cell has computed, beside what was chosen."""
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
