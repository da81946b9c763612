"""A reward or cost model, whatever it is: an adapter of the policy's base, a model of its own, or a judge.

| source | what it is |
|---|---|
| a folder of `csrlhf reward-model` or `cost-model` | an adapter on the policy's base, which costs next to no memory |
| such a folder on another base, or an encoder's | a model of its own, which reads the text with its own tokenizer |
| a folder or hub id of PKU's Beaver models | see `beaver.py` |
| a folder or hub id of a sequence classifier with one output | read as a scorer of its own |
| `judge:ID`, `ask:ID` | a generative judge, guard or instruction-tuned: see `judge.py` |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import Quantization, load_config
from csrlhf_kit.models.beaver import beaver_scorer, is_beaver
from csrlhf_kit.models.judge import Verdicts, judge_scorer
from csrlhf_kit.models.places import find_base, fingerprint, fits
from csrlhf_kit.models.scorers import TextScorer, load_scorer, score_texts


def open_scorer(
    source: str | Path,
    role: str,
    *,
    base: str | Path | None = None,
    dtype: str = "float32",
    quantization: Quantization = "none",
) -> Path | TextScorer:
    """What `Roles` takes for a reward or cost model: a folder with an adapter of the policy's base, or a function
    (prompts, responses) -> logits (batch,) of a model that is loaded here, in `dtype` or in 4 bit.

    Raises UserError where `source` is none of the module's table.
    """
    name, folder = str(source), Path(source).expanduser()
    options = {"dtype": dtype, "quantization": quantization}
    style, _, judge = name.partition(":")
    if style in ("judge", "ask") and judge:
        return judge_scorer(judge, Verdicts("guard" if style == "judge" else "ask"), **options)
    if (folder / "adapter_config.json").is_file() and shares_base(folder, base):
        return folder
    ours = any((folder / file).is_file() for file in ("adapter_config.json", "scorer.json"))
    if not ours and not (folder / "config.json").is_file() and (folder.exists() or name.count("/") != 1):
        raise UserError(
            f"{name} is no {role} model: expected a folder that `csrlhf {role}-model` wrote, a folder or hub id of a "
            "sequence classifier or a Beaver model, or judge:ID"
        )
    if not ours and is_beaver(load_config(name)):
        return beaver_scorer(name, **options)
    return text_scorer(folder if folder.exists() else name, **options)


def text_scorer(source: str | Path, **options: Any) -> TextScorer:
    """A reward or cost model with a base and a tokenizer of its own, as a `TextScorer`: it reads text.

    options: as `load_scorer` takes them, whose errors it raises.
    """
    scorer = load_scorer(source, merge=True, **options)
    return lambda prompts, responses: torch.as_tensor(
        score_texts(scorer, prompts, responses), dtype=torch.float32
    )


def shares_base(folder: Path, base: str | Path | None) -> bool:
    """Whether an adapter was trained on the weights of `base`.

    Where no fingerprint tells: on the same place or hub id, or on one that is gone and had the same name, since folders
    move. Without a `base` to compare, and for an adapter that names none, yes.
    """
    theirs = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if base is None:
        return True
    own = find_base(base)
    if (fitting := fits(folder, own)) is not None:
        return fitting
    if not theirs or Path(theirs).resolve() == Path(own).resolve():
        return True
    if Path(theirs).is_dir() and None not in (weights := (fingerprint(theirs), fingerprint(own))):
        return weights[0] == weights[1]
    return Path(theirs).name == Path(own).resolve().name
