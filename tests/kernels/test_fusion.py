"""fuse: the same numbers as PEFT and bitsandbytes, through every switch that PEFT has."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import fuse

bnb = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

WIDTH = 64


@pytest.fixture(autouse=True)
def peft_over_the_definition(bitsandbytes_unpacks):
    """o_proj's rows of 96 are no whole blocks of 64: PEFT's own path, the measure here, needs them right."""
    bitsandbytes_unpacks("definition")


class TwoLayers(nn.Module):
    """A layer with a bias and one without, as Qwen2's q_proj and o_proj; dense or quantised."""

    def __init__(self, quantised=False, double=True, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        make = nn.Linear
        if quantised:

            def make(inside, outside, bias):
                return bnb.nn.Linear4bit(
                    inside, outside, bias, compute_dtype=dtype, compress_statistics=double, quant_type="nf4"
                )

        self.q_proj, self.o_proj = make(WIDTH, 96, bias=True), make(96, WIDTH, bias=False)
        if not quantised:
            self.to(dtype)

    def forward(self, x):
        return x + self.o_proj(torch.tanh(self.q_proj(x)))


def lora_model(quantised=False, double=True, dropout=0.0, **options):
    base = TwoLayers(quantised, double).to("cpu")  # quantises
    if quantised:
        assert base.q_proj.weight.quant_state.nested == double
        for layer in (base.q_proj, base.o_proj):
            layer.support_avx512bf16_for_cpu = False  # for PEFT's own path, with which we compare
        base.is_loaded_in_4bit = True
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **options}
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj"], lora_dropout=dropout, **options)
    torch.manual_seed(1)
    return peft.get_peft_model(base, config)


def step(model, seed=3):
    """Output, dx and every parameter's gradient of one training step."""
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2), requires_grad=True)
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x)
    y.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **grads}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(
            got[name], want[name], rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


KINDS = [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize("quantised,double", KINDS)
def test_parity_with_peft_and_bitsandbytes(quantised, double):
    model = lora_model(quantised, double)
    want = step(model)
    assert {name.split(".")[-3] for name in want if "lora" in name} == {"lora_A", "lora_B"}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    assert (
        sorted(name.split(".")[-1] for name in fused.layers) == ["o_proj", "q_proj"] and not fused.left_alone
    )
    assert_same(step(model), want)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
    fused.undo()
    assert type(model.base_model.model.q_proj).__module__.startswith("peft.")
    assert_same(step(model), want)


def test_every_case_really_runs_fused(monkeypatch):
    from csrlhf_kit.kernels import fusion

    calls = []
    genuine = fusion.lora_linear
    monkeypatch.setattr(fusion, "lora_linear", lambda *a, **k: calls.append(1) or genuine(*a, **k))
    for quantised in (False, True):
        model = lora_model(quantised)
        with fuse(model):
            step(model)
        step(model)  # after the block: PEFT's own
    assert len(calls) == 4


def test_dropout_stays_with_peft():
    model = lora_model(dropout=0.5)
    plain = copy.deepcopy(model)
    assert set(fuse(model).left_alone.values()) == {"LoRA with dropout"}
    assert_same(step(model), step(plain))
    model = lora_model()
    plain = copy.deepcopy(model)
    fuse(model)
    late = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    for each in (model, plain):  # an adapter with dropout that comes after fuse
        torch.manual_seed(4)
        each.add_adapter("late", late)
        each.set_adapter("late")
    assert_same(step(model), step(plain))
    assert not torch.equal(step(model, seed=1)["y"], step(model, seed=2)["y"])


@pytest.mark.parametrize("quantised", [False, True])
def test_adapters_switch_turn_off_and_merge(quantised):
    model = lora_model(quantised)
    torch.manual_seed(9)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    plain = copy.deepcopy(model)
    fuse(model)

    def same():
        assert_same(step(model), step(plain))

    for name in ("second", "default", ["default", "second"]):
        for each in (model, plain):
            each.base_model.set_adapter(name)
        same()
    for each in (model, plain):
        each.set_adapter("default")
    with model.disable_adapter(), plain.disable_adapter():
        same()
    same()
    torch.manual_seed(10)  # an adapter that comes after fuse
    model.add_adapter("third", peft.LoraConfig(r=3, target_modules=["o_proj"], init_lora_weights=False))
    model.set_adapter("third")
    assert step(model)["y"].shape == (2, 5, WIDTH)
    model.set_adapter("default")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT: merging into 4 bit rounds
        for each in (model, plain):
            each.merge_adapter()
        assert torch.equal(model(torch.ones(1, WIDTH)), plain(torch.ones(1, WIDTH)))
        for each in (model, plain):
            each.unmerge_adapter()
        same()
        merged, other = model.merge_and_unload(), plain.merge_and_unload()
    assert type(merged.q_proj) is (bnb.nn.Linear4bit if quantised else nn.Linear)
    assert torch.equal(merged(torch.ones(1, WIDTH)), other(torch.ones(1, WIDTH)))


def test_variants_and_trained_bases_stay_with_peft():
    model = lora_model(use_dora=True)
    want = step(model)
    fused = fuse(model)
    assert not fused.layers and set(fused.left_alone.values()) == {"adapter variant DoraLinearVariant"}
    assert_same(step(model), want)
    model = lora_model(lora_bias=True)
    assert set(fuse(model).left_alone.values()) == {"LoRA with a bias"}
    model = lora_model()
    plain = copy.deepcopy(model)
    fuse(model)
    for each in (model, plain):  # DoRA that comes after fuse, and a base that is trained after all
        torch.manual_seed(4)
        each.add_adapter(
            "dora", peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
        )
        each.set_adapter("dora")
        each.base_model.model.o_proj.base_layer.weight.requires_grad_()
    assert_same(step(model), step(plain))
    assert any("base_layer" in name for name in step(model))


def test_fused_twice_is_fused_once_and_copies_stay_fused():
    model = lora_model()
    want = step(model)
    first, second = fuse(model), fuse(model)
    assert len(first.layers) == 2 and set(second.left_alone.values()) == {"already fused"}
    second.undo()
    twin = copy.deepcopy(model)
    assert type(twin.base_model.model.q_proj).__name__ == "FusedLinear"
    assert_same(step(twin), want)


def test_gradient_checkpointing_and_a_whole_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    base = transformers.Qwen2ForCausalLM(config)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora)
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))

    def grads():
        model.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return {
            "loss": loss.detach(),
            **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        }

    model.train()
    want = grads()
    fused = fuse(model)
    assert len(fused.layers) == 14
    assert_same(grads(), want)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(grads(), want)


def test_a_tiny_training_run_follows_the_same_curve():
    def curve(fused, quantised):
        model = lora_model(quantised)
        if fused:
            fuse(model)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(12):
            x = torch.randn(8, WIDTH, generator=generator)
            loss = (model(x) - x.roll(1, -1)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    for quantised in (False, True):
        ours, theirs = curve(True, quantised), curve(False, quantised)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert ours[-1] < ours[0]


def test_autocast_matches_peft():
    model = lora_model()
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    layer = model.base_model.model.q_proj
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = layer(x)
        fuse(model)
        got = layer(x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_evaluation_on_a_cpu_does_not_spoil_later_training():
    """bitsandbytes' repacking for AVX512 would: gradients below a repacked layer are silently zero."""
    model = lora_model(quantised=True)
    layers = [model.base_model.model.q_proj, model.base_model.model.o_proj]
    want = step(model)
    for layer in layers:
        layer.base_layer.support_avx512bf16_for_cpu = True
    fuse(model)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        model(torch.ones(1, WIDTH))
    model.train()
    assert_same(step(model), want)
    assert want["dx"].abs().sum() > 0


def test_gpt2_is_left_to_peft():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora)
    assert set(fuse(model).left_alone.values()) == {"base layer Conv1D"}
    assert not any(type(module).__name__ == "FusedLinear" for module in model.modules())


def test_what_cannot_be_fused_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="no LoRA layer"):
        fuse(TwoLayers())
    model = lora_model(quantised=True)
    model.base_model.model.q_proj.base_layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(UserError, match="repacked"):
        fuse(model)
