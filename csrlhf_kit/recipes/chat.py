"""`csrlhf chat RUN` and `csrlhf arena RUN_A RUN_B`: talk to a trained policy, or to two and say which is better."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import tyro

from csrlhf_kit import files
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import Answer, stored_policy
from csrlhf_kit.models.places import adapter_folder, base_of, find_base, numbers_of
from csrlhf_kit.outputs import check_file
from csrlhf_kit.theory.intervals import clopper_pearson

LEAVE = ("/quit", "/exit")


@dataclass
class TalkConfig:
    """How policies are loaded and answer."""

    base: str | None = None
    """The policy's base; None: the one that the run names."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base's weights; None: the run's own."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit or as it is; None: as the run did."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    seed: int = 0
    """Seed of sampling."""


@dataclass
class ChatConfig(TalkConfig):
    """Talk to a trained policy in the terminal; /reset forgets the conversation, /quit leaves."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of `csrlhf ppo` or `csrlhf sft`, or an adapter's; without one, the base itself (--base)."""


@dataclass
class DuelConfig(TalkConfig):
    """Ask two policies the same, without knowing which is which, and vote: 1, 2, = or nothing; /quit leaves.

    Each vote is on disk before the next question; votes that are there already are counted, so that asking again
    goes on.
    """

    run_a: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the first run."""
    run_b: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the second run."""
    out: Path | None = None
    """File that votes are appended to, one JSON object a line; None: votes.jsonl beside the first run's folder."""


def visible(text: str) -> str:
    """`text` without power over a terminal: control and format characters (escape sequences, carriage returns,
    marks that turn the writing direction) become their code, `\\x1b`; line breaks and tabs stay.
    """
    return "".join(
        c if c in "\n\t" or not (unicodedata.category(c).startswith("C") or c in "\u2028\u2029")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )  # fmt: skip


def load_answer(run: Path | None, config: TalkConfig) -> Answer:
    """The policy of a run's folder as a function; `run` None: the base alone.

    Raises UserError where there is no policy, or nothing says what its base is.
    """
    adapter = adapter_folder(run) if run is not None else None
    if adapter is None and not config.base:
        raise UserError("nothing says which base to load: expected a run's folder, or --base")
    base = find_base(config.base) if adapter is None else base_of(adapter, config.base)
    return stored_policy(
        base, adapter, **numbers_of(run, config.dtype, config.quantization),
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed,
    )  # fmt: skip


def asked(ask: Callable[[], str]) -> Iterator[str]:
    """What the person types, line by line, until they leave (Ctrl-C, too) or the input ends; no blank lines."""
    while True:
        try:
            line = ask().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in LEAVE:
            return
        if line:
            yield line


def prompt_of(label: str) -> Callable[[], str]:
    """A question at the terminal; nothing is printed where the input is a pipe."""
    return lambda: input(label if sys.stdin.isatty() else "")


def run_chat(config: ChatConfig) -> list[dict[str, str]]:
    """Talk until the person leaves; returns the conversation. Raises as `load_answer`."""
    answer = load_answer(config.run, config)
    turns: list[dict[str, str]] = []
    for line in asked(prompt_of("you: ")):
        if line == "/reset":
            turns = []
            print("(forgotten)")
            continue
        turns.append({"role": "user", "content": line})
        text = answer([list(turns)])[0]
        turns.append({"role": "assistant", "content": text})
        print(f"policy: {visible(text)}\n")
    return turns


def tally(votes: Iterable[Mapping[str, Any]], run_a: str, run_b: str) -> dict[str, int]:
    """How often `a`, `b` and `tie` won among the votes on these two runs, whichever of them was called A then."""
    counts = {"a": 0, "b": 0, "tie": 0}
    swapped = {"a": "b", "b": "a", "tie": "tie"}
    for vote in votes:
        pair, winner = (vote.get("run_a"), vote.get("run_b")), vote.get("vote")
        if winner in counts and pair in ((run_a, run_b), (run_b, run_a)):
            counts[winner if pair == (run_a, run_b) else swapped[winner]] += 1
    return counts


def run_duel(config: DuelConfig) -> dict[str, Any]:
    """Show both answers to each request in random order, take votes, then say who was who and who won.

    Returns the counts `a`, `b` and `tie`, and the share of decided votes that A won, with its Clopper-Pearson 95%
    interval (None without any), over all votes on these two in the file. Raises as `load_answer`.
    """
    if config.run_a is None or config.run_b is None:
        raise UserError("arena needs two runs: expected `csrlhf arena RUN_A RUN_B`")
    out = config.out or config.run_a.parent / "votes.jsonl"
    check_file(out)
    runs = {"run_a": str(config.run_a), "run_b": str(config.run_b)}
    answers = [load_answer(run, config) for run in (config.run_a, config.run_b)]
    if earlier := sum(tally(files.read(out), **runs).values()):
        print(f"{out} holds {earlier} votes on these two already: they count.")
    for line in asked(prompt_of("you: ")):
        texts = [answer([line])[0] for answer in answers]
        votes = len(files.read(out))  # the sides follow from the seed and the place of the vote
        first = Random(config.seed * 1_000_003 + votes).randrange(2)
        print(f"1: {visible(texts[first])}\n2: {visible(texts[1 - first])}\n")
        vote = next(asked(prompt_of("better (1, 2, =): ")), "")
        winner = {"1": "ab"[first], "2": "ab"[1 - first], "=": "tie"}.get(vote)
        if winner is not None:
            files.append(out, {"prompt": line, "a": texts[0], "b": texts[1], "vote": winner, **runs})
    counts = tally(files.read(out), **runs)
    decided = counts["a"] + counts["b"]
    result: dict[str, Any] = {**counts, "share_of_a": None}
    print(f"A ({config.run_a}): {counts['a']}, B ({config.run_b}): {counts['b']}, ties: {counts['tie']}")
    if decided:
        low, high = clopper_pearson(counts["a"], decided)
        result["share_of_a"] = {"rate": counts["a"] / decided, "low": low, "high": high, "n": decided}
        print(
            f"A won {counts['a'] / decided:.0%} [{100 * low:.0f}, {100 * high:.0f}]; the votes are in {out}"
        )
    return result
