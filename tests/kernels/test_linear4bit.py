"""4-bit layers on a CPU: whatever bitsandbytes makes of rows that are no whole blocks, the kit's numbers stay."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import load_policy
from csrlhf_kit.kernels import dequantize_nf4
from csrlhf_kit.kernels.linear4bit import CAUTION, mend_4bit, unpacks_here
from csrlhf_kit.models.base import freeze, load_base, load_tokenizer
from csrlhf_kit.models.judge import Verdicts, judge_scorer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import load_scorer, new_scorer, save_scorer, score_texts
from csrlhf_kit.recipes.export import ExportConfig, run_export

bnb = pytest.importorskip("bitsandbytes")

IDS = torch.arange(4, 24).view(2, 10)


@pytest.fixture(scope="module")
def packed_base(random_base, tmp_path_factory):
    """A base whose folder has its weights in 4 bit."""
    folder = tmp_path_factory.mktemp("packed")
    load_base(random_base, quantization="nf4", device="cpu").save_pretrained(folder)
    load_tokenizer(random_base).save_pretrained(folder)
    return folder


def layer(inside, outside, bias=True, dtype=torch.float32, quant_type="nf4"):
    torch.manual_seed(0)
    made = bnb.nn.Linear4bit(inside, outside, bias, compute_dtype=dtype, quant_type=quant_type).to("cpu")
    made.support_avx512bf16_for_cpu = True
    return made.requires_grad_(False)


def outcome(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "inside,outside,bias", [(96, 40, True), (48, 64, False), (33, 7, True), (128, 24, True)]
)
def test_a_layer_answers_as_defined(inside, outside, bias, dtype, bitsandbytes_unpacks):
    model = torch.nn.Sequential(layer(inside, outside, bias, dtype))
    x = torch.randn(3, 5, inside, generator=torch.Generator().manual_seed(1))
    bitsandbytes_unpacks("definition")
    model[0].support_avx512bf16_for_cpu = False
    want = outcome(model, x)
    mend_4bit(model)
    mend_4bit(model)  # twice is once
    assert not model[0].support_avx512bf16_for_cpu and isinstance(model[0], bnb.nn.Linear4bit)
    assert unpacks_here(model) == bool(inside % 64)
    bitsandbytes_unpacks("by_rows")
    rounding = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for got, expected in zip(outcome(model, x), want, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, **rounding)
    with torch.no_grad():  # the forward that would repack
        torch.testing.assert_close(model.eval()(x), want[0], **rounding)
    assert not getattr(model[0].weight.quant_state, "packing_format_for_cpu", False)


def test_another_format_than_nf4_is_refused_where_it_may_be_read_wrongly():
    fits = torch.nn.Sequential(layer(64, 8, quant_type="fp4"))
    mend_4bit(fits)
    assert not unpacks_here(fits)
    with pytest.raises(UserError, match=r"0 is quantised as fp4, in blocks of 64 .* rows of 96"):
        mend_4bit(torch.nn.Sequential(layer(96, 8, quant_type="fp4")))


def numbers(base, scorer, judge, sentences):
    """Logits, a policy gradient below layers without adapters, a classifier's scores and a judge's."""
    roles = Roles(base, reward=len, cost=len, rank=4, layers=1)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        for parameter in roles.trainable("policy"):
            parameter.fill_(0.05)
        plain = roles.hidden(IDS, mask, None)
    roles.log_probs(IDS, mask, mask & (torch.arange(10) > 2))[0].sum().backward()
    gradients = [p.grad for p in roles.trainable("policy")]
    scores = torch.from_numpy(score_texts(scorer, sentences, sentences[::-1]))
    return [plain, *gradients, scores, judge(sentences, sentences[::-1])]


def test_no_number_of_the_kit_depends_on_how_bitsandbytes_unpacks(
    random_base, packed_base, sentences, bitsandbytes_unpacks
):
    verdicts, found = Verdicts("ask", safe="sure", unsafe="sorry"), {}
    for kernel in ("definition", "by_rows"):
        bitsandbytes_unpacks(kernel)
        for folder, options in ((random_base, {"quantization": "nf4"}), (packed_base, {})):
            found[kernel, folder] = numbers(
                load_base(folder, device="cpu", **options), new_scorer(folder, rank=4, seed=1, **options),
                judge_scorer(folder, verdicts, **options), sentences,
            )  # fmt: skip
    first, *others = found.values()
    assert all(float(tensor.abs().max()) > 0 for tensor in first)
    for other in others:
        for ours, expected in zip(other, first, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    plain = AutoModelForCausalLM.from_pretrained(random_base, quantization_config=config).eval()
    for module in plain.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        wrong = plain.model(IDS).last_hidden_state
        assert float((wrong - first[0]).abs().max()) > 0.1, "the simulation moves plain transformers"
        right = freeze(plain).model(IDS).last_hidden_state
    torch.testing.assert_close(right, first[0], rtol=1e-4, atol=1e-4)


def test_no_adapter_is_folded_into_4_bit(random_base, packed_base, tmp_path, recwarn):
    Roles(load_base(packed_base, device="cpu"), reward=len, cost=len, rank=4).model.save_pretrained(tmp_path)
    policy = load_policy(packed_base, tmp_path / "policy")
    assert policy.is_loaded_in_4bit and any("lora" in name for name, _ in policy.named_parameters())
    scorer = new_scorer(packed_base, rank=4)
    save_scorer(scorer, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer", merge=True)
    assert any("lora" in name for name, _ in loaded.model.named_parameters())
    for run in (tmp_path / "policy", tmp_path / "scorer"):
        with pytest.raises(UserError, match=r"--merge: the weights of .* are quantised"):
            run_export(ExportConfig(run=run, out=tmp_path / "out", merge=True, base=str(packed_base)))
    assert not (tmp_path / "out").exists()
    assert not [w for w in recwarn if "4-bit" in str(w.message)]
    dense = load_policy(random_base, tmp_path / "policy")
    q = dense.model.layers[0].self_attn.q_proj
    assert type(q) is torch.nn.Linear
    torch.testing.assert_close(
        dequantize_nf4(load_base(packed_base).model.layers[0].self_attn.q_proj.weight),
        q.weight,
        atol=0.5,
        rtol=0.5,
    )


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_saved_scorer_says_where_it_scores_otherwise(
    quantization, random_base, sentences, tmp_path, bitsandbytes_unpacks
):
    scorer = new_scorer(random_base, rank=4, quantization=quantization)
    expected = score_texts(scorer, sentences[:1], sentences[1:2])[0]
    text = (save_scorer(scorer, tmp_path) / "README.md").read_text()
    assert (CAUTION in text) == (quantization == "nf4") == ("quantization_config" in text)
    bitsandbytes_unpacks("definition")
    names = {"folder": str(tmp_path), "prompt": sentences[0], "response": sentences[1]}
    code = text.split("```python\n")[1].split("```")[0]
    exec(
        code.replace(
            "\ntokenizer =", "\nfor m in model.modules(): m.support_avx512bf16_for_cpu = False\ntokenizer ="
        ),
        names,
    )
    assert names["score"] == pytest.approx(expected, abs=1e-4)
