"""What `sft.py` and `reward_modeling.py` share: settings, the arguments of transformers' Trainer, and checkpoints.

Checkpoints are written by the clock, and a resumed run sees the data in the same order.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from csrlhf_kit import distributed
from csrlhf_kit.contents import check_same, content_of
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import read_json, write_atomic
from csrlhf_kit.models.places import find_base
from csrlhf_kit.training.configs import SupervisedConfig

OPTIMIZERS = {  # the Trainer's names
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
SETTINGS = "settings.json"  # beside the checkpoints
# Settings that may change when a run is resumed.
FREE = ("out", "resume", "progress", "report_to", "checkpoint_seconds", "gradient_checkpointing", "strict")


def training_arguments(
    config: SupervisedConfig, *, learning_rate: float, epochs: float, batch_size: int, sharded: bool = False
) -> TrainingArguments:
    """The Trainer's arguments for `config`; the keyword arguments replace what it leaves open.

    sharded: split weights, gradients and moments over the processes, layer by layer (Accelerate's FSDP2).
    Raises UserError if the batch cannot be divided among the processes.
    """
    distributed.check_divisible(batch_size=batch_size)
    each = batch_size // distributed.count()
    micro = max(
        n for n in range(1, each + 1) if each % n == 0 and n <= max(config.micro_batch_size or each, 1)
    )
    return TrainingArguments(
        output_dir=str(checkpoint_folder(config)),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=each // micro,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=OPTIMIZERS[config.optimizer],
        activation_checkpointing=config.gradient_checkpointing and not sharded,
        activation_checkpointing_kwargs={"use_reentrant": False},
        fsdp=sharded or None,  # type: ignore[arg-type]  # a bool, as its documentation says
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
    """The mean training loss over all processes, each of which knows only its own."""
    loss = torch.tensor(result.training_loss, device=distributed.device())
    return float(distributed.summed(loss)) / distributed.count()


class EpochSampler(LengthGroupedSampler):
    """Batches of rows of similar length, in an order that follows from the seed and the epoch alone.

    The Trainer's own length grouping draws from the global generator, so that a run resumed within its second
    epoch would see the rest of that epoch in another order.
    """

    def __init__(self, trainer: Trainer, lengths: list[int]) -> None:
        together = trainer.args.train_batch_size * distributed.count()  # rows of all processes per step
        super().__init__(together, lengths=lengths, generator=torch.Generator())
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        self.generator.manual_seed(self.trainer.args.seed * 100_003 + epoch)
        return super().__iter__()


class EpochTrainer(Trainer):
    """transformers' Trainer with `EpochSampler` and without its printed metrics.

    lengths: the tokens of each training row. The loss is the Trainer's own: a mean over the labels of a batch.
    """

    def __init__(self, *, lengths: list[int], **options: Any) -> None:
        super().__init__(**options)
        self.lengths = lengths
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(self, self.lengths)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: counting would visit every parameter at every step, and nothing here reads the count."""
        return 0


class TimedCheckpoints(TrainerCallback):
    """Ask the Trainer for a checkpoint whenever `seconds` have passed since the last one.

    settings: what a resumed run must have in common with this one; written beside the checkpoint, before it.
    """

    def __init__(self, seconds: float, settings: Mapping[str, Any]) -> None:
        self.seconds = seconds
        self.settings = json.dumps(settings, indent=1) + "\n"
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = torch.tensor(float(time.monotonic() - self.last >= self.seconds), device=distributed.device())
        # Clocks differ slightly, and a process that saves alone would wait for the others for ever.
        if state.global_step < state.max_steps and float(distributed.largest(due)) > 0:
            distributed.on_main(lambda: write_atomic(Path(args.output_dir) / SETTINGS, self.settings))
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


# --- checkpoints -------------------------------------------------------------------------------------


def checkpoint_folder(config: Any) -> Path:
    """The hidden folder of a run's checkpoints: in `config.out` if that exists (it may be a mount point), else beside."""
    out = Path(os.path.realpath(config.out))
    beside = out.parent / f".{out.name}.checkpoints"
    return out / ".checkpoints" if out.is_dir() and not beside.exists() else beside


def clear_checkpoints(config: Any) -> None:
    """Delete the checkpoints of a finished run, or of one that is about to start afresh."""
    distributed.on_main(lambda: shutil.rmtree(checkpoint_folder(config), ignore_errors=True))


def settings_of(config: SupervisedConfig, contents: Mapping[str, str], **settled: Any) -> dict[str, Any]:
    """What must be the same when a run is resumed; settled: values for what the configuration leaves open."""
    asked = {k: v for k, v in asdict(config).items() if k not in FREE}
    return asked | settled | {"contents": {"base": content_of(find_base(config.base)), **contents}}


def last_checkpoint(config: SupervisedConfig, settings: Mapping[str, Any]) -> str | None:
    """The newest whole checkpoint of a run to be resumed, if any. Without `config.resume`, checkpoints are deleted.

    Raises UserError if the checkpoints are of a run with other settings.
    """
    folder = checkpoint_folder(config)
    if not config.resume:
        clear_checkpoints(config)
        return None
    # The Trainer writes its state last: a checkpoint without one is incomplete.
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    if not whole:
        return None
    file = folder / SETTINGS
    if not file.is_file():
        raise UserError(f"{folder} does not say how its run began: expected {SETTINGS}, or no --resume")
    check_same(read_json(file), json.loads(json.dumps(settings)), str(config.out))
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
