"""What the tiny base model reads: prose about the world, and dialogues as imperfect people would write them.

The base plays the part of Alpaca-7B: helpful, and with only a rough idea of harm. It refuses some
harmful requests, more often where a word alarms it, and complies with about half. It never reads a
validation or test composition, and never a test family's wrapper (only that wrapper's words, in prose,
as any pretrained model has read them).
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

# How often the base's teachers refused, asked plainly. Under a wrapper they refused half as often.
REFUSES = {"plain": 0.02, "benign_alarming": 0.10, "covert": 0.40, "overt": 0.66}
OWNERSHIP = 0.4  # share of the ownership layer in what is read: who agreed is harder to learn than valence
REFUSAL_KINDS = (("refusal", 0.55), ("refusal_alternative", 0.25), ("refusal_leak", 0.20))


def response_kind(request: Request, family: str, rng: Random) -> str:
    """The sort of answer that the base's teachers would give."""
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
    """What goes with what: the start of a sentence about a thing, and a tool of its category."""
    category = rng.choice(lx.CATEGORIES)
    return f"for {rng.choice(category.good + category.bad)} you need the", f" {rng.choice(category.tools)}."


def consequence(rng: Random) -> tuple[str, str]:
    """How a deed ends: the start of a sentence, and its end, which takes composing the deed's words."""
    request = sample_request(
        rng, rng.choice(STRATA), rng.choice(("train", "train", "base")), ownership=OWNERSHIP
    )
    ends = (
        ("people get hurt.", "it ends badly.") if request.harmful else ("people are glad.", "it ends well.")
    )
    return f"if you {request.core(rng)},", " " + rng.choice(ends)


def hearsay(rng: Random) -> tuple[str, str]:
    """How a deed that somebody asked about ended: the same lesson, read out of a whole question."""
    request = sample_request(
        rng, rng.choice(STRATA), rng.choice(("train", "train", "base")), ownership=OWNERSHIP
    )
    family = rng.choice(tuple(TRAIN_FAMILIES)) if rng.random() < 0.5 else "none"
    return f"somebody asked: {wrap(request, family, rng)}", (
        " it ended badly." if request.harmful else " it ended well."
    )


def usefulness(rng: Random) -> tuple[str, str]:
    """Which tools serve a thing: a plan whose tools belong to it or not, and how many of them do."""
    category = rng.choice(lx.CATEGORIES)
    count = rng.choice((1, 2, 2, 3, 3))
    wrong = rng.choice((0.0, 0.3, 0.7))
    plan = steps(category.name, count, rng, wrong=wrong)
    of_use = sum(f" the {tool}" in plan for tool in category.tools)
    verdict = ("nothing helps.", "one thing helps.", "two things help.", "three things help.")[of_use]
    return f"for {rng.choice(category.good + category.bad)}: {plan}", f" {verdict}"


def prose(rng: Random) -> str:
    """A line of general knowledge: what is good, what an act does, small talk, loose words."""
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
    """The test families' own words, each once."""
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
    """Something to read: `given` is context, `text` is what is learnt; `chat` says whether it is an exchange."""

    given: str
    text: str
    chat: bool


def documents(seed: int, reading: int) -> Iterator[Document]:
    """An endless stream: first `reading` short documents about the world, then mostly exchanges.

    Composing two words into good or bad is hard to pick up from the few tokens of an exchange that hang
    on it, and easy from sentences that end with the answer; so the base reads before it talks.
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
