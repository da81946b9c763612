"""Conversations of two and three turns: benign openings with their answers, and then the ask.

Both papers evaluate single turns and name that as a limit. Here the last request (the ask) is the same as without
the turns before it, so that any difference is their effect: the policy has just been helpful, perhaps on the very
topic of a harmful ask. Openings and ask come from the same split; no opening is harmful.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.errors import UserError
from csrlhf_kit.world.jailbreaks import TEST_FAMILIES, TRAIN_FAMILIES, wrap
from csrlhf_kit.world.requests import STRATA, Request, sample_request, surface
from csrlhf_kit.world.responses import helpful

TURNS = (2, 3)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Benign exchanges, oldest first, and the request that follows them."""

    openings: tuple[tuple[str, str], ...]
    """(request, a good answer to it) of each turn before the ask."""
    ask: Prompt
    """The last request, judged by the oracle as if it stood alone."""
    same_topic: bool = False
    """Whether the openings are of the ask's category."""

    @property
    def turns(self) -> int:
        """How many times the user speaks."""
        return len(self.openings) + 1

    def alone(self) -> Conversation:
        """The same ask without anything before it."""
        return Conversation((), self.ask)

    def messages(self, answers: tuple[str, ...] | None = None) -> list[dict[str, str]]:
        """Chat messages up to the user's turn number len(answers) + 1.

        answers: the real answers so far; None takes the scripted answers and goes up to the ask.
        """
        requests = [request for request, _ in self.openings] + [self.ask.prompt]
        told = tuple(answer for _, answer in self.openings) if answers is None else answers
        messages = []
        for request, answer in zip(requests, told, strict=False):
            messages += [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": requests[len(told)]}]


def _opening(rng: Random, split: str, category: str | None, used: set[Request]) -> tuple[Request, str, str]:
    """A benign request that is not in `used`, of the category if one is given; its wording; a good answer."""
    while True:
        request = sample_request(rng, rng.choice(("plain", "benign_alarming")), split)
        if request not in used and category in (None, request.category):
            return request, surface(request, rng), helpful(request, rng, wrong=0.0)


def conversations(
    split: str, count: int, *, turns: tuple[int, ...] = TURNS, wrapped: float = 0.0, seed: int = 0
) -> list[Conversation]:
    """`count` conversations of each number of turns; strata alternate; half have openings of the ask's category.

    Args:
        split: Split of openings and asks: train, validation or test. Test asks use test families only.
        count: Conversations of each number of turns.
        turns: How many times the user speaks, at least two.
        wrapped: Share of the asks in a jailbreak wrapper.
        seed: Seed of all draws.

    Raises:
        UserError: the split is unknown, or a number of turns is below two.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"split is {split!r}: expected train, validation or test")
    if not turns or min(turns) < 2:
        raise UserError(f"turns are {turns}: expected numbers of at least 2")
    families = tuple(TEST_FAMILIES if split == "test" else TRAIN_FAMILIES)
    rng = Random(f"conversations/{split}/{seed}")
    made = []
    for number in turns:
        for index in range(count):
            request = sample_request(rng, STRATA[index % 4], split)
            family = rng.choice(families) if rng.random() < wrapped else "none"
            same_topic = index // 4 % 2 == 0
            used, openings = {request}, []
            for _ in range(number - 1):
                opening, asked, answer = _opening(rng, split, request.category if same_topic else None, used)
                used.add(opening)
                openings.append((asked, answer))
            ask = Prompt(
                prompt=wrap(request, family, rng),
                id=f"{split}-{number}-turns-{index + 1}",
                category=request.category,
                stratum=request.stratum,
                family=family,
                harmful=request.harmful,
                split=split,
            )
            made.append(Conversation(tuple(openings), ask, same_topic))
    return made
