"""`csrlhf sft`: fine-tune a policy on dialogues by `training.sft`, and print the result."""

from __future__ import annotations

from typing import Any

from csrlhf_kit.data.records import LabelledResponse, normalise_prompt
from csrlhf_kit.data.sources import notes_of, read_records
from csrlhf_kit.data.splits import companion
from csrlhf_kit.errors import UserError
from csrlhf_kit.outputs import writes_model
from csrlhf_kit.training.configs import SFTConfig
from csrlhf_kit.training.sft import train_sft


@writes_model
def run_sft(config: SFTConfig) -> dict[str, Any]:
    """Read the dialogues, fine-tune, save, print the validation loss; returns the report of `train_sft`."""
    train, validation = _dialogues(config)
    report = train_sft(config, train, validation)
    print(told(config, report))
    return report


def told(config: SFTConfig, report: dict[str, Any]) -> str:
    """A finished run in a few sentences."""
    text = f"Learnt from {report['rows']} dialogues in {report['seconds']:.0f} s: "
    text += f"loss {report['train_loss']:.3f} nats a response token"
    if report["validation_loss"] is not None:
        text += f", on validation dialogues {report['validation_loss']:.3f}"
    if report["dropped"]:
        text += (
            f".\n{report['dropped']} more were left out, since --max-length {config.max_length} leaves no room "
            "for their prompt"
        )
    return f"{text}.\nThe policy is in {config.out}"


def _dialogues(config: SFTConfig) -> tuple[list[LabelledResponse], list[LabelledResponse]]:
    """The training split, and the source's validation split, if any, without prompts of the training split."""
    options = {"seed": config.seed, "strict": config.strict}
    loaded = read_records(config.data, LabelledResponse, split="train", **options)
    print(notes_of(loaded.report), end="")
    train = [record for record in loaded.records if record.is_safe or not config.safe_only]
    if not train:
        raise UserError(f"sft: {config.data} has no response that is labelled safe, expected some")
    own = companion(loaded.splits, next(iter(loaded.splits), ""), "validation")
    if own is None:
        return train, []
    seen = {normalise_prompt(record.prompt) for record in train}
    held_out = read_records(loaded.splits[own], LabelledResponse, split=own, **options).records
    kept = [record for record in held_out if normalise_prompt(record.prompt) not in seen]
    return train, [record for record in kept if record.is_safe or not config.safe_only]
