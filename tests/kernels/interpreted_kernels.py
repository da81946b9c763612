"""The Triton kernels in Triton's interpreter, against the torch references and bitsandbytes.

test_kernels_triton.py runs this file in a process of its own: TRITON_INTERPRET has to be set before Triton is
imported, and changes it for the whole process.
"""

from __future__ import annotations

import os

import pytest
import torch

from csrlhf_kit.kernels import backend, dequantize_nf4, gae, linear_logprob, logprob, lora_linear
from csrlhf_kit.kernels.gae import gae_reference
from csrlhf_kit.kernels.logprob import linear_logprob_reference
from csrlhf_kit.kernels.nf4 import dequantize_nf4_reference, read_params4bit

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"


def logprob_problem(rows, vocabulary, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 12, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 12, generator=generator).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 37, 8192 + 513])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_logprob_interpreted(dtype, vocabulary, with_bias):
    hidden, weight, bias, targets = logprob_problem(7, vocabulary, dtype)
    bias = bias if with_bias else None
    exact = hidden.detach().double().requires_grad_()
    bias_exact = None if bias is None else bias.double()
    truth = linear_logprob_reference(exact, weight.double(), targets, bias=bias_exact, temperature=0.7)
    with backend("triton"):
        ours = linear_logprob(hidden, weight, targets, bias=bias, temperature=0.7)
        (grad,) = torch.autograd.grad(ours[0].sum(), hidden)
    (true_grad,) = torch.autograd.grad(truth[0].sum(), exact)
    # the logits are exact to float32; in half precision the probabilities are rounded once, before the product
    for mine, want in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=2e-4)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(grad.double(), true_grad, rtol=tolerance, atol=tolerance)


def test_linear_logprob_in_many_chunks(monkeypatch):
    monkeypatch.setitem(logprob.CHUNK_ELEMENTS, "cpu", 1)
    hidden, weight, bias, targets = logprob_problem(70, 37, torch.float32)

    def results():
        log_probs, entropy = linear_logprob(hidden, weight, targets, bias=bias)
        return log_probs, entropy, *torch.autograd.grad(log_probs.exp().sum(), hidden)

    with backend("triton"):
        ours = results()
    for mine, want in zip(ours, results(), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)


def test_linear_logprob_of_no_rows_and_of_a_target_outside():
    hidden, weight, _, targets = logprob_problem(4, 37, torch.float32)
    with backend("triton"):
        assert linear_logprob(hidden[:0], weight, targets[:0])[0].shape == (0,)
    from csrlhf_kit.kernels.triton_kernels import logprob_statistics

    _, picked, entropy = logprob_statistics(torch.randn(2, 37), None, torch.tensor([37, 3]), 1.0)
    assert picked[0].isnan() and picked[1].isfinite() and entropy.isfinite().all()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 130), (33, 65), (3, 1), (160, 256)])
def test_dequantize_nf4_interpreted_is_bit_exact(shape, dtype, double):
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[0] = 0
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    with backend("triton"):
        ours = dequantize_nf4(packed, state)
    theirs = bnb.functional.dequantize_4bit(packed, state)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(ours, dequantize_nf4_reference(read_params4bit(packed, state)))


def test_lora_linear_over_interpreted_nf4():
    bnb = pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    packed, state = bnb.functional.quantize_4bit(torch.randn(24, 40, generator=generator), quant_type="nf4")
    parts = read_params4bit(packed, state)
    leaves = [torch.randn(s, generator=generator, requires_grad=True) for s in ((5, 40), (3, 40), (24, 3))]

    def results():
        y = lora_linear(leaves[0], parts, *leaves[1:])
        return y, *torch.autograd.grad(y.square().sum(), leaves)

    with backend("triton"):
        ours = results()
    assert all(torch.equal(mine, want) for mine, want in zip(ours, results(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("length", [0, 1, 7, 33])
def test_gae_interpreted(dtype, length):
    generator = torch.Generator().manual_seed(length)
    rewards, values = torch.randn(2, 2, 5, length, generator=generator).to(dtype).unbind()
    mask = torch.rand(5, length, generator=generator) > 0.4  # padding left, right and between
    mask[0] = False  # an empty row
    padded = ~mask.expand_as(rewards)
    rewards, values = (x.masked_fill(padded, float("nan")) for x in (rewards, values))
    want = gae_reference(rewards.float(), values.float(), mask, 0.99, 0.9)
    with backend("triton"):
        got = gae(rewards, values, mask, gamma=0.99, lam=0.9)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == dtype and mine.shape == rewards.shape
        tolerance = 1e-5 if dtype == torch.float32 else 5e-3
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance)
