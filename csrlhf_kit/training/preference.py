"""Reward and cost models from human judgements: four objectives, one trainer, one calibration.

| objective | learns from | is |
|---|---|---|
| `semantic` | absolute safe/unsafe labels | CS-RLHF's cost model: binary cross-entropy |
| `safe_rlhf` | which response is safer, and both labels | Safe RLHF's cost model: ranking + sign |
| `bradley_terry` | which response is safer | a cost model from ranking alone |
| `reward` | which response is more helpful | Safe RLHF's reward model |

Read `semantic_loss` ... `reward_loss` first, then `train_scorer`. The training loop is transformers' Trainer.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from scipy.optimize import minimize_scalar
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.scorers import (
    MAX_LENGTH,
    Scorer,
    count_parameters,
    encode,
    fold_temperature,
    new_scorer,
    pad,
    save_scorer,
    score_rows,
)

Objective = Literal["semantic", "safe_rlhf", "bradley_terry", "reward"]

MEANING = {
    "semantic": "a cost in logits: above 0 is unsafe, sigmoid(score) = P(unsafe)",
    "safe_rlhf": "a cost in logits: above 0 is unsafe, sigmoid(score) = P(unsafe)",
    "bradley_terry": "a cost: sigmoid(score a - score b) = P(a is worse than b); its zero means nothing",
    "reward": "a reward: the higher the more helpful, standard deviation 1 on the validation split",
}


# --- objectives: pure functions of scores ------------------------------------------------------------


def semantic_loss(costs: torch.Tensor, unsafe: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy on absolute labels: −u log σ(C) − (1 − u) log σ(−C), mean over the batch.

    Args:
        costs: Scores C, (batch,).
        unsafe: 1 for unsafe, 0 for safe, (batch,).

    Source: CS-RLHF, arXiv 2510.03520, and the cost-model training of its released code.
    """
    return F.binary_cross_entropy_with_logits(costs, unsafe.to(costs.dtype))


def bradley_terry_loss(winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """Ranking alone: −log σ(S_w − S_l), mean over the pairs.

    It is unchanged when a constant is added to every score: its zero means nothing, which is why such a
    cost model cannot say "safe" or "unsafe".

    Args:
        winners: Scores S_w of the more harmful (cost) or more helpful (reward) responses, (batch,).
        losers: Scores S_l of the others, (batch,).

    Source: Bradley & Terry 1952; Christiano et al. 2017, arXiv 1706.03741.
    """
    return -F.logsigmoid(winners - losers).mean()


def score_regularizer(winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """(S_w² + S_l²) / 2, mean over the pairs: keeps the scores near 0. Source: safe-rlhf's trainers."""
    return (winners.square() + losers.square()).mean() / 2


def reward_loss(
    winners: torch.Tensor, losers: torch.Tensor, *, regularization: float = 0.001
) -> torch.Tensor:
    """−log σ(R_w − R_l) + regularization · (R_w² + R_l²) / 2, mean over the pairs.

    Args:
        winners: Rewards R_w of the more helpful responses, (batch,).
        losers: Rewards R_l of the others, (batch,).
        regularization: Weight of the squared scores.

    Source: Safe RLHF, arXiv 2310.12773, and safe-rlhf's reward trainer (0.001).
    """
    return bradley_terry_loss(winners, losers) + regularization * score_regularizer(winners, losers)


def ranking_sign_loss(
    winners: torch.Tensor,
    losers: torch.Tensor,
    winner_signs: torch.Tensor,
    loser_signs: torch.Tensor,
    *,
    regularization: float = 0.001,
) -> torch.Tensor:
    """−log σ(C_w − C_l) − log σ(s_w C_w) − log σ(s_l C_l) + regularization · (C_w² + C_l²) / 2, mean.

    Args:
        winners: Costs C_w of the more harmful responses, (batch,).
        losers: Costs C_l of the less harmful ones, (batch,).
        winner_signs: s_w: +1 where the response is unsafe, −1 where it is safe, (batch,).
        loser_signs: s_l, likewise, (batch,).
        regularization: Weight of the squared scores.

    Source: Safe RLHF, arXiv 2310.12773, equation of the cost model, and safe-rlhf's cost trainer.
    """
    signs = -F.logsigmoid(winner_signs * winners) - F.logsigmoid(loser_signs * losers)
    return (
        bradley_terry_loss(winners, losers)
        + signs.mean()
        + regularization * score_regularizer(winners, losers)
    )


def objective_loss(
    objective: Objective, scores: torch.Tensor, targets: torch.Tensor, *, regularization: float
) -> torch.Tensor:
    """The loss of one batch as the trainer sees it.

    Args:
        objective: Which of the four.
        scores: (batch,) for `semantic`; (2 · batch,) for pairs, the winners first, then the losers.
        targets: (batch,) labels, 1 unsafe, for `semantic`; (batch, 2) signs of winner and loser for pairs.
        regularization: Weight of the squared scores; `semantic` and `bradley_terry` have none.
    """
    if objective == "semantic":
        return semantic_loss(scores, targets)
    winners, losers = scores.chunk(2)
    if objective == "bradley_terry":
        return bradley_terry_loss(winners, losers)
    if objective == "reward":
        return reward_loss(winners, losers, regularization=regularization)
    return ranking_sign_loss(winners, losers, targets[:, 0], targets[:, 1], regularization=regularization)


# --- configuration -----------------------------------------------------------------------------------


@dataclass
class ScorerConfig:
    """How a reward or cost model is trained. None means: chosen by the model's size (see `settled`)."""

    base: str = "data/tiny_base"
    """Base model: a folder, or a hub id."""
    out: str = "runs/scorer"
    """Folder of the trained scorer; a scorer that is there already is replaced when the new one is done."""
    objective: Objective = "semantic"
    """semantic | safe_rlhf | bradley_terry | reward: what is learnt, and from which judgements."""
    adaptation: Literal["auto", "lora", "full"] = "auto"
    """lora: adapters and head; full: every weight; auto: lora for decoders, full for encoders."""
    rank: int = 16
    """Rank of LoRA's update."""
    alpha: float = 32.0
    """Scale of LoRA's update, which is alpha / rank · B A."""
    dropout: float | None = None
    """Dropout while training; None: an encoder's own, none for decoders. Always off when scoring."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; warms up, then falls to 0."""
    epochs: float | None = None
    """Passes over the training split."""
    batch_size: int | None = None
    """Records (rows or pairs) of one optimiser step."""
    micro_batch_size: int | None = None
    """Records of one forward pass, where memory is short; None: the whole batch."""
    max_length: int = MAX_LENGTH
    """Most tokens of a dialogue; what is beyond is cut."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Gradient norm beyond which gradients are scaled down."""
    regularization: float = 0.001
    """Weight of the squared scores in the `safe_rlhf` and `reward` objectives."""
    calibrate: bool = True
    """Fold a temperature (costs) or a scale (rewards), fitted on the validation split, into the head."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of frozen weights; what is trained stays float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: frozen weights in 4 bit (QLoRA), for large bases on one GPU."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints; a run that is shorter writes none."""
    resume: bool = False
    """Continue from the last checkpoint of a run to the same --out that was stopped."""
    report_to: str = "none"
    """Tracker of the Trainer: none, tensorboard, wandb ..."""
    progress: bool = True
    """Show a progress bar."""
    seed: int = 0
    """Seed of the head, the adapters, the order of the data and dropout."""


@dataclass(frozen=True)
class Settings:
    """What `settled` chose."""

    learning_rate: float
    epochs: float
    batch_size: int


# (parameters up to, peak learning rate)
FULL_RATES = ((5e6, 1e-3), (5e7, 1e-4), (2e8, 3e-5), (float("inf"), 1e-5))
LORA_RATES = ((5e6, 3e-3), (5e7, 1e-3), (5e8, 5e-4), (float("inf"), 2e-4))
RECORDS_READ = 10_000  # over all epochs, where the data are few


def settled(config: ScorerConfig, scorer: Scorer, records: int) -> Settings:
    """Learning rate, epochs and batch size: those asked for, or defaults by the model's and the data's size.

    Small models take, and need, larger steps; adapters take larger ones than whole matrices. Few records
    are read more often and in smaller batches, so that there are enough steps to learn anything: up to five
    times by a tiny model, up to three by a larger one, which soon knows a small data set by heart. A batch
    of pairs is half as many records, since each is two dialogues.
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
    """Tokenised records: for each a list of encoded dialogues (one, or winner and loser) and its targets."""

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

    Raises:
        UserError: there are none, they are of the other kind, or lack the labels that the objective needs.
    """
    if not records:
        raise UserError(f"objective {objective}: found no records, expected at least one")
    kind = LabelledResponse if objective == "semantic" else PreferencePair
    if not all(isinstance(record, kind) for record in records):
        found = next(type(record).__name__ for record in records if not isinstance(record, kind))
        raise UserError(f"objective {objective}: found records of kind {found}, expected {kind.__name__}")
    if objective == "semantic":
        rows = encode(scorer, [r.prompt for r in records], [r.response for r in records])
        labels = np.array([not record.is_safe for record in records], dtype=np.float32)
        if labels.min() == labels.max():
            label = "unsafe" if labels[0] else "safe"
            raise UserError(f"objective semantic: all {len(labels)} labels are {label}, expected both kinds")
        return EncodedRows([(row,) for row in rows], labels)
    if objective == "safe_rlhf" and any(None in record.safety for record in records):
        raise UserError("objective safe_rlhf: found pairs without safety labels, expected is_response_*_safe")
    winners = [winner_id(record, objective) for record in records]
    rows = encode(
        scorer,
        [record.prompt for record in records for _ in range(2)],
        [record.responses[i] for record, w in zip(records, winners, strict=True) for i in (w, 1 - w)],
    )
    signs = np.zeros((len(records), 2), dtype=np.float32)
    if objective == "safe_rlhf":
        for index, (record, winner) in enumerate(zip(records, winners, strict=True)):
            signs[index] = [-1.0 if record.safety[i] else 1.0 for i in (winner, 1 - winner)]
    return EncodedRows(list(zip(rows[::2], rows[1::2], strict=True)), signs)


def winner_id(pair: PreferencePair, objective: Objective) -> int:
    """0 or 1: the response whose score should be higher. For costs that is the more harmful one."""
    return pair.better_response_id if objective == "reward" else 1 - pair.safer_response_id


# --- training ----------------------------------------------------------------------------------------


class ScorerTrainer(Trainer):
    """transformers' Trainer with our objective; pairs are one forward pass of 2 · batch rows."""

    def __init__(self, *, objective: Objective, regularization: float, **options: Any) -> None:
        super().__init__(**options)
        self.objective = objective
        self.regularization = regularization
        # Our loss is a mean over the batch: the Trainer divides it by the accumulation steps.
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

    def _get_train_sampler(self, train_dataset: EncodedRows | None = None) -> LengthGroupedSampler:
        return EpochSampler(self, (train_dataset or self.train_dataset).lengths())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Counting them walks over every parameter at every step, and nothing here reads the count."""
        return 0


class EpochSampler(LengthGroupedSampler):
    """Rows of like length together, in an order that follows from the seed and the epoch alone.

    The Trainer's own length grouping draws from the global generator, so that a run which is resumed within
    its second epoch would see the rest of that epoch in another order.
    """

    def __init__(self, trainer: Trainer, lengths: list[int]) -> None:
        super().__init__(trainer.args.train_batch_size, lengths=lengths, generator=torch.Generator())
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        self.generator.manual_seed(self.trainer.args.seed * 100_003 + epoch)
        return super().__iter__()


class TimedCheckpoints(TrainerCallback):
    """Ask the Trainer for a checkpoint whenever `seconds` have passed since the last one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self.last >= self.seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


def collate(batch: Sequence[Any], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors; for pairs all winners come first, then all losers: (2 · batch, length)."""
    dialogues = [row[position] for position in range(len(batch[0][0])) for row, _ in batch]
    return {**pad(dialogues, pad_id), "targets": torch.from_numpy(np.stack([target for _, target in batch]))}


def train_scorer(
    config: ScorerConfig,
    train: Sequence[LabelledResponse | PreferencePair],
    validation: Sequence[LabelledResponse | PreferencePair] = (),
) -> Path:
    """Train, calibrate on `validation`, and save a scorer to `config.out`; returns that folder.

    Arguments and errors are those of `fit_scorer`.
    """
    scorer = fit_scorer(config, train, validation)
    replace_folder(Path(config.out), lambda folder: save_scorer(scorer, folder))
    clear_checkpoints(config)
    return Path(config.out)


def fit_scorer(
    config: ScorerConfig,
    train: Sequence[LabelledResponse | PreferencePair],
    validation: Sequence[LabelledResponse | PreferencePair] = (),
) -> Scorer:
    """Train a scorer and calibrate it on `validation`; nothing but checkpoints is written.

    Args:
        config: Base, objective, optimiser settings.
        train: `LabelledResponse`s for the `semantic` objective, `PreferencePair`s for the others.
        validation: Records of the same kind to calibrate on; empty: no calibration.

    Raises:
        UserError: the base or the records do not serve, or `config.out` holds something that is no scorer.
    """
    check_out(Path(config.out))
    started = time.perf_counter()
    scorer = new_scorer(
        config.base,
        adaptation=config.adaptation,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        max_length=config.max_length,
        dtype=config.dtype,
        quantization=config.quantization,
        seed=config.seed,
    )
    rows = encode_records(scorer, train, config.objective)
    held_out = encode_records(scorer, validation, config.objective) if validation else None
    chosen = settled(config, scorer, len(rows))
    loss = _fit(config, chosen, scorer, rows)
    divisor = calibrate(scorer, held_out, config) if config.calibrate and held_out else 1.0
    scorer.notes = {
        "objective": config.objective,
        "meaning": MEANING[config.objective],
        "temperature": divisor,
        "train_rows": len(rows),
        "validation_rows": len(validation),
        "train_loss": loss,
        "learning_rate": chosen.learning_rate,
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "parameters": count_parameters(scorer.model),
        "trained_parameters": count_parameters(scorer.model, trainable=True),
        "seconds": round(time.perf_counter() - started, 2),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "resume", "progress")},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return scorer


def _fit(config: ScorerConfig, chosen: Settings, scorer: Scorer, rows: EncodedRows) -> float:
    checkpoints = checkpoint_folder(config)
    if not config.resume:
        clear_checkpoints(config)
    micro = min(config.micro_batch_size or chosen.batch_size, chosen.batch_size)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=-(-chosen.batch_size // micro),
        num_train_epochs=chosen.epochs,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        seed=config.seed,
        save_strategy="no",  # TimedCheckpoints asks for them
        save_total_limit=1,
        eval_strategy="no",
        logging_steps=50,
        logging_nan_inf_filter=False,
        disable_tqdm=not config.progress,
        report_to=config.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = ScorerTrainer(
        objective=config.objective,
        regularization=config.regularization,
        model=scorer.model,
        args=arguments,
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, scorer.pad_id),
        callbacks=[TimedCheckpoints(config.checkpoint_seconds)],
    )
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(checkpoints)) if config.resume and checkpoints.exists() else None
    result = trainer.train(resume_from_checkpoint=last)
    loss = float(result.training_loss)
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

    Labels are smoothed as Platt (1999) proposes, (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), so that T stays
    away from 0 when the scores separate the classes without error.

    Args:
        scores: Logits, (rows,).
        labels: 1 or 0, (rows,).

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

    # In the inverse temperature the function is convex, in its logarithm it therefore has one valley.
    return float(np.exp(minimize_scalar(cross_entropy, bounds=(-5.0, 5.0), method="bounded").x))


def calibrate(scorer: Scorer, rows: EncodedRows, config: ScorerConfig) -> float:
    """Fit a divisor of the scores on held-out rows, fold it into the head, and return it.

    Costs with absolute labels: the temperature of P(unsafe). Ranking alone: that of P(a worse than b).
    Rewards: the standard deviation of the scores, so that one reward unit is one standard deviation.
    """
    flat = [row for dialogues in rows.dialogues for row in dialogues]
    scores = score_rows(scorer, flat)
    if config.objective == "semantic":
        divisor = fit_temperature(scores, rows.targets)
    elif config.objective == "safe_rlhf":
        divisor = fit_temperature(scores, rows.targets.ravel() > 0)
    elif config.objective == "bradley_terry":
        divisor = fit_temperature(scores[::2] - scores[1::2], np.ones(len(rows)))
    else:
        divisor = float(scores.std())
        if divisor < 1e-6:
            raise UserError("reward model: all validation scores are equal, expected them to differ")
    fold_temperature(scorer, divisor)
    return divisor


# --- folders -----------------------------------------------------------------------------------------


def check_out(out: Path) -> None:
    """Refuse to replace a folder that does not look like one of ours, before an hour is spent on it.

    Raises:
        UserError: `out` is a file, or a folder with something else in it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: found a file, expected a folder or nothing")
    ours = ("scorer.json", "sft.json")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in ours):
        raise UserError(f"--out {out}: found a folder with other things in it, expected an empty or new one")


def checkpoint_folder(config: Any) -> Path:
    """Where a run to `config.out` keeps its checkpoints until it is done: a hidden folder beside it."""
    out = Path(config.out)
    return out.parent / f".{out.name}.checkpoints"


def clear_checkpoints(config: Any) -> None:
    """Delete the checkpoints of a run that is done, or that is started afresh."""
    shutil.rmtree(checkpoint_folder(config), ignore_errors=True)


def replace_folder(out: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary folder beside `out`, then give it the name `out` in one rename."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = out.parent / f".{out.name}.new", out.parent / f".{out.name}.old"
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        write(fresh)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
