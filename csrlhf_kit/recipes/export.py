"""`csrlhf export RUN --out FOLDER`: copy a trained adapter, or merge it into its base as one plain model."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import (
    adapter_config,
    load_base,
    load_config,
    load_tokenizer,
    loading,
    save_model,
    save_tokenizer,
    shipped_generation,
    with_adapter,
)
from csrlhf_kit.models.places import (
    ADAPTER_FILE,
    adapter_folder,
    base_of,
    check_base,
    note_base,
    run_settings,
)
from csrlhf_kit.models.scorers import load_scorer, save_scorer
from csrlhf_kit.outputs import check_model_folder, replace_folder
from csrlhf_kit.recipes.options import ExportConfig


def run_export(config: ExportConfig) -> Path:
    """Write the adapter, or the merged model, with its tokenizer; returns the folder.

    Raises UserError if `run` holds no adapter, the base does not load, or `out` is not empty.
    """
    check_model_folder(config.out, marks=())
    adapter = adapter_folder(config.run)
    shape = adapter_config(adapter)
    with loading(adapter, "an adapter"):
        load_file(adapter / "adapter_model.safetensors")  # is it whole?
    base = base_of(adapter, config.base)
    dtype = config.dtype or run_settings(config.run).get("dtype", "bfloat16")
    if config.merge and getattr(load_config(base), "quantization_config", None) is not None:
        raise UserError(f"--merge: the weights of {base} are quantised, expected --base with the dense ones")
    if not config.merge:
        replace_folder(config.out, lambda folder: _copy(adapter, folder, base))
    elif shape.task_type == "SEQ_CLS":
        scorer = load_scorer(adapter, base=base, merge=True, dtype=dtype)
        replace_folder(config.out, lambda folder: save_scorer(scorer, folder))
    else:
        model = with_adapter(load_base(base, dtype=dtype), adapter).merge_and_unload()
        check_base(adapter, base)  # again, since a base on the hub may have been fetched only now
        tokenizer = load_tokenizer(base)
        replace_folder(config.out, lambda folder: save_model(model, tokenizer, folder))
    print(f"{'The merged model' if config.merge else 'The adapter'} is in {config.out}")
    return config.out


def _copy(adapter: Path, folder: Path, base: str) -> None:
    """The adapter's files, and its base's tokenizer and generation config."""
    folder.mkdir(parents=True)
    for name in (ADAPTER_FILE, "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)
    note_base(folder, base)
    save_tokenizer(load_tokenizer(base), shipped_generation(base), folder)
