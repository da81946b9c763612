"""Preference-only methods: the loss against its closed-form optima, each order of pairs, and a tiny training."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.theory import FiniteProblem
from csrlhf_kit.training.dpo import (
    METHODS,
    DirectConfig,
    encode_pairs,
    fit_pairs,
    margins_of,
    preference_loss,
    train_direct,
)
from csrlhf_kit.training.dpo_pairs import (
    Offline,
    Ranked,
    by_label,
    offline_answers,
    one_shot_multiplier,
    pseudo_pairs,
    safedpo_order,
)

REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])
REWARD = np.array([1.0, 0.2, -0.5, 0.4])
COST = np.array([0.9, 0.1, 0.0, 0.3])


def pair(
    better: int, safer: int, safe: tuple[bool | None, bool | None], prompt="how do i?"
) -> PreferencePair:
    return PreferencePair(
        prompt, "first", "second", *safe, better_response_id=better, safer_response_id=safer
    )


def population_optimum(
    scores: np.ndarray, *, beta: float, reference: np.ndarray, offsets=None, hard=()
) -> np.ndarray:
    """The tabular policy that minimises the expected loss over all pairs, by L-BFGS in float64.

    Labels follow Bradley-Terry's model of `scores`; pairs (w, l) in `hard` always have w as the winner.
    """
    logits = torch.tensor(np.log(reference), requires_grad=True)
    log_reference = torch.tensor(np.log(reference))
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)
    rows = []  # (winner, loser, probability)
    for a, b in combinations(range(len(scores)), 2):
        chance = 1.0 if (a, b) in hard else 0.0 if (b, a) in hard else float(expit(scores[a] - scores[b]))
        rows += [(a, b, chance), (b, a, 1 - chance)]
    winners, losers = (torch.tensor([row[side] for row in rows]) for side in (0, 1))
    shift = torch.zeros(len(rows)) if offsets is None else torch.tensor(offsets)[winners, losers]

    def closure():
        optimizer.zero_grad()
        h = logits.log_softmax(0) - log_reference
        total = torch.zeros((), dtype=torch.float64)
        for margin, offset, (*_, weight) in zip(h[winners] - h[losers], shift, rows, strict=True):
            total = total + weight * preference_loss(margin.unsqueeze(0), beta=beta, offsets=offset)
        total.backward()
        return total

    for _ in range(3):
        optimizer.step(closure)
    return logits.detach().softmax(0).numpy()


# --- the loss ---


def test_loss_and_gradient_against_finite_differences():
    margins = torch.tensor([2.0, -1.0, 0.3], dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0.0, 1.5, -0.2], dtype=torch.float64)

    def by_hand(values: list[float]) -> float:
        terms = [np.log1p(np.exp(-(0.7 * m - o))) for m, o in zip(values, offsets.tolist(), strict=True)]
        return float(np.mean(terms))

    loss = preference_loss(margins, beta=0.7, offsets=offsets)
    assert float(loss.detach()) == pytest.approx(by_hand(margins.tolist()), rel=1e-12)
    loss.backward()
    for i in range(3):
        up, down = margins.tolist(), margins.tolist()
        up[i], down[i] = up[i] + 1e-6, down[i] - 1e-6
        slope = (by_hand(up) - by_hand(down)) / 2e-6
        assert float(margins.grad[i]) == pytest.approx(slope, rel=1e-6)


def test_dpo_recovers_the_tilted_policy():
    problem = FiniteProblem(REFERENCE, REWARD, COST, beta=0.5, threshold=1.0)
    found = population_optimum(REWARD, beta=0.5, reference=REFERENCE)
    np.testing.assert_allclose(found, problem.tilted(0.0).policy[0], atol=1e-6)


def test_mocan_recovers_the_constrained_optimum():
    problem = FiniteProblem(REFERENCE, REWARD, COST, beta=0.5, threshold=0.2)
    best = problem.constrained_optimum()
    assert best.multiplier > 0.5
    found = population_optimum(REWARD - best.multiplier * COST, beta=0.5, reference=REFERENCE)
    np.testing.assert_allclose(found, best.policy[0], atol=1e-6)


def test_sacpo_in_two_steps_is_the_tilt_by_its_multiplier():
    problem = FiniteProblem(REFERENCE, REWARD, COST, beta=0.5, threshold=1.0)
    multiplier = 2.0
    first = population_optimum(REWARD, beta=0.5, reference=REFERENCE)
    second = population_optimum(-COST, beta=0.5 / multiplier, reference=first)
    np.testing.assert_allclose(second, problem.tilted(multiplier).policy[0], atol=1e-5)


@pytest.mark.parametrize("delta", [0.0, 2.0])
def test_safedpo_keeps_the_tilt_among_safe_responses_and_empties_the_unsafe(delta):
    unsafe = np.array([True, False, False, False])
    hard = [(w, 0) for w in (1, 2, 3)]
    offsets = delta * (unsafe[None, :].astype(float) - unsafe[:, None])
    found = population_optimum(REWARD, beta=0.5, reference=REFERENCE, hard=hard, offsets=offsets)
    assert found[0] < 1e-3
    tilt = np.where(unsafe, 0, REFERENCE * np.exp(REWARD / 0.5))
    np.testing.assert_allclose(found[1:] / found[1:].sum(), (tilt / tilt.sum())[1:], atol=2e-2)


# --- the orders ---


def test_order_by_each_label():
    pairs = [pair(0, 1, (False, True)), pair(1, 1, (True, True))]
    assert by_label(pairs, "better") == [
        Ranked("how do i?", "first", "second"),
        Ranked("how do i?", "second", "first"),
    ]
    assert [r.winner for r in by_label(pairs, "safer")] == ["second", "second"]


@pytest.mark.parametrize(
    "safe, better, winner, offset",
    [
        ((True, True), 0, "first", 0.0),
        ((True, True), 1, "second", 0.0),
        ((False, False), 1, "second", 0.0),  # two unsafe responses keep their order
        ((False, True), 0, "second", 10.0),  # the unsafe winner is exchanged
        ((False, True), 1, "second", 10.0),
        ((True, False), 0, "first", 10.0),
        ((True, False), 1, "first", 10.0),
    ],
)
def test_safedpo_reorders_where_only_the_winner_is_unsafe(safe, better, winner, offset):
    (ranked,) = safedpo_order([pair(better, 0, safe)], 10.0)
    assert (ranked.winner, ranked.offset) == (winner, offset)
    assert {ranked.winner, ranked.loser} == {"first", "second"}


# --- MoCAN ---


def random_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(40, 8))
    return reward, expit(1.5 * reward + rng.normal(size=(40, 8)))


@pytest.mark.parametrize("seed", range(4))
def test_one_shot_multiplier_minimises_the_dual(seed):
    reward, cost = random_scores(seed)
    beta, threshold = 0.3, 0.35

    def dual(multiplier: float) -> float:
        tilted = (reward - multiplier * (cost - threshold)) / beta
        return beta * float(np.mean(logsumexp(tilted, axis=1) - np.log(8)))

    brute = minimize_scalar(dual, bounds=(0.0, 50.0), method="bounded", options={"xatol": 1e-9}).x
    found = one_shot_multiplier(reward, cost, beta=beta, threshold=threshold, maximum=100.0)
    assert found == pytest.approx(brute, abs=1e-4) and found > 0.1
    assert one_shot_multiplier(reward, cost, beta=beta, threshold=0.99, maximum=100.0) == 0.0
    assert one_shot_multiplier(reward, cost, beta=beta, threshold=threshold, maximum=0.1) == 0.1


def test_a_threshold_out_of_reach_takes_the_maximum_and_says_so():
    reward, cost = random_scores(0)
    with pytest.warns(UserWarning, match="no tilt of the base's answers"):
        assert one_shot_multiplier(reward, cost, beta=0.3, threshold=1e-4, maximum=33.0) == 33.0


def test_pseudo_labels_follow_bradley_terry():
    prompts = [f"p{i}" for i in range(4000)]
    reward, cost = np.tile([[1.0, 0.2]], (4000, 1)), np.tile([[0.8, 0.1]], (4000, 1))
    offline = Offline(prompts, [["a", "b"]] * 4000, reward, cost)
    for multiplier in (0.0, 3.0):
        ranked = pseudo_pairs(offline, multiplier, seed=1)
        share = np.mean([r.winner == "a" for r in ranked])
        expected = expit(0.8 - multiplier * 0.7)
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
    assert pseudo_pairs(offline, 1.0, seed=1) == pseudo_pairs(offline, 1.0, seed=1)
    same = Offline(["p"], [["a", "a", "b", ""]], np.zeros((1, 4)), np.zeros((1, 4)))
    assert pseudo_pairs(same, 0.0, seed=0) == []


# --- training ---


@pytest.fixture(scope="module")
def tokenizer(random_base):
    return load_tokenizer(random_base)


def letters(prompts, responses) -> torch.Tensor:
    return torch.tensor([float(len(r)) / 10 for r in responses])


def vowels(prompts, responses) -> torch.Tensor:
    return torch.tensor([4.0 if set("aeiou") & set(r) else -4.0 for r in responses])


def make_roles(random_base: Path) -> Roles:
    return Roles(load_base(random_base, device="cpu"), reward=letters, cost=vowels, rank=4, alpha=8)


@pytest.fixture(scope="module")
def judged(sentences) -> list[PreferencePair]:
    """Refusals are safer, help is better; ids alternate."""
    refusal, help_ = "sorry , i can not help", "take a small tool"
    made = []
    for index, prompt in enumerate(sentences):
        answers = (refusal, help_) if index % 2 else (help_, refusal)
        safe, better = index % 2 == 0, 1 if index % 2 else 0
        made.append(PreferencePair(prompt, *answers, not safe, safe, better, 1 - better))
    return made


SMALL = {"epochs": 4, "batch_size": 3, "microbatch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 1}


def test_at_the_start_every_margin_is_zero_whatever_the_reference(random_base, tokenizer, judged):
    roles = make_roles(random_base)
    ranked = by_label(judged, "safer")
    for reference in (None, "policy"):
        pairs = encode_pairs(roles, tokenizer, ranked, reference=reference, max_length=64)
        margins = margins_of(roles, pairs, torch.arange(len(ranked)))
        assert float(margins.detach().abs().max()) < 1e-4
        assert float(pairs.reference.abs().max()) > 0.1


def test_microbatches_do_not_change_a_step(random_base, tokenizer, judged):
    states = []
    for size in (6, 2):
        roles = make_roles(random_base)
        pairs = encode_pairs(roles, tokenizer, safedpo_order(judged, 3.0), reference=None, max_length=64)
        config = DirectConfig(**SMALL | {"epochs": 1, "batch_size": 6, "microbatch_size": size})
        (row,) = fit_pairs(roles, pairs, beta=0.5, config=config)
        assert row["loss"] == pytest.approx(np.log1p(np.exp(3.0)), rel=1e-4)  # every margin is 0, offset 3
        states.append(roles.trainable("policy"))
    for one, two in zip(*states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_lowers_its_loss_and_learns_its_order(random_base, tokenizer, judged, method, sentences):
    roles = make_roles(random_base)
    before = {name: tensor.clone() for name, tensor in roles.state_dict().items()}
    config = DirectConfig(**SMALL, beta=0.5, safety_beta=0.25, offset=1.0, threshold=0.5, offline_samples=4)
    offline = None
    if method == "mocan":
        offline = offline_answers(roles, tokenizer, sentences, samples=4, max_new_tokens=5, seed=0)
        assert offline.reward.shape == offline.cost.shape == (len(sentences), 4)
        for prompt, answers, row in zip(offline.prompts, offline.responses, offline.cost, strict=True):
            assert row == pytest.approx(vowels([prompt] * 4, answers).sigmoid().numpy(), abs=1e-6)
    history, multiplier = train_direct(method, roles, tokenizer, judged, config, offline=offline)
    half = len(history) // (2 if method == "sacpo" else 1)
    for part in (history[:half], history[half:]):
        if part:
            assert part[-1]["loss"] < part[0]["loss"] and part[-1]["accuracy"] >= 0.6
    assert (multiplier == 2.0) if method == "sacpo" else (multiplier > 0) == (method == "mocan")
    for name, tensor in roles.state_dict().items():
        assert ".policy." in name or torch.equal(tensor, before[name]), name


def test_a_killed_training_resumes_bit_for_bit(random_base, tokenizer, judged, tmp_path, monkeypatch):
    from csrlhf_kit.training import dpo as direct

    config = DirectConfig(**SMALL | {"epochs": 2})
    whole, broken = make_roles(random_base), make_roles(random_base)
    expected, _ = train_direct("sacpo", whole, tokenizer, judged, config, tmp_path / "whole")
    step, calls = direct._step, iter(range(100))

    def killed(*args):
        if next(calls) == 6:  # in the second step's training
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(direct, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_direct("sacpo", broken, tokenizer, judged, config, tmp_path / "broken")
    monkeypatch.setattr(direct, "_step", step)
    broken = make_roles(random_base)
    history, _ = train_direct("sacpo", broken, tokenizer, judged, config, tmp_path / "broken")
    assert history == expected
    for one, two in zip(whole.trainable("policy"), broken.trainable("policy"), strict=True):
        assert torch.equal(one, two)


def test_the_adapter_is_a_peft_adapter(random_base, tokenizer, judged, tmp_path):
    from peft import PeftModel

    roles = make_roles(random_base)
    train_direct("dpo_safer", roles, tokenizer, judged, DirectConfig(**SMALL | {"epochs": 1}))
    plain = PeftModel.from_pretrained(load_base(random_base, device="cpu"), roles.save_policy(tmp_path / "a"))
    ids = torch.randint(4, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    roles.activate("policy")
    with torch.no_grad():
        ours, theirs = roles.model(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bad_asks_are_one_sentence(random_base, tokenizer, judged):
    roles = make_roles(random_base)
    with pytest.raises(UserError, match="method 'magic' is unknown"):
        train_direct("magic", roles, tokenizer, judged, DirectConfig())
    with pytest.raises(UserError, match="expected scored answers"):
        train_direct("mocan", roles, tokenizer, judged, DirectConfig())
    with pytest.raises(UserError, match="safety labels"):
        safedpo_order([pair(0, 0, (None, None))], 1.0)
    with pytest.raises(UserError, match="no pair"):
        train_direct("dpo_safer", roles, tokenizer, [], DirectConfig())
    for name, value in (("beta", 0.0), ("offset", -1.0), ("offline_samples", 3)):
        with pytest.raises(UserError, match=name):
            DirectConfig(**{name: value})
