"""Predictions: the learner chooses an outcome before it is computed, and the choices are scored at the end.

A notebook asks in prose, and the learner writes one letter between two quotes, which are empty at first. `reveal`
compares it with the outcome that the calling cell has computed; no key is stored. A notebook also runs without a
letter, and the score says what was left out. Builds on nothing but errors.py.
"""

from __future__ import annotations

from typing import NamedTuple

from csrlhf_kit.errors import UserError


class Prediction(NamedTuple):
    """One question, what was chosen ("" for nothing) and, once it is known, what happened."""

    choice: str
    among: str
    outcome: str | None = None


class Predictions:
    """The recorded choices of one notebook."""

    def __init__(self) -> None:
        self.made: dict[str, Prediction] = {}

    def record(self, name: str, choice: str, *, among: str = "abc") -> None:
        """Record `choice`, one letter of `among`, for the question `name`; replaces an earlier choice.

        An empty choice is asked for in a sentence. Raises UserError for another letter.
        """
        if choice not in ("", *among):
            raise UserError(f"{name}: {choice!r} is no choice, one of {', '.join(among)} was expected")
        self.made[name] = Prediction(choice, among)
        if choice:
            print(f"{name}: you chose ({choice}). Now let us see.")
        else:
            print(
                f"{name}: write {', '.join(among[:-1])} or {among[-1]} between the quotes and run this cell."
            )

    def reveal(self, name: str, outcome: str) -> None:
        """Print the computed `outcome`, a letter, beside the recorded choice.

        Raises UserError if no choice was recorded, or the outcome is none of the choices.
        """
        if name not in self.made:
            raise UserError(f"{name}: no choice was recorded; run the cell that records it first")
        choice, among, _ = self.made[name]
        if outcome not in tuple(among):
            raise UserError(f"{name}: the outcome {outcome!r} is none of the choices {', '.join(among)}")
        self.made[name] = Prediction(choice, among, outcome)
        print(
            f"{name}: it is ({outcome}); you " + (f"chose ({choice})." if choice else "made no prediction.")
        )

    def score(self) -> None:
        """Print each prediction beside its outcome, and how many were right."""
        known = {name: p for name, p in self.made.items() if p.outcome is not None}
        made = [p for p in known.values() if p.choice]
        width = max([28, *(len(name) + 1 for name in known)])
        for name, p in known.items():
            right = "no prediction" if not p.choice else "right" if p.choice == p.outcome else "a surprise"
            print(f"{name:<{width}} you ({p.choice or ' '})  outcome ({p.outcome})  {right}")
        left = f", and {len(known) - len(made)} without a letter" if len(made) < len(known) else ""
        print(f"Predictions right: {sum(p.choice == p.outcome for p in made)} of {len(made)}{left}")
