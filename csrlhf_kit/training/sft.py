"""Supervised fine-tuning of a policy on dialogues, which PPO can then start from and be compared with.

The loss is the cross-entropy of the response's tokens and its end token; the prompt's tokens have no loss. Trained
by transformers' Trainer (set up in `supervised.py`), saved as a plain causal language model or a PEFT adapter.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model

from csrlhf_kit import distributed
from csrlhf_kit.contents import content_of_records
from csrlhf_kit.data.chat import encode_dialogues, tell_cut
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_base, load_tokenizer, save_model
from csrlhf_kit.models.classifiers import count_parameters, has_conv1d, quiet
from csrlhf_kit.models.places import note_base
from csrlhf_kit.outputs import replace_folder, writes_model
from csrlhf_kit.training.configs import SFTConfig
from csrlhf_kit.training.supervised import (
    EpochTrainer,
    TimedCheckpoints,
    clear_checkpoints,
    last_checkpoint,
    mean_loss,
    settings_of,
    training_arguments,
)

IGNORED = -100  # the label that cross-entropy skips


@writes_model
def train_sft(
    config: SFTConfig, train: Sequence[LabelledResponse], validation: Sequence[LabelledResponse] = ()
) -> dict[str, Any]:
    """Fine-tune `config.base` on the responses of `train` and save it to `config.out`.

    Returns `rows`, `dropped` (no room for the prompt), `cut` (room for its end only), `train_loss`,
    `validation_loss` (nats per response token, None without validation), `seconds`; also written to `sft.json`
    beside the model. Raises UserError if the base does not load, no dialogue has room for both prompt and
    response, the loss is not finite, or the settings contradict each other.
    """
    _check(config)
    started = time.perf_counter()
    tokenizer = load_tokenizer(config.base)
    rows = response_rows(tokenizer, train, max_length=config.max_length)
    if not rows:
        raise UserError(
            f"sft: none of {len(train)} dialogues fits into {config.max_length} tokens with a part of its "
            "prompt, expected some; raise --max-length"
        )
    cut = sum(row["cut"] for row in rows)
    tell_cut(cut, len(rows), config.max_length, "dialogues")
    model = _model(config)
    rate = config.learning_rate if config.learning_rate is not None else _default_rate(config, model)
    settings = settings_of(config, {"data": content_of_records(train, validation)}, learning_rate=rate)
    last = last_checkpoint(config, settings)
    trainer = _trainer(config, model, tokenizer, rows, settings)
    if config.sharded and not trainer.is_fsdp_enabled:
        raise UserError(
            "sharded needs GPUs, since Accelerate shards nothing on CPUs: expected one for each process"
        )
    if trainer.is_fsdp_enabled and not config.sharded:
        raise UserError(
            "the launcher asks for FSDP: expected --adaptation full --sharded, or a launch without it"
        )
    loss = mean_loss(trainer.train(resume_from_checkpoint=last))
    if not math.isfinite(loss):
        clear_checkpoints(config)
        raise UserError(f"sft: the loss is {loss}, expected a finite one; lower --learning-rate ({rate:g})")
    held_out = response_rows(tokenizer, validation, max_length=config.max_length)
    weights = None
    if config.sharded:  # all processes gather the shards, and the main one writes them, tied weights once
        weights = trainer.accelerator.get_state_dict(model)
        weights = {name: t for name, t in weights.items() if name not in model.all_tied_weights_keys}
    report = {
        "rows": len(rows),
        "dropped": len(train) - len(rows),
        "cut": cut,
        "train_loss": loss,
        "validation_loss": response_loss(model, tokenizer, held_out) if held_out else None,
        "learning_rate": rate,
        "seconds": round(time.perf_counter() - started, 2),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "resume", "progress")},
    }

    def write(fresh: Path) -> None:
        with quiet():
            save_model(model, tokenizer, fresh, state_dict=weights)
        note_base(fresh, model.get_base_model().name_or_path if config.adaptation == "lora" else "")
        write_atomic(fresh / "sft.json", json.dumps(report, indent=2) + "\n")

    distributed.on_main(lambda: replace_folder(Path(config.out), write))
    clear_checkpoints(config)
    return report


def response_rows(
    tokenizer: Any, records: Sequence[LabelledResponse], *, max_length: int
) -> list[dict[str, Any]]:
    """`input_ids`, `labels` and `cut` (whether the prompt is cut) of each dialogue.

    Labels are −100 on the prompt, ids on response and end token. Dialogues without room for a prompt are left out.
    """
    rows = []
    for start in range(0, len(records), 1024):
        chunk = records[start : start + 1024]
        responses = [record.response for record in chunk]
        prompts = [record.prompt for record in chunk]
        batch = encode_dialogues(tokenizer, prompts, responses, max_length=max_length)
        # Tokenised as in `encode_dialogues`, to count each response's tokens; the end token is one more.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        alone = tokenizer(responses, **options)["input_ids"]
        lengths = batch["attention_mask"].sum(1).tolist()
        encoded = zip(batch["input_ids"].tolist(), lengths, batch["cut"].tolist(), alone, strict=True)
        for ids, length, cut, response in encoded:
            learnt = len(response) + 1
            if cut < 2:
                ids = ids[:length]
                labels = [IGNORED] * (length - learnt) + ids[length - learnt :]
                rows.append({"input_ids": ids, "labels": labels, "cut": cut})
    return rows


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels`: (batch, length)."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[index, :size] = torch.tensor(row["input_ids"])
        mask[index, :size] = 1
        labels[index, :size] = torch.tensor(row["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()  # not inference mode: sharded weights are gathered in place
def response_loss(
    model: torch.nn.Module, tokenizer: Any, rows: Sequence[dict[str, list[int]]], *, batch_size: int = 32
) -> float:
    """Mean negative log-likelihood over the response tokens of all rows, in nats per token."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], tokenizer.pad_token_id)
        labels = batch.pop("labels")[:, 1:].to(device)
        logits = model(**{name: t.to(device) for name, t in batch.items()}, use_cache=False).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += int((labels != IGNORED).sum())
    model.train(was_training)
    return total / tokens


def _check(config: SFTConfig) -> None:
    if config.adaptation == "full" and config.quantization != "none":
        raise UserError("quantization nf4: 4-bit weights cannot be trained, expected --adaptation lora")
    if config.sharded and config.adaptation != "full":
        raise UserError(
            "sharded is for --adaptation full: adapters are small, and each process holds the base"
        )
    if config.sharded and distributed.count() == 1:
        raise UserError("sharded needs several processes: expected torchrun --nproc-per-node N")


def _model(config: SFTConfig) -> Any:
    dtype = config.dtype if config.adaptation == "lora" else "float32"
    torch.manual_seed(config.seed)
    device = "cpu" if config.sharded else None  # Accelerate then gives each GPU its share
    model = load_base(config.base, dtype=dtype, quantization=config.quantization, device=device)
    if config.adaptation == "full":
        return model.requires_grad_(True)
    shape = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a float too: peft divides it by the rank
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=has_conv1d(model),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute it renamed
        return get_peft_model(model, shape)


def _default_rate(config: SFTConfig, model: torch.nn.Module) -> float:
    if count_parameters(model) <= 5e6:
        return 1e-3
    return 2e-4 if config.adaptation == "lora" else 2e-5


def _trainer(config: SFTConfig, model: Any, tokenizer: Any, rows: list, settings: dict) -> EpochTrainer:
    arguments = training_arguments(
        config, **{name: settings[name] for name in ("learning_rate", "epochs", "batch_size", "sharded")}
    )
    return EpochTrainer(
        model=model, args=arguments, train_dataset=rows, lengths=[len(row["input_ids"]) for row in rows],
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        callbacks=[TimedCheckpoints(config.checkpoint_seconds, settings)],
    )  # fmt: skip
