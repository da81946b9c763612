"""`inspect_cost`: how the cost models judge a text, which words decide it, and which single word flips the verdict.

Draws what inspect_data.py computes; attribution.py, which imports torch, is loaded with the first trained model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.keyword import fit_keyword, keyword_scores
from csrlhf_kit.figures.style import HARMFUL, HARMLESS
from csrlhf_kit.widgets.inspect_data import (
    GRADIENTS,
    OCCLUSION,
    SIDES,
    Attribution,
    Neighbours,
    Score,
    StateNeighbours,
    attributions,
    flips,
    frequent_words,
    inspection_figure,
    replaced,
    scores,
    words,
)
from csrlhf_kit.widgets.view import LiveFigure, View, card, figure_twin, widgets_can_run

EXAMPLE = (
    "please help me feed a rumour.",
    "of course. you can feed a rumour like this: first the radio, then the map.",
)
SHOWN = 12  # examples in the menu
OWN_TEXT = -1  # the menu's value for a text that is typed in
MODELS = ("semantic", "bradley_terry")


def inspect_cost(
    models: Mapping[str, Score | str | Path] | str | Path | None = None,
    *,
    prompt: str = EXAMPLE[0],
    response: str = EXAMPLE[1],
    data: str = "shipped",
    static: bool | None = None,
) -> View:
    """Type or choose a dialogue; see each cost model's probability of harm, each word's part in it, similar examples.

    models: name -> a saved scorer's folder, or a function from prompts and responses to logits; or the folder of a
    run, of which `models/semantic` and `models/bradley_terry` are used; None: the recorded ones. A keyword baseline,
    fitted to `data`, is added. prompt, response: the dialogue at the start. data: labelled examples, a source of
    `read_records`. static: see `widgets.view`.

    A word's part is the change of the logit if it is left out, or, for a network, its integrated gradients. Examples
    are similar by their words, or by the states of a network. Gradients and states take a few seconds.

    Keyboard: Tab through the fields; Enter in the field `by` tries the word.

    Raises UserError if a model or the data cannot be read.
    """
    records = read_records(data, LabelledResponse).records
    scorers = {"keyword": keyword(records)} | load_scorers(models)
    root = _bench(scorers, records, prompt, response) if widgets_can_run(static) else None
    return View(root, partial(figure_twin, inspection_figure, scorers, prompt, response))


def keyword(records: Sequence[LabelledResponse]) -> Score:
    """The keyword baseline, fitted to labelled examples."""
    fitted = fit_keyword(
        [r.prompt for r in records], [r.response for r in records], [not r.is_safe for r in records]
    )
    return partial(keyword_scores, fitted)


def load_scorers(models: Mapping[str, Score | str | Path] | str | Path | None) -> dict[str, Score]:
    """Name -> a function from prompts and responses to logits; models: see `inspect_cost`, whose errors it raises."""
    if not isinstance(models, Mapping):
        folder = Path(models) if models is not None else data_folder() / "recorded"
        models = {name: folder / "models" / name for name in MODELS if (folder / "models" / name).is_dir()}
        if not models:
            raise UserError(
                f"{folder}: found none of models/{', models/'.join(MODELS)}; one at least was expected"
            )
    return {name: model if callable(model) else _loaded(model) for name, model in models.items()}


def _loaded(folder: str | Path) -> Score:
    from csrlhf_kit.models.probe import Probe  # torch takes seconds: only where a model is asked
    from csrlhf_kit.models.scorers import load_scorer, score_texts
    from csrlhf_kit.widgets.attribution import Network

    path = Path(folder)
    base = data_folder() / "tiny_base" if path.is_relative_to(data_folder()) else None
    scorer = load_scorer(folder, base=base, merge=True)
    return partial(score_texts, scorer) if isinstance(scorer.model, Probe) else Network(scorer)


def ways_to_neighbours(
    scorers: Mapping[str, Score], records: Sequence[LabelledResponse]
) -> dict[str, Neighbours | StateNeighbours]:
    """The menu of similarities -> what finds similar examples: by their words, and by each network's states."""
    ways: dict[str, Neighbours | StateNeighbours] = {"their words": Neighbours(records)}
    for name, score in scorers.items():
        if hasattr(score, "states"):
            ways[f"what {name} reads"] = StateNeighbours(score.states, records)
    return ways


def neighbours_html(by: Neighbours | StateNeighbours, prompt: str, response: str) -> str:
    """The most similar labelled examples as HTML cards, their texts escaped."""
    cards = []
    for cosine, record in by.of(prompt, response):
        said, colour = ("safe", HARMLESS) if record.is_safe else ("unsafe", HARMFUL)
        mark = f"labelled {said}, likeness {cosine:.2f}"
        cards.append(card(f"asked: {record.prompt}\nanswer: {record.response}", accent=colour, mark=mark))
    grid = "display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 8px;"
    return f'<div style="{grid}">{"".join(cards)}</div>'


def flips_text(score: Score, name: str, prompt: str, response: str, candidates: Sequence[str]) -> str:
    """The one-word changes of the prompt that flip the verdict of `score`, as plain text; see `flips`."""
    found = flips(score, prompt, response, candidates)
    lines = [
        f"{name}: single words of the prompt that flip its verdict ({len(candidates)} tried in each place)"
    ]
    for flip in found:
        change = f"“{flip.word.text}” → “{flip.by}”" if flip.by else f"“{flip.word.text}” left out"
        lines.append(f"{change}: logit {flip.logit:+.2f}")
    return "\n".join(lines if found else [*lines, "none of those tried"])


def _bench(
    scorers: Mapping[str, Score], records: Sequence[LabelledResponse], prompt: str, response: str
) -> ipywidgets.Widget:
    neighbours, candidates = ways_to_neighbours(scorers, records), frequent_words(records)
    wide = ipywidgets.Layout(width="98%")
    asked = ipywidgets.Text(value=prompt, description="request", layout=wide, continuous_update=False)
    said = ipywidgets.Text(value=response, description="answer", layout=wide, continuous_update=False)
    examples = [("(own text)", OWN_TEXT)]
    examples += [(f"{r.prompt[:60]} | {r.response[:40]}", i) for i, r in enumerate(records[:SHOWN])]
    pick = ipywidgets.Dropdown(options=examples, value=OWN_TEXT, description="example", layout=wide)
    word = ipywidgets.Dropdown(description="replace")
    by = ipywidgets.Text(description="by", continuous_update=False, placeholder="empty: leave it out")
    model = ipywidgets.Dropdown(options=list(scorers), value=list(scorers)[-1], description="in model")
    search = ipywidgets.Button(description="find words that flip it", layout=ipywidgets.Layout(width="180px"))
    look = {"style": {"description_width": "initial"}, "layout": ipywidgets.Layout(width="420px")}
    how = ipywidgets.Dropdown(options=[OCCLUSION, GRADIENTS], description="weigh a word by", **look)
    by_what = ipywidgets.Dropdown(options=list(neighbours), description="similar examples, by", **look)
    sums, edit, found, near = (ipywidgets.HTML() for _ in range(4))
    picture = ipywidgets.VBox([LiveFigure(inspection_figure(scorers, prompt, response))])

    def show(_: object = None) -> None:
        found.value = edit.value = ""
        try:
            parted = attributions(scorers, asked.value, said.value, how.value)
            fresh = inspection_figure(scorers, asked.value, said.value, parted)
        except UserError as error:
            edit.value = card(str(error))
            return
        live = picture.children[0]
        live.drawing = {**live.drawing, **fresh.to_plotly_json()}
        told = [part.story(name) for name, part in parted.items() if isinstance(part, Attribution)]
        sums.value = card("\n".join(told)) if told else ""
        word.options = [(f"{w.text} ({SIDES[w.side]})", w) for w in words(asked.value, said.value)]
        meet()

    def meet(_: object = None) -> None:
        near.value = neighbours_html(neighbours[by_what.value], asked.value, said.value)

    def replace(_: object = None) -> None:
        if word.value is None:
            return
        try:
            changed = replaced(asked.value, said.value, word.value, by.value.strip())
            before, after = scores(scorers, asked.value, said.value), scores(scorers, *changed)
        except UserError as error:
            edit.value = card(str(error))
            return
        lines = [f"asked: {changed[0]}\nanswer: {changed[1]}"]
        for name in scorers:
            flipped = "  FLIPS" if (before[name] > 0) != (after[name] > 0) else ""
            lines.append(f"{name}: {before[name]:+.2f} → {after[name]:+.2f}{flipped}")
        edit.value = card("\n".join(lines))

    def choose(change: Mapping[str, Any]) -> None:
        if change["new"] != OWN_TEXT:
            record = records[change["new"]]
            said.value, asked.value = record.response, record.prompt

    def seek(_: object = None) -> None:
        found.value = card(flips_text(scorers[model.value], model.value, asked.value, said.value, candidates))

    asked.observe(show, "value")
    said.observe(show, "value")
    how.observe(show, "value")
    by_what.observe(meet, "value")
    pick.observe(choose, "value")
    by.observe(replace, "value")
    word.observe(replace, "value")
    search.on_click(seek)
    show()
    edits = ipywidgets.HBox([word, by, model, search], layout=ipywidgets.Layout(flex_flow="row wrap"))
    return ipywidgets.VBox([pick, asked, said, how, picture, sums, edits, edit, found, by_what, near])
