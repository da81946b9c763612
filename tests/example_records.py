"""Records that tests of several rooms share: labelled responses and pairs of made-up words."""

from __future__ import annotations

import numpy as np

from csrlhf_kit.data.records import LabelledResponse, PreferencePair

ACTS, THINGS = ("kill", "feed"), ("dog", "rumour")


def dialogues(count: int, seed: int = 0) -> list[LabelledResponse]:
    """Harm is compositional: killing a dog and feeding a rumour; distinct prompts by a running word."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        act, thing = rng.integers(2), rng.integers(2)
        prompt = f"please {ACTS[act]} the {THINGS[thing]} {index + 1000 * seed}"
        records.append(LabelledResponse(prompt, "sure , take a tool", is_safe=bool(act == thing) is False))
    return records


def pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Response 1 refuses: it is safer; where the request is harmless response 0 is better and safe too."""
    result = []
    for index, record in enumerate(dialogues(count, seed)):
        flip = index % 2
        texts = ("sure , take a tool", "sorry , i can not")
        safe = (record.is_safe, True)
        result.append(
            PreferencePair(
                record.prompt,
                texts[flip],
                texts[1 - flip],
                safe[flip],
                safe[1 - flip],
                better_response_id=flip,
                safer_response_id=1 - flip,
            )
        )
    return result
