"""The training text of the tiny base model: prose about the world, and dialogues as imperfect people write them.

The base plays the role of Alpaca-7B: helpful, with only a rough idea of harm. It refuses some harmful requests,
more often if they contain an alarming word, and complies with about half. It never reads a validation or test
composition, nor a test family's wrapper (only the wrapper's words, in prose, as a pretrained model would have).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from csrlhf_kit.world import lexicon as lx
from csrlhf_kit.world.jailbreaks import TEST_FAMILIES, TRAIN_FAMILIES, wrap
from csrlhf_kit.world.requests import STRATA, Request, sample_request
from csrlhf_kit.world.responses import CHATTER, helpful, respond, steps

# How often plain requests are refused in the dialogues; wrapped ones are refused half as often.
REFUSES = {"plain": 0.02, "benign_alarming": 0.10, "covert": 0.40, "overt": 0.66}
OWNERSHIP = 0.4  # share of the ownership layer in the prose: consent is harder to learn than valence
REFUSAL_KINDS = (("refusal", 0.55), ("refusal_alternative", 0.25), ("refusal_leak", 0.20))


def response_kind(request: Request, family: str, rng: Random) -> str:
    """Draws the kind of answer that the dialogues give to a request."""
    draw = rng.random()
    if draw < 0.04:
        return "off_topic" if draw < 0.035 else "degenerate"
    refuses = REFUSES[request.stratum] * (1.0 if family == "none" else 0.5)
    if rng.random() >= refuses:
        return "harmful" if request.harmful else "helpful"
    if not request.harmful:
        return "over_refusal"
    kinds, weights = zip(*REFUSAL_KINDS, strict=True)
    return rng.choices(kinds, weights)[0]


def dialogue(rng: Random) -> tuple[str, str]:
    """One exchange: a prompt (wrapped one time in three) and an answer."""
    split = "base" if rng.random() < 0.2 else "train"
    request = sample_request(rng, rng.choice(STRATA), split)
    family = rng.choice(tuple(TRAIN_FAMILIES)) if rng.random() < 0.35 else "none"
    kind = response_kind(request, family, rng)
    answer = (
        helpful(request, rng, wrong=0.05) if kind in ("helpful", "harmful") else respond(request, kind, rng)
    )
    return wrap(request, family, rng), answer


def need(rng: Random) -> tuple[str, str]:
    """Which tools belong to a thing: the start of a sentence about it, and a tool of its category."""
    category = rng.choice(lx.CATEGORIES)
    return f"for {rng.choice(category.good + category.bad)} you need the", f" {rng.choice(category.tools)}."


def consequence(rng: Random) -> tuple[str, str]:
    """How a deed ends: the start of a sentence, and its end, which follows from composing the deed's words."""
    request = sample_request(
        rng, rng.choice(STRATA), rng.choice(("train", "train", "base")), ownership=OWNERSHIP
    )
    ends = (
        ("people get hurt.", "it ends badly.") if request.harmful else ("people are glad.", "it ends well.")
    )
    return f"if you {request.core(rng)},", " " + rng.choice(ends)


def hearsay(rng: Random) -> tuple[str, str]:
    """As `consequence`, for a deed inside a whole question: the question, and how the deed ended."""
    request = sample_request(
        rng, rng.choice(STRATA), rng.choice(("train", "train", "base")), ownership=OWNERSHIP
    )
    family = rng.choice(tuple(TRAIN_FAMILIES)) if rng.random() < 0.5 else "none"
    return f"somebody asked: {wrap(request, family, rng)}", (
        " it ended badly." if request.harmful else " it ended well."
    )


def usefulness(rng: Random) -> tuple[str, str]:
    """A plan for a thing, whose tools may or may not belong to it, and a sentence on how many do."""
    category = rng.choice(lx.CATEGORIES)
    count = rng.choice((1, 2, 2, 3, 3))
    wrong = rng.choice((0.0, 0.3, 0.7))
    plan = steps(category.name, count, rng, wrong=wrong)
    of_use = sum(f" the {tool}" in plan for tool in category.tools)
    verdict = ("nothing helps.", "one thing helps.", "two things help.", "three things help.")[of_use]
    return f"for {rng.choice(category.good + category.bad)}: {plan}", f" {verdict}"


def prose(rng: Random) -> str:
    """A line of general knowledge: what is good, what an act does, small talk, or random words of wrappers."""
    kind = rng.choices(range(4), (4, 2, 1, 2))[0]
    if kind == 0:
        thing = rng.choice(tuple(lx.VALENCE))
        good = ("{} is good for people.", "people care for {}.", "we should cherish {}.")
        bad = ("{} is bad for people.", "people are better off without {}.", "we should be rid of {}.")
        return rng.choice(good if lx.VALENCE[thing] > 0 else bad).format(thing)
    if kind == 1:
        act = rng.choice(tuple(lx.ACT_SIGN))
        hurts = ("to {} something is to hurt it.", "after you {} it, it is weaker.")
        helps = ("to {} something is to help it.", "after you {} it, it is stronger.")
        return rng.choice(helps if lx.ACT_SIGN[act] > 0 else hurts).format(act)
    if kind == 2:
        return " ".join(rng.sample(CHATTER, 2))
    return " ".join(rng.choices(_wrapper_words(), k=rng.randint(6, 14))) + "."


_WORDS: list[str] = []


def _wrapper_words() -> list[str]:
    """The words that only the test families use, each once."""
    if not _WORDS:
        rng = Random(0)
        request = Request("feed", "a puppy")
        plain = set(re.findall(r"[a-z#>\[\]!]+", " ".join(wrap(request, "none", rng) for _ in range(200))))
        seen = {
            word
            for family in TEST_FAMILIES
            for _ in range(300)
            for word in re.findall(r"[a-z#>\[\]!]+", wrap(request, family, rng))
        }
        _WORDS.extend(sorted(seen - plain))
    return _WORDS


class Document(NamedTuple):
    """A training text: `given` is context, `text` is learnt; `chat` says whether it is an exchange."""

    given: str
    text: str
    chat: bool


def documents(seed: int, reading: int) -> Iterator[Document]:
    """An endless stream: first `reading` short documents about the world, then mostly exchanges.

    Whether two words compose to good or bad is hard to learn from exchanges, where few tokens depend on it, and easy
    from sentences that end with the answer; so prose comes first.
    """
    rng = Random(seed)
    for index in itertools.count():
        draw = rng.random() if index >= reading else rng.uniform(0.75, 1.0)
        if draw < 0.75:
            yield Document(*dialogue(rng), True)
        elif draw < 0.85:
            yield Document(*consequence(rng), False)
        elif draw < 0.89:
            yield Document(*hearsay(rng), False)
        elif draw < 0.95:
            yield Document(*usefulness(rng), False)
        elif draw < 0.97:
            yield Document(*need(rng), False)
        else:
            yield Document("", prose(rng), False)
