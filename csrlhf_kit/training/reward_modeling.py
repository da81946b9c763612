"""Reward and cost models from human judgements: four objectives, one trainer, one calibration.

| objective | learns from | result |
|---|---|---|
| `semantic` | absolute safe/unsafe labels | CS-RLHF's cost model: binary cross-entropy |
| `safe_rlhf` | which response is safer, and both labels | Safe RLHF's cost model: ranking + sign |
| `bradley_terry` | which response is safer | a cost model from ranking alone |
| `reward` | which response is more helpful | Safe RLHF's reward model |

Read `reward_losses.py` first, then `train_scorer`. The training loop is transformers' Trainer, set up in
`supervised.py`; the models are those of `models.scorers`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from scipy.optimize import minimize_scalar

from csrlhf_kit import distributed
from csrlhf_kit.contents import content_of_records
from csrlhf_kit.data.chat import tell_cut
from csrlhf_kit.data.records import LabelledResponse, Objective, PreferencePair, winner_id
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.classifiers import count_parameters
from csrlhf_kit.models.scorers import (
    Scorer,
    encode,
    fold_temperature,
    new_scorer,
    pad,
    save_scorer,
    score_rows,
)
from csrlhf_kit.outputs import replace_folder, writes_model
from csrlhf_kit.training.configs import ScorerConfig
from csrlhf_kit.training.probing import fit_probe, unfitted_probe
from csrlhf_kit.training.reward_losses import objective_loss
from csrlhf_kit.training.supervised import (
    EpochTrainer,
    TimedCheckpoints,
    clear_checkpoints,
    last_checkpoint,
    mean_loss,
    settings_of,
    training_arguments,
)

MEANING = {
    "semantic": "a cost in logits: above 0 is unsafe, sigmoid(score) = P(unsafe)",
    "safe_rlhf": "a cost in logits: above 0 is unsafe, sigmoid(score) = P(unsafe)",
    "bradley_terry": "a cost: sigmoid(score a - score b) = P(a is worse than b); its zero means nothing",
    "reward": "a reward: the higher the more helpful, standard deviation 1 on the validation split",
}


# --- configuration -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The optimiser settings that `chosen_settings` chose."""

    learning_rate: float
    epochs: float
    batch_size: int


# (parameters up to, peak learning rate)
FULL_RATES = ((5e6, 1e-3), (5e7, 1e-4), (2e8, 3e-5), (float("inf"), 1e-5))
LORA_RATES = ((5e6, 3e-3), (5e7, 1e-3), (5e8, 5e-4), (float("inf"), 2e-4))
RECORDS_READ = 10_000  # aimed at over all epochs, for small data sets


def chosen_settings(config: ScorerConfig, scorer: Scorer, records: int) -> Settings:
    """Learning rate, epochs and batch size: the configured ones, or defaults by the model's and the data's size.

    Small models need larger steps, and so do adapters compared with full matrices. Small data sets get smaller
    batches and more epochs, so that there are enough steps: up to five epochs for a tiny model, up to three for a
    larger one, which would overfit sooner. A batch of pairs has half as many records, since each is two dialogues.
    """
    size = count_parameters(scorer.model)
    trained_whole = count_parameters(scorer.model, trainable=True) > 0.5 * size
    table = FULL_RATES if trained_whole else LORA_RATES
    dialogues = 1 if config.objective == "semantic" else 2
    quarters = -(-4 * RECORDS_READ // max(records, 1))
    batch = (16 if dialogues * records < 2000 else 32) // dialogues
    return Settings(
        learning_rate=config.learning_rate or next(rate for most, rate in table if size <= most),
        epochs=config.epochs or min(max(quarters / 4, 1.0), 5.0 if size <= 5e6 else 3.0),
        batch_size=config.batch_size or batch,
    )


# --- records to rows ---------------------------------------------------------------------------------


@dataclass
class EncodedRows(torch.utils.data.Dataset):
    """Tokenised records: the encoded dialogues of each (one, or winner and loser) and its targets."""

    dialogues: list[tuple[dict[str, list[int]], ...]]
    targets: np.ndarray  # (records,) labels, or (records, 2) signs

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> tuple[tuple[dict[str, list[int]], ...], Any]:
        return self.dialogues[index], self.targets[index]

    def lengths(self) -> list[int]:
        return [max(len(row["input_ids"]) for row in rows) for rows in self.dialogues]


def encode_records(
    scorer: Scorer, records: Sequence[LabelledResponse | PreferencePair], objective: Objective
) -> EncodedRows:
    """Tokenise records once, as `objective` needs them: labelled responses, or (winner, loser) pairs.

    Raises UserError for no records, records of the wrong kind, or missing labels.
    """
    if not records:
        raise UserError(f"objective {objective}: found no records, expected at least one")
    kind = LabelledResponse if objective == "semantic" else PreferencePair
    if not all(isinstance(record, kind) for record in records):
        found = next(type(record).__name__ for record in records if not isinstance(record, kind))
        raise UserError(f"objective {objective}: found records of kind {found}, expected {kind.__name__}")
    if objective == "semantic":
        labelled = cast(Sequence[LabelledResponse], records)
        rows = encode(scorer, [r.prompt for r in labelled], [r.response for r in labelled])
        labels = np.array([not record.is_safe for record in labelled], dtype=np.float32)
        return EncodedRows([(row,) for row in rows], labels)
    pairs = cast(Sequence[PreferencePair], records)
    if objective == "safe_rlhf" and any(None in pair.safety for pair in pairs):
        raise UserError("objective safe_rlhf: found pairs without safety labels, expected is_response_*_safe")
    winners = [winner_id(pair, objective) for pair in pairs]
    rows = encode(
        scorer,
        [pair.prompt for pair in pairs for _ in range(2)],
        [pair.responses[i] for pair, w in zip(pairs, winners, strict=True) for i in (w, 1 - w)],
    )
    signs = np.zeros((len(pairs), 2), dtype=np.float32)
    if objective == "safe_rlhf":
        for index, (pair, winner) in enumerate(zip(pairs, winners, strict=True)):
            signs[index] = [-1.0 if pair.safety[i] else 1.0 for i in (winner, 1 - winner)]
    return EncodedRows(list(zip(rows[::2], rows[1::2], strict=True)), signs)


# --- training ----------------------------------------------------------------------------------------


class ScorerTrainer(EpochTrainer):
    """transformers' Trainer with the objective's loss; pairs take one forward pass of 2 · batch rows."""

    def __init__(self, *, objective: Objective, regularization: float, **options: Any) -> None:
        super().__init__(**options)
        self.objective: Objective = objective
        self.regularization = regularization
        # The loss is a mean over the batch: the Trainer must divide it by the accumulation steps.
        self.loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        targets = inputs.pop("targets")
        outputs = model(**inputs)
        scores = outputs.logits[:, 0].float()  # (batch,) or (2 · batch,)
        loss = objective_loss(self.objective, scores, targets, regularization=self.regularization)
        return (loss, outputs) if return_outputs else loss


def collate_texts(batch: Sequence[Any], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors (batch, length); for pairs all winners, then all losers: (2 · batch, length)."""
    dialogues = [row[position] for position in range(len(batch[0][0])) for row, _ in batch]
    return {**pad(dialogues, pad_id), "targets": torch.from_numpy(np.stack([target for _, target in batch]))}


@writes_model
def train_scorer(
    config: ScorerConfig,
    train: Sequence[LabelledResponse | PreferencePair],
    validation: Sequence[LabelledResponse | PreferencePair] = (),
) -> Path:
    """Train, calibrate on `validation`, and save a scorer to `config.out`; returns that folder.

    Arguments and errors are those of `fit_scorer`.
    """
    scorer = fit_scorer(config, train, validation)
    distributed.on_main(lambda: replace_folder(Path(config.out), lambda folder: save_scorer(scorer, folder)))
    clear_checkpoints(config)
    return Path(config.out)


@writes_model
def fit_scorer(
    config: ScorerConfig,
    train: Sequence[LabelledResponse | PreferencePair],
    validation: Sequence[LabelledResponse | PreferencePair] = (),
    test: Sequence[LabelledResponse | PreferencePair] = (),
) -> Scorer:
    """Train a scorer and calibrate it on `validation`; nothing but checkpoints is written.

    config: base, objective, optimiser settings. train: `LabelledResponse`s for the `semantic` objective,
    `PreferencePair`s for the others. validation: records of the same kind to calibrate on; empty: no calibration.
    test: records for a later test; a resumed run must have the same ones.
    Raises UserError if the base or the records cannot be used, `config.out` holds something that is no scorer, or
    a run with other settings would be resumed.
    """
    started = time.perf_counter()
    scorer = unfitted_probe(config) if config.adaptation == "probe" else new_scorer(
        config.base, adaptation=config.adaptation, rank=config.rank, alpha=config.alpha,
        layers=config.layers, dropout=config.dropout, max_length=config.max_length, dtype=config.dtype,
        quantization=config.quantization, seed=config.seed,
    )  # fmt: skip
    rows = encode_records(scorer, train, config.objective)
    if config.objective == "semantic" and len(set(rows.targets)) == 1:
        label = "unsafe" if rows.targets[0] else "safe"
        raise UserError(f"objective semantic: all {len(rows)} labels are {label}, expected both kinds")
    tell_cut(scorer.cut, sum(map(len, rows.dialogues)), scorer.max_length, "dialogues")
    held_out = encode_records(scorer, validation, config.objective) if validation else None
    if config.adaptation == "probe":
        trained = fit_probe(config, scorer, [row for (row,) in rows.dialogues], rows.targets)
    else:
        chosen = chosen_settings(config, scorer, len(rows))
        contents = {"data": content_of_records(train, validation), "test_data": content_of_records(test)}
        trained = {"train_loss": _fit(config, chosen, scorer, rows, contents), **asdict(chosen)}
    divisor, uncalibrated = 1.0, ""
    if config.calibrate and held_out:
        divisor, uncalibrated = calibrate(scorer, held_out, config)
    scorer.notes = {
        "objective": config.objective,
        "meaning": MEANING[config.objective],
        "temperature": divisor,
        **({"uncalibrated": uncalibrated} if uncalibrated else {}),
        "train_rows": len(rows),
        "validation_rows": len(validation),
        **trained,
        "parameters": count_parameters(scorer.model),
        "trained_parameters": count_parameters(scorer.model, trainable=True),
        "seconds": round(time.perf_counter() - started, 2),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "resume", "progress")},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return scorer


def _fit(
    config: ScorerConfig, chosen: Settings, scorer: Scorer, rows: EncodedRows, contents: dict[str, str]
) -> float:
    settings = settings_of(config, contents, **asdict(chosen))
    last = last_checkpoint(config, settings)
    arguments = training_arguments(config, **asdict(chosen))
    trainer = ScorerTrainer(
        objective=config.objective, regularization=config.regularization, model=scorer.model,
        args=arguments, train_dataset=rows, lengths=rows.lengths(), data_collator=lambda batch: collate_texts(batch, scorer.pad_id),
        callbacks=[TimedCheckpoints(config.checkpoint_seconds, settings)],
    )  # fmt: skip
    result = trainer.train(resume_from_checkpoint=last)
    loss = mean_loss(result)
    if not np.isfinite(loss):
        clear_checkpoints(config)
        raise UserError(
            f"training of {config.out}: the loss is {loss}, expected a finite one; lower --learning-rate "
            f"(it was {chosen.learning_rate:g})"
        )
    return loss


# --- calibration -------------------------------------------------------------------------------------


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises the cross-entropy of σ(score / T) against the labels.

    Labels are smoothed to (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2) (Platt 1999), so that T stays away from 0 if the
    scores separate the classes without error.

    scores: logits, (rows,). labels: 1 or 0, (rows,).
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    scores = np.asarray(scores, dtype=np.float64)
    positive = np.asarray(labels, dtype=bool)
    high = (positive.sum() + 1) / (positive.sum() + 2)
    low = 1 / ((~positive).sum() + 2)
    targets = np.where(positive, high, low)

    def cross_entropy(log_temperature: float) -> float:
        logits = scores / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))

    # The function is convex in the inverse temperature, so it has one minimum in the logarithm.
    return float(np.exp(minimize_scalar(cross_entropy, bounds=(-5.0, 5.0), method="bounded").x))


def calibrate(scorer: Scorer, rows: EncodedRows, config: ScorerConfig) -> tuple[float, str]:
    """Fit a divisor of the scores on held-out rows and fold it into the head; return (it, "") or (1, why not).

    For costs with absolute labels it is the temperature of P(unsafe), for ranking alone that of P(a worse than
    b), for rewards the standard deviation of the scores, which so becomes the unit of reward.
    """
    with_labels = config.objective in ("semantic", "safe_rlhf")
    if with_labels and rows.targets.min() == rows.targets.max():
        label = "unsafe" if rows.targets.max() > 0 else "safe"
        return 1.0, f"all {rows.targets.size} responses for validation are {label}"
    flat = [row for dialogues in rows.dialogues for row in dialogues]
    scores = score_rows(scorer, flat)
    if with_labels:
        divisor = fit_temperature(scores, rows.targets.ravel() > 0)
    elif config.objective == "bradley_terry":
        divisor = fit_temperature(scores[::2] - scores[1::2], np.ones(len(rows)))
    else:
        divisor = float(scores.std())
        if divisor < 1e-6:
            return 1.0, "the scores of all responses for validation are equal"
    fold_temperature(scorer, divisor)
    return divisor, ""
