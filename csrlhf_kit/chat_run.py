"""`csrlhf chat RUN` and `csrlhf arena RUN_A RUN_B`: talk to a trained policy, or to two and say which is better."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import tyro

from csrlhf_kit.certify import clopper_pearson
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import Answer, load_policy, policy_answers
from csrlhf_kit.export import adapter_folder, run_settings
from csrlhf_kit.models.base import load_tokenizer
from csrlhf_kit.runs import write_atomic

LEAVE = ("/quit", "/exit")


@dataclass
class TalkConfig:
    """How policies are loaded and answer."""

    base: str | None = None
    """The policy's base; None: the one that the run names."""
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
    """Ask two policies the same, without knowing which is which, and vote: 1, 2, = or nothing."""

    run_a: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the first run."""
    run_b: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the second run."""
    out: Path | None = None
    """File to write the votes to, one JSON object a line."""


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
    stored = run_settings(run) if run is not None else {}
    adapter = adapter_folder(run) if run is not None else None
    base = config.base or stored.get("base")
    if adapter is not None and not base:
        base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError("nothing says which base to load: expected a run's folder, or --base")
    quantization = config.quantization or stored.get("quantization", "none")
    return policy_answers(
        load_policy(base, adapter, quantization=quantization), load_tokenizer(base),
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed,
    )  # fmt: skip


def asked(ask: Callable[[], str]) -> Iterator[str]:
    """What the person types, line by line, until they leave or the input ends; blank lines are left out."""
    while True:
        try:
            line = ask().strip()
        except EOFError:
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


def run_duel(config: DuelConfig) -> dict[str, Any]:
    """Show both answers to each request in random order, take votes, then say who was who and who won.

    Returns the counts `a`, `b` and `tie`, and the share of decided votes that A won, with its Clopper-Pearson 95%
    interval (None without any). Raises as `load_answer`.
    """
    if config.run_a is None or config.run_b is None:
        raise UserError("arena needs two runs: expected `csrlhf arena RUN_A RUN_B`")
    answers = [load_answer(run, config) for run in (config.run_a, config.run_b)]
    order, votes = Random(config.seed), []
    counts = {"a": 0, "b": 0, "tie": 0}
    for line in asked(prompt_of("you: ")):
        texts = [answer([line])[0] for answer in answers]
        first = order.randrange(2)
        print(f"1: {visible(texts[first])}\n2: {visible(texts[1 - first])}\n")
        vote = next(asked(prompt_of("better (1, 2, =): ")), "")
        winner = {"1": "ab"[first], "2": "ab"[1 - first], "=": "tie"}.get(vote)
        if winner is not None:
            counts[winner] += 1
            votes.append({"prompt": line, "a": texts[0], "b": texts[1], "vote": winner})
    decided = counts["a"] + counts["b"]
    result: dict[str, Any] = {**counts, "share_of_a": None}
    if decided:
        low, high = clopper_pearson(counts["a"], decided)
        result["share_of_a"] = {"rate": counts["a"] / decided, "low": low, "high": high, "n": decided}
    if config.out is not None:
        write_atomic(config.out, "".join(json.dumps(vote) + "\n" for vote in votes))
    print(f"A ({config.run_a}): {counts['a']}, B ({config.run_b}): {counts['b']}, ties: {counts['tie']}")
    if decided:
        share = result["share_of_a"]
        print(f"A won {100 * share['rate']:.0f}% [{100 * share['low']:.0f}, {100 * share['high']:.0f}]")
    return result
