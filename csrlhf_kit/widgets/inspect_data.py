"""What a cost model reads in a text: scores side by side, each word's part in them, neighbours, and what flips them.

The plain part of `inspect_cost`. A scorer is any function from prompts and responses to logits (above 0: unsafe),
so keyword, ranking and semantic models are asked the same questions; no model is imported here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.feature_extraction.text import TfidfVectorizer

from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import DOTTED, rounded, rounded_all, style, titled
from csrlhf_kit.widgets.view import escaped, filled

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts, responses -> logits; above 0 is unsafe, sigmoid is the probability that it states. A trained network is
an `attribution.Network`, which can be asked for `integrated_gradients` and `states` as well."""

WORD = re.compile(r"\w+(?:['’-]\w+)*")
OCCLUSION, GRADIENTS = "leaving each out", "integrated gradients"  # two ways to a word's part
EXAMPLES = 600  # whose states are computed: about two seconds on one core with the tiny base
MOST_WORDS = 60  # that a picture of them can hold, and a redraw can wait for


@dataclass(frozen=True)
class Word:
    """One word of a dialogue, and where it stands."""

    text: str
    side: str
    """`prompt` or `response`."""
    start: int
    end: int


def words(prompt: str, response: str) -> list[Word]:
    """The words of prompt and response, in order; the first `MOST_WORDS` of them."""
    found = [
        Word(match[0], side, match.start(), match.end())
        for side, text in (("prompt", prompt), ("response", response))
        for match in WORD.finditer(text)
    ]
    return found[:MOST_WORDS]


def replaced(prompt: str, response: str, word: Word, by: str) -> tuple[str, str]:
    """The dialogue with one word replaced; by nothing: left out, with the space before it."""
    text = prompt if word.side == "prompt" else response
    before, after = text[: word.start], text[word.end :]
    if not by:
        before = before.rstrip(" ") if before.strip() else before
        after = after if before else after.lstrip(" ")
    text = before + by + after
    return (text, response) if word.side == "prompt" else (prompt, text)


def probability(logit: float) -> float:
    """What a calibrated cost logit states: P(unsafe)."""
    return float(1.0 / (1.0 + np.exp(-np.clip(logit, -500, 500))))


def check(prompt: str, response: str) -> None:
    """Raises UserError where there is nothing to score."""
    if not prompt.strip() or not response.strip():
        raise UserError("inspect_cost: a prompt and a response that are not empty were expected")


def scores(scorers: Mapping[str, Score], prompt: str, response: str) -> dict[str, float]:
    """Each model's logit of one dialogue."""
    check(prompt, response)
    return {name: float(score([prompt], [response])[0]) for name, score in scorers.items()}


def occlusion(score: Score, prompt: str, response: str) -> np.ndarray:
    """How much each word raises the logit, (words,): the logit with it less the logit without it.

    Words that would leave a side empty get 0. One batch of as many dialogues as there are words. Source: Li,
    Monroe and Jurafsky 2016, arXiv 1612.08220 (erasure).
    """
    check(prompt, response)
    found = words(prompt, response)
    changed = [replaced(prompt, response, word, "") for word in found]
    kept = [i for i, (p, r) in enumerate(changed) if p.strip() and r.strip()]
    asked = [(prompt, response), *(changed[i] for i in kept)]
    logits = np.asarray(score([p for p, _ in asked], [r for _, r in asked]), dtype=np.float64)
    parts = np.zeros(len(found))
    parts[kept] = logits[0] - logits[1:]
    return parts


@dataclass(frozen=True)
class Attribution:
    """How much each word raises a logit above that of a baseline, along a path: integrated gradients."""

    parts: np.ndarray
    """Of each word, (words,)."""
    rest: float
    """Of what belongs to no word: marks, spaces, words beyond the sixtieth."""
    baseline: float
    """The baseline's logit."""
    score: float
    """The dialogue's logit; words and rest add up to its difference from the baseline's (completeness)."""

    def story(self, name: str) -> str:
        """The sum in words, as plain text."""
        total = float(self.parts.sum())
        return (
            f"{name}: words {total:+.2f}, marks {self.rest:+.2f}, together {total + self.rest:+.2f}; its logit "
            f"{self.score:+.2f} is {self.score - self.baseline:+.2f} above that of full stops ({self.baseline:+.2f})"
        )


def attributions(
    scorers: Mapping[str, Score], prompt: str, response: str, how: str = OCCLUSION
) -> dict[str, np.ndarray | Attribution]:
    """Each word's part in each model's logit: integrated gradients where a model has them and `how` asks so."""
    found: dict[str, np.ndarray | Attribution] = {}
    for name, score in scorers.items():
        gradients = getattr(score, "integrated_gradients", None) if how == GRADIENTS else None
        found[name] = (gradients or partial(occlusion, score))(prompt, response)
    return found


@dataclass(frozen=True)
class Flip:
    """One word replaced, and what that does."""

    word: Word
    by: str
    """Its replacement; empty: left out."""
    logit: float
    """The logit afterwards."""


def flips(score: Score, prompt: str, response: str, candidates: Sequence[str]) -> list[Flip]:
    """The edits of one word of the prompt that flip the verdict, largest change of the logit first; at most 8.

    candidates: words to try in place of each word, which is also left out. Raises UserError as `check`.
    """
    check(prompt, response)
    here = float(score([prompt], [response])[0])
    tried = [
        (word, by, replaced(prompt, response, word, by))
        for word in words(prompt, response)
        if word.side == "prompt"
        for by in ("", *dict.fromkeys(candidates))
        if by.casefold() != word.text.casefold()
    ]
    tried = [row for row in tried if row[2][0].strip() and row[2][1].strip()]
    if not tried:
        return []
    logits = score([row[2][0] for row in tried], [row[2][1] for row in tried])
    found = [
        Flip(word, by, float(logit))
        for (word, by, _), logit in zip(tried, logits, strict=True)
        if (logit > 0) != (here > 0)
    ]
    return sorted(found, key=lambda flip: -abs(flip.logit - here))[:8]


def frequent_words(records: Sequence[LabelledResponse], count: int = 40) -> list[str]:
    """The words to try: those of the prompts that labels differ about most, as often safe as unsafe at best.

    Ranked by how often the rarer label has them, so that a word which only ever occurs on one side, and is
    therefore no counterfactual, comes last; very short words are left out.
    """
    sides: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for record in records:
        sides[record.is_safe].update({w.casefold() for w in WORD.findall(record.prompt) if len(w) > 3})
    both = {w: min(sides[True][w], sides[False][w]) for w in sides[True] | sides[False]}
    return sorted(both, key=lambda w: (-both[w], w))[:count]


class Neighbours:
    """The labelled examples whose words are nearest to a dialogue (TF-IDF, cosine)."""

    def __init__(self, records: Sequence[LabelledResponse]) -> None:
        if not records:
            raise UserError("inspect_cost: found no labelled example, at least one was expected")
        self.records = list(records)
        self.vectors = TfidfVectorizer(ngram_range=(1, 2))
        self.table = self.vectors.fit_transform([f"{r.prompt}\n{r.response}" for r in self.records])

    def of(self, prompt: str, response: str, count: int = 4) -> list[tuple[float, LabelledResponse]]:
        """(cosine, example), the nearest first."""
        asked = self.vectors.transform([f"{prompt}\n{response}"])
        return nearest((self.table @ asked.T).toarray()[:, 0], self.records, count)


class StateNeighbours:
    """The labelled examples that a network takes for the likest: by what its score head reads of them.

    Cosine of the states, less their mean over the examples: all states share a large part that tells nothing. At
    most `EXAMPLES` of the examples, evenly spaced; their states are computed when they are asked for first.
    """

    def __init__(self, states: Callable[..., np.ndarray], records: Sequence[LabelledResponse]) -> None:
        self.states, self.records = states, list(records[:: -(-len(records) // EXAMPLES)])

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean state, directions from it (examples, width))."""
        found = self.states([r.prompt for r in self.records], [r.response for r in self.records])
        mean = found.mean(axis=0)
        return mean, directions(found - mean)

    def of(self, prompt: str, response: str, count: int = 4) -> list[tuple[float, LabelledResponse]]:
        """(cosine, example), the nearest first."""
        mean, table = self.table
        return nearest(table @ directions(self.states([prompt], [response]) - mean)[0], self.records, count)


def directions(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
    cosines: np.ndarray, records: Sequence[LabelledResponse], count: int
) -> list[tuple[float, LabelledResponse]]:
    """The records of the largest cosines, with these."""
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(float(cosines[i]), records[i]) for i in order]


# --- the picture ------------------------------------------------------------------------------------------


def inspection_values(
    scorers: Mapping[str, Score], prompt: str, response: str, parted: Mapping[str, np.ndarray | Attribution]
) -> dict[str, dict]:
    """Scores and each word's part, trace by trace."""
    found, told = words(prompt, response), scores(scorers, prompt, response)
    drawn: dict[str, dict] = {}
    labels = [escaped(f"{word.text}") for word in found]
    for place, (name, logit) in enumerate(told.items()):
        drawn[f"score {name}"] = {
            "x": [rounded(100 * probability(logit))],
            "y": [place],
            "text": [f"{100 * probability(logit):.1f}% (logit {logit:+.2f})"],
        }
        part = parted[name]
        parts = part.parts if isinstance(part, Attribution) else part
        drawn[f"words {name}"] = {
            "x": list(range(len(found))),
            "y": rounded_all(parts),
            "text": [
                f"{label} ({word.side}): {part:+.3f}"
                for label, word, part in zip(labels, found, parts, strict=True)
            ],
        }
    return drawn


def inspection_figure(
    scorers: Mapping[str, Score],
    prompt: str,
    response: str,
    parted: Mapping[str, np.ndarray | Attribution] | None = None,
) -> go.Figure:
    """Left, what each model states; right, what each word adds to its logit.

    parted: from `attributions`; None: of leaving each word out.
    """
    parted = attributions(scorers, prompt, response) if parted is None else parted
    names = list(scorers)
    gradients = [name for name, part in parted.items() if isinstance(part, Attribution)]
    how = f"integrated gradients: {', '.join(gradients)}" if gradients else "left out: minus that"
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.32, 0.68], horizontal_spacing=0.09,
        column_titles=["stated probability of harm, %", f"what each word adds to the logit ({escaped(how)})"],
    )  # fmt: skip
    for name in names:
        look = style(name)
        mark = {"color": look.colour, "symbol": look.symbol, "size": 13}
        figure.add_trace(
            go.Scatter(mode="markers", marker=mark, meta=f"score {name}", name=escaped(look.label), hovertemplate="%{text}<extra></extra>"),
            row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                mode="lines+markers", line={"color": look.colour, "dash": look.dash, "width": 1}, marker={**mark, "size": 9},
                meta=f"words {name}", name=escaped(look.label), showlegend=False, hovertemplate="%{text}<extra></extra>",
            ),
            row=1, col=2,
        )  # fmt: skip
    figure.add_vline(x=50, line=DOTTED, row=1, col=1)
    figure.add_hline(y=0, line=DOTTED, row=1, col=2)
    figure.update_xaxes(range=[-3, 103], row=1, col=1)
    labels = [escaped(style(name).label) for name in names]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=labels, range=[-0.6, len(names) - 0.4], row=1, col=1
    )
    found = words(prompt, response)
    figure.update_xaxes(
        tickvals=list(range(len(found))),
        ticktext=[escaped(w.text) for w in found],
        tickangle=-60,
        row=1,
        col=2,
    )
    figure.update_annotations(font_size=13)
    filled(figure, inspection_values(scorers, prompt, response, parted))
    return titled(
        figure,
        "Which model calls it harmful, and which words make it do so?",
        height=430,
        margin={"l": 110, "b": 140},
    )
