"""`csrlhf export RUN --out FOLDER`: a trained adapter, or base and adapter as one plain model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from peft import PeftConfig, PeftModel

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.scorers import load_scorer, save_scorer
from csrlhf_kit.outputs import check_model_folder, replace_folder


@dataclass
class ExportConfig:
    """Give a trained adapter away: as PEFT's files, or merged into its base."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of `csrlhf sft`, `reward-model`, `cost-model` or `ppo`, or an adapter's."""
    out: Path
    """Folder to write; it must not exist, or be empty."""
    merge: bool = False
    """Fold the adapter into the base's weights, so that plain transformers loads the result without peft."""
    base: str | None = None
    """The base, where it is no longer where the adapter says."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of merged weights. An adapter that was trained on a 4-bit base is merged into the dense one."""


def adapter_folder(run: Path) -> Path:
    """The folder in `run` that holds a PEFT adapter. Raises UserError where there is none."""
    for place in (run, run / "adapter"):
        if (place / "adapter_config.json").is_file():
            return place
    raise UserError(f"{run} holds no adapter: expected a run of `csrlhf sft`, a scorer or `ppo`")


def run_settings(run: Path) -> dict[str, Any]:
    """What a run was asked for: `config.json` of `csrlhf ppo`, or the `config` in `sft.json` and `scorer.json`."""
    for name, part in (("config.json", None), ("sft.json", "config"), ("scorer.json", "config")):
        if (run / name).is_file():
            stored = json.loads((run / name).read_text())
            return stored if part is None else stored.get(part, {})
    return {}


def run_export(config: ExportConfig) -> Path:
    """Write the adapter, or the merged model, with its tokenizer; returns the folder.

    Raises UserError where `run` holds no adapter, the base does not load, or `out` holds something.
    """
    check_model_folder(config.out, marks=())
    adapter = adapter_folder(config.run)
    shape = PeftConfig.from_pretrained(str(adapter))
    base = config.base or run_settings(config.run).get("base") or shape.base_model_name_or_path
    if not base:
        raise UserError(f"{adapter} does not say what its base is: expected --base")
    if not config.merge:
        replace_folder(config.out, lambda folder: _copy(adapter, folder, base))
    elif shape.task_type == "SEQ_CLS":
        scorer = load_scorer(adapter, base=base, merge=True, dtype=config.dtype)
        replace_folder(config.out, lambda folder: save_scorer(scorer, folder))
    else:
        model = PeftModel.from_pretrained(
            load_base(base, dtype=config.dtype), str(adapter)
        ).merge_and_unload()
        tokenizer = load_tokenizer(base)

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        replace_folder(config.out, write)
    print(f"{'The merged model' if config.merge else 'The adapter'} is in {config.out}")
    return config.out


def _copy(adapter: Path, folder: Path, base: str) -> None:
    """The adapter's files and its base's tokenizer."""
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)
    load_tokenizer(base).save_pretrained(folder)
