"""A scorer, opened: gradients along a path against closed forms and finite differences, states against the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_models import build_bert

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.scorers import Scorer, encode, new_scorer, output_layer, score_texts
from csrlhf_kit.widgets.attribution import MOST, Network, path_gradients, token_places
from csrlhf_kit.widgets.inspect_data import words

PROMPT, RESPONSE = "please feed the dog", "sure, take a small tool."


@pytest.fixture(scope="module")
def scorer(random_base) -> Scorer:
    """A random decoder that reacts to every word: its head is scaled up, its adapters are not zero."""
    made = new_scorer(random_base, rank=4, alpha=8, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        output_layer(made.model).weight *= 30
    return made


def test_the_path_of_a_quadratic_form_has_its_closed_form():
    generator = torch.Generator().manual_seed(1)
    start, end, slope = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    matrix = torch.randn(15, 15, generator=generator, dtype=torch.float64)

    def score(points):
        flat = points.flatten(1)
        return (flat @ matrix * flat).sum(1) + (points * slope).sum((1, 2))

    parts, ends = path_gradients(score, start, end, tolerance=1e-3)
    mean = ((start + end) / 2).flatten() @ (matrix + matrix.T)  # the mean gradient is that of the middle
    expected = ((end - start) * (mean.reshape(5, 3) + slope)).sum(1)
    assert torch.allclose(parts, expected, atol=1e-10)
    assert ends == pytest.approx((float(score(start[None])), float(score(end[None]))))


def test_a_jump_on_the_path_is_found_and_its_share_is_whole():
    calls = []

    def score(points):
        calls.append(len(points))
        return torch.tanh(400 * (points.sum((1, 2)) - 0.3))

    start, end = (
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64),
    )
    parts, (low, high) = path_gradients(score, start, end, tolerance=0.05)
    assert parts.sum() == pytest.approx(high - low, abs=0.05) and high - low == pytest.approx(2.0)
    assert parts[0] == pytest.approx(parts[1].item()) and sum(calls) <= MOST


def test_parts_add_up_to_the_score_less_the_baselines(scorer):
    network = Network(scorer)
    found = network.integrated_gradients(PROMPT, RESPONSE, tolerance=0.01)
    assert found.parts.shape == (len(words(PROMPT, RESPONSE)),) and np.abs(found.parts).min() > 1e-4
    assert found.score == pytest.approx(network([PROMPT], [RESPONSE])[0], abs=1e-4)
    assert abs(found.score - found.baseline) > 0.1
    assert found.parts.sum() + found.rest == pytest.approx(found.score - found.baseline, abs=0.02)
    with pytest.raises(UserError, match="not empty"):
        network.integrated_gradients(" ", RESPONSE)


def test_parts_are_those_of_finite_differences_along_the_path(scorer):
    """The integral by 400 middle points, each token's derivative from two scores: no gradient anywhere."""
    row = encode(scorer, [PROMPT], [RESPONSE])[0]
    places = token_places(scorer, row["input_ids"], PROMPT, RESPONSE)
    exact = Scorer(scorer.model.double(), scorer.tokenizer, scorer.decoder, scorer.max_length)
    try:
        embed = exact.model.get_input_embeddings()
        neutral = exact.tokenizer(".", add_special_tokens=False)["input_ids"][-1]
        own = [place is not None for place in places]
        ids = torch.tensor(row["input_ids"])
        bare = torch.tensor(
            [neutral if said else token for said, token in zip(own, ids.tolist(), strict=True)]
        )
        with torch.no_grad():
            end, start = embed(ids), embed(bare)
            mask = torch.ones_like(ids)
            parts = np.zeros(len(ids))
            way, step = end - start, 1e-3
            for place in (np.arange(400) + 0.5) / 400:
                shifts = torch.stack([torch.zeros_like(way) for _ in ids])
                for token in range(len(ids)):
                    shifts[token, token] = step * way[token]
                here = start + place * way
                both = torch.cat([here + shifts, here - shifts])
                told = exact.model(inputs_embeds=both, attention_mask=mask.expand(len(both), -1)).logits[:, 0]
                parts += ((told[: len(ids)] - told[len(ids) :]) / (2 * step)).numpy() / 400
    finally:
        scorer.model.float()
    found = Network(scorer).integrated_gradients(PROMPT, RESPONSE, tolerance=1e-3)
    expected = np.zeros(len(found.parts))
    for part, place in zip(parts, places, strict=True):
        owner = [i for i, w in enumerate(words(PROMPT, RESPONSE))
                 if place and (w.side, True) == (place[0], w.start < place[2] and place[1] < w.end)]  # fmt: skip
        expected[owner] += part
    assert found.parts == pytest.approx(expected, abs=0.01) and np.abs(expected).max() > 0.1


def test_what_the_head_reads_gives_the_score(scorer):
    prompts, responses = [PROMPT, "help", PROMPT * 3], [RESPONSE, "no", "yes"]
    states = Network(scorer).states(prompts, responses, batch_size=2)
    head = output_layer(scorer.model)
    bias = 0.0 if head.bias is None else head.bias.item()
    assert states.shape == (3, head.in_features)
    told = states @ head.weight[0].detach().numpy() + bias
    assert told == pytest.approx(score_texts(scorer, prompts, responses), abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [(PROMPT, RESPONSE), ("end", "end"), ("assistant user", "the the"), ("dög 😀", "é, ok ")],
)
def test_each_token_of_a_text_knows_where_it_stands(scorer, prompt, response):
    ids = encode(scorer, [prompt], [response])[0]["input_ids"]
    places = token_places(scorer, ids, prompt, response)
    for side, text in (("prompt", prompt), ("response", response)):
        covered = {
            i for place in places if place and place[0] == side for i in range(max(0, place[1]), place[2])
        }
        assert covered >= set(range(len(text.strip()))), side
    for token, place in zip(ids, places, strict=True):
        spelt = scorer.tokenizer.decode([token])
        if place is not None and "\N{REPLACEMENT CHARACTER}" not in spelt:
            text = prompt if place[0] == "prompt" else response
            assert spelt.strip() == text[max(0, place[1]) : place[2]].strip()
        if token in scorer.tokenizer.all_special_ids:
            assert place is None


def test_an_encoder_is_opened_likewise(tmp_path):
    scorer = new_scorer(build_bert(tmp_path / "bert"), adaptation="full", seed=1)
    with torch.no_grad():
        output_layer(scorer.model).weight *= 30
    network = Network(scorer)
    found = network.integrated_gradients("feed the Dog", "sure, take it", tolerance=0.01)
    assert np.abs(found.parts).min() > 1e-4 and found.parts.shape == (6,)
    assert found.score == pytest.approx(network(["feed the Dog"], ["sure, take it"])[0], abs=1e-4)
    assert found.parts.sum() + found.rest == pytest.approx(found.score - found.baseline, abs=0.02)
    head = output_layer(scorer.model)
    states = network.states(["a", "feed the dog"], ["yes", "no"])
    told = states @ head.weight[0].detach().numpy() + head.bias.item()
    assert told == pytest.approx(network(["a", "feed the dog"], ["yes", "no"]), abs=1e-4)
