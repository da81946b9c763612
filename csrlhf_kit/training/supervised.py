"""What fine-tuning and the scorers share: settings, transformers' Trainer set up for them, and their folders.

Training is supervised in both: a Trainer, checkpoints by the clock, an order of the data that a resumed run
repeats, and a folder that appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from csrlhf_kit import distributed
from csrlhf_kit.contents import check_same, content_of
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.places import SHIPPED, find_base
from csrlhf_kit.training.optimizers import OptimizerName

OPTIMIZERS = {  # the Trainer's names
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
SETTINGS = "settings.json"  # beside the checkpoints
# What may change when a run goes on.
FREE = ("out", "resume", "progress", "report_to", "checkpoint_seconds", "gradient_checkpointing", "strict")


@dataclass
class SupervisedConfig:
    """Base model, adapters and optimiser of a supervised run."""

    base: str = SHIPPED
    """Base model: a folder, a hub id, `shipped` (the tiny base), or a policy of `csrlhf sft`."""
    out: str = "runs/supervised"
    """Folder of the trained model; a model that is there already is replaced when the new one is done."""
    rank: int = 16
    """Rank of LoRA's update."""
    alpha: float = 32.0
    """Scale of LoRA's update, which is alpha / rank · B A."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW, which warms up, then falls to 0; None: by the model's size."""
    epochs: float | None = None
    """Passes over the training split; None: by the size of model and data."""
    batch_size: int | None = None
    """Records of one optimiser step; None: by the size of the data."""
    micro_batch_size: int | None = None
    """Records of one forward pass, where memory is short; None: the whole batch."""
    max_length: int = 512
    """Most tokens of a dialogue; what is beyond is cut from the prompt's start."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Gradient norm beyond which gradients are scaled down."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of frozen weights; what is trained stays float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: frozen weights in 4 bit (QLoRA), for large bases on one GPU."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw_8bit: its moments in 8 bit; paged_adamw_8bit: moved to the host when a GPU's memory is short."""
    gradient_checkpointing: bool = False
    """Keep one state a layer and compute the rest again in the backward pass: less memory, a third more time."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints; a run that is shorter writes none."""
    resume: bool = False
    """Continue from the last checkpoint of a run to the same --out that was stopped."""
    report_to: str = "none"
    """Tracker of the Trainer: none, tensorboard, wandb ..."""
    progress: bool = True
    """Show a progress bar."""
    strict: bool = False
    """Refuse data with any row that lacks an answer or a label; else up to 1% of such rows are left out."""
    seed: int = 0
    """Seed of fresh weights, of the order of the data and of dropout."""


def training_arguments(
    config: SupervisedConfig, *, learning_rate: float, epochs: float, batch_size: int, sharded: bool = False
) -> TrainingArguments:
    """The Trainer's arguments for `config`, with what it leaves open settled.

    sharded: weights, gradients and moments are split over the processes, layer by layer (FSDP2, by Accelerate).
    """
    distributed.check_divisible(batch_size=batch_size)
    each = batch_size // distributed.count()
    micro = min(config.micro_batch_size or each, each)
    return TrainingArguments(
        output_dir=str(checkpoint_folder(config)),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=-(-each // micro),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=OPTIMIZERS[config.optimizer],
        activation_checkpointing=config.gradient_checkpointing and not sharded,
        activation_checkpointing_kwargs={"use_reentrant": False},
        fsdp=sharded or None,
        fsdp_config={"version": 2, "activation_checkpointing": config.gradient_checkpointing}
        if sharded
        else None,
        bf16=config.dtype == "bfloat16",
        seed=config.seed,
        save_strategy="no",  # TimedCheckpoints asks for them
        save_total_limit=1,
        eval_strategy="no",
        logging_steps=50,
        logging_nan_inf_filter=False,
        disable_tqdm=not (config.progress and distributed.is_main()),
        report_to=config.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )


def mean_loss(result: TrainOutput) -> float:
    """A finished training's mean loss over all processes, each of which knows that of its share."""
    loss = torch.tensor(result.training_loss, device=distributed.device())
    return float(distributed.summed(loss)) / distributed.count()


class EpochSampler(LengthGroupedSampler):
    """Rows of like length together, in an order that follows from the seed and the epoch alone.

    The Trainer's own length grouping draws from the global generator, so that a run which is resumed within
    its second epoch would see the rest of that epoch in another order.
    """

    def __init__(self, trainer: Trainer, lengths: list[int]) -> None:
        together = trainer.args.train_batch_size * distributed.count()  # rows that all processes read at once
        super().__init__(together, lengths=lengths, generator=torch.Generator())
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        self.generator.manual_seed(self.trainer.args.seed * 100_003 + epoch)
        return super().__iter__()


class TimedCheckpoints(TrainerCallback):
    """Ask the Trainer for a checkpoint whenever `seconds` have passed since the last one.

    settings: what a run that goes on from it has to be asked for; written beside it, and first.
    """

    def __init__(self, seconds: float, settings: Mapping[str, Any]) -> None:
        self.seconds = seconds
        self.settings = json.dumps(settings, indent=1) + "\n"
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = torch.tensor(float(time.monotonic() - self.last >= self.seconds), device=distributed.device())
        # Clocks differ by a moment, and a process that saves alone waits for the others for ever.
        if state.global_step < state.max_steps and float(distributed.largest(due)) > 0:
            distributed.on_main(lambda: write_atomic(Path(args.output_dir) / SETTINGS, self.settings))
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


# --- checkpoints -------------------------------------------------------------------------------------


def checkpoint_folder(config: Any) -> Path:
    """Where a run to `config.out` keeps its checkpoints until it is done: hidden, in that folder where there is
    one (it may be a mount point), else beside it.
    """
    out = Path(os.path.realpath(config.out))
    beside = out.parent / f".{out.name}.checkpoints"
    return out / ".checkpoints" if out.is_dir() and not beside.exists() else beside


def clear_checkpoints(config: Any) -> None:
    """Delete the checkpoints of a run that is done, or that is started afresh."""
    distributed.on_main(lambda: shutil.rmtree(checkpoint_folder(config), ignore_errors=True))


def settings_of(config: SupervisedConfig, contents: Mapping[str, str], **settled: Any) -> dict[str, Any]:
    """What has to be the same when a run goes on; settled: what the configuration leaves open."""
    asked = {k: v for k, v in asdict(config).items() if k not in FREE}
    return asked | settled | {"contents": {"base": content_of(find_base(config.base)), **contents}}


def last_checkpoint(config: SupervisedConfig, settings: Mapping[str, Any]) -> str | None:
    """The newest whole checkpoint, for a run that is resumed; one that is not loses those that are there.

    Raises UserError where the checkpoints are those of a run with other settings.
    """
    folder = checkpoint_folder(config)
    if not config.resume:
        clear_checkpoints(config)
        return None
    # The Trainer writes its state last: a checkpoint without was being written when the process was killed.
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    if not whole:
        return None
    file = folder / SETTINGS
    if not file.is_file():
        raise UserError(f"{folder} does not say how its run began: expected {SETTINGS}, or no --resume")
    check_same(json.loads(file.read_text()), json.loads(json.dumps(settings)), str(config.out))
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
