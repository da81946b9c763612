"""`csrlhf chat RUN`: talk to a trained policy."""

from __future__ import annotations

from csrlhf_kit.evaluation.answers import answer_of
from csrlhf_kit.evaluation.terminal import prompt_of, questions, visible
from csrlhf_kit.recipes.options import ChatConfig


def run_chat(config: ChatConfig) -> list[dict[str, str]]:
    """Talk until the person leaves; returns the conversation. Raises as `answer_of`."""
    answer = answer_of(config.run, config)
    turns: list[dict[str, str]] = []
    for line in questions(prompt_of("you: ")):
        if line == "/reset":
            turns = []
            print("(forgotten)")
            continue
        turns.append({"role": "user", "content": line})
        text = answer([list(turns)])[0]
        turns.append({"role": "assistant", "content": text})
        print(f"policy: {visible(text)}\n")
    return turns
