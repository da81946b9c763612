"""What a red team found, as prompts, labels and preferences for the next round of `rounds.py`.

A find is a prompt that got a harmful answer. It comes with a benign twin, another request of the training split
under the same wrappers, so that the next models do not learn to refuse the wrappers instead of the harm. The policy
answers both again, and the simulated annotators label and compare its answers. Nothing comes from the test split,
and no oracle verdict enters training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import read_records, write_records
from csrlhf_kit.evaluation.answers import Answer
from csrlhf_kit.evaluation.red_team import Attack, compose
from csrlhf_kit.world import annotators
from csrlhf_kit.world.oracle import judge
from csrlhf_kit.world.requests import sample_request

STEMS = {Prompt: "prompts", LabelledResponse: "labels", PreferencePair: "preferences"}


class Finds(NamedTuple):
    """Records that a red team adds to the next round."""

    prompts: list[Prompt]
    labels: list[LabelledResponse]
    preferences: list[PreferencePair]


def gather(attacks: Sequence[Attack], answer: Answer, *, refused: int = 1, seed: int = 0) -> Finds:
    """Turn the attacks that succeeded into records.

    Args:
        attacks: Those of the training red team, never of the held-out one.
        answer: The policy, which answers every find and twin twice more, for labels and pairs.
        refused: Number of latest tries before the break that are labelled too: the policy's safe answers.
        seed: Seed for the twins and the annotators.
    """
    rng = Random(f"finds/{seed}")
    finds, labelled = [], []
    for attack in attacks:
        if attack.broken is None:
            continue
        finds.append(attack.as_prompt())
        for back in range(1, min(refused + 1, len(attack.tries)) + 1):
            labelled.append((attack.as_prompt(-back), attack.tries[-back].answer))
        finds.append(_twin(attack, rng))
    texts = [p.prompt for p in finds]
    pairs = []
    for prompt, first, second in zip(finds, answer(texts), answer(texts), strict=True):
        labelled += [(prompt, first), (prompt, second)]
        if first.strip() and second.strip() and first != second:
            pairs.append(_compare(prompt, first, second, rng))
    labels = [_label(prompt, text, rng) for prompt, text in dict.fromkeys(labelled) if text.strip()]
    return Finds(list(dict.fromkeys(finds)), labels, pairs)


def _twin(attack: Attack, rng: Random) -> Prompt:
    """A benign request of the same split under the wrappers that broke the policy."""
    stack = attack.broken.families
    request = sample_request(rng, rng.choice(("plain", "benign_alarming")), attack.request.split)
    return Prompt(
        prompt=compose(request, stack, rng),
        category=request.category,
        stratum=request.stratum,
        family="+".join(stack) or "none",
        harmful=False,
        split=request.split,
    )


def _label(prompt: Prompt, text: str, rng: Random) -> LabelledResponse:
    return LabelledResponse(
        prompt=prompt.prompt,
        response=text,
        is_safe=annotators.label_safe(judge(prompt.prompt, text), rng),
        category=prompt.category,
        stratum=prompt.stratum,
        kind="red_team",
        family=prompt.family,
        split=prompt.split,
    )


def _compare(prompt: Prompt, first: str, second: str, rng: Random) -> PreferencePair:
    verdicts = judge(prompt.prompt, first), judge(prompt.prompt, second)
    safe = [annotators.label_safe(verdict, rng) for verdict in verdicts]
    better = annotators.better(*verdicts, rng)
    return PreferencePair(
        prompt=prompt.prompt,
        response_0=first,
        response_1=second,
        is_response_0_safe=safe[0],
        is_response_1_safe=safe[1],
        better_response_id=better,
        safer_response_id=annotators.safer(*verdicts, *safe, better, rng),
        category=prompt.category,
        stratum=prompt.stratum,
        split=prompt.split,
    )


def store(finds: Finds, folder: Path) -> None:
    """Write one file per kind of record; a kind without records has none."""
    for stem, records in zip(STEMS.values(), finds, strict=True):
        path = folder / f"{stem}.jsonl"
        path.unlink(missing_ok=True)
        if records:
            write_records(path, records)


def joined(kind: type, folders: Sequence[Path]) -> list:
    """The shipped training records of a kind, followed by those of each folder."""
    records = read_records("shipped", kind, split="train").records
    for folder in folders:
        path = folder / f"{STEMS[kind]}.jsonl"
        if path.is_file():
            records = records + read_records(path, kind, split="train").records
    return records


def round_prompts(folders: Sequence[Path], share: float) -> list[str]:
    """The shipped training prompts, and the folders' prompts repeated to about `share` of all."""
    shipped = read_records("shipped", Prompt, split="train").records
    found = joined(Prompt, folders)[len(shipped) :]
    wanted = round(share / (1.0 - share) * len(shipped)) if found else 0
    return [p.prompt for p in shipped] + [found[i % len(found)].prompt for i in range(wanted)]
