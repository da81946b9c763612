"""Two policies compared blind on one request: what `csrlhf arena RUN_A RUN_B` and the arena widget share.

A policy is a function from chat messages to pieces of text, shown as they come. Votes are appended to a file before
the names are shown; ratings (`ratings.bradley_terry`) are fitted to all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csrlhf_kit import files
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.ratings import ELO, PRIOR, bradley_terry

Talk = Callable[[list[dict[str, str]]], Iterable[str]]
"""Chat messages so far, the last one the user's -> the answer, piece by piece."""
VOTES = {"1": "left", "2": "right", "=": "tie", "0": "both bad"}
SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both bad": 0.5}


@dataclass
class Duel:
    """A conversation with two policies, each of which sees only its own answers."""

    policies: Mapping[str, Talk]
    path: Path
    """File to append votes to, one JSON object per line."""
    seed: int = 0
    pair: tuple[str, str] = ("", "")
    """Names, left and right."""
    turns: tuple[list[dict[str, str]], list[dict[str, str]]] = field(default_factory=lambda: ([], []))
    """Messages of the left and of the right conversation."""

    def __post_init__(self) -> None:
        if len(self.policies) < 2:
            raise UserError(f"arena: found {len(self.policies)} policies, at least two were expected")
        self.fresh()

    def fresh(self) -> None:
        """Start again with the pair that has met least often; seed and number of votes decide the sides."""
        votes = files.read(self.path)
        names = list(self.policies)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        met = [sum({v.get("left"), v.get("right")} == {*pair} for v in votes) for pair in pairs]
        first, second = pairs[int(np.argmin(met))]
        digest = hashlib.blake2b(f"{self.seed}\0{len(votes)}".encode(), digest_size=1).digest()
        self.pair = (first, second) if digest[0] & 1 else (second, first)
        self.turns = ([], [])

    def ask(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield (side, the answer so far) while the two policies answer, one after the other.

        Raises UserError if the text is empty.
        """
        if not text.strip():
            raise UserError("arena: a request that is not empty was expected")
        for side, name in enumerate(self.pair):
            turns, said = self.turns[side], ""
            turns.append({"role": "user", "content": text})
            for piece in self.policies[name](list(turns)):
                said += piece
                yield side, said
            turns.append({"role": "assistant", "content": said})

    def vote(self, key: str) -> dict[str, Any]:
        """Store which was better, and return the vote, which is then on disk.

        Raises UserError for a key that is not in `VOTES`, or before both have answered.
        """
        if key not in VOTES:
            raise UserError(f"vote: found {key!r}, one of {', '.join(VOTES)} was expected")
        if not all(turns and turns[-1]["role"] == "assistant" for turns in self.turns):
            raise UserError("vote: both policies have to answer first")
        left, right = self.pair
        row = {"left": left, "right": right, "vote": VOTES[key], "turns": list(self.turns)}
        files.append(self.path, row)
        return row


def tally(votes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(wins (policies, policies), a draw being half a win for each; votes (policies,)) of these policies."""
    place = {name: i for i, name in enumerate(names)}
    wins, games = np.zeros((len(names), len(names))), np.zeros(len(names), dtype=int)
    for vote in votes:
        left, right = (place.get(vote.get(side)) for side in ("left", "right"))
        score = SCORES.get(vote.get("vote"))
        if None in (left, right, score) or left == right:
            continue
        wins[left, right] += score
        wins[right, left] += 1 - score
        games[[left, right]] += 1
    return wins, games


def elo(votes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, tuple[float, int]]:
    """name -> (Elo points around a mean of 0, number of its votes), fitted to all votes at once (Bradley-Terry)."""
    wins, games = tally(votes, names)
    points = ELO * bradley_terry(wins, prior=PRIOR)
    return {name: (float(points[i]), int(games[i])) for i, name in enumerate(names)}


def standings(duel: Duel) -> list[str]:
    """The ratings so far as lines of text, the best first, with 95% intervals from the likelihood's curvature."""
    names = list(duel.policies)
    wins, games = tally(files.read(duel.path), names)
    if not games.any():
        return ["No votes yet."]
    strength = bradley_terry(wins, prior=PRIOR)
    share = 1 / (1 + np.exp(strength - strength[:, None]))  # (policies, policies), P(row beats column)
    weight = (wins + wins.T + PRIOR * (1 - np.eye(len(names)))) * share * (1 - share)
    error = 1.96 * ELO * np.sqrt(np.diag(np.linalg.pinv(np.diag(weight.sum(1)) - weight)))
    return [
        f"{names[i]}: {ELO * strength[i]:+.0f} Elo ({ELO * strength[i] - error[i]:+.0f} to "
        f"{ELO * strength[i] + error[i]:+.0f}), {games[i]} vote{'' if games[i] == 1 else 's'}"
        for i in np.argsort(-strength)
    ]
