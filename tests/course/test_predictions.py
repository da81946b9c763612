"""A prediction is asked before its page gives the answer away.

`TELLS` holds, for each question, the words and numbers with which its page tells the answer. They have to stand at the
reveal or below it (or the entry checks nothing) and nowhere above the cell that records the letter: not in a heading,
an objective, an output, nor in a figure's title or caption.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from stored_figures import STORED, cells_of, figures_of

TELLS = {
    "00": {
        "kill against feed": r"calls all four|learns nothing",
        "harm of help alone": r"Help alone teaches|harm without a price|96\.6",
        "help that is kept": r"help that is kept +\d|some of the help goes",
        "tricks never seen": r"under unseen tricks|the tricks work",
    },
    "01": {
        "helpful and safe, astride": r"mostly the (unsafe|harmful) one|five times in six|17\.0%",
        "agreement on a mixed label": r"agreed upon least|57\.3|falls with how differently",
        "weights closer together": r"falls with how differently|agreed on as well as helpfulness",
    },
    "02": {
        "which pooled state": r"mean beats the last|mean wins|mean +AUROC",
        "AUROC of ranking alone": r"near a coin over all|ranking alone +AUROC|about which prompts are dangerous",
        "false alarms as data grow": r"better, not worse|fall by over a third|More data cure",
    },
    "03": {
        "rectified, 2 λ* to 10 λ*": r"optimum itself\*?, whatever|stays in the kink|pile up on the threshold",
        "linear, 2 λ* to 10 λ*": r"safer than was asked|slides past it|run past it",
        "four times the samples": r"square root of the number|shrinks to \d+% of its width",
    },
    "04": {
        "16 times the batch": r"a quarter of the bias|falls with \$\\sqrt|over B = 256: \d",
        "1.5 λ* with a batch gate": r"settles \*?above\*? the threshold|smallest sufficient|look like the least needed",
        "a gate on its own batch": r"lets (through )?more of the (cost )?gradient|two thirds of the gradient",
    },
    "05": {
        "advantage of the first token": r"loses a factor λ|0\.377|how far back the praise",
        "harm without a constraint": r"Nobody rewarded harm|after PPO +\d|harm rises|harm climbs",
        "beta as a leash": r"Whatever the KL weight|no KL weight|only brings it back|nothing in between is safer",
    },
    "06": {
        "a faster λ": r"has dropped out|whatever η|same time until they are over|at every rate",
        "a window of 8 steps": r"feeds the swing|never arrives|keep the swing alive|pushes the swing",
        "the way back": r"make a ratchet|down is slow|133 steps|falls slowly",
    },
    "07": {
        "benign requests at λ = 20": r"takes? help from (the )?benign|84%|83\.5%",
        "with the division": r"less\* safe and \*less|leash pulls|50\.4%",
        "a rule that is kept already": r"cost \*climbs\*|ends above 0\.25|budget, and a rectified penalty spends",
    },
    "08": {
        "6 against 11 of 40": r"not significant|GPT-5 0\.27",
        "answers that certify 1%": r"\b299\b",
        "what the judge sees": r"saw far less harm|21\.35%",
        "best of N, a good judge": r"select a judge's errors|break a promise|optimises \*against\*|what happens does not",
    },
    "09": {
        "equal methods, one seed": r"four times in ten|differences that are not there",
        "the worst of seven": r"half again as bad|expected worst of seven: \d",
        "the most harmless": r"The two are equal|both are always safe|\+480",
    },
    "10": {
        "search against chance": r"searching +broke|search climbs|opens one lock after",
        "what keywords catch": r"catches the leaks|refusal_leak +\d",
        "after a short training": r"sixteen tries (undo|break)",
        "three rounds without twins": r"stops answering|all but vanishes",
        "who helps and holds": r"gives way|One of 27 holds|88\.0",
        "what moves it most": r"twice as much harm|no wrappers in training +\+\d",
    },
    "11": {
        "NF4 against equal steps": r"a tenth, and in blocks|loses on small ones|normal weights +\d",
        "the largest item": r"copy of the logits is|copy of the logits, float32 +\d",
        "a fresh policy": r"Exactly 0: LoRA|0 nats from the reference",
    },
    "12": {
        "people and the probe": r"predicts two people|comes close to it|predicts two other people",
        "harmless answers added": r"learnt the \*source\*|calls hardly anything",
        "what the constraint does": r"unlearns what the start|about half as much harm",
    },
}
QUESTIONS = [
    pytest.param(path, name, tell, id=f"{path.name[:2]}-{name}")
    for path in STORED
    for name, tell in TELLS.get(path.name[:2], {}).items()
]
each_page = pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)


def calls(path: Path, method: str) -> dict[str, tuple[int, ast.expr]]:
    """Question -> the cell that calls this method of `predictions` for it, and the call's second argument."""
    found = {}
    for place, cell in enumerate(cells_of(path)):
        if cell["cell_type"] == "code" and f"predictions.{method}(" in cell["source"]:
            for node in ast.walk(ast.parse(cell["source"])):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == f"predictions.{method}":
                    name = ast.literal_eval(node.args[0])
                    assert name not in found, f"{name}: {method} is called twice"
                    found[name] = (place, node.args[1])
    return found


def read(path: Path, first: int, end: int | None = None) -> str:
    """What a reader sees in these cells: text, printed outputs, and figures' titles and captions; no code."""
    seen = []
    for cell in cells_of(path)[first:end]:
        if cell["cell_type"] == "markdown":
            seen.append(re.sub(r"!\[[^\]]*\]\([^)]*\)", "", cell["source"]))
        for output in cell.get("outputs", []):
            seen.append("".join(output.get("text") or output.get("data", {}).get("text/plain", "")))
    last = len(cells_of(path)) if end is None else end
    seen += [f"{f.title}\n{f.caption}" for f in figures_of(path) if first <= f.cell < last]
    return "\n".join(seen)


@pytest.mark.parametrize(("path", "name", "tell"), QUESTIONS)
def test_the_answer_is_told_at_the_reveal_and_not_above_the_question(path, name, tell):
    asked, revealed = calls(path, "record")[name][0], calls(path, "reveal")[name][0]
    if not re.search(tell, read(path, revealed)):
        pytest.fail(
            f"{path.name}: nothing below the reveal of {name!r} matches its tells: bring them up to date"
        )
    early = re.search(tell, read(path, 0, asked))
    assert early is None, f"{path.name} says {early[0]!r} above the question {name!r}, in cell {asked}"


@each_page
def test_a_question_has_its_choices_above_it_and_an_answer_that_is_computed(path):
    asked, revealed = calls(path, "record"), calls(path, "reveal")
    assert asked.keys() == revealed.keys() == TELLS[path.name[:2]].keys(), (
        "a question without tells: add them"
    )
    for name, (place, _) in asked.items():
        choices = read(path, max(0, place - 2), place)
        assert all(f"**({letter})" in choices for letter in "ab"), (
            f"{name}: no choices above the cell that asks"
        )
        assert revealed[name][0] >= place and not isinstance(revealed[name][1], ast.Constant), name


def test_no_letter_is_a_good_guess():
    """Who always picks one letter is not right in half of the course."""
    outputs = "\n".join(read(path, 0) for path in STORED)
    outcomes = dict(re.findall(r"^(.+): it is \(([abc])\);", outputs, flags=re.MULTILINE))
    assert len(outcomes) == sum(map(len, TELLS.values()))
    assert max(Counter(outcomes.values()).values()) < len(outcomes) / 2
