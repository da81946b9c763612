"""How cost models judge a dialogue: scores, each word's part in them, similar examples, one-word changes that flip
the verdict. The part of `inspect_cost` without a screen; it imports no model and no torch.

A scorer is any function from prompts and responses to logits (above 0: unsafe), so that keyword, ranking and
semantic models can be compared. Builds on figures/style.py, scikit-learn (TF-IDF) and view.py.
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
from csrlhf_kit.widgets.view import escaped

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts, responses -> logits; above 0 is unsafe, and sigmoid(logit) is the probability of harm. A trained network
is an `attribution.Network`, which also has the methods `integrated_gradients` and `states`."""

WORD = re.compile(r"\w+(?:['’-]\w+)*")
OCCLUSION, GRADIENTS = "leaving each out", "integrated gradients"  # how a word's part is computed
EXAMPLES = 600  # most examples whose states are computed: about two seconds on one core with the tiny base
SIDES = {"prompt": "request", "response": "answer"}
MOST_WORDS = 60  # most words that the figure shows, so that it stays legible and a redraw quick


@dataclass(frozen=True)
class Word:
    """One word of a dialogue: characters `start` to `end` of the prompt or of the response."""

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
    """(prompt, response) with one word replaced; if `by` is empty, the word and the space before it are left out."""
    text = prompt if word.side == "prompt" else response
    before, after = text[: word.start], text[word.end :]
    if not by:
        before = before.rstrip(" ") if before.strip() else before
        after = after if before else after.lstrip(" ")
    text = before + by + after
    return (text, response) if word.side == "prompt" else (prompt, text)


def probability(logit: float) -> float:
    """P(unsafe) of a calibrated cost logit: its sigmoid."""
    return float(1.0 / (1.0 + np.exp(-np.clip(logit, -500, 500))))


def check(prompt: str, response: str) -> None:
    """Raise UserError if the prompt or the response is blank."""
    if not prompt.strip() or not response.strip():
        raise UserError("inspect_cost: a prompt and a response that are not empty were expected")


def scores(scorers: Mapping[str, Score], prompt: str, response: str) -> dict[str, float]:
    """Each model's logit of one dialogue, by the model's name. Raises UserError as `check`."""
    check(prompt, response)
    return {name: float(score([prompt], [response])[0]) for name, score in scorers.items()}


def occlusion(score: Score, prompt: str, response: str) -> np.ndarray:
    """How much each word raises the logit, (words,): the logit with the word minus the logit without it.

    A word gets 0 if the prompt or the response would be blank without it. All dialogues are scored in one batch.
    Source: erasure, Li, Monroe and Jurafsky 2016, arXiv 1612.08220. Raises UserError as `check`.
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
    """How much each word raises a logit above that of a baseline, by integrated gradients."""

    parts: np.ndarray
    """Each word's part of the difference, (words,), in logits."""
    rest: float
    """The part of all other text: punctuation, spaces, words after the first `MOST_WORDS`."""
    baseline: float
    """The baseline's logit."""
    score: float
    """The dialogue's logit; `parts` and `rest` add up to `score - baseline` (completeness)."""

    def story(self, name: str) -> str:
        """The sum as one line of plain text, for the model `name`."""
        total = float(self.parts.sum())
        return (
            f"{name}: words {total:+.2f}, marks {self.rest:+.2f}, together {total + self.rest:+.2f}; its logit "
            f"{self.score:+.2f} is {self.score - self.baseline:+.2f} above that of full stops ({self.baseline:+.2f})"
        )


def attributions(
    scorers: Mapping[str, Score], prompt: str, response: str, how: str = OCCLUSION
) -> dict[str, np.ndarray | Attribution]:
    """Each word's part in each model's logit, by the model's name.

    how: `OCCLUSION` for all models, or `GRADIENTS` for those that have `integrated_gradients`.
    """
    found: dict[str, np.ndarray | Attribution] = {}
    for name, score in scorers.items():
        gradients = getattr(score, "integrated_gradients", None) if how == GRADIENTS else None
        found[name] = (gradients or partial(occlusion, score))(prompt, response)
    return found


@dataclass(frozen=True)
class Flip:
    """One word replaced, and the logit afterwards."""

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
    """`count` words of the examples' prompts to try as replacements: those that are frequent under both labels.

    Words are ranked by their count under the label that has them less often, so that words which occur with one
    label only come last: with them a flipped verdict would be no surprise. Words of up to three letters are left out.
    """
    sides: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for record in records:
        sides[record.is_safe].update({w.casefold() for w in WORD.findall(record.prompt) if len(w) > 3})
    both = {w: min(sides[True][w], sides[False][w]) for w in sides[True] | sides[False]}
    return sorted(both, key=lambda w: (-both[w], w))[:count]


class Neighbours:
    """The labelled examples whose words are most similar to a dialogue's: cosine of TF-IDF vectors.

    Raises UserError if there is no example.
    """

    def __init__(self, records: Sequence[LabelledResponse]) -> None:
        if not records:
            raise UserError("inspect_cost: found no labelled example, at least one was expected")
        self.records = list(records)
        self.vectors = TfidfVectorizer(ngram_range=(1, 2))
        self.table = self.vectors.fit_transform([f"{r.prompt}\n{r.response}" for r in self.records])

    def of(self, prompt: str, response: str, count: int = 4) -> list[tuple[float, LabelledResponse]]:
        """(cosine, example) of the `count` most similar examples, the most similar first."""
        asked = self.vectors.transform([f"{prompt}\n{response}"])
        return nearest((self.table @ asked.T).toarray()[:, 0], self.records, count)


class StateNeighbours:
    """The labelled examples that are most similar for a network: cosine of the states that its score head reads.

    The examples' mean state is subtracted first, since all states have a large part in common. At most `EXAMPLES`
    evenly spaced examples are used; their states are computed at the first request.
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
        """(cosine, example) of the `count` most similar examples, the most similar first."""
        mean, table = self.table
        return nearest(table @ directions(self.states([prompt], [response]) - mean)[0], self.records, count)


def directions(vectors: np.ndarray) -> np.ndarray:
    """`vectors` (rows, width) scaled to length 1; a row of zeros stays as it is."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
    cosines: np.ndarray, records: Sequence[LabelledResponse], count: int
) -> list[tuple[float, LabelledResponse]]:
    """(cosine, record) of the `count` records with the largest `cosines` (records,), largest first."""
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(float(cosines[i]), records[i]) for i in order]


# --- the picture ------------------------------------------------------------------------------------------


def inspection_figure(
    scorers: Mapping[str, Score],
    prompt: str,
    response: str,
    parted: Mapping[str, np.ndarray | Attribution] | None = None,
) -> go.Figure:
    """Left, each model's probability of harm; right, what each word adds to its logit.

    parted: the result of `attributions`; None: by `OCCLUSION`. Raises UserError as `check`.
    """
    parted = attributions(scorers, prompt, response) if parted is None else parted
    names = list(scorers)
    gradients = [name for name, part in parted.items() if isinstance(part, Attribution)]
    how = f"integrated gradients: {', '.join(gradients)}" if gradients else "left out: minus that"
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.32, 0.68], horizontal_spacing=0.09,
        column_titles=["stated probability of harm, %", f"request, then answer: what a word adds to the logit ({escaped(how)})"],
    )  # fmt: skip
    found = words(prompt, response)
    places = [i + (word.side == "response") for i, word in enumerate(found)]  # a free one before the answer
    for place, (name, logit) in enumerate(scores(scorers, prompt, response).items()):
        look, part, percent = style(name), parted[name], 100 * probability(logit)
        label = escaped(look.label)
        parts = part.parts if isinstance(part, Attribution) else part
        heard = [f"{escaped(w.text)} ({SIDES[w.side]}): {p:+.3f}" for w, p in zip(found, parts, strict=True)]
        figure.add_trace(
            go.Scatter(
                x=[rounded(percent)], y=[place], text=[f"{percent:.0f}%"], hovertext=[f"{percent:.1f}% (logit {logit:+.2f})"],
                mode="markers+text", marker={"color": look.colour, "symbol": look.symbol, "size": 13}, name=label,
                textposition="middle right" if percent < 75 else "middle left", hovertemplate="%{hovertext}<extra></extra>",
                meta=f"score {name}",
            ),
            row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Bar(
                x=places, y=rounded_all(parts), hovertext=heard, marker={"color": look.colour}, name=label, showlegend=False,
                meta=f"words {name}", hovertemplate="%{hovertext}<extra></extra>",
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
    ticks = {"tickvals": places, "ticktext": [escaped(w.text) for w in found], "tickangle": -60}
    figure.update_xaxes(**ticks, showgrid=False, range=[-0.7, max(places, default=0) + 0.7], row=1, col=2)
    figure.add_vline(x=sum(word.side == "prompt" for word in found), line=DOTTED, row=1, col=2)
    figure.update_annotations(font_size=13)
    return titled(
        figure,
        "Which model calls it harmful, and which words make it do so?",
        caption="Without a small word, the phrase around it falls apart too: it can weigh more than a noun.",
        height=430,
        margin={"l": 110, "b": 140},
    )
