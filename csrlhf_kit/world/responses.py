"""Responses: every kind of answer in the toy world, in many surface forms.

Kinds: `helpful`, `harmful` (compliance with a harmful request), `refusal`, `refusal_alternative`, `refusal_leak`
(refuses, but then complies: Safe RLHF's "partial harmfulness"), `over_refusal` (refuses a benign request),
`off_topic`, `degenerate`. Builds on requests.py and lexicon.py.
"""

from __future__ import annotations

from random import Random

from csrlhf_kit.world import lexicon as lx
from csrlhf_kit.world.requests import Request

OPENERS = (
    "sure.",
    "of course.",
    "happy to help.",
    "certainly.",
    "good question.",
    "no problem.",
    "absolutely.",
)
ORDER = (
    ("first", "then", "last"),
    ("start with", "go on with", "end with"),
    ("begin with", "next", "finally"),
)
CLOSERS = ("", "", " good luck.", " take your time.", " that is all you need.", " let me know how it goes.")
REFUSALS = (
    "sorry, i cannot help with that.",
    "i will not help with that.",
    "i am sorry, but i must decline.",
    "no, that could hurt someone.",
    "i cannot do that, it would not be right.",
    "that is not something i can help with.",
)
ALTERNATIVES = ("instead, i can help you {}.", "i would rather help you {}.", "how about i help you {}?")
OWNER_ALTERNATIVES = (
    "please ask the owner first.",
    "talk to your {} about it first.",
    "only your {} can agree to that.",
)
LEAKS = ("still, people say:", "but between us,", "if you must,", "others just")
CHATTER = (
    "the weather has been lovely this week.",
    "my favourite season is autumn.",
    "bread tastes best when it is warm.",
    "the train leaves at nine.",
    "there are many stars tonight.",
)


def steps(category: str, count: int, rng: Random, *, wrong: float = 0.0) -> str:
    """`count` steps in words, "first the vet, then the leash."; each tool is off topic with probability `wrong`."""
    tools = rng.sample(lx.CATEGORY[category].tools, count)
    others = [t for t, c in lx.TOOL_CATEGORY.items() if c != category]
    tools = [rng.choice(others) if rng.random() < wrong else tool for tool in tools]
    return ", ".join(f"{word} the {tool}" for word, tool in zip(rng.choice(ORDER), tools, strict=False)) + "."


def helpful(request: Request, rng: Random, *, count: int | None = None, wrong: float = 0.1) -> str:
    """Compliance of varying quality: opener, perhaps the task restated, `count` (1 to 3) `steps`, closing line."""
    count = rng.choice((1, 1, 2, 2, 3)) if count is None else count
    short = f"{request.act} {'the ' if request.owner else ''}{request.thing}"
    restated = rng.choice((f"to {short}, ", f"here is how to {short}: ", f"you can {short} like this: ", ""))
    return f"{rng.choice(OPENERS)} {restated}{steps(request.category, count, rng, wrong=wrong)}{rng.choice(CLOSERS)}"


def refusal(request: Request, rng: Random) -> str:
    """A bare refusal."""
    return rng.choice(REFUSALS)


def refusal_alternative(request: Request, rng: Random) -> str:
    """A refusal that offers help with the opposite act or, in the ownership layer, advises to ask the owner."""
    opposite = request.opposite()
    if opposite is None:
        owner = "owner" if request.owner == "me" else request.owner
        return f"{rng.choice(REFUSALS)} {rng.choice(OWNER_ALTERNATIVES).format(owner)}"
    return f"{rng.choice(REFUSALS)} {rng.choice(ALTERNATIVES).format(opposite.core())}"


def refusal_leak(request: Request, rng: Random) -> str:
    """A refusal followed by one to three steps of the task."""
    return f"{rng.choice(REFUSALS)} {rng.choice(LEAKS)} {steps(request.category, rng.choice((1, 2, 3)), rng)}"


def off_topic(request: Request, rng: Random) -> str:
    """Fluent text about something else: small talk, or tools of another category."""
    if rng.random() < 0.5:
        return " ".join(rng.sample(CHATTER, 2))
    category = rng.choice([c.name for c in lx.CATEGORIES if c.name != request.category])
    return f"{rng.choice(OPENERS)} {steps(category, 2, rng)}{rng.choice(CLOSERS)}"


def degenerate(request: Request, rng: Random) -> str:
    """Text that no judge should reward: a loop, a word salad, or nearly nothing."""
    vocabulary = tuple(lx.TOOL_CATEGORY) + tuple(lx.PEOPLE)
    how = rng.randrange(3)
    if how == 0:
        return " ".join([rng.choice(vocabulary)] * rng.randint(6, 12))
    if how == 1:
        return " ".join(rng.choices(vocabulary, k=rng.randint(8, 16)))
    return rng.choice(("the", ". . . .", ", ,", "first", "to to to"))


RESPONSE_KINDS = {
    "helpful": helpful,
    "harmful": helpful,
    "refusal": refusal,
    "refusal_alternative": refusal_alternative,
    "refusal_leak": refusal_leak,
    "over_refusal": refusal,
    "off_topic": off_topic,
    "degenerate": degenerate,
}


def respond(request: Request, kind: str, rng: Random) -> str:
    """A drawn response of a kind in `RESPONSE_KINDS`."""
    return RESPONSE_KINDS[kind](request, rng)
