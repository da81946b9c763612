"""The lean trunk against Hugging Face and PEFT in float64: hidden states, gradients, decoding, and when it stands back."""

from __future__ import annotations

import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import cpu_trunk, cpu_trunk_ops
from csrlhf_kit.kernels.cpu_trunk import Trunk, TrunkDecoder, fits
from csrlhf_kit.kernels.masks import position_ids
from csrlhf_kit.models.base import load_base
from csrlhf_kit.models.decoding import CachedForward
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import decode

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "rope_parameters": LLAMA3,
                                              "attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 1, "sliding_window": None,
                                                    "head_dim": 12}),
    "smollm2": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 8, "num_key_value_heads": 2,
                                                "tie_word_embeddings": True}),
}  # fmt: skip


def make(kind: str, *, targets="all-linear", **settings):
    """(causal LM, the same wrapped by PEFT with adapters `policy` and `critic`), random, in float64."""
    model, config, own = MODELS[kind]
    torch.manual_seed(0)
    base = model(config(**SIZES | own | settings)).double().eval()
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm"):  # theirs rounds to float32 inside
            module.forward = functools.partial(torch.rms_norm, normalized_shape=(32,), weight=module.weight,
                                               eps=module.variance_epsilon)  # fmt: skip
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    shape = LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(base, shape, adapter_name="policy")
    wrapped.add_adapter(
        "critic", LoraConfig(r=2, lora_alpha=2, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter, dtype=torch.float64)
    return base, wrapped.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five rows with padding on both sides."""
    mask = torch.zeros(5, 11, dtype=torch.bool)
    for row, (start, stop) in enumerate([(0, 11), (2, 7), (0, 1), (4, 11), (3, 10)]):
        mask[row, start:stop] = True
    ids = torch.randint(2, 60, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, 0), mask


def readings(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    last = mask & (position_ids(mask) == mask.sum(1, keepdim=True) - 1)
    some = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) < 0.4)
    assert some.any() and (some.sum(1) == 0).any(), "one row that nobody reads"
    return {"all": mask, "last": last, "some": some}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
def test_states_and_adapter_gradients_are_those_of_transformers_and_peft(kind, targets):
    base, wrapped = make(kind, targets=targets)
    ids, mask = batch()
    lean = Trunk(base)
    for adapter in ("policy", "critic"):
        wrapped.set_adapter(adapter)
        mine = [p for n, p in wrapped.named_parameters() if f".{adapter}." in n]
        for read in readings(mask).values():
            output = base.base_model(
                input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask)
            )
            theirs = output.last_hidden_state[read]
            ours = lean.hidden(ids, mask, adapter, read)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
            upstream = torch.randn(
                theirs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
            )
            pairs = zip(torch.autograd.grad(ours, mine, upstream), torch.autograd.grad(theirs, mine, upstream),
                        strict=True)  # fmt: skip
            for got, expected in pairs:
                assert float(expected.abs().max()) > 1e-6
                torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_without_adapter_it_is_the_base_and_nothing_to_read_is_nothing():
    base, wrapped = make("qwen2")
    ids, mask = batch()
    with torch.no_grad(), wrapped.disable_adapter():
        theirs = base.base_model(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask))
    with torch.no_grad():
        ours = Trunk(base).hidden(ids, mask, None, mask)
    torch.testing.assert_close(ours, theirs.last_hidden_state[mask], rtol=1e-9, atol=1e-9)
    assert Trunk(base).hidden(ids, mask, "policy", torch.zeros_like(mask)).shape == (0, 32)


@pytest.mark.parametrize("kind", MODELS)
def test_decoding_gives_the_logits_of_the_cached_forward_and_drops_rows(kind):
    base, wrapped = make(kind)
    wrapped.set_adapter("policy")
    mask = torch.arange(6) >= torch.tensor([0, 5, 2, 3]).unsqueeze(1)
    ids = torch.randint(2, 60, mask.shape, generator=torch.Generator().manual_seed(5)).masked_fill(~mask, 0)
    ours, theirs = TrunkDecoder(Trunk(base), base.lm_head, "policy"), CachedForward(base)
    kept = torch.tensor([2, 1])
    with torch.no_grad():
        for decoder in (ours, theirs):
            decoder.seen_logits = [decoder.start(ids, mask, 5)]
            for step in range(5):
                tokens = torch.tensor([7, 9, 11, 13]) + step
                if step >= 2:
                    tokens = tokens[kept]
                decoder.seen_logits.append(decoder.step(tokens))
                if step == 1:
                    decoder.keep(kept)
    for got, expected in zip(ours.seen_logits, theirs.seen_logits, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_frozen_map_is_copied_only_to_be_joined_with_others():
    base, _ = make("smollm2", targets=["q_proj"])
    attention = base.model.layers[0].self_attn
    for adapter in (None, "policy"):
        assert cpu_trunk.fold([attention.o_proj], adapter).weight is attention.o_proj.weight
    before = attention.q_proj.base_layer.weight.clone()
    assert not torch.equal(cpu_trunk.fold([attention.q_proj], "policy").weight, before)
    joined = cpu_trunk.fold([attention.k_proj, attention.v_proj], "policy").weight
    assert torch.equal(joined, torch.cat([attention.k_proj.weight, attention.v_proj.weight]))
    assert torch.equal(attention.q_proj.base_layer.weight, before)


def test_weights_are_folded_anew_for_each_rollout():
    base, wrapped = make("qwen2")
    ids = torch.tensor([[5, 6, 7]])
    settings = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 8, "temperature": 0}
    answers = []
    with torch.no_grad():
        for _ in range(2):
            answers.append(
                decode(
                    TrunkDecoder(Trunk(base), base.lm_head, "policy"), ids, torch.ones_like(ids), **settings
                )
            )
            for name, parameter in wrapped.named_parameters():
                if ".policy." in name:
                    parameter.mul_(-2.0)
    assert answers[0].tolist() != answers[1].tolist()


def test_each_piece_passes_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: cpu_trunk_ops.Norm.apply(x, weight, 1e-3), x)
    torch.autograd.gradcheck(cpu_trunk_ops.Gate.apply, x)
    cos, sin = torch.randn(2, 6, 1, 2, dtype=torch.float64)
    at = torch.tensor([4, 0, 7, 2, 1, 8])
    torch.autograd.gradcheck(lambda x: cpu_trunk_ops.RotateAndPad.apply(x, cos, sin, 3, at, 9), x)
    torch.autograd.gradcheck(lambda x: cpu_trunk_ops.Unpad.apply(x, torch.tensor([5, 0, 2])), x)
    adapters = [
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 8), (3, 2), (1, 8), (2, 1))
    ]
    places, frozen = [(slice(0, 3), 0.5), (slice(4, 6), 2.0)], torch.randn(6, 8, dtype=torch.float64)

    def folded(x, *adapters):
        whole = frozen.clone()
        for (rows, scaling), down, up in zip(places, adapters[::2], adapters[1::2], strict=True):
            whole[rows] += scaling * up @ down
        # x and the adapters are what is differentiated; W' enters by its value, as it does in the trunk.
        return cpu_trunk_ops.Folded.apply(x, whole.detach(), frozen[:, 0], places, *adapters)

    def plain(x, *adapters):
        whole = frozen.clone()
        for (rows, scaling), down, up in zip(places, adapters[::2], adapters[1::2], strict=True):
            whole[rows] = whole[rows] + scaling * up @ down
        return torch.nn.functional.linear(x, whole, frozen[:, 0])

    torch.autograd.gradcheck(folded, (x, *adapters))
    upstream = torch.randn(6, 6, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad(folded(x, *adapters), (x, *adapters), upstream),
        torch.autograd.grad(plain(x, *adapters), (x, *adapters), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_it_stands_back_where_it_does_not_fit(random_base, monkeypatch):
    assert fits(load_base(random_base, device="cpu"))
    assert not fits(load_base(random_base, device="cpu", dtype="bfloat16"))
    assert not fits(
        GPT2LMHeadModel(
            GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8, bos_token_id=1, eos_token_id=1)
        )
    )
    assert not fits(
        MistralForCausalLM(MistralConfig(**SIZES | {"sliding_window": 4, "num_key_value_heads": 4}))
    )
    dora = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    get_peft_model(dora, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    assert not fits(dora)
    monkeypatch.setattr(cpu_trunk, "LARGEST", 10)
    assert not fits(load_base(random_base, device="cpu"))
    assert Roles(load_base(random_base, device="cpu"), reward=len, cost=len).lean is None


def test_roles_give_the_same_numbers_with_and_without_it(random_base):
    both = [
        Roles(load_base(random_base, device="cpu"), reward=len, cost=len, lean=lean) for lean in (True, False)
    ]
    assert [roles.lean is None for roles in both] == [False, True]
    ids = torch.randint(4, 300, (5, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(11) < torch.tensor([11, 4, 8, 11, 6]).unsqueeze(1)
    response_mask = mask & (torch.arange(11) >= 3)
    results, gradients = [], []
    for roles in both:
        trained = roles.trainable("policy") + roles.trainable("critic")
        with torch.no_grad():
            for index, parameter in enumerate(trained):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
        log_probs, entropy = roles.log_probs(ids, mask, response_mask, temperature=0.7)
        values = roles.values(ids, mask, response_mask)
        reference, _ = roles.log_probs(ids, mask, response_mask, adapter=None)
        results.append(
            (log_probs, entropy, values, roles.values(ids, mask) * response_mask.unsqueeze(-1), reference)
        )
        gradients.append(torch.autograd.grad(log_probs.sum() + values.square().sum(), trained))
    torch.testing.assert_close(
        results[0][2], results[0][3], rtol=1e-5, atol=1e-5
    )  # asked for some, or for all
    for got, expected in zip(results[0] + gradients[0], results[1] + gradients[1], strict=True):
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_roles_on_the_last_layer_share_the_shared_states_it(random_base, tmp_path_factory):
    """The same answers and gradients with the states below reused, computed again, or by Hugging Face."""
    cost = save_scorer(random_base, tmp_path_factory.mktemp("cost"), layers_to_transform=[1])
    ids = torch.randint(4, 300, (5, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(11) < torch.tensor([11, 4, 8, 11, 6]).unsqueeze(1)
    response_mask = mask & (torch.arange(11) >= 3)
    results = []
    for lean in (True, False):
        base = load_base(random_base, device="cpu")
        roles = Roles(base, reward=len, cost=cost, lean=lean, layers=1)
        trained = roles.trainable("policy") + roles.trainable("critic")
        names = [n for n, p in roles.named_parameters() if p.requires_grad and ".default" not in n]
        assert roles.shared == 1 and all(".layers.1." in n or n.startswith("value_head.") for n in names)
        assert {id(p) for p in trained} == {id(p) for p in roles.parameters() if p.requires_grad}
        with torch.no_grad():
            for index, parameter in enumerate(trained):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
            known = roles.shared_states(ids, mask)
        assert (known is None) is not lean
        for shared_states in (known, None):
            values = roles.values(ids, mask, response_mask, shared_states)
            log_probs, _ = roles.log_probs(ids, mask, response_mask, shared_states=shared_states)
            reference, _ = roles.log_probs(
                ids, mask, response_mask, adapter=None, shared_states=shared_states
            )
            score = roles.score("cost", ids, mask, shared_states)
            loss = values.square().sum() + log_probs.sum()
            results.append((values, log_probs, reference, score, *torch.autograd.grad(loss, trained)))
    for other in results[1:]:
        for got, expected in zip(results[0], other, strict=True):
            assert float(expected.detach().abs().max()) > 1e-4
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="layers is 3"):
        Roles(load_base(random_base, device="cpu"), reward=len, cost=len, layers=3)


def test_a_policy_on_all_layers_takes_no_states_from_below(random_base, tmp_path_factory):
    cost = save_scorer(random_base, tmp_path_factory.mktemp("cost"), layers_to_transform=[1])
    roles = Roles(load_base(random_base, device="cpu"), reward=len, cost=cost)
    ids, mask = torch.arange(4, 12).view(1, 8), torch.ones(1, 8, dtype=torch.bool)
    response_mask = torch.arange(8).view(1, 8) >= 3
    with torch.no_grad():
        for parameter in roles.trainable("policy"):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        shared_states = roles.shared_states(ids, mask)
        plain, _ = roles.log_probs(ids, mask, response_mask)
        given, _ = roles.log_probs(ids, mask, response_mask, shared_states=shared_states)
    assert shared_states is not None and torch.equal(plain, given)


def test_scorers_on_all_layers_leave_nothing_to_share(random_base, tmp_path_factory):
    cost = save_scorer(random_base, tmp_path_factory.mktemp("cost"))
    roles = Roles(load_base(random_base, device="cpu"), reward=len, cost=cost, layers=1)
    assert roles.shared_states(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)) is None


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_scorer(base, folder, **options):
    """A SEQ_CLS adapter with random weights."""
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    shape = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=LINEAR, modules_to_save=["score"], **options)
    model = get_peft_model(model, shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "score.modules_to_save" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder
