"""The sampling loop: the same text as Hugging Face's `generate`, the right distribution, finished rows dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from csrlhf_kit.models.base import load_base
from csrlhf_kit.models.decoding import CachedForward
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import decode, generate, pick, sample, until_end

SETTINGS = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 12}


def prompts(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nine left-padded prompts of one to eight tokens."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([8, 1, 5, 3, 8, 2, 7, 4, 6]).unsqueeze(1)
    mask = torch.arange(8) >= 8 - lengths
    ids = torch.randint(2, vocabulary, mask.shape, generator=generator)
    return ids.masked_fill(~mask, 0), mask.long()


def roles_of(base: Path, **options) -> Roles:
    roles = Roles(load_base(base, device="cpu", **options), reward=len, cost=len, rank=4)
    with torch.no_grad():
        for index, parameter in enumerate(roles.trainable("policy")):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(index))
    return roles


def actions_of(tokens: torch.Tensor, eos_token_id: int = SETTINGS["eos_token_id"]) -> list[list[int]]:
    response_mask, _ = until_end(tokens, eos_token_id)
    return [row[kept].tolist() for row, kept in zip(tokens, response_mask, strict=True)]


def small(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=60,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=0.4,
            bos_token_id=1,
            eos_token_id=1,
        )
        return GPT2LMHeadModel(config).eval()
    config = MistralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.4,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_greedy_text_is_that_of_generate(kind):
    model = small(kind)
    ids, mask = prompts(60)
    with torch.no_grad():
        free = generate(model, ids, mask, temperature=0, **SETTINGS)
        settings = SETTINGS | {"eos_token_id": int(free[0, 4])}  # a token that some answers reach, and early
        theirs = generate(model, ids, mask, temperature=0, **settings)
        ours = decode(CachedForward(model), ids, mask, temperature=0, **settings)
    assert actions_of(ours, settings["eos_token_id"]) == actions_of(theirs, settings["eos_token_id"])
    assert len({len(row) for row in actions_of(ours, settings["eos_token_id"])}) > 1


@pytest.mark.parametrize("adapter", ["policy", None])
def test_greedy_text_of_the_roles_is_that_of_generate(random_base, adapter):
    roles = roles_of(random_base)
    ids, mask = prompts(300)
    roles.activate(adapter)
    with torch.no_grad():
        theirs = generate(roles.model, ids, mask, temperature=0, **SETTINGS)
    with roles.decoder(adapter) as model:
        episodes = sample(model, ids, mask, temperature=0, **SETTINGS)
    got = [row[kept].tolist() for row, kept in zip(episodes.ids, episodes.response_mask, strict=True)]
    assert got == actions_of(theirs)


def test_dropping_finished_rows_changes_no_draw():
    model = small("gpt2")
    ids, mask = prompts(60)
    drawn = []
    for shrink in (0.0, 0.75, 1.0):
        torch.manual_seed(3)
        with torch.no_grad():
            tokens = decode(CachedForward(model), ids, mask, temperature=0.8, shrink=shrink, **SETTINGS)
        drawn.append(actions_of(tokens))
        after = torch.rand(1)
    assert drawn[0] == drawn[1] == drawn[2]
    torch.manual_seed(3)
    torch.rand(9, SETTINGS["max_new_tokens"], dtype=torch.float64)
    assert torch.equal(torch.rand(1), after), "the generator is read once, whatever is sampled"


def test_picked_tokens_follow_the_distribution_function():
    logits = torch.tensor([[0.3, -torch.inf, 1.0, -0.5, -torch.inf]])
    edges = (logits[0].double() / 0.7).softmax(-1).cumsum(-1)
    noise = torch.linspace(0, 1, 5001, dtype=torch.float64)[:-1]
    got = pick(logits.expand(5000, -1), noise, 0.7)
    assert set(got.tolist()) == {0, 2, 3}
    expected = torch.tensor([next(i for i, e in enumerate(edges) if u < e - 1e-7) for u in noise[:4990]])
    assert (got[:4990] != expected).sum() <= 2  # a draw on an edge may fall on either side
    assert pick(logits, torch.zeros(1), 0.0).tolist() == [2]


def test_merging_leaves_the_base_bit_for_bit_as_it_was(random_base):
    roles = roles_of(random_base)
    before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
    ids = torch.arange(4, 12).unsqueeze(0)
    with torch.no_grad():
        roles.activate("policy")
        expected = roles.model(input_ids=ids).logits
        with pytest.raises(RuntimeError, match="stop"), roles.merged("policy") as model:
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
            changed = [n for n, t in roles.state_dict().items() if not torch.equal(t, before[n])]
            assert changed and all(name.endswith("base_layer.weight") for name in changed)
            raise RuntimeError("stop")
        assert all(torch.equal(tensor, before[name]) for name, tensor in roles.state_dict().items())
        assert torch.equal(roles.model(input_ids=ids).logits, expected)


def test_a_quantised_base_is_sampled_unmerged(random_base):
    pytest.importorskip("bitsandbytes")
    roles = roles_of(random_base, quantization="nf4")
    before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
    ids, mask = prompts(300)
    with roles.merged("policy") as model:
        assert all(torch.equal(tensor, before[name]) for name, tensor in roles.state_dict().items())
        ours = sample(model, ids, mask, temperature=0, **SETTINGS)
    roles.activate("policy")
    with torch.no_grad():
        theirs = generate(roles.model, ids, mask, temperature=0, **SETTINGS)
    got = [row[kept].tolist() for row, kept in zip(ours.ids, ours.response_mask, strict=True)]
    assert got == actions_of(theirs)


def test_models_without_a_plain_cache_fall_back_to_generate(monkeypatch):
    model = small("gpt2")
    assert CachedForward.fits(model)
    monkeypatch.setattr(type(model), "_is_stateful", True)
    assert not CachedForward.fits(model)
    ids, mask = prompts(60)
    monkeypatch.setattr(CachedForward, "start", None)  # would fail if it were asked
    episodes = sample(model, ids, mask, temperature=0, **SETTINGS)
    with torch.no_grad():
        theirs = generate(model, ids, mask, temperature=0, **SETTINGS)
    got = [row[kept].tolist() for row, kept in zip(episodes.ids, episodes.response_mask, strict=True)]
    assert got == actions_of(theirs)
