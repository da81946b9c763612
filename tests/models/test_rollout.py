"""Sampling, masks, packing and scoring of episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from csrlhf_kit.data.chat import encode_prompts
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import (
    by_length,
    in_batches,
    pack,
    response_texts,
    sample,
    sample_episodes,
    sample_responses,
    score_episodes,
    until_end,
)

EOS, PAD = 1, 0


def length_of(prompts, responses):
    return torch.tensor([float(len(response)) for response in responses])


@pytest.fixture(scope="module")
def tokenizer(random_base: Path):
    return load_tokenizer(random_base)


@pytest.fixture(scope="module")
def roles(random_base: Path) -> Roles:
    roles = Roles(load_base(random_base, device="cpu"), reward=length_of, cost=length_of)
    with torch.no_grad():  # a fresh LoRA adapter is the base: make the policy differ
        for index, parameter in enumerate(roles.trainable("policy")):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    return roles


def test_eos_is_an_action_and_what_follows_is_not():
    tokens = torch.tensor([[5, EOS, PAD, PAD], [5, 6, 7, 8], [EOS, PAD, PAD, PAD], [5, PAD, EOS, EOS]])
    response_mask, ended = until_end(tokens, EOS)
    assert response_mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    assert ended.tolist() == [True, False, True, True]


def test_a_pad_token_that_is_the_eos_token_is_no_trouble():
    response_mask, _ = until_end(torch.tensor([[5, EOS, EOS, EOS]]), EOS)
    assert response_mask.int().tolist() == [[1, 1, 0, 0]]


@settings(max_examples=50)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)
)
def test_packing_moves_tokens_and_loses_none(rows):
    """rows: (padding before, prompt tokens, response tokens); padding after fills up to one length."""
    length = max(sum(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, response_mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for index, (before, prompt, response) in enumerate(rows):
        end = before + prompt + response
        ids[index, before:end] = torch.arange(10, 10 + prompt + response)
        mask[index, before:end] = True
        response_mask[index, before + prompt : end] = True
    packed_ids, packed_mask, packed_actions = pack(ids, mask, response_mask)
    assert packed_ids.shape[1] == max(prompt + response for _, prompt, response in rows)
    for index, (_, prompt, response) in enumerate(rows):
        assert packed_mask[index].tolist() == [
            column < prompt + response for column in range(packed_ids.shape[1])
        ]
        assert packed_ids[index][packed_mask[index]].tolist() == ids[index][mask[index]].tolist()
        assert packed_actions[index].nonzero().flatten().tolist() == list(range(prompt, prompt + response))


def test_chunks_hold_each_row_once_and_similar_lengths_together():
    mask = torch.arange(20) < torch.tensor([3, 18, 7, 12, 5, 20, 1, 9]).unsqueeze(1)
    rows = torch.tensor([7, 6, 5, 4, 3, 2, 1])
    chunks = by_length(mask, rows, 3)
    assert sorted(torch.cat([chunk for chunk, _ in chunks]).tolist()) == [1, 2, 3, 4, 5, 6, 7]
    for chunk, longest in chunks:
        assert longest == int(mask[chunk].sum(1).max())
    assert [longest for _, longest in chunks] == sorted(longest for _, longest in chunks)


def test_sampling_follows_softmax_over_temperature_whatever_the_base_ships(random_base):
    model = load_base(random_base, device="cpu")
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=1,
        top_p=0.1,
        repetition_penalty=5.0,
        temperature=0.01,
        suppress_tokens=[5, 6, 7],
    )
    prompt = torch.tensor([[2, 9]])
    with torch.no_grad():
        expected = (model(input_ids=prompt).logits[0, -1] / 0.7).softmax(-1)
    count = 20_000
    torch.manual_seed(0)
    episodes = sample(
        model,
        prompt.expand(count, -1),
        torch.ones(count, 2, dtype=torch.long),
        eos_token_id=EOS,
        pad_token_id=PAD,
        max_new_tokens=1,
        temperature=0.7,
    )
    seen = torch.bincount(episodes.ids[episodes.response_mask], minlength=len(expected)) / count
    distance = 0.5 * float((seen - expected).abs().sum())
    # mean of the total variation <= sum sqrt(p (1 - p) / n) / 2, and it concentrates within 1 / sqrt(n)
    bound = 0.5 * float((expected * (1 - expected) / count).sqrt().sum()) + 3 / count**0.5
    assert distance < bound < 0.1


def test_greedy_answers_do_not_depend_on_padding_or_company(roles, tokenizer, sentences):
    together = sample_responses(roles, tokenizer, sentences, max_new_tokens=6, temperature=0, batch_size=4)
    alone = [
        sample_responses(roles, tokenizer, [prompt], max_new_tokens=6, temperature=0)[0]
        for prompt in sentences
    ]
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("longest_first", [True, False])
def test_batches_are_sampled_in_order_of_length_and_cover_each_prompt_once(
    tokenizer, sentences, longest_first
):
    shown = []
    batches = in_batches(
        lambda ids, mask: shown.append((ids, mask)) or len(shown),
        tokenizer, sentences, batch_size=3, longest_first=longest_first,
    )  # fmt: skip
    rows, numbers = zip(*batches, strict=True)
    assert sorted(torch.cat(rows).tolist()) == list(range(len(sentences)))
    assert list(numbers) == list(range(1, len(rows) + 1)), "a batch is sampled when it is asked for"
    lengths = [int(n) for _, mask in shown for n in mask.sum(1)]
    assert lengths == sorted(lengths, reverse=longest_first) and len(set(lengths)) > 1
    whole = encode_prompts(tokenizer, sentences, max_length=64)["input_ids"]
    for batch, (ids, mask) in zip(rows, shown, strict=True):
        assert bool(mask.any(0).all()), "no column is padding only"
        assert torch.equal(ids, whole[batch, -ids.shape[1] :])


def test_log_probs_of_left_padded_prompts_are_those_of_the_bare_prompts(roles, tokenizer, sentences):
    """The whole path, checked row by row against the model's own logits on the unpadded sequence."""
    encoded = encode_prompts(tokenizer, sentences, max_length=64)
    assert not bool(encoded["attention_mask"].all()), "this test needs padding"
    torch.manual_seed(1)
    episodes = sample_episodes(
        roles, tokenizer, encoded["input_ids"], encoded["attention_mask"], max_new_tokens=8, temperature=1.3
    )
    trajectory = score_episodes(roles, tokenizer, sentences, episodes, temperature=1.3, chunk_size=4)
    for row in range(len(sentences)):
        prompt = encoded["input_ids"][row][encoded["attention_mask"][row].bool()]
        ids = episodes.ids[row][episodes.mask[row]]
        assert ids[: len(prompt)].tolist() == prompt.tolist()
        assert int(episodes.response_mask[row].sum()) == len(ids) - len(prompt)
        for adapter, got in (("policy", trajectory.log_probs), (None, trajectory.reference_log_probs)):
            roles.activate(adapter)
            with torch.no_grad():
                logits = roles.model(input_ids=ids.unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
            expected = (logits / 1.3).log_softmax(-1)
            picked = expected.gather(-1, ids[len(prompt) :].unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(got[row][episodes.response_mask[row]], picked, rtol=1e-4, atol=1e-4)
            if adapter == "policy":
                entropy = -(expected.exp() * expected).sum(-1)
                got_entropy = trajectory.entropy[row][episodes.response_mask[row]]
                torch.testing.assert_close(got_entropy, entropy, rtol=1e-4, atol=1e-4)
    assert not trajectory.log_probs[~episodes.response_mask].any()
    assert not trajectory.values[~episodes.response_mask].any()
    assert float((trajectory.log_probs - trajectory.reference_log_probs).abs().max()) > 0.01


def test_scorers_read_the_text_that_was_sampled(roles, tokenizer, sentences):
    encoded = encode_prompts(tokenizer, sentences, max_length=64)
    torch.manual_seed(2)
    episodes = sample_episodes(
        roles, tokenizer, encoded["input_ids"], encoded["attention_mask"], max_new_tokens=8
    )
    trajectory = score_episodes(roles, tokenizer, sentences, episodes, temperature=1.0)
    texts = response_texts(tokenizer, episodes)
    assert trajectory.reward.tolist() == [len(text) for text in texts]
    assert not any("<|end|>" in text for text in texts)
