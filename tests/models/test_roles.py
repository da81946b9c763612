"""One base with adapters: what is loaded scores as before, and only what is trained changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GraniteConfig,
    GraniteForCausalLM,
)

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.masks import last_true, position_ids
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles


def make_scorer(base: Path, folder: Path, *, seed: int, rank: int = 4) -> Path:
    """A SEQ_CLS adapter with random weights, made with plain transformers and peft."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "score.modules_to_save" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(random_base: Path, tmp_path_factory) -> Path:
    return make_scorer(random_base, tmp_path_factory.mktemp("reward"), seed=1)


@pytest.fixture(scope="module")
def cost(random_base: Path, tmp_path_factory) -> Path:
    return make_scorer(random_base, tmp_path_factory.mktemp("cost"), seed=2, rank=2)


@pytest.fixture(scope="module")
def roles(random_base: Path, reward: Path, cost: Path) -> Roles:
    return Roles(load_base(random_base, device="cpu"), reward=reward, cost=cost, rank=4)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five rows of different lengths, padded on the right."""
    ids = torch.randint(4, 300, (5, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(12) < torch.tensor([12, 5, 9, 1, 7]).unsqueeze(1)
    return torch.where(mask, ids, 0), mask


def shifted_right(ids, mask):
    """The same rows, padded on the left (and by three columns more)."""
    left_ids, left_mask = torch.zeros(5, 15, dtype=torch.long), torch.zeros(5, 15, dtype=torch.bool)
    for row in range(5):
        count = int(mask[row].sum())
        left_ids[row, 15 - count :] = ids[row, :count]
        left_mask[row, 15 - count :] = True
    return left_ids, left_mask


def test_positions_and_last_tokens_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 1, 1, 1]]
    assert last_true(mask).tolist() == [4, 4, 1]


@pytest.mark.parametrize("name", ["reward", "cost"])
def test_scores_are_those_of_plain_transformers_and_peft(request, random_base, roles, batch, name):
    plain = AutoModelForSequenceClassification.from_pretrained(random_base, num_labels=1)
    plain.config.pad_token_id = 0
    plain = PeftModel.from_pretrained(plain, request.getfixturevalue(name)).eval()
    ids, mask = batch
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
        got = roles.score(name, ids, mask)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding_side_changes_nothing(roles, batch):
    ids, mask = batch
    left_ids, left_mask = shifted_right(ids, mask)
    with torch.no_grad():
        for name in ("reward", "cost"):
            right, left = roles.score(name, ids, mask), roles.score(name, left_ids, left_mask)
            torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-4)
        right, left = roles.values(ids, mask), roles.values(left_ids, left_mask)
        for row in range(5):
            count = int(mask[row].sum())
            torch.testing.assert_close(right[row, 1:count], left[row, 16 - count :], rtol=1e-4, atol=1e-4)
        response_mask = mask & (torch.arange(12) >= 2)
        left_actions = left_mask & (position_ids(left_mask) >= 2)
        for adapter in ("policy", None):
            right, _ = roles.log_probs(ids, mask, response_mask, adapter=adapter)
            left, _ = roles.log_probs(left_ids, left_mask, left_actions, adapter=adapter)
            torch.testing.assert_close(right[response_mask], left[left_actions], rtol=1e-4, atol=1e-4)


def test_reference_is_the_base_and_stays_so(random_base, roles, batch):
    ids, mask = batch
    response_mask = mask & (torch.arange(12) >= 1)
    base = AutoModelForCausalLM.from_pretrained(random_base).eval()
    with torch.no_grad():
        logits = base(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
        expected = logits[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        reference, _ = roles.log_probs(ids, mask, response_mask, adapter=None)
        policy, _ = roles.log_probs(ids, mask, response_mask)
    torch.testing.assert_close(
        reference[:, 1:][response_mask[:, 1:]], expected[response_mask[:, 1:]], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(reference, policy), "an untrained adapter is the identity"


def test_log_probs_divide_by_the_temperature(random_base, roles, batch):
    ids, mask = batch
    response_mask = mask & (torch.arange(12) >= 1)
    base = AutoModelForCausalLM.from_pretrained(random_base).eval()
    with torch.no_grad():
        logits = (base(input_ids=ids, attention_mask=mask.long()).logits / 0.5).log_softmax(-1)
        got, _ = roles.log_probs(ids, mask, response_mask, temperature=0.5)
    expected = logits[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(
        got[:, 1:][response_mask[:, 1:]], expected[response_mask[:, 1:]], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("start", ["cost", "reward"])
def test_critic_starts_on_a_scorers_trunk_with_values_of_zero(random_base, reward, cost, batch, start):
    roles = Roles(load_base(random_base, device="cpu"), reward=reward, cost=cost, rank=4, critic_from=start)
    with torch.no_grad():
        assert torch.equal(roles.hidden(*batch, "critic"), roles.hidden(*batch, start))
        assert not torch.equal(roles.hidden(*batch, "critic"), roles.hidden(*batch, None))
        assert not roles.values(*batch).any()


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_only_the_trained_role_gets_gradients_and_changes(random_base, reward, cost, batch, role):
    roles = Roles(load_base(random_base, device="cpu"), reward=reward, cost=cost, rank=4)
    before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
    optimizer = torch.optim.AdamW(roles.trainable("policy") + roles.trainable("critic"), lr=0.1)
    ids, mask = batch
    roles.score("cost", ids, mask)  # leaves another adapter active: the next call must not train it
    if role == "policy":
        loss = roles.log_probs(ids, mask, mask & (torch.arange(12) >= 1))[0].sum()
    else:
        loss = roles.values(ids, mask).square().sum() + roles.values(ids, mask)[..., 1].sum()
    loss.backward()
    named = dict(roles.named_parameters())
    for name, parameter in named.items():
        mine = f".{role}." in name or (role == "critic" and name.startswith("value_head"))
        assert (parameter.grad is not None) == mine, name
    optimizer.step()
    changed = {name for name, tensor in roles.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(f".{role}." in name or name.startswith("value_head") for name in changed)


def test_training_state_round_trip_and_misfit(random_base, roles):
    state = {name: torch.randn_like(tensor) for name, tensor in roles.trained_state().items()}
    fresh = Roles(
        load_base(random_base, device="cpu"), reward=lambda p, r: None, cost=lambda p, r: None, rank=4
    )
    with pytest.raises(UserError, match="does not fit"):  # its critic has the shape of a fresh adapter
        fresh.load_trained_state({name: tensor[:1] for name, tensor in state.items()})
    other = {name: torch.randn_like(tensor) for name, tensor in fresh.trained_state().items()}
    fresh.load_trained_state(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in fresh.trained_state().items())


def test_saved_policy_loads_with_plain_peft_and_as_a_start(random_base, reward, cost, batch, tmp_path):
    roles = Roles(load_base(random_base, device="cpu"), reward=reward, cost=cost, rank=4)
    with torch.no_grad():
        for parameter in roles.trainable("policy"):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(5))
    ids, mask = batch
    response_mask = mask & (torch.arange(12) >= 1)
    roles.save_policy(tmp_path / "policy")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(random_base), tmp_path / "policy"
    ).eval()
    again = Roles(
        load_base(random_base, device="cpu"), reward=reward, cost=cost, policy=tmp_path / "policy", rank=4
    )
    with torch.no_grad():
        expected, _ = roles.log_probs(ids, mask, response_mask)
        resumed, _ = again.log_probs(ids, mask, response_mask)
        logits = plain(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
    picked = logits[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(
        picked[response_mask[:, 1:]], expected[:, 1:][response_mask[:, 1:]], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(resumed, expected)


def test_seed_decides_fresh_adapters_and_global_generators_are_left_alone(random_base):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    states = [
        Roles(load_base(random_base, device="cpu"), reward=len, cost=len, seed=seed).trained_state()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert torch.equal(torch.rand(1), expected)


def test_nf4_base_trains_through_evaluation(random_base, batch):
    """bitsandbytes on some CPUs repacks 4-bit layers in a forward without gradients; training must survive
    it.
    """
    pytest.importorskip("bitsandbytes")
    base = load_base(random_base, quantization="nf4", device="cpu")
    roles = Roles(base, reward=len, cost=len, rank=4)
    ids, mask = batch
    response_mask = mask & (torch.arange(12) >= 1)
    with torch.no_grad():
        before, _ = roles.log_probs(ids, mask, response_mask)
    log_probs, _ = roles.log_probs(ids, mask, response_mask)
    torch.testing.assert_close(log_probs.detach(), before, rtol=1e-4, atol=1e-4)
    log_probs.sum().backward()
    gradients = {n: p.grad for n, p in roles.named_parameters() if ".policy." in n and "lora_B" in n}
    assert gradients and all(g is not None and float(g.abs().max()) > 0 for g in gradients.values())


def test_misfits_are_told(random_base, reward, cost, tmp_path):
    with pytest.raises(UserError, match="is no reward model"):
        Roles(load_base(random_base, device="cpu"), reward=tmp_path, cost=cost)
    wrong = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(random_base, num_labels=1), reward
    )
    wrong.peft_config["default"].target_modules = {"q_proj"}
    wrong.save_pretrained(tmp_path / "wrong")
    with pytest.raises(UserError, match="does not fit this base"):
        Roles(load_base(random_base, device="cpu"), reward=tmp_path / "wrong", cost=cost)


def test_a_head_that_scales_its_logits_is_refused():
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        logits_scaling=8.0,
    )
    with pytest.raises(UserError, match="linear function"):
        Roles(GraniteForCausalLM(config), reward=len, cost=len)


def test_base_errors_are_told(random_base, tmp_path):
    with pytest.raises(UserError, match="dtype"):
        load_base(random_base, dtype="float8")
    with pytest.raises(UserError, match="quantization"):
        load_base(random_base, quantization="int3")
    with pytest.raises(UserError, match="not a folder"):
        load_base(tmp_path / "missing")
    with pytest.raises(UserError, match=r"config\.json"):
        load_base(tmp_path)
    with pytest.raises(UserError, match="hub"):
        load_tokenizer("no-such-owner/no-such-model")
    assert load_base(random_base, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
