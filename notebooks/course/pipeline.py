"""The map of the idea: one diagram of constrained RLHF, drawn once, with the part lit that a notebook is about.

`python -m course.pipeline` (in `notebooks/`) writes `course/map/00.svg` to `12.svg`; the first cell of each notebook
shows its own. The colours can be read on a light page and on a dark one: boxes bring their own ground, and what
stands between them is of a middle grey.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 900, 390
GREY, BLUE = "#757e88", "#0072B2"


class Box(NamedTuple):
    """A part of the loop: where it stands, and one or two lines of text."""

    x: int
    y: int
    width: int
    lines: tuple[str, ...]
    height: int = 50


BOXES = {
    "judge": Box(318, 12, 184, ("the judge: an oracle", "outside, trains nothing")),
    "labels": Box(740, 112, 140, ("labels of people", "helpful? safe?")),
    "prompts": Box(20, 112, 116, ("prompts", "attackers, too")),
    "policy": Box(176, 112, 116, ("policy π", "writes")),
    "answer": Box(352, 112, 116, ("answer",)),
    "reward": Box(532, 82, 158, ("reward model", "how helpful?")),
    "cost": Box(532, 144, 158, ("cost model", "how harmful?")),
    "critic": Box(740, 236, 140, ("critic", "what to expect?")),
    "advantages": Box(532, 236, 158, ("advantages", "A_R and A_C")),
    "penalty": Box(318, 236, 184, ("penalty", "(A_R − λ A_C) / (1 + λ)")),
    "update": Box(176, 236, 116, ("PPO update", "of the policy")),
    "mean": Box(532, 328, 158, ("mean cost J_C", "above the limit d?")),
    "price": Box(318, 328, 184, ("price λ", "fixed, gated or learned")),
    "base": Box(20, 328, 272, ("one frozen base", "and a small adapter for each model")),
}
LIT = {
    "00": tuple(BOXES),
    "01": ("labels",),
    "02": ("cost",),
    "03": ("price",),
    "04": ("mean", "price"),
    "05": ("policy", "critic", "advantages", "update"),
    "06": ("mean", "price"),
    "07": ("penalty", "price"),
    "08": ("answer", "judge"),
    "09": ("policy", "judge"),
    "10": ("prompts", "judge"),
    "11": ("base",),
    "12": ("labels", "cost", "policy", "judge"),
}
# The arrows, each a line through these points (x, y); the head is at the last one.
ARROWS = (
    ((136, 137), (174, 137)),  # prompts -> policy
    ((292, 137), (350, 137)),  # policy -> answer
    ((410, 112), (410, 64)),  # answer -> judge
    ((468, 130), (496, 130), (496, 107), (530, 107)),  # answer -> reward model
    ((468, 144), (496, 144), (496, 169), (530, 169)),  # answer -> cost model
    ((740, 130), (720, 130), (720, 107), (692, 107)),  # labels -> reward model
    ((740, 144), (720, 144), (720, 169), (692, 169)),  # labels -> cost model
    ((611, 202), (611, 234)),  # both models -> advantages
    ((740, 261), (692, 261)),  # critic -> advantages
    ((532, 261), (504, 261)),  # advantages -> penalty
    ((318, 261), (294, 261)),  # penalty -> update
    ((234, 236), (234, 164)),  # update -> policy
    ((690, 186), (712, 186), (712, 353), (692, 353)),  # cost model -> mean cost
    ((532, 353), (504, 353)),  # mean cost -> price
    ((410, 328), (410, 288)),  # price -> penalty
)


def alt_text(number: str) -> str:
    """The diagram in words, for whoever cannot see it; names what is lit."""
    lit = (
        "everything" if len(LIT[number]) == len(BOXES) else ", ".join(BOXES[n].lines[0] for n in LIT[number])
    )
    return (
        "Prompts go to the policy, its answers to a reward model and a cost model; with the critic they give "
        "advantages, the penalty weighs the two with the price λ, and a PPO update changes the policy. "
        f"The judge stands outside. Lit here: {lit}."
    )


def diagram(number: str) -> str:
    """The loop as SVG text, with the part of notebook `number` ("02") lit."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" font-family="Helvetica, Arial, sans-serif" font-size="13.5">',
        f"<title>{escape(alt_text(number))}</title>",
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
    ]
    for points in ARROWS:
        way = " ".join(f"{x},{y}" for x, y in points)
        parts.append(
            f'<polyline points="{way}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#head)"/>'
        )
    parts.append(
        f'<rect x="524" y="74" width="174" height="128" rx="9" fill="none" stroke="{GREY}" stroke-width="1.2"/>'
    )  # the two models together
    for name, box in BOXES.items():
        fill, ink = (BLUE, "#ffffff") if name in LIT[number] else ("#e8ecf0", "#24292f")
        dash = ' stroke-dasharray="5 4"' if name == "judge" else ""
        parts.append(
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7" fill="{fill}" '
            f'stroke="{GREY}"{dash}/>'
        )
        first = box.y + box.height / 2 + (5 if len(box.lines) == 1 else -4)
        for place, line in enumerate(box.lines):
            weight = ' font-weight="bold"' if place == 0 else ' font-size="12"'
            parts.append(
                f'<text x="{box.x + box.width / 2:g}" y="{first + 18 * place:g}" text-anchor="middle" '
                f'fill="{ink}"{weight}>{_lowered(escape(line))}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _lowered(text: str) -> str:
    """`A_R and` with the R as an index; what follows it returns to the line."""
    return re.sub(r"_(\w)([^_]*)", r'<tspan dy="3" font-size="9.5">\1</tspan><tspan dy="-3">\2</tspan>', text)


def image(number: str) -> str:
    """The line of markdown that shows the diagram in notebook `number`."""
    return f"![{alt_text(number)}](course/map/{number}.svg)"


if __name__ == "__main__":
    folder = Path(__file__).parent / "map"
    folder.mkdir(exist_ok=True)
    for number in LIT:
        (folder / f"{number}.svg").write_text(diagram(number), encoding="utf-8")
    print(f"{len(LIT)} drawings in {folder.name}/")
