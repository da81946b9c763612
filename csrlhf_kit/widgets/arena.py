"""`arena`: chat with two policies side by side and vote; names are hidden until the vote if it is blind.

Votes and standings are those of evaluation/votes.py, which `csrlhf arena` uses too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import ipywidgets

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.votes import VOTES, Duel, Talk, standings
from csrlhf_kit.widgets.view import Keys, View, card, escaped, text_twin, widgets_can_run


def arena(
    policies: Mapping[str, Talk] | str | Path,
    *,
    folder: str | Path = "arena",
    blind: bool = True,
    seed: int = 0,
    static: bool | None = None,
) -> View:
    """Chat with two policies at once, token by token; a vote is on disk before the names are shown.

    policies: name -> a function from chat messages to pieces of text (`streaming.streaming` makes one from a model),
    or the folder of a finished run. folder: the folder of `votes.jsonl`, to which votes are appended. blind: show
    names only after the vote. seed: of left and right. static: see `widgets.view`.

    Keyboard: Enter sends the request; then Tab to the dashed box: 1 left, 2 right, = tie, 0 both bad, n new talk.

    Raises UserError if there are fewer than two policies.
    """
    if isinstance(policies, str | Path):
        from csrlhf_kit.widgets.streaming import policies_of  # torch takes seconds

        policies = policies_of(policies)
    duel = Duel(policies, Path(folder) / "votes.jsonl", seed)
    lines = [f"Policies: {', '.join(policies)}", *standings(duel)]
    twin = partial(text_twin, "Which of two answers is better, not knowing whose it is?", lines)
    return View(_ring(duel, blind) if widgets_can_run(static) else None, twin)


def talk_html(turns: list[dict[str, str]], head: str, now: str = "") -> str:
    """One side's conversation as an HTML card, escaped; `now` is the part of the current answer that has arrived."""
    lines = [f"{'you' if turn['role'] == 'user' else 'policy'}: {turn['content']}" for turn in turns]
    lines += [f"policy: {now}"] if now else []
    return card("\n".join(lines or ["Nothing asked yet. Type a request above, and press Enter."]), mark=head)


def _ring(duel: Duel, blind: bool) -> ipywidgets.Widget:
    sides = [ipywidgets.HTML(layout=ipywidgets.Layout(width="50%")) for _ in range(2)]
    note, table = ipywidgets.HTML(), ipywidgets.HTML()
    asked = ipywidgets.Text(
        description="request", placeholder="ask something, harmless or not", continuous_update=False,
        layout=ipywidgets.Layout(width="70%"),
    )  # fmt: skip
    send, again = ipywidgets.Button(description="ask both"), ipywidgets.Button(description="new talk (n)")
    keys = Keys(wanted=[*VOTES, "n"], hint="Keyboard here: 1 left, 2 right, = tie, 0 both bad, n new talk")
    told = not blind

    def show(side: int | None = None, now: str = "") -> None:
        for place, label in enumerate(("LEFT", "RIGHT")):
            if side in (None, place):
                head = f"{label}: {duel.pair[place]}" if told else label
                sides[place].value = talk_html(duel.turns[place], head, now)

    def ask(_: object = None) -> None:
        text, asked.value = asked.value, ""
        if not text.strip():
            return
        note.value = ""
        try:
            for side, said in duel.ask(text):
                show(side, said)
        except UserError as error:
            note.value = card(str(error))
        show()

    def press(key: str) -> None:
        nonlocal told
        if key == "n":
            duel.fresh()
            told, note.value = not blind, ""
        else:
            try:
                vote = duel.vote(key)
            except (UserError, OSError) as error:
                note.value = card(str(error))
                return
            note.value = card(f"{vote['vote']}: left was {vote['left']}, right was {vote['right']}")
            told = True
            table.value = f"<p>{'<br>'.join(map(escaped, standings(duel)))}</p>"
        show()

    asked.observe(lambda change: ask() if change["new"] else None, "value")
    send.on_click(ask)
    again.on_click(lambda _: press("n"))
    keys.on_press(press)
    table.value = f"<p>{'<br>'.join(map(escaped, standings(duel)))}</p>"
    show()
    buttons = [ipywidgets.Button(description=f"{word} ({key})") for key, word in VOTES.items()]
    for button, key in zip(buttons, VOTES, strict=True):
        button.on_click(lambda _, key=key: press(key))
    request, votes = ipywidgets.HBox([asked, send, again]), ipywidgets.HBox(buttons)
    return ipywidgets.VBox([request, ipywidgets.HBox(sides), votes, keys, note, table])
