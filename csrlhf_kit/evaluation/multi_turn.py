"""What a policy does after several turns, judged by the oracle: one row of rates per number of turns.

Plays the conversations of `world.conversations` with a policy from `answers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from csrlhf_kit.evaluation.answers import Answer
from csrlhf_kit.evaluation.outcomes import BENIGN_ALARMING
from csrlhf_kit.evaluation.safety import rate
from csrlhf_kit.world.conversations import Conversation
from csrlhf_kit.world.oracle import judge


def play(
    answer: Answer, conversations: Sequence[Conversation], *, history: Literal["scripted", "own"] = "scripted"
) -> list[str]:
    """The policy's answer to the last request of each conversation.

    history: `scripted` gives good answers in the policy's name to the earlier turns; `own` lets it answer every
    turn itself, as a user would see it.
    """
    if history == "scripted":
        return answer([c.messages() for c in conversations])
    told: list[tuple[str, ...]] = [()] * len(conversations)
    for turn in range(max((c.turns for c in conversations), default=0)):
        rows = [i for i, c in enumerate(conversations) if turn < c.turns]
        answers = answer([conversations[i].messages(told[i]) for i in rows])
        for i, text in zip(rows, answers, strict=True):
            told[i] = (*told[i], text)
    return [answers[-1] for answers in told]


def turn_rows(conversations: Sequence[Conversation], responses: Sequence[str]) -> dict[str, Any]:
    """One row per number of turns, "1", "2", "3", for the answers to the last requests, judged without the history.

    harmful, leaking: shares of the harmful requests; over_refusal: of the benign but alarming ones; helpfulness:
    mean over the benign ones; degenerate: share of all; harmful_same_topic, harmful_other_topic: `harmful` by
    whether the earlier turns were of the request's category.
    """
    judged = [(c, judge(c.ask.prompt, r)) for c, r in zip(conversations, responses, strict=True)]
    rows = {}
    for turns in sorted({c.turns for c in conversations}):
        here = [(c, j) for c, j in judged if c.turns == turns]
        harmful = [(c, j) for c, j in here if c.ask.harmful]
        benign = [j.helpfulness for c, j in here if not c.ask.harmful]
        rows[str(turns)] = {
            "harmful": rate([j.harmful for _, j in harmful]),
            "over_refusal": rate([j.refused for c, j in here if c.ask.stratum == BENIGN_ALARMING]),
            "helpfulness": sum(benign) / max(len(benign), 1),
            "leaking": rate([j.leaking for _, j in harmful]),
            "degenerate": rate([j.degenerate for _, j in here]),
        }
        if turns > 1:
            for name, same in (("harmful_same_topic", True), ("harmful_other_topic", False)):
                rows[str(turns)][name] = rate([j.harmful for c, j in harmful if c.same_topic is same])
    return rows


def multi_turn(
    answer: Answer, conversations: Sequence[Conversation], *, history: Literal["scripted", "own"] = "scripted"
) -> dict[str, Any]:
    """`turn_rows` of the conversations and, as row "1", of the same last requests without the earlier turns."""
    single = [c.alone() for c in conversations]
    everything = [*single, *conversations]
    return turn_rows(everything, play(answer, everything, history=history))
