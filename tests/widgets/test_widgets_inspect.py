"""Inspecting a cost model: each word's part, what flips a verdict, neighbours; and the widget over them."""

from __future__ import annotations

import numpy as np
import pytest

from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.data.sources import write_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.widgets import inspect_cost
from csrlhf_kit.widgets.inspect_cost import keyword, load_scorers
from csrlhf_kit.widgets.inspect_data import (
    EXAMPLES,
    GRADIENTS,
    Attribution,
    Neighbours,
    StateNeighbours,
    Word,
    attributions,
    flips,
    frequent_words,
    inspection_figure,
    occlusion,
    probability,
    replaced,
    scores,
    words,
)

WEIGHTS = {"harm": 3.0, "feed": 1.0, "puppy": -2.0, "tyrant": 2.5}
HOSTILE = "<script>alert(1)</script>"


def linear(prompts, responses):
    """A cost model that can be computed by hand: a sum over words."""
    texts = [f"{p} {r}" for p, r in zip(prompts, responses, strict=True)]
    return np.array([-0.5 + sum(WEIGHTS.get(w, 0.0) for w in text.lower().split()) for text in texts])


RECORDS = [
    LabelledResponse(f"feed the {thing} number x{n}", f"yes here x{n}", safe)
    for n in range(6)
    for thing, safe in (("puppy", True), ("tyrant", False))
]


def test_words_know_where_they_stand():
    found = words("don't harm", "the puppy.")
    assert found[0] == Word("don't", "prompt", 0, 5) and found[-1] == Word("puppy", "response", 4, 9)


@pytest.mark.parametrize(
    ("text", "place", "by", "expected"),
    [
        ("a b c", 1, "x", "a x c"),
        ("a b c", 1, "", "a c"),
        ("a b c", 0, "", "b c"),
        ("a b c", 2, "", "a b"),
        ("a b.", 1, "", "a."),
    ],
)
def test_one_word_is_replaced_and_nothing_else(text, place, by, expected):
    word = words(text, "r")[place]
    assert replaced(text, "r", word, by) == (expected, "r")
    shifted = words("p", text)[1 + place]
    assert replaced("p", text, shifted, by) == ("p", expected)


def test_occlusion_of_a_linear_model_is_its_weights():
    parts = occlusion(linear, "feed the tyrant", "yes puppy")
    assert parts == pytest.approx([1.0, 0.0, 2.5, 0.0, -2.0])


def test_a_word_without_which_nothing_is_left_gets_no_part():
    assert occlusion(linear, "harm", "yes sir").tolist() == [0.0, 0.0, 0.0]


def test_flips_are_those_that_change_the_verdict_the_boldest_first():
    found = flips(linear, "feed the tyrant", "yes", ["puppy", "table", "harm"])
    assert found and all(flip.logit <= 0 for flip in found)
    assert (found[0].word.text, found[0].by) == ("tyrant", "puppy") and found[0].logit == pytest.approx(-1.5)
    moves = [abs(flip.logit - 3.0) for flip in found]
    assert moves == sorted(moves, reverse=True)
    assert flips(linear, "feed the tyrant harm harm", "yes", ["table"]) == []


def test_probability_is_the_sigmoid_and_never_overflows():
    assert probability(0.0) == 0.5 and probability(-1e9) == pytest.approx(0.0) and probability(1e9) == 1.0


def test_candidates_are_words_of_both_labels_first():
    assert frequent_words(RECORDS)[:2] == ["feed", "number"]


def test_the_nearest_example_is_the_text_itself():
    cosine, record = Neighbours(RECORDS).of("feed the tyrant number x3", "yes here x3")[0]
    assert record.prompt == "feed the tyrant number x3" and cosine == pytest.approx(1.0)
    assert Neighbours(RECORDS).of("zzz", "qqq")[0][0] == 0.0
    with pytest.raises(UserError, match="at least one"):
        Neighbours([])


class Opened:
    """A network by hand: `linear`, whose gradients are its weights and whose states are its words."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, responses):
        return linear(prompts, responses)

    def integrated_gradients(self, prompt, response):
        parts = [WEIGHTS.get(word.text, 0.0) for word in words(prompt, response)]
        return Attribution(np.array(parts), 0.25, baseline=-0.75, score=sum(parts) - 0.5)

    def states(self, prompts, responses):
        self.seen.append(len(prompts))
        return np.array([[float(w in p) for w in WEIGHTS] for p in prompts])


def test_integrated_gradients_are_asked_of_those_that_have_them():
    scorers = {"keyword": linear, "semantic": Opened()}
    plain = attributions(scorers, "feed the tyrant", "yes")
    assert all(isinstance(part, np.ndarray) for part in plain.values())
    found = attributions(scorers, "feed the tyrant", "yes", GRADIENTS)
    assert found["keyword"] == pytest.approx(plain["keyword"]) and found["semantic"].parts[2] == 2.5
    assert "words +3.50, marks +0.25, together +3.75" in found["semantic"].story("semantic")
    figure = inspection_figure(scorers, "feed the tyrant", "yes", found)
    assert any("integrated gradients: semantic" in note.text for note in figure.layout.annotations)


def test_the_nearest_by_states_are_those_that_the_network_takes_for_the_same():
    model = Opened()
    near = StateNeighbours(model.states, RECORDS)
    assert model.seen == [], "nothing is computed before it is asked for"
    found = near.of("a tyrant we feed", "no")
    assert all("tyrant" in record.prompt for _, record in found) and found[0][0] == pytest.approx(1.0)
    near.of("a puppy", "no")
    assert model.seen == [len(RECORDS), 1, 1], "the examples' states are computed once"
    many = [RECORDS[i % len(RECORDS)] for i in range(3 * EXAMPLES + 1)]
    assert EXAMPLES / 2 < len(StateNeighbours(model.states, many).records) <= EXAMPLES


def test_the_two_menus_change_what_is_shown(tmp_path):
    write_records(tmp_path / "labels.jsonl", RECORDS)
    view = inspect_cost(
        {"semantic": Opened()}, prompt="feed the tyrant", response="yes", data=str(tmp_path / "labels.jsonl"),
        static=False,
    )  # fmt: skip
    _, _, _, how, picture, sums, _, _, _, by, near = view.root.children
    title = lambda: picture.children[0].drawing["layout"]["annotations"][1]["text"]  # noqa: E731
    assert "left out" in title() and sums.value == ""
    how.value = GRADIENTS
    assert "integrated gradients: semantic" in title() and "together +3.75" in sums.value
    before = near.value
    by.value = "what semantic reads"
    assert near.value != before and "puppy" not in near.value
    view.close()


def test_nothing_to_score_is_said():
    for prompt, response in (("", "x"), ("x", "  ")):
        with pytest.raises(UserError, match="not empty"):
            scores({"a": linear}, prompt, response)


def test_the_keyword_model_and_folders_and_functions_are_scorers(tmp_path):
    assert (
        keyword(RECORDS)(["feed the tyrant"], ["yes"])[0] > keyword(RECORDS)(["feed the puppy"], ["yes"])[0]
    )
    assert load_scorers({"mine": linear}) == {"mine": linear}
    with pytest.raises(UserError, match="found none"):
        load_scorers(tmp_path)


def test_hostile_words_are_text_in_the_picture():
    figure = inspection_figure({"keyword": linear}, f"{HOSTILE} <b>harm</b>", "yes")
    shown = [*figure.layout.xaxis2.ticktext, *(word for trace in figure.data for word in trace.text or ())]
    assert shown and not any("<script" in word or "<b>" in word for word in shown)


def test_typing_editing_and_flipping(tmp_path):
    write_records(tmp_path / "labels.jsonl", RECORDS)
    view = inspect_cost(
        {"semantic": linear},
        prompt="feed the tyrant",
        response="yes",
        data=str(tmp_path / "labels.jsonl"),
        static=False,
    )
    pick, asked, said, _, picture, _, edits, edit, found, _, near = view.root.children
    live = picture.children[0]
    drawn = lambda name: next(t for t in live.drawing["data"] if t["meta"] == name)  # noqa: E731
    assert drawn("words semantic")["y"] == [1.0, 0.0, 2.5, 0.0] and drawn("words semantic")["type"] == "bar"
    assert drawn("words semantic")["x"] == [0, 1, 2, 4], "a gap between request and answer"
    assert drawn("score semantic")["text"] == ["95%"], "the number stands beside its dot"
    edits.children[0].value = edits.children[0].options[2][1]
    edits.children[1].value = "puppy"
    assert "FLIPS" in edit.value and "+3.00 → -1.50" in edit.value
    edits.children[3].click()
    assert "tyrant" in found.value and "flip its verdict" in found.value
    asked.value = f"{HOSTILE} harm"
    assert "<script" not in near.value + edit.value + found.value and len(drawn("words semantic")["y"]) == 6
    asked.value = " "
    assert "not empty" in edit.value
    pick.value = 1
    assert asked.value == RECORDS[1].prompt and said.value == RECORDS[1].response
    view.close()
    twin = inspect_cost(
        {"semantic": linear}, data=str(tmp_path / "labels.jsonl"), static=True
    )._repr_mimebundle_()
    assert "Static twin" in twin["text/plain"]
