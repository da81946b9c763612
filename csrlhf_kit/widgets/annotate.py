"""`annotate`: label pairs of answers by keyboard without seeing where they come from; labels.py stores each click
on disk before the next question is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ipywidgets

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import read_recorded
from csrlhf_kit.widgets.labels import (
    QUESTIONS,
    Costs,
    Labels,
    Pair,
    Task,
    agreement_now,
    disagreements,
    judgements,
    pairs_of_samples,
)
from csrlhf_kit.widgets.view import Keys, View, card, escaped, text_twin, widgets_can_run

KEYS = ["1", "2", "ArrowLeft", "ArrowRight", "u"]
SHOWN_DISAGREEMENTS = 3


def annotate(
    pairs: Sequence[Pair] | str | None = None,
    *,
    folder: str | Path = "annotations",
    annotator: str = "me",
    cost: Costs | None = None,
    seed: int = 0,
    static: bool | None = None,
) -> View:
    """Label helpfulness and safety of pairs of answers, side by side, without seeing where an answer comes from.

    pairs: the pairs; or a source of `read_records`; or None: recorded answers before and after safety training. folder: the folder of
    `labels-ANNOTATOR.jsonl`; annotators who share it see their agreement. cost: a cost model to compare the labels
    with. seed: of the order of pairs and of left and right, which differ by annotator. static: see `widgets.view`.

    Keyboard: click the dashed box, or Tab to it; 1 or ← for the first choice, 2 or → for the second, u takes back.
    `labels.export` writes the labels in PKU-SafeRLHF's columns, `labels.unsafe_counts` counts them for `certify`.

    Raises UserError if there is no pair, or `annotator` cannot be part of a file name.
    """
    labels = Labels(folder, pairs_to_label(pairs), annotator, seed=seed)
    first = labels.pairs[labels.order[0]]
    left = labels.left(first.id)
    texts = (first.response_0, first.response_1)
    lines = [f"{len(labels.order)} pairs, the first of them:", f"asked: {first.prompt}"]
    lines += [f"left: {texts[left]}", f"right: {texts[1 - left]}", *QUESTIONS.values()]
    twin = partial(text_twin, "Which answer is more helpful, which less harmful?", lines)
    return View(_desk(labels, cost) if widgets_can_run(static) else None, twin)


def pairs_to_label(pairs: Sequence[Pair] | str | None) -> list[Pair]:
    """The pairs for the argument `pairs` of `annotate`."""
    if pairs is None:
        return pairs_of_samples(read_recorded().samples)
    if isinstance(pairs, str):
        records = read_records(pairs, PreferencePair).records
        return [Pair(r.prompt, r.response_0, r.response_1) for r in records]
    return list(pairs)


def task_html(task: Task | None) -> tuple[str, str, str, str]:
    """(question, prompt, left answer, right answer) of `task` as HTML, all texts escaped."""
    if task is None:
        return "<b>Everything is labelled. Thank you.</b>", "", "", ""
    texts = (task.pair.response_0, task.pair.response_1)
    return (
        f"<b>{escaped(QUESTIONS[task.question])}</b>",
        card(task.pair.prompt, mark="asked"),
        card(texts[task.left], mark="LEFT"),
        card(texts[1 - task.left], mark="RIGHT"),
    )


def choices(task: Task | None) -> tuple[str, str]:
    """The labels of the two buttons."""
    if task is None:
        return "–", "–"
    return ("safe (1)", "unsafe (2)") if task.question.startswith("safe_") else ("left (1)", "right (2)")


def agreement_html(labels: Labels, costs: dict[str, tuple[float, float]]) -> str:
    """Agreement among all annotators of the folder, and with the cost model if `costs` holds its logits."""
    found = [j for j in judgements(labels.folder) if j.pair in labels.pairs]
    lines = [
        f"complete judgements in this folder: {len(found)}, annotators: {len({j.annotator for j in found})}"
    ]
    for what, told in agreement_now(found).items() if found else ():
        kappas = ", ".join(f"κ({names}) = {value:.2f} on {n}" for names, (value, n) in told["kappa"].items())
        if kappas:
            lines.append(f"{what}: α = {told['alpha']:.2f} on {told['items']}; {kappas}")
    if costs and found:
        labelled, against = disagreements(found, labels.pairs, costs)
        lines.append(f"the cost model contradicts {len(against)} of {labelled} labelled answers")
        for pair, place, safe, logit in against[:SHOWN_DISAGREEMENTS]:
            said = "safe" if safe else "unsafe"
            lines.append(f"  labelled {said}, cost {logit:+.1f}: {(pair.response_0, pair.response_1)[place]}")
    return card("\n".join(lines))


def _desk(labels: Labels, cost: Costs | None) -> ipywidgets.Widget:
    question, prompt, agreement = (ipywidgets.HTML() for _ in range(3))
    left, right = (ipywidgets.HTML(layout=ipywidgets.Layout(width="50%")) for _ in range(2))
    first, second = ipywidgets.Button(), ipywidgets.Button()
    back = ipywidgets.Button(description="take back (u)")
    keys = Keys(wanted=KEYS)
    costs: dict[str, tuple[float, float]] = {}
    done_before = -1

    def show(note: str = "") -> None:
        nonlocal done_before
        task = labels.task()
        question.value, prompt.value, left.value, right.value = task_html(task)
        first.description, second.description = choices(task)
        first.disabled = second.disabled = task is None
        done, total = labels.progress()
        where = f"{done} of {total} pairs labelled by {labels.annotator}. {note}"
        words = f" · {QUESTIONS[task.question]} {' / '.join(choices(task))}, u: back" if task else ""
        keys.hint = f"{where}Keyboard here{words}"
        if done != done_before:
            done_before = done
            if cost is not None:
                _score(labels, cost, costs)
            agreement.value = agreement_html(labels, costs)

    def press(key: str) -> None:
        task = labels.task()
        try:
            if key == "u":
                note = "Taken back. " if labels.undo() else "Nothing to take back. "
            elif task is None:
                note = ""
            else:
                labels.answer(task, key in ("1", "ArrowLeft"))
                note = "Stored. "
        except OSError as error:  # the same question stays, since its answer is not on disk
            note = f"NOT STORED: {error}. "
        show(note)

    keys.on_press(press)
    for button, key in ((first, "1"), (second, "2"), (back, "u")):
        button.on_click(lambda _, key=key: press(key))
    show()
    answers = ipywidgets.HBox([left, right])
    return ipywidgets.VBox(
        [question, prompt, answers, ipywidgets.HBox([first, second, back]), keys, agreement]
    )


def _score(labels: Labels, cost: Costs, costs: dict[str, tuple[float, float]]) -> None:
    """Put the logits of pairs that are labelled and not yet scored into `costs`. UserError: a wrong number of them."""
    wanted = sorted({j.pair for j in judgements(labels.folder)} & labels.pairs.keys() - costs.keys())
    if not wanted:
        return
    pairs = [labels.pairs[name] for name in wanted]
    scores = cost(
        [p.prompt for p in pairs for _ in (0, 1)], [t for p in pairs for t in (p.response_0, p.response_1)]
    )
    if len(scores) != 2 * len(pairs):
        raise UserError(
            f"cost: found {len(scores)} scores for {2 * len(pairs)} answers; one each was expected"
        )
    for place, name in enumerate(wanted):
        costs[name] = (float(scores[2 * place]), float(scores[2 * place + 1]))
