"""dequantize_nf4 and lora_linear: bit for bit bitsandbytes, and PEFT's numbers."""

from __future__ import annotations

import pytest
import torch

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import dequantize_nf4, lora_linear
from csrlhf_kit.kernels.lora import lora_linear_reference
from csrlhf_kit.kernels.nf4 import read_params4bit

bnb = pytest.importorskip("bitsandbytes")

SHAPES = [(64, 64), (7, 130), (33, 65), (3, 1), (96, 256)]  # odd sizes, short last blocks


def quantise(weight, double):
    return bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantize_nf4_is_bit_exact(shape, dtype, double, bitsandbytes_unpacks):
    """bitsandbytes' definition, and this CPU's own kernel where rows are whole blocks: else that may be wrong."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[0] = 0  # a block of nothing but zeros has scale 0
    packed, state = quantise(weight, double)
    ours = dequantize_nf4(packed, state)
    for kernel in ("own", "definition") if shape[-1] % 64 == 0 else ("definition",):
        if kernel == "definition":
            bitsandbytes_unpacks(kernel)
        theirs = bnb.functional.dequantize_4bit(packed, state)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.equal(
            ours.view(torch.uint8), theirs.view(torch.uint8)
        )  # the bits, signed zeros included


ROWS = [(40, 96, 64), (40, 96, 128), (40, 256, 512), (37, 192, 128), (7, 32, 64), (64, 48, 64), (3, 16, 64)]


@pytest.mark.parametrize("rows,width,blocksize", ROWS)
def test_dequantize_nf4_of_rows_that_are_no_whole_blocks(rows, width, blocksize, bitsandbytes_unpacks):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", blocksize=blocksize)
    bitsandbytes_unpacks("definition")
    assert torch.equal(dequantize_nf4(packed, state), bnb.functional.dequantize_4bit(packed, state))
    bitsandbytes_unpacks("by_rows")  # as on processors with AVX512: ours does not move
    ours, theirs = dequantize_nf4(packed, state), bnb.functional.dequantize_4bit(packed, state)
    assert float((ours - weight).abs().mean()) < 0.12
    assert torch.equal(ours, theirs) == ((rows, width) == (3, 16))  # one block holds that one


def test_dequantize_nf4_of_other_storage(bitsandbytes_unpacks):
    bitsandbytes_unpacks("definition")
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(2))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", quant_storage=torch.bfloat16)
    assert packed.dtype == torch.bfloat16
    assert torch.equal(dequantize_nf4(packed, state), bnb.functional.dequantize_4bit(packed, state))


def test_weights_that_cannot_be_read_are_named():
    packed, state = bnb.functional.quantize_4bit(torch.randn(8, 64), quant_type="fp4")
    with pytest.raises(UserError, match="fp4"):
        dequantize_nf4(packed, state)
    with pytest.raises(UserError, match="quant_state"):
        dequantize_nf4(torch.zeros(4, dtype=torch.uint8))
    packed, state = quantise(torch.randn(8, 64), False)
    state.packing_format_for_cpu = True
    with pytest.raises(UserError, match="support_avx512bf16_for_cpu"):
        dequantize_nf4(packed, state)


def operands(tokens=(2, 3), inside=5, outside=7, rank=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, a, b, bias = draw(*tokens, inside), draw(rank, inside), draw(outside, rank), draw(outside)
    for leaf in (x, a, b, bias):
        leaf.requires_grad_()
    return x, draw(outside, inside), a, b, bias


def test_gradcheck_lora_linear():
    x, weight, a, b, bias = operands()

    def run(x, a, b, bias=None):
        return lora_linear(x, weight, a, b, bias=bias, scaling=1.7)

    assert torch.autograd.gradcheck(run, (x, a, b, bias))
    assert torch.autograd.gradcheck(run, (x, a, b))


def test_gradcheck_lora_linear_over_nf4():
    x, weight, a, b, bias = operands(inside=8, outside=12)
    packed, state = quantise(weight.float(), True)
    parts = read_params4bit(packed, state)
    assert torch.autograd.gradcheck(
        lambda *leaves: lora_linear(leaves[0], parts, *leaves[1:3], bias=leaves[3]), (x, a, b, bias)
    )
    dense = lora_linear_reference(x, dequantize_nf4(parts).double(), a, b, bias=bias)
    torch.testing.assert_close(lora_linear(x, parts, a, b, bias=bias), dense)


def test_no_rows():
    x, weight, a, b, bias = operands(tokens=(0,))
    y = lora_linear(x, weight, a, b, bias=bias)
    y.sum().backward()
    assert y.shape == (0, 7) and x.grad.shape == x.shape and (a.grad == 0).all() and (bias.grad == 0).all()


def test_inputs_are_left_as_they_were():
    x, weight, a, b, bias = operands(tokens=(6,), dtype=torch.float32)
    before = [leaf.detach().clone() for leaf in (x, weight, a, b, bias)]
    y = lora_linear(x, weight, a, b, bias=bias, scaling=2.0)
    upstream = torch.randn_like(y)
    saved = upstream.clone()
    y.backward(upstream)
    for leaf, copy in zip((x, weight, a, b, bias, upstream), (*before, saved), strict=True):
        assert torch.equal(leaf, copy)


@pytest.mark.parametrize("quantised", [False, True])
def test_torch_compile_traces_lora_linear_whole(quantised):
    x, weight, a, b, bias = operands(inside=64, outside=9, dtype=torch.float32)
    if quantised:
        layer = bnb.nn.Linear4bit(64, 9, bias=False, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        weight = layer.to("cpu").weight
        assert weight.quant_state is not None

    def loss(x, a, b, bias):
        return lora_linear(x, weight, a, b, bias=bias, scaling=0.5).square().sum()

    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(traced(x, a, b, bias), (x, a, b, bias))
    for mine, theirs in zip(got, torch.autograd.grad(loss(x, a, b, bias), (x, a, b, bias)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_is_as_close_to_the_truth_as_the_plain_path():
    x, weight, a, b, bias = operands(tokens=(128,), inside=96, outside=80, rank=8, dtype=torch.bfloat16)
    upstream = torch.randn(128, 80, generator=torch.Generator().manual_seed(7)).bfloat16()

    def results(function, *leaves):
        y = function(*leaves[:4], bias=leaves[4], scaling=0.7)
        wanted = (leaves[0], *leaves[2:])
        return y, *torch.autograd.grad(y, wanted, upstream.to(y.dtype))

    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (x, weight, a, b, bias)]
    truth = results(lora_linear_reference, *exact)
    ours, plain = (results(f, x, weight, a, b, bias) for f in (lora_linear, lora_linear_reference))
    for mine, theirs, want in zip(ours, plain, truth, strict=True):
        error, allowed = ((got.double() - want).square().mean() for got in (mine, theirs))
        assert error.sqrt() <= 1.5 * allowed.sqrt()


def test_adapter_gradients_are_accumulated_in_float32():
    """bf16 activations, fp32 adapters: dA and dB carry no bf16 rounding of their sums over 4,000 tokens."""
    x, weight, a, b, _ = operands(tokens=(4000,), dtype=torch.float32)
    x = x.detach().bfloat16()
    y = lora_linear(x, weight, a, b)
    got_a, got_b = torch.autograd.grad(y, (a, b), torch.ones_like(y))
    down = (x.double() @ a.double().bfloat16().double().t()).bfloat16().double()
    torch.testing.assert_close(got_b, down.sum(0).expand_as(b).float(), rtol=1e-5, atol=1e-3)
    assert got_a.dtype == got_b.dtype == torch.float32


def test_bad_input_is_told_in_a_sentence():
    x, weight, a, b, _ = operands()
    with pytest.raises(UserError, match="frozen"):
        lora_linear(x, weight.requires_grad_(), a, b)
    weight.requires_grad_(False)
    with pytest.raises(UserError, match="expected"):
        lora_linear(x, weight, a, b.t())
