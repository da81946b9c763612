"""Objectives against numpy and finite differences; training, calibration and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_models import build_bert
from example_records import dialogues, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from csrlhf_kit.data.records import PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.scorer_metrics import auroc
from csrlhf_kit.models.scorers import new_scorer, score_rows, score_texts
from csrlhf_kit.outputs import check_model_folder, replace_folder
from csrlhf_kit.training import reward_modeling
from csrlhf_kit.training.reward_losses import (
    bradley_terry_loss,
    objective_loss,
    ranking_sign_loss,
    reward_loss,
    semantic_loss,
)
from csrlhf_kit.training.reward_modeling import (
    EncodedRows,
    ScorerConfig,
    ScorerTrainer,
    chosen_settings,
    collate_texts,
    encode_records,
    fit_temperature,
    train_scorer,
)
from csrlhf_kit.training.supervised import checkpoint_folder, training_arguments

# --- objectives ----------------------------------------------------------------------------------------


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


RNG = np.random.default_rng(0)
W, L = RNG.normal(scale=2, size=7), RNG.normal(scale=2, size=7)
SW, SL = np.array([1, 1, -1, 1, -1, 1, 1.0]), np.array([-1, 1, -1, 1, -1, -1, 1.0])
U = np.array([1, 0, 1, 1, 0, 0, 1.0])

OBJECTIVES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., float]]] = {
    "semantic": (
        lambda w, v: semantic_loss(w, torch.tensor(U)) + 0 * v.sum(),
        lambda w, v: -np.mean(U * log_sigmoid(w) + (1 - U) * log_sigmoid(-w)),
    ),
    "bradley_terry": (bradley_terry_loss, lambda w, v: -np.mean(log_sigmoid(w - v))),
    "reward": (
        reward_loss,
        lambda w, v: np.mean(-log_sigmoid(w - v) + 0.001 * (w**2 + v**2) / 2),
    ),
    "safe_rlhf": (
        lambda w, v: ranking_sign_loss(w, v, torch.tensor(SW), torch.tensor(SL)),
        lambda w, v: np.mean(
            -log_sigmoid(w - v) - log_sigmoid(SW * w) - log_sigmoid(SL * v) + 0.001 * (w**2 + v**2) / 2
        ),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_and_their_gradients(name: str) -> None:
    ours, theirs = OBJECTIVES[name]
    w, v = (torch.tensor(x, requires_grad=True) for x in (W, L))
    loss = ours(w, v)
    assert loss.item() == pytest.approx(theirs(W, L), rel=1e-12)
    loss.backward()
    for index in range(7):
        step = np.zeros(7)
        step[index] = 1e-6
        assert w.grad[index].item() == pytest.approx(
            (theirs(W + step, L) - theirs(W - step, L)) / 2e-6, abs=1e-8
        )
        assert v.grad[index].item() == pytest.approx(
            (theirs(W, L + step) - theirs(W, L - step)) / 2e-6, abs=1e-8
        )


def test_the_trainer_sees_winners_first() -> None:
    scores = torch.tensor(np.concatenate([W, L]))
    signs = torch.tensor(np.stack([SW, SL], axis=1))
    for name, (_, theirs) in OBJECTIVES.items():
        if name != "semantic":
            found = objective_loss(name, scores, signs, regularization=0.001)
            assert found.item() == pytest.approx(theirs(W, L), rel=1e-12)
    found = objective_loss("semantic", torch.tensor(W), torch.tensor(U), regularization=0.001)
    assert found.item() == pytest.approx(OBJECTIVES["semantic"][1](W, L), rel=1e-12)


def test_ranking_alone_has_no_zero_and_signs_have() -> None:
    w, v, s = torch.tensor(W), torch.tensor(L), torch.tensor(SW)
    assert bradley_terry_loss(w + 7, v + 7).item() == pytest.approx(bradley_terry_loss(w, v).item())
    assert ranking_sign_loss(w + 7, v + 7, s, s) > ranking_sign_loss(w, v, s, s)
    # Far scores stay finite, with a gradient.
    far = torch.tensor([-1e4], requires_grad=True)
    ranking_sign_loss(far, -far, torch.ones(1), -torch.ones(1)).backward()
    assert torch.isfinite(far.grad).all() and far.grad.item() < 0


# --- calibration ---------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(0.2, 5.0), st.integers(0, 99))
def test_temperature_recovers_the_one_that_labels_were_drawn_with(temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=3 * temperature, size=4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(-scores / temperature))
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.15)


def test_temperature_is_the_grid_minimum_and_finite_without_errors() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(scale=4, size=60)
    labels = rng.random(60) < 1 / (1 + np.exp(-scores / 2))
    high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2)
    targets = np.where(labels, high, low)
    grid = np.exp(np.linspace(-3, 3, 6001))
    losses = [
        -np.mean(targets * log_sigmoid(scores / t) + (1 - targets) * log_sigmoid(-scores / t)) for t in grid
    ]
    assert fit_temperature(scores, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    apart = fit_temperature(np.array([-3.0] * 20 + [3.0] * 20), np.arange(40) >= 20)
    assert 0.5 < apart < 2  # plain maximum likelihood would go to 0


# --- records -------------------------------------------------------------------------------------------


def test_pairs_put_the_worse_response_first_for_costs(random_base: Path) -> None:
    scorer = new_scorer(random_base)
    some = pairs(6)
    sure = scorer.tokenizer("sure")["input_ids"][0]
    for objective in ("safe_rlhf", "bradley_terry", "reward"):
        rows = encode_records(scorer, some, objective)
        # Costs: the response that helps is the more harmful one. Rewards: it is the better one.
        assert all(
            sure in winner["input_ids"] and sure not in loser["input_ids"] for winner, loser in rows.dialogues
        )
    signs = encode_records(scorer, some, "safe_rlhf").targets
    assert signs[:, 0].tolist() == [-1.0 if r.is_safe else 1.0 for r in dialogues(6)]
    assert (signs[:, 1] == -1).all()
    batch = collate_texts([rows[0], rows[1]], scorer.pad_id)
    assert batch["input_ids"].shape[0] == 4
    first = rows.dialogues[1][0]["input_ids"]
    assert batch["input_ids"][1, : len(first)].tolist() == first


def test_records_that_do_not_serve_are_refused(random_base: Path, tmp_path: Path) -> None:
    scorer = new_scorer(random_base)
    with pytest.raises(UserError, match="found no records"):
        encode_records(scorer, [], "semantic")
    with pytest.raises(UserError, match="expected PreferencePair"):
        encode_records(scorer, dialogues(2), "reward")
    with pytest.raises(UserError, match="all 5 labels are safe, expected both kinds"):
        safe = [r for r in dialogues(19) if r.is_safe][:5]
        train_scorer(quick(random_base, tmp_path / "one"), safe, dialogues(9))
    unlabelled = [replace(pair, is_response_0_safe=None) for pair in pairs(2)]
    with pytest.raises(UserError, match="is_response"):
        encode_records(scorer, unlabelled, "safe_rlhf")
    assert len(encode_records(scorer, unlabelled, "bradley_terry")) == 2


def test_scoring_leaves_encoded_rows_as_they_were(random_base: Path) -> None:
    scorer = new_scorer(random_base)
    rows: EncodedRows = encode_records(scorer, dialogues(5), "semantic")
    before = json.dumps(rows.dialogues)
    score_rows(scorer, [row for (row,) in rows.dialogues])
    assert json.dumps(rows.dialogues) == before


# --- training ------------------------------------------------------------------------------------------


def quick(base: Path, out: Path, **options: Any) -> ScorerConfig:
    chosen = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 16, "progress": False, **options}
    return ScorerConfig(base=str(base), out=str(out), **chosen)


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_semantic_cost_learns_a_composition(random_base: Path, tmp_path: Path, adaptation: str) -> None:
    """No word tells kill/feed × dog/rumour apart; the scorer must, on prompts it has not seen."""
    out = train_scorer(
        quick(random_base, tmp_path / "cost", adaptation=adaptation, epochs=6),
        dialogues(200),
        dialogues(40, seed=1),
    )
    test = dialogues(60, seed=2)
    scores = score_texts(out, [r.prompt for r in test], [r.response for r in test])
    assert auroc(scores, [not r.is_safe for r in test]) > 0.9
    notes = json.loads((out / "scorer.json").read_text())
    assert notes["objective"] == "semantic" and notes["temperature"] > 0 and notes["train_rows"] == 200
    assert not checkpoint_folder(quick(random_base, out)).exists()


def test_reward_has_unit_deviation_and_ranks(random_base: Path, tmp_path: Path) -> None:
    validation = pairs(30, seed=1)
    out = train_scorer(quick(random_base, tmp_path / "r", objective="reward"), pairs(96), validation)
    prompts = [pair.prompt for pair in validation] * 2
    both = [pair.response_0 for pair in validation] + [pair.response_1 for pair in validation]
    scores = score_texts(out, prompts, both)
    assert scores.std() == pytest.approx(1, abs=1e-4)
    better = np.array([pair.better_response_id for pair in validation])
    first, second = scores[:30], scores[30:]
    assert np.mean(np.where(better == 0, first > second, second > first)) > 0.95


def test_calibration_lowers_the_held_out_cross_entropy(random_base: Path, tmp_path: Path) -> None:
    validation = [*dialogues(40, seed=1), *(replace(r, is_safe=not r.is_safe) for r in dialogues(6, seed=3))]
    columns = [r.prompt for r in validation], [r.response for r in validation]
    unsafe = np.array([not r.is_safe for r in validation])
    losses = {}
    for calibrate in (True, False):
        config = quick(random_base, tmp_path / "c", adaptation="full", epochs=6, calibrate=calibrate)
        scores = score_texts(train_scorer(config, dialogues(160), validation), *columns)
        losses[calibrate] = np.mean(np.logaddexp(0, scores) - unsafe * scores)
    assert losses[True] < losses[False]


@pytest.mark.parametrize("objective", ["semantic", "safe_rlhf", "reward"])
def test_validation_that_cannot_calibrate_stops_nothing(
    random_base: Path, tmp_path: Path, objective: str
) -> None:
    """One label only, or equal scores: said after a training of hours, and no reason to lose it."""
    if objective == "semantic":
        train, one_sided = dialogues(24), [r for r in dialogues(40, seed=1) if r.is_safe]
    else:
        pair = PreferencePair("may i", "same", "same", True, True, 0, 1)
        train, one_sided = pairs(24), [pair, replace(pair, is_response_0_safe=True)]
    config = quick(random_base, tmp_path / "c", objective=objective, epochs=1)
    notes = json.loads((train_scorer(config, train, one_sided) / "scorer.json").read_text())
    assert notes["temperature"] == 1.0
    expected = (
        "are equal" if objective == "reward" else f"all {len(one_sided) * (1 + (objective != 'semantic'))} "
    )
    assert expected in notes["uncalibrated"]
    both = train_scorer(config, train, train)
    assert "uncalibrated" not in json.loads((both / "scorer.json").read_text())


@pytest.mark.parametrize(("most", "read"), [(None, 32), (40, 32), (12, 8), (5, 4), (1, 1)])
def test_a_step_reads_the_whole_batch_and_no_more(tmp_path: Path, most: int | None, read: int) -> None:
    config = ScorerConfig(out=str(tmp_path / "m"), micro_batch_size=most)
    made = training_arguments(config, learning_rate=1e-3, epochs=1, batch_size=32)
    assert made.per_device_train_batch_size == read and read * made.gradient_accumulation_steps == 32


def test_accumulated_micro_batches_are_the_whole_batch(random_base: Path, tmp_path: Path) -> None:
    """One step on 8 pairs, in one pass or in four: the same weights."""
    weights = []
    for micro in (8, 2):
        config = quick(
            random_base, tmp_path / "m", objective="safe_rlhf", batch_size=8, epochs=1, micro_batch_size=micro
        )
        scorer = new_scorer(random_base, adaptation="lora", seed=0)
        reward_modeling._fit(
            config,
            chosen_settings(config, scorer, 8),
            scorer,
            encode_records(scorer, pairs(8), "safe_rlhf"),
            {},
        )
        weights.append(torch.cat([p.flatten() for p in scorer.model.parameters() if p.requires_grad]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


class Stopped(Exception):
    """Raised in the middle of a run, as a power cut would."""


def test_resume_ends_where_an_uninterrupted_run_ends(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build_bert(tmp_path / "bert")  # its dropout makes the random state matter
    config = quick(base, tmp_path / "a", epochs=2, checkpoint_seconds=0.0)
    train = dialogues(64)
    texts = [r.prompt for r in train], [r.response for r in train]
    whole = score_texts(train_scorer(config, train, train), *texts)

    steps = 0
    original = ScorerTrainer.compute_loss

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 7:  # the third step of the second epoch
            raise Stopped
        return original(self, *args, **options)

    config = replace(config, out=str(tmp_path / "b"))
    monkeypatch.setattr(ScorerTrainer, "compute_loss", failing)
    with pytest.raises(Stopped):
        train_scorer(config, train, train)
    assert checkpoint_folder(config).exists() and not Path(config.out).exists()
    resumed = train_scorer(replace(config, resume=True), train, train)
    assert steps == 7 + 2  # steps 7 and 8 only
    assert np.array_equal(score_texts(resumed, *texts), whole)


def test_a_diverging_run_is_a_sentence(random_base: Path, tmp_path: Path) -> None:
    config = quick(random_base, tmp_path / "d", adaptation="full", learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(UserError, match="learning-rate"):
        train_scorer(config, dialogues(64))
    assert list(tmp_path.iterdir()) == []


def test_defaults_follow_the_size(random_base: Path, tmp_path: Path) -> None:
    config = ScorerConfig(base=str(random_base), out=str(tmp_path / "s"))
    adapters, whole = new_scorer(random_base), new_scorer(random_base, adaptation="full")
    assert (
        chosen_settings(config, adapters, 1000).learning_rate
        > chosen_settings(config, whole, 1000).learning_rate
    )
    assert chosen_settings(config, whole, 500).epochs == 5
    assert chosen_settings(config, whole, 5000).epochs == 2
    assert chosen_settings(config, whole, 500_000).epochs == 1
    # A pair is two dialogues: half as many in a batch.
    pairs_config = replace(config, objective="reward")
    assert chosen_settings(pairs_config, whole, 4000).epochs == 2.5
    assert (
        chosen_settings(pairs_config, whole, 4000).batch_size * 2
        == chosen_settings(config, whole, 4000).batch_size
    )
    chosen = replace(config, learning_rate=1e-4, epochs=1.5, batch_size=7)
    assert chosen_settings(chosen, whole, 500) == reward_modeling.Settings(1e-4, 1.5, 7)


# --- folders -------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "scorer.json").write_text("old")

    def fails(folder: Path) -> None:
        folder.mkdir()
        (folder / "scorer.json").write_text("half")
        raise Stopped

    with pytest.raises(Stopped):
        replace_folder(out, fails)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "scorer.json").read_text() == "old"

    def works(folder: Path) -> None:
        folder.mkdir()
        (folder / "scorer.json").write_text("new")

    replace_folder(out, works)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "scorer.json").read_text() == "new"


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other things"):
        check_model_folder(tmp_path)
    with pytest.raises(UserError, match="a file"):
        check_model_folder(tmp_path / "thesis.tex")
    check_model_folder(tmp_path / "new")
