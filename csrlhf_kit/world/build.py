"""Build the shipped data: prompts, absolute labels and preference pairs, byte for byte from one seed.

Training labels and all preferences come from the simulated annotators; validation and test labels are the
oracle's. Training and validation prompts use the training families, test prompts the held-out ones, and no
composition is in two splits. Builds on the rest of this room.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.sources import data_folder, write_records
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_folder, replace_folder
from csrlhf_kit.world import annotators
from csrlhf_kit.world.jailbreaks import TEST_FAMILIES, TRAIN_FAMILIES, compose, wrap
from csrlhf_kit.world.oracle import judge
from csrlhf_kit.world.requests import STRATA, Request, sample_request
from csrlhf_kit.world.responses import helpful, respond

# The mix of answers that annotators saw.
HARMFUL_MIX = {
    "harmful": 0.58, "refusal": 0.10, "refusal_alternative": 0.10, "refusal_leak": 0.16,
    "off_topic": 0.03, "degenerate": 0.03,
}  # fmt: skip
BENIGN_MIX = {"helpful": 0.88, "over_refusal": 0.06, "off_topic": 0.03, "degenerate": 0.03}
# Pairs: 41% both safe, 44% both unsafe, 15% one of each ("astride"), as in PKU-SafeRLHF.
PAIR_MIX = {"both_safe": 0.412, "both_unsafe": 0.442, "astride": 0.146}


@dataclass
class DataConfig:
    """Build the toy world's data files."""

    out: Path | None = None
    """Folder to write; None: where `shipped` looks for it."""
    seed: int = 0
    """Seed of everything."""
    train_prompts: int = 8000
    """Training prompts, half of them harmful, half wrapped, and half of these in two or three wrappers."""
    train_labels: int = 8000
    """Labelled training responses."""
    train_pairs: int = 8000
    """Training preference pairs."""


def _ask(split: str, stratum: str, rng: Random, wrapped: float) -> tuple[Request, str, str]:
    """A request of a stratum, its prompt (wrapped with a probability), and its jailbreak families ("a+b")."""
    request = sample_request(rng, stratum, split)
    families = tuple(TEST_FAMILIES if split == "test" else TRAIN_FAMILIES)
    if rng.random() >= wrapped:
        return request, wrap(request, "none", rng), "none"
    if split != "test" and rng.random() < 0.5:
        stack = draw_stack(families, rng)
        return request, compose(request, stack, rng), "+".join(stack)
    family = rng.choice(families)
    return request, wrap(request, family, rng), family


def draw_stack(families: tuple[str, ...], rng: Random) -> list[str]:
    """Two or three families to nest: models that have seen nested wrappers see through unknown ones more often."""
    return rng.sample(families, rng.choice((2, 3)))


def draw_prompts(split: str, counts: dict[tuple[str, str], int], rng: Random) -> list[Prompt]:
    """Distinct prompts, `counts[stratum, family]` of each; for the family "nested", each prompt draws a stack."""
    prompts, seen = [], set()
    for (stratum, family), count in counts.items():
        made = 0
        while made < count:
            request = sample_request(rng, stratum, split)
            stack = draw_stack(tuple(TRAIN_FAMILIES), rng) if family == "nested" else [family]
            text = compose(request, stack, rng) if family == "nested" else wrap(request, family, rng)
            if text in seen:
                continue
            seen.add(text)
            made += 1
            prompts.append(
                Prompt(
                    prompt=text,
                    id=f"{split}-{stratum}-{family}-{made}",
                    category=request.category,
                    stratum=stratum,
                    family="+".join(stack),
                    harmful=request.harmful,
                    split=split,
                )
            )
    return prompts


def prompt_counts(split: str, total: int) -> dict[tuple[str, str], int]:
    """(stratum, family) -> number of prompts in a split; the test split ignores `total`."""
    if split == "test":
        nominal = {
            ("plain", "none"): 400,
            ("benign_alarming", "none"): 600,
            ("overt", "none"): 400,
            ("covert", "none"): 400,
        }
        wrapped = {(s, f): 75 if s in ("overt", "covert") else 25 for f in TEST_FAMILIES for s in STRATA}
        return nominal | wrapped
    nominal = {(s, "none"): total // 8 for s in STRATA}
    single = {(s, f): total // (16 * len(TRAIN_FAMILIES)) for f in TRAIN_FAMILIES for s in STRATA}
    return nominal | single | {(s, "nested"): total // 16 for s in STRATA}


def _labels(split: str, count: int, rng: Random) -> list[LabelledResponse]:
    """`count` labelled responses: labelled by the annotators' majority for training, by the oracle otherwise."""
    records = []
    for i in range(count):
        request, prompt, family = _ask(split, STRATA[i % 4], rng, wrapped=0.3)
        mix = HARMFUL_MIX if request.harmful else BENIGN_MIX
        kind = rng.choices(tuple(mix), tuple(mix.values()))[0]
        response = respond(request, kind, rng)
        truth = judge(prompt, response)
        records.append(
            LabelledResponse(
                prompt=prompt,
                response=response,
                category=request.category,
                stratum=STRATA[i % 4],
                kind=kind,
                family=family,
                is_safe=annotators.label_safe(truth, rng) if split == "train" else truth.safe,
                harmful=truth.harmful,
                helpfulness=truth.helpfulness,
                split=split,
            )
        )
    return records


def _answers(request: Request, kinds: tuple[str, str], rng: Random) -> list[str]:
    """Two answers to compare. If both comply, half of the pairs differ only in their tools."""
    if kinds[0] == kinds[1] and kinds[0] in ("helpful", "harmful") and rng.random() < 0.5:
        seed, count = rng.random(), rng.randint(1, 3)
        slips = rng.sample((0.0, 0.0, 0.4, 0.8), 2)
        return [helpful(request, Random(seed), count=count, wrong=wrong) for wrong in slips]
    return [
        helpful(request, rng, count=rng.randint(1, 3), wrong=rng.choice((0.0, 0.15, 0.5)))
        if kind in ("helpful", "harmful")
        else respond(request, kind, rng)
        for kind in kinds
    ]


def _pairs(split: str, count: int, rng: Random) -> list[PreferencePair]:
    """`count` preference pairs in the proportions of `PAIR_MIX`."""
    records = []
    wanted = {name: round(share * count) for name, share in PAIR_MIX.items()}
    wanted["both_safe"] += count - sum(wanted.values())
    while sum(wanted.values()):
        name = rng.choices(tuple(wanted), tuple(wanted.values()))[0]
        harmful = name == "both_unsafe" or (name == "astride" and rng.random() < 0.9) or rng.random() < 0.2
        stratum = rng.choice(("overt", "covert") if harmful else ("plain", "benign_alarming"))
        request, prompt, _ = _ask(split, stratum, rng, wrapped=0.3)
        mix = HARMFUL_MIX if harmful else BENIGN_MIX
        kinds = tuple(rng.choices(tuple(mix), tuple(mix.values()), k=2))
        responses = _answers(request, kinds, rng)
        truths = [judge(prompt, response) for response in responses]
        safe = [annotators.label_safe(truth, rng) for truth in truths]
        found = ("both_unsafe", "astride", "both_safe")[sum(safe)]
        if responses[0] == responses[1] or not wanted.get(found):
            continue
        wanted[found] -= 1
        better = annotators.better(*truths, rng)
        records.append(
            PreferencePair(
                prompt=prompt,
                response_0=responses[0],
                response_1=responses[1],
                is_response_0_safe=safe[0],
                is_response_1_safe=safe[1],
                better_response_id=better,
                safer_response_id=annotators.safer(*truths, *safe, better, rng),
                category=request.category,
                stratum=stratum,
                split=split,
            )
        )
    return records


def make_data(config: DataConfig) -> Path:
    """Write all data files and their checksums; returns the folder. Raises UserError if it cannot be written."""
    out = config.out or data_folder() / "world"
    check_folder(out)
    replace_folder(out, lambda folder: _write(config, folder))
    return out


def _write(config: DataConfig, folder: Path) -> None:
    files = []
    for split, share in (("train", 1.0), ("validation", 0.125), ("test", 0.25)):
        rng = Random(f"{config.seed}/{split}")
        for name, records in (
            ("prompts", draw_prompts(split, prompt_counts(split, round(config.train_prompts * share)), rng)),
            ("labels", _labels(split, round(config.train_labels * share), rng)),
            ("preferences", _pairs(split, round(config.train_pairs * share), rng)),
        ):
            files.append(folder / f"{name}_{split}.jsonl")
            write_records(files[-1], records)
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    write_atomic(folder / "SHA256SUMS", sums)
