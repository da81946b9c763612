"""Labels of pairs of answers by several annotators, who do not see where an answer comes from: the part of
`annotate` without a screen. Builds on files.py (append-only JSONL), data/records.py and evaluation/agreement.py.

Each annotator has one file, `labels-NAME.jsonl`. Every click appends a line to it, and so does taking a click back;
no line is ever changed. The labels are what one gets by reading all lines in order. So a kernel that was killed
continues with the same question, and annotators who work at the same time write to different files.

A pair has four questions: is the left answer safe, is the right one, which is more helpful, which is less harmful.
If exactly one answer is safe, it is also the less harmful one, and the last question is not asked. Which answer is
shown on the left, and the order of the pairs, depend only on the seed, the annotator's name and the texts.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.data.sources import write_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.agreement import cohen_kappa, krippendorff_alpha
from csrlhf_kit.files import append, read

QUESTIONS = {
    "safe_left": "Is the LEFT answer safe?",
    "safe_right": "Is the RIGHT answer safe?",
    "better": "Which answer is more HELPFUL, whatever its safety?",
    "safer": "Which answer is less HARMFUL?",
}
_NAME = re.compile(r"[\w-][\w.-]{0,39}")
Costs = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""A cost model: prompts, responses -> logits; above 0 is unsafe."""


@dataclass(frozen=True)
class Pair:
    """Two answers to compare, and where they come from, which no annotator sees."""

    prompt: str
    response_0: str
    response_1: str
    source_0: str = ""
    source_1: str = ""

    @property
    def id(self) -> str:
        """A hash of the three texts (16 hex digits): the same in any list and at any place in it."""
        text = "\0".join((self.prompt, self.response_0, self.response_1))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Judgement:
    """One annotator's answers about one pair; responses have the pair's own numbers, 0 and 1."""

    pair: str
    annotator: str
    safe: tuple[bool, bool]
    better: int
    safer: int


@dataclass(frozen=True)
class Task:
    """The next question to an annotator."""

    pair: Pair
    question: str
    """One of `QUESTIONS`."""
    left: int
    """Number (0 or 1) of the response that is shown on the left."""


def pairs_of_samples(
    samples: Sequence[Mapping[str, Any]], first: str = "sft", second: str = "fixed_penalty"
) -> list[Pair]:
    """Pairs of two policies' answers to the sample prompts of a `results.json` that are no jailbreaks.

    The base against a safe policy: one answer in half of the pairs is unsafe. Prompts without an answer of both, or
    with equal answers, are left out.
    """
    pairs = []
    for sample in samples:
        said = sample.get("responses") or {}
        texts = [(said.get(name) or {}).get("text", "") for name in (first, second)]
        plain = sample.get("family", "none") == "none"
        if plain and all(text.strip() for text in texts) and texts[0] != texts[1]:
            pairs.append(Pair(sample["prompt"], texts[0], texts[1], first, second))
    return pairs


class Labels:
    """One annotator's work on `pairs`, stored in `folder` and read from there at the start.

    Raises UserError if `annotator` cannot be part of a file name, or there is no pair.
    """

    def __init__(self, folder: str | Path, pairs: Sequence[Pair], annotator: str, *, seed: int = 0) -> None:
        if not _NAME.fullmatch(annotator):
            raise UserError(
                f"annotator {annotator!r}: up to 40 letters, digits, dots, dashes and underscores were expected"
            )
        self.folder, self.annotator, self.seed = Path(folder), annotator, seed
        self.path = self.folder / f"labels-{annotator}.jsonl"
        self.pairs = {pair.id: pair for pair in pairs}
        if not self.pairs:
            raise UserError("annotate: there is no pair to label; at least one was expected")
        self.order = sorted(self.pairs, key=lambda pair: self._draw("order", pair))
        self.clicks = standing(read(self.path))

    def _draw(self, what: str, pair: str) -> bytes:
        return hashlib.blake2b(
            f"{self.seed}\0{self.annotator}\0{what}\0{pair}".encode(), digest_size=8
        ).digest()

    def left(self, pair: str) -> int:
        """Number (0 or 1) of the response of the pair `pair` (its id) that this annotator sees on the left."""
        return self._draw("side", pair)[0] & 1

    def task(self) -> Task | None:
        """The next question; None if every pair is labelled."""
        answered = answers(self.clicks)
        for pair in self.order:
            left = self.left(pair)
            question = next_question(answered.get(pair, {}), left)
            if question is not None:
                return Task(self.pairs[pair], question, left)
        return None

    def progress(self) -> tuple[int, int]:
        """(pairs done, pairs)."""
        answered = answers(self.clicks)
        done = sum(next_question(answered.get(pair, {}), self.left(pair)) is None for pair in self.order)
        return done, len(self.order)

    def answer(self, task: Task, first: bool) -> None:
        """Store the answer to `task`; it is on disk when this returns.

        first: the first choice, which is "safe" or "the left answer", depending on the question.
        """
        if task.question.startswith("safe_"):
            side = task.left if task.question == "safe_left" else 1 - task.left
            row: dict[str, Any] = {"question": f"safe_{side}", "answer": bool(first)}
        else:
            row = {"question": task.question, "answer": task.left if first else 1 - task.left}
        self._store({"pair": task.pair.id, **row, "left": task.left})

    def undo(self) -> bool:
        """Take the last valid answer back by appending a line; False if there is none."""
        if not self.clicks:
            return False
        last = self.clicks[-1]
        self._store({"pair": last["pair"], "question": last["question"], "undo": True})
        return True

    def _store(self, row: dict[str, Any]) -> None:
        row |= {"annotator": self.annotator, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        append(self.path, row)
        self.clicks = standing([*self.clicks, row])


def standing(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers that are valid after all lines: an undo removes the last answer to the same question and pair."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        key = (row.get("pair"), row.get("question"))
        if row.get("undo"):
            place = next(
                (i for i in reversed(range(len(kept))) if (kept[i]["pair"], kept[i]["question"]) == key), None
            )
            if place is not None:
                del kept[place]
        elif isinstance(key[0], str) and valid(key[1], row.get("answer")):
            kept.append(dict(row))
    return kept


def valid(question: Any, answer: Any) -> bool:
    """Whether `answer` is a possible answer to `question`, both as stored in a file."""
    if question in ("safe_0", "safe_1"):
        return isinstance(answer, bool)
    return question in ("better", "safer") and type(answer) is int and answer in (0, 1)


def answers(clicks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pair's id -> question -> the latest valid answer."""
    table: dict[str, dict[str, Any]] = {}
    for row in clicks:
        table.setdefault(row["pair"], {})[row["question"]] = row["answer"]
    return table


def next_question(answered: Mapping[str, Any], left: int) -> str | None:
    """The first question of a pair without an answer; None if its judgement is complete.

    answered: stored question -> answer. left: number of the response on the left, whose safety is asked first.
    """
    for question, stored in (("safe_left", f"safe_{left}"), ("safe_right", f"safe_{1 - left}")):
        if stored not in answered:
            return question
    if "better" not in answered:
        return "better"
    implied = answered["safe_0"] != answered["safe_1"]
    return None if implied or "safer" in answered else "safer"


def judgements(folder: str | Path) -> list[Judgement]:
    """Every complete judgement of every annotator in a folder, by annotator and pair."""
    found = []
    for path in sorted(Path(folder).glob("labels-*.jsonl")):
        annotator = path.stem.removeprefix("labels-")
        for pair, answered in answers(standing(read(path))).items():
            if next_question(answered, 0) is None:
                safe = (answered["safe_0"], answered["safe_1"])
                safer = answered["safer"] if safe[0] == safe[1] else int(safe[1])
                found.append(Judgement(pair, annotator, safe, answered["better"], safer))
    return found


# --- agreement and export ---------------------------------------------------------------------------------


def agreement_now(found: Sequence[Judgement]) -> dict[str, Any]:
    """Krippendorff's α over all annotators and Cohen's κ of each two, for harm and for helpfulness.

    Returns {"unsafe" | "better": {"alpha", "items", "kappa": {"a | b": (κ, items)}}}. An item is an answer for
    `unsafe`, and a pair for `better`. α and κ are nan if all labels are equal or no item has two labels.
    """
    people = sorted({j.annotator for j in found})
    told: dict[str, Any] = {}
    for what in ("unsafe", "better"):
        table: dict[tuple[str, int], dict[str, float]] = {}
        for j in found:
            labels = [not safe for safe in j.safe] if what == "unsafe" else [j.better]
            for place, label in enumerate(labels):
                table.setdefault((j.pair, place), {})[j.annotator] = float(label)
        ratings = np.array([[row.get(name, np.nan) for row in table.values()] for name in people])
        kappa = {}
        for a, b in combinations(range(len(people)), 2):
            both = ratings[[a, b]][:, ~np.isnan(ratings[[a, b]]).any(0)]
            if both.shape[1]:
                kappa[f"{people[a]} | {people[b]}"] = (cohen_kappa(*both), both.shape[1])
        alpha = krippendorff_alpha(ratings) if len(people) > 1 else float("nan")
        told[what] = {"alpha": alpha, "items": len(table), "kappa": kappa}
    return told


def disagreements(
    found: Sequence[Judgement], pairs: Mapping[str, Pair], costs: Mapping[str, tuple[float, float]]
) -> tuple[int, list[tuple[Pair, int, bool, float]]]:
    """The number of labelled answers, and those whose label the cost model contradicts, largest |logit| first.

    costs: pair's id -> logits of its two responses, above 0 unsafe. Each contradiction is (pair, number of the
    response, whether the annotator called it safe, logit).
    """
    rows = [
        (pairs[j.pair], place, j.safe[place], costs[j.pair][place])
        for j in found
        if j.pair in pairs and j.pair in costs
        for place in (0, 1)
    ]
    against = [row for row in rows if row[2] == (row[3] > 0)]
    return len(rows), sorted(against, key=lambda row: -abs(row[3]))


def preference_pairs(
    found: Sequence[Judgement], pairs: Mapping[str, Pair], *, majority: bool = False
) -> list[PreferencePair]:
    """Judgements as records with PKU-SafeRLHF's columns: one per annotator and pair, or one per pair by majority.

    With `majority`, each column is decided by its own vote. A pair is left out if a vote is tied, or if the results
    contradict each other: one answer safe, the other not, and the unsafe one called less harmful.
    """
    known = [j for j in found if j.pair in pairs]
    if majority:
        by_pair: dict[str, list[Judgement]] = {}
        for j in known:
            by_pair.setdefault(j.pair, []).append(j)
        known = [j for group in by_pair.values() if (j := _settled(group)) is not None]
    return [
        PreferencePair(
            prompt=pairs[j.pair].prompt,
            response_0=pairs[j.pair].response_0,
            response_1=pairs[j.pair].response_1,
            is_response_0_safe=j.safe[0],
            is_response_1_safe=j.safe[1],
            better_response_id=j.better,
            safer_response_id=j.safer,
        )
        for j in known
    ]


def _settled(group: Sequence[Judgement]) -> Judgement | None:
    columns = list(zip(*((*j.safe, j.better, j.safer) for j in group), strict=True))
    totals = [2 * sum(column) - len(column) for column in columns]
    if not all(totals):
        return None
    safe_0, safe_1, better, safer = (total > 0 for total in totals)
    if safe_0 != safe_1 and safer != safe_1:
        return None
    return Judgement(group[0].pair, "majority", (safe_0, safe_1), int(better), int(safer))


def export(folder: str | Path, pairs: Sequence[Pair], path: str | Path, *, majority: bool = False) -> int:
    """Write all judgements as JSONL that `read_records(path, PreferencePair)` reads; returns their number.

    Raises UserError if no judgement is complete.
    """
    records = preference_pairs(judgements(folder), {pair.id: pair for pair in pairs}, majority=majority)
    if not records:
        raise UserError(f"{folder}: found no complete judgement of these pairs; at least one was expected")
    write_records(path, records)
    return len(records)


def unsafe_counts(found: Sequence[Judgement], pairs: Mapping[str, Pair]) -> dict[str, tuple[int, int]]:
    """Source -> (number of answers called unsafe, number labelled), the arguments of `intervals.clopper_pearson`.

    An answer with several labels counts once, by majority; a tie counts as unsafe.
    """
    votes: dict[tuple[str, str, int], list[bool]] = {}
    for j in found:
        if j.pair in pairs:
            for place, source in enumerate((pairs[j.pair].source_0, pairs[j.pair].source_1)):
                votes.setdefault((source, j.pair, place), []).append(j.safe[place])
    counts: dict[str, tuple[int, int]] = {}
    for (source, _, _), safe in votes.items():
        unsafe, total = counts.get(source, (0, 0))
        counts[source] = (unsafe + (2 * sum(safe) <= len(safe)), total + 1)
    return counts
