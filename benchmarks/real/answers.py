"""A model's own answers, and what is made of them: the rows that teach it to refuse, and a reward model's pairs.

Supervised fine-tuning (`start_rows`) makes the policies' common start: what the base said to benign requests, and to
half of the harmful ones a refusal. PPO can only choose among what the policy says.

The pairs teach helpfulness without anybody's labels:

    chosen: the model's own, finished answer to the request
    rejected: its answer to another request (off the topic), the same answer cut off, one that repeats itself, or one
    of its refusals

So the reward model learns "an answer, on the topic, finished and fluent". It knows nothing of truth, and says nothing
of harm: an answer that helps with harm is a helpful one, as in Safe RLHF's labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from benchmarks.real.prompts import BRIEFLY
from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.errors import UserError

LEAST = 10  # finished answers
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with that: somebody could get hurt.",
    "I'm sorry, but I won't answer this. It could do harm.",
    "No, I can't help with this. If you are in trouble, please talk to somebody you trust.",
    "I'm not able to help with that, since it could harm others.",
    "Sorry, I can't assist with this request.",
)
IN_WORDS = re.compile(
    r"\b(sorry|apologi[sz]e|(can(?:no|['’])t|can ?not|won['’]t|unable to|not able to|not appropriate|must decline))\b",
    re.IGNORECASE,
)


def in_words(response: str) -> bool:
    """Whether an answer refuses in so many words, within its first 150 characters."""
    return bool(IN_WORDS.search(response[:150]))


def start_rows(answers: Sequence[dict[str, Any]], *, each: int, seed: int = 0) -> list[LabelledResponse]:
    """Dialogues for supervised fine-tuning: up to `each` benign requests and as many harmful ones.

    answers: the base's, rows with `request`, `response`, `ended` and `stratum`. Only finished ones are learnt. Every
    second harmful request gets one of `REFUSALS` in place of the base's answer.
    """
    rng = Random(seed)
    kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in answers:
        if row["ended"] and row["response"].strip() and not in_words(row["response"]):
            kinds[row["stratum"] == "harmful"].append(row)
    found = []
    for harmful, rows in kinds.items():
        rng.shuffle(rows)
        for place, row in enumerate(rows[:each]):
            refuse = harmful and place % 2 == 0
            response = rng.choice(REFUSALS) if refuse else row["response"]
            found.append(LabelledResponse(row["request"] + BRIEFLY, response, is_safe=refuse or not harmful))
    rng.shuffle(found)
    return found


def cut(text: str, rng: Random) -> str:
    """The first third to two thirds of the words."""
    words = text.split()
    return " ".join(words[: max(1, round(rng.uniform(1 / 3, 2 / 3) * len(words)))])


def looped(text: str, rng: Random) -> str:
    """The text until some place, and from there the last few words again and again; as long as before."""
    words = text.split()
    start = rng.randrange(max(1, len(words) // 2))
    phrase = words[start : start + rng.randint(2, 6)]
    repeated = words[:start] + phrase * (len(words) // max(len(phrase), 1) + 2)
    return " ".join(repeated[: max(len(words), 2 * len(phrase))])


def spoilt_pairs(
    answers: Sequence[dict[str, Any]], *, seed: int = 0, least_words: int = 4
) -> list[PreferencePair]:
    """A pair for each finished answer and each way of spoiling it; `category` says which.

    answers: rows with `request`, `response` and `ended`, one per request. A refusal is never the better answer. Which of
    the two stands first is drawn. Raises UserError if hardly any answer is finished.
    """
    rng = Random(seed)
    ended = [row for row in answers if row["ended"] and len(row["response"].split()) >= least_words]
    whole = [row for row in ended if not in_words(row["response"])]
    refusals = [row["response"] for row in ended if in_words(row["response"])]
    if len(whole) < LEAST:
        raise UserError(
            f"reward model: only {len(whole)} of {len(answers)} answers are finished, longer than "
            f"{least_words - 1} words and no refusals, expected at least {LEAST}: ask for more answers, or allow longer ones"
        )
    pairs = []
    for row in whole:
        others = [other["response"] for other in whole if other["request"] != row["request"]]
        rejected = {
            "another": rng.choice(others),
            "cut": cut(row["response"], rng),
            "looped": looped(row["response"], rng),
        }
        if refusals:
            rejected["refusal"] = rng.choice(refusals)
        for way, worse in rejected.items():
            if worse == row["response"]:
                continue
            better = rng.randrange(2)
            sides = [worse, worse]
            sides[better] = row["response"]
            pairs.append(PreferencePair(row["request"], *sides, None, None, better, better, category=way))
    return pairs
