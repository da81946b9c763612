"""linear_logprob and gae against independent computations, derivatives, and the plain path's cost."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from benchmarks.measure import peak_extra_bytes
from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import backend, gae, linear_logprob, logprob
from csrlhf_kit.kernels.logprob import linear_logprob_reference


def problem(rows=9, width=6, vocabulary=37, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, targets


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("with_bias", [False, True])
def test_agrees_with_torch_distributions(temperature, with_bias):
    hidden, weight, bias, targets = problem(rows=12)
    bias = bias if with_bias else None
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    known = Categorical(logits=logits)
    ours = linear_logprob(hidden, weight, targets, temperature=temperature, bias=bias)
    plain = linear_logprob_reference(hidden, weight, targets, temperature=temperature, bias=bias)
    for got in (ours, plain):
        torch.testing.assert_close(got[0], known.log_prob(targets), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[1], known.entropy(), rtol=1e-12, atol=1e-12)


def test_many_chunks_and_leading_dimensions(monkeypatch):
    monkeypatch.setitem(logprob.CHUNK_ELEMENTS, "cpu", 1)  # 64 rows a chunk
    hidden, weight, bias, targets = problem(rows=405)
    hidden = hidden.detach().view(3, 135, 6).requires_grad_()
    targets = targets.view(3, 135)
    got = linear_logprob(hidden, weight, targets, bias=bias)
    want = linear_logprob_reference(hidden, weight, targets, bias=bias)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
    upstream = torch.randn(3, 135, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((value[0] * upstream).sum(), hidden)[0] for value in (got, want))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(temperature):
    hidden, weight, bias, targets = problem()

    def run(hidden):
        return linear_logprob(hidden, weight, targets, bias=bias, temperature=temperature)[0]

    assert torch.autograd.gradcheck(run, (hidden,))


def test_entropy_is_a_statistic_and_the_head_is_frozen():
    hidden, weight, bias, targets = problem()
    assert not linear_logprob(hidden, weight, targets)[1].requires_grad
    for trained in ((weight.clone().requires_grad_(), bias), (weight, bias.clone().requires_grad_())):
        with pytest.raises(UserError, match="frozen"):
            linear_logprob(hidden, trained[0], targets, bias=trained[1])
        with torch.no_grad():
            linear_logprob(hidden, trained[0], targets, bias=trained[1])


def test_second_derivative_is_refused():
    hidden, weight, _, targets = problem()
    log_probs, _ = linear_logprob(hidden, weight, targets)
    (first,) = torch.autograd.grad(log_probs.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), hidden)


def test_no_rows():
    hidden, weight, _, targets = problem(rows=4)
    log_probs, entropy = linear_logprob(hidden[:0], weight, targets[:0])
    assert log_probs.shape == entropy.shape == (0,)
    (grad,) = torch.autograd.grad(log_probs.sum(), hidden)
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_the_truth_as_the_plain_path(dtype):
    hidden, weight, _, targets = problem(rows=64, width=48, vocabulary=301, dtype=dtype, seed=3)
    exact = hidden.detach().double().requires_grad_()
    truth = linear_logprob_reference(exact, weight.double(), targets)
    (true_grad,) = torch.autograd.grad(truth[0].sum(), exact)

    def errors(function):
        log_probs, entropy = function(hidden, weight, targets)
        (grad,) = torch.autograd.grad(log_probs.sum(), hidden)
        pairs = zip((log_probs, entropy, grad), (*truth, true_grad), strict=True)
        return [(got.double() - want).square().mean().sqrt().item() for got, want in pairs]

    for ours, plain in zip(errors(linear_logprob), errors(linear_logprob_reference), strict=True):
        assert ours <= 1.5 * plain


def test_autocast_computes_in_its_dtype_and_returns_float32():
    hidden, weight, _, targets = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs, entropy = linear_logprob(hidden, weight, targets)
    rounded = linear_logprob(hidden.bfloat16(), weight.bfloat16(), targets)
    assert torch.equal(log_probs, rounded[0]) and torch.equal(entropy, rounded[1])
    (grad,) = torch.autograd.grad(log_probs.sum(), hidden)
    assert grad.dtype == torch.float32 and grad.abs().sum() > 0


@pytest.mark.parametrize("outside", [False, True])
def test_torch_compile_traces_it_whole(outside):
    hidden, weight, _, targets = problem()

    def loss(log_probs, entropy):
        return (log_probs.exp() - 0.1 * entropy.detach()).sum()

    def inside(hidden):
        return loss(*linear_logprob(hidden, weight, targets))

    if outside:
        part = torch.compile(
            lambda h: linear_logprob(h, weight, targets), fullgraph=True, backend="aot_eager"
        )
        value = loss(*part(hidden))
    else:
        value = torch.compile(inside, fullgraph=True, backend="aot_eager")(hidden)
    torch.testing.assert_close(value, inside(hidden))
    got, want = (torch.autograd.grad(v, hidden)[0] for v in (value, inside(hidden)))
    torch.testing.assert_close(got, want)


def test_operators_are_registered_faithfully():
    hidden, weight, bias, targets = problem(rows=4)
    arguments = (hidden.detach(), weight, targets, bias, 0.9)
    for slope in (False, True):
        torch.library.opcheck(torch.ops.csrlhf.linear_logprob, (*arguments, slope))


def test_bad_input_is_told_in_a_sentence():
    hidden, weight, bias, targets = problem()
    with pytest.raises(UserError, match="expected \\(\\.\\.\\., hidden\\)"):
        linear_logprob(hidden, weight[:, :-1], targets)
    with pytest.raises(UserError, match="bias"):
        linear_logprob(hidden, weight, targets, bias=bias[1:])
    with pytest.raises(UserError, match="temperature"):
        linear_logprob(hidden, weight, targets, temperature=0.0)
    for wrong in (-1, 37):
        with pytest.raises(UserError, match=r"outside 0\.\.36"):
            linear_logprob(hidden, weight, targets.clone().fill_(wrong))
    with pytest.raises(UserError, match="backend"), backend("cuda"):
        pass


@pytest.fixture(scope="module")
def large():
    """The issue's shape: 512 tokens, hidden 256, vocabulary 20,000; a frozen head, as in PPO."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 256, generator=generator).requires_grad_()
    weight = torch.randn(20_000, 256, generator=generator) / 16
    targets = torch.randint(20_000, (512,), generator=generator)

    def plain():
        log_probs = (hidden @ weight.t()).log_softmax(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(1, targets[:, None]).squeeze(1), entropy

    def step(function):
        def run():
            hidden.grad = None
            log_probs, entropy = function()
            log_probs.sum().backward()
            return log_probs.detach(), entropy, hidden.grad

        return run

    return step(lambda: linear_logprob(hidden, weight, targets)), step(plain)


def test_large_vocabulary_takes_an_eighth_of_the_memory_and_agrees(large):
    ours, plain = large
    for got, want in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    device = torch.device("cpu")
    assert peak_extra_bytes(ours, device) <= peak_extra_bytes(plain, device) / 8


def test_large_vocabulary_is_no_slower(large):
    ours, plain = large
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then CPU time is what the work costs, whatever else the machine does
    try:
        cost = {ours: [], plain: []}
        for _ in range(5):
            for run, seconds in cost.items():
                start = time.thread_time()
                run()
                seconds.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(cost[ours]) <= 1.1 * min(cost[plain])  # measured: 0.6; a tenth for the clock


def brute_force_gae(rewards, values, mask, gamma, lam):
    """Sums of discounted temporal differences over the real positions of one row, straight from eq. 16."""
    real = np.flatnonzero(mask)
    advantages = np.zeros(len(rewards))
    for i, t in enumerate(real):
        for k, u in enumerate(real[i:]):
            following = values[real[i + k + 1]] if i + k + 1 < len(real) else 0.0
            advantages[t] += (gamma * lam) ** k * (rewards[u] + gamma * following - values[u])
    return advantages, np.where(mask, advantages + values, 0.0)


@settings(max_examples=60)
@given(
    mask=st.lists(st.booleans(), min_size=0, max_size=9),
    gamma=st.floats(0.5, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
)
def test_gae_equals_the_sum_it_abbreviates(mask, gamma, lam, seed):
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(2, 2, len(mask)))  # reward and cost, one row each
    got = gae(
        torch.tensor(rewards)[:, None],
        torch.tensor(values)[:, None],
        torch.tensor([mask], dtype=torch.bool),
        gamma=gamma,
        lam=lam,
    )
    for kind in range(2):
        want = brute_force_gae(rewards[kind], values[kind], np.array(mask, dtype=bool), gamma, lam)
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(mine[kind, 0].numpy(), theirs, atol=1e-12)


def test_gae_ignores_what_stands_under_the_mask_and_passes_no_gradient():
    rewards, values = torch.randn(2, 2, 3, 6, dtype=torch.float64).unbind()
    values.requires_grad_()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]])
    padded = mask.expand_as(rewards) == 0
    clean = gae(rewards, values, mask)
    dirty = gae(rewards.masked_fill(padded, float("nan")), values.masked_fill(padded, float("nan")), mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b) and not a.requires_grad
        assert (a[padded] == 0).all()


def test_gae_refuses_shapes_that_do_not_fit():
    with pytest.raises(UserError, match="gae got"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3))
    with pytest.raises(UserError, match="gae got"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 1))
