"""Reward and cost models: a standard sequence classifier with one output, on any `transformers` backbone.

    score(x, y) = w · h(x, y) + b

A decoder reads the dialogue in the kit's chat format, and h is the state of its last real token; an encoder reads
the pair (prompt, response) as in its pre-training, and h is what its architecture pools. A cost above 0 means
unsafe, and sigmoid(cost) = P(unsafe). Rewards are scaled to a standard deviation of 1.

A saved scorer can be loaded by plain `AutoModelForSequenceClassification` (and `peft` if LoRA was used), without
the kit; `scorer.json` beside it only says how to encode its text. A probe, which reads other states, is the
exception: see probe.py. Builds on base.py and classifiers.py.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from csrlhf_kit.data.chat import encode_dialogues, end_token
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import read_json, write_atomic
from csrlhf_kit.kernels.linear4bit import CAUTION, unpacks_here
from csrlhf_kit.models.base import (
    Quantization,
    adapter_config,
    freeze,
    is_packed,
    load_config,
    load_options,
    load_tokenizer,
    loading,
    with_adapter,
)
from csrlhf_kit.models.classifiers import (
    fitting_length,
    fresh_modules,
    has_conv1d,
    is_decoder,
    last_layers,
    linear_names,
    load_classifier,
    output_layer,
    quiet,
    set_dropout,
)
from csrlhf_kit.models.places import ADAPTER_FILE, base_of, check_base, note_base
from csrlhf_kit.models.probe import Probe, load_probe, mark_answers

SCORER_FILE = "scorer.json"
PACKED = (
    'dict(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4",\n    '
    'bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["score", "classifier"])'
)
MAX_LENGTH = 512

TextScorer = Callable[[Sequence[str], Sequence[str]], torch.Tensor]
"""(prompts, responses) -> logits (batch,): a reward or cost model that does not share the policy's base."""


@dataclass
class Scorer:
    """A reward or cost model with the tokenizer and the length that it was trained with."""

    model: Any
    """`AutoModelForSequenceClassification` with one output, a `PeftModel` around one, or a `Probe`."""
    tokenizer: Any
    """The backbone's tokenizer."""
    decoder: bool
    """Whether the backbone is a causal language model (chat format) or an encoder (text pair)."""
    max_length: int = MAX_LENGTH
    """The most tokens of a dialogue; longer ones are cut."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further contents of `scorer.json`: objective, temperature, and so on."""
    cut: int = 0
    """The number of dialogues read so far whose prompt was too long and was cut at the beginning."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        return self.model.config.get_text_config().pad_token_id


# --- from a base model to a scorer -----------------------------------------------------------------


def new_scorer(
    base: str | Path,
    *,
    adaptation: str = "auto",
    rank: int = 16,
    alpha: float = 32.0,
    layers: int | None = None,
    dropout: float | None = None,
    max_length: int = MAX_LENGTH,
    dtype: str = "float32",
    quantization: Quantization = "none",
    seed: int = 0,
) -> Scorer:
    """Put a fresh score head and, with `lora`, fresh adapters on a base model.

    Args:
        base: A folder, or a hub id.
        adaptation: `full` trains every weight; `lora` trains the head, and adapters on every linear layer of the
            backbone; `auto` is `lora` for decoders and `full` for encoders.
        rank: LoRA's rank.
        alpha: LoRA's scale; the update is alpha / rank · B A.
        layers: How many of the last layers the adapters act on; None: all.
        dropout: Every dropout probability of the backbone in training; None keeps an encoder's own, and
            switches a decoder's off.
        max_length: The most tokens of a dialogue.
        dtype: Number format of frozen weights, `float32` or `bfloat16`; trained weights are float32.
        quantization: `none`, or `nf4` for a frozen backbone in 4 bits (needs adapters).
        seed: Seed of the initial head and adapters; sets torch's global generator.

    Raises:
        UserError: `base` cannot be loaded, or an option has a wrong value.
    """
    if adaptation not in ("auto", "lora", "full"):
        raise UserError(f"adaptation: found {adaptation!r}, expected auto, lora or full")
    config = load_config(base)
    decoder = is_decoder(config)
    tokenizer = load_tokenizer(base, scores=True, config=config)
    config.num_labels = 1
    config.problem_type = None
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if dropout is not None or decoder:
        set_dropout(config, dropout or 0.0)
    lora = adaptation == "lora" or (adaptation == "auto" and decoder)
    if quantization != "none" and not lora:
        raise UserError(
            f"quantization {quantization}: 4-bit weights cannot be trained, expected LoRA adapters"
        )
    options = load_options(dtype=dtype if lora else "float32", quantization=quantization)
    torch.manual_seed(seed)
    model, info = load_classifier(base, config=config, output_loading_info=True, **options)
    if lora:
        freeze(model)
        fresh = fresh_modules(model, info["missing_keys"])
        shape = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=rank, lora_dropout=0.0, target_modules=linear_names(model, fresh),
            lora_alpha=alpha,  # type: ignore[arg-type]  # a float too: peft divides it by the rank
            layers_to_transform=last_layers(config.get_text_config().num_hidden_layers, layers),
            modules_to_save=fresh or None, fan_in_fan_out=has_conv1d(model),
        )  # fmt: skip
        model = get_peft_model(model, shape)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return Scorer(model, tokenizer, decoder, fitting_length(config, max_length))


def load_scorer(
    path: str | Path,
    *,
    base: str | Path | None = None,
    merge: bool = False,
    dtype: str = "float32",
    quantization: Quantization = "none",
) -> Scorer:
    """Load a saved scorer: the kit's own, or any sequence classifier with one output, with or without LoRA.

    Args:
        path: Its folder (or hub id).
        base: The base model, if it is no longer where the adapter says.
        merge: Fold adapters into the weights: faster, the same scores up to rounding. Not done for 4-bit weights.
        dtype: Number format of the weights.
        quantization: `none`, or `nf4` for a backbone in 4 bits.

    Raises:
        UserError: there is no such model, or it is no trained classifier with one output.
    """
    options = load_options(dtype=dtype, quantization=quantization)
    path = Path(path) if Path(path).exists() else path
    notes: dict[str, Any] = {}
    if isinstance(path, Path) and (path / SCORER_FILE).exists():
        notes = read_json(path / SCORER_FILE)
    if isinstance(path, Path) and "probe" in notes:
        base, own = base_of(path, base), any(path.glob("tokenizer*.json"))
        tokenizer = load_tokenizer(path if own else base, scores=True, config=load_config(base))
        how = {"dtype": dtype, "quantization": quantization}
        with loading(path, "a probe"):
            model: Any = load_probe(path, base, notes["probe"], tokenizer.pad_token_id, **how)
        config = model.config
    elif isinstance(path, Path) and (path / ADAPTER_FILE).exists():
        if adapter_config(path).task_type != TaskType.SEQ_CLS:
            raise UserError(f"{path} is a policy's adapter: expected a reward or cost model")
        base = base_of(path, base)
        config = load_config(base)
        tokenizer = load_tokenizer(path, scores=True, config=config)
        config.num_labels = 1
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        model = with_adapter(load_classifier(base, config=config, **options), path)
        check_base(path, base)  # again, since a hub id may only now be in the cache
        if merge and not is_packed(model):
            model = model.merge_and_unload()
    else:
        config = load_config(path)
        if config.num_labels != 1:
            raise UserError(f"scorer {path}: found {config.num_labels} outputs, expected a classifier with 1")
        tokenizer = load_tokenizer(path, scores=True, config=config)
        text = config.get_text_config()
        if text.pad_token_id is None:  # otherwise keep its own, which says where it reads scores
            text.pad_token_id = tokenizer.pad_token_id
        model, info = load_classifier(path, config=config, output_loading_info=True, **options)
        if info["missing_keys"]:
            missing = min(info["missing_keys"])
            raise UserError(f"scorer {path}: found no weights for {missing}, expected a trained scorer")
    with loading(path, "a scorer"):
        max_length = int(notes.pop("max_length", fitting_length(config, MAX_LENGTH)))
    return Scorer(freeze(model), tokenizer, is_decoder(config), max_length, notes)


def save_scorer(scorer: Scorer, folder: str | Path) -> Path:
    """Write the model (safetensors), its tokenizer, `scorer.json` and a README with code that loads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        scorer.model.save_pretrained(folder, safe_serialization=True)
        scorer.tokenizer.save_pretrained(folder)
    if isinstance(scorer.model, PeftModel):
        base: Any = scorer.model.get_base_model()
        note_base(folder, base.name_or_path)
    notes = {"max_length": scorer.max_length, "decoder": scorer.decoder, **scorer.notes}
    write_atomic(folder / SCORER_FILE, json.dumps(notes, indent=2) + "\n")
    write_atomic(folder / "README.md", _readme(scorer))
    return folder


# --- text to scores --------------------------------------------------------------------------------


def encode(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], *, chunk: int = 1024
) -> list[dict[str, list[int]]]:
    """Token ids of each dialogue, unpadded: `input_ids`, for some encoders `token_type_ids`, for a probe `answer`.

    Raises UserError if the lists differ in length, or `max_length` leaves no room for a response.
    """
    if len(prompts) != len(responses):
        raise UserError(f"found {len(prompts)} prompts and {len(responses)} responses, expected as many")
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(prompts), chunk):
        some_prompts = list(prompts[start : start + chunk])
        some_responses = list(responses[start : start + chunk])
        if scorer.decoder:
            batch = encode_dialogues(
                scorer.tokenizer, some_prompts, some_responses, max_length=scorer.max_length
            )
            scorer.cut += int((batch["cut"] > 0).sum())
            lengths = batch["attention_mask"].sum(1).tolist()
            ids = batch["input_ids"].tolist()
            rows += [{"input_ids": row[:length]} for row, length in zip(ids, lengths, strict=True)]
            if isinstance(scorer.model, Probe):
                mark_answers(scorer.tokenizer, rows[start:], some_responses)
        else:
            rows += _encode_pairs(scorer, some_prompts, some_responses)
    return rows


def pad(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Encoded rows, right-padded to the longest: long tensors (batch, length), with `attention_mask`."""
    length = max(len(row["input_ids"]) for row in rows)
    batch = {"attention_mask": np.zeros((len(rows), length), dtype=np.int64)}
    for name in rows[0]:
        batch[name] = np.full((len(rows), length), pad_id if name == "input_ids" else 0, dtype=np.int64)
    for index, row in enumerate(rows):
        batch["attention_mask"][index, : len(row["input_ids"])] = 1
        for name, ids in row.items():
            batch[name][index, : len(ids)] = ids
    return {name: torch.from_numpy(array) for name, array in batch.items()}


@torch.inference_mode()
def score_rows(scorer: Scorer, rows: Sequence[dict[str, list[int]]], *, batch_size: int = 64) -> np.ndarray:
    """Scores (logits) of encoded rows, float64, (rows,), in their order; batches hold rows of similar length."""
    model = scorer.model.eval()
    options = {"use_cache": False} if scorer.decoder else {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    scores = np.empty(len(rows))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad([rows[index] for index in chosen], scorer.pad_id)
        batch = {name: tensor.to(scorer.device) for name, tensor in batch.items()}
        with _autocast(model):
            logits = model(**batch, **options).logits  # (batch, 1)
        scores[chosen] = logits[:, 0].float().cpu().numpy()
    return scores


def score_texts(
    model: str | Path | Scorer, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 64
) -> np.ndarray:
    """Scores (logits) of dialogues, float64, (dialogues,), in the order given.

    model: A saved scorer's folder (or hub id), or a loaded `Scorer`. prompts: the requests, without chat template.
    responses: one response per prompt. batch_size: rows per forward pass.
    Raises UserError if there is no such model, or the lists differ in length.
    """
    scorer = model if isinstance(model, Scorer) else load_scorer(model, merge=True)
    return score_rows(scorer, encode(scorer, prompts, responses), batch_size=batch_size)


def fold_temperature(scorer: Scorer, temperature: float) -> None:
    """Divide all future scores by `temperature`, by changing the head in place (Guo et al. 2017).

    Raises ValueError if `temperature` is not a positive finite number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, found {temperature}")
    head = output_layer(scorer.model)
    with torch.no_grad():
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature)


def _encode_pairs(scorer: Scorer, prompts: list[str], responses: list[str]) -> list[dict[str, list[int]]]:
    """[CLS] prompt [SEP] response [SEP], the longer of the two cut first; control tokens are encoded as text."""
    least = scorer.tokenizer.num_special_tokens_to_add(pair=True) + 2
    if scorer.max_length < least:
        raise UserError(
            f"max_length: found {scorer.max_length}, expected at least {least} for one token of the response"
        )
    batch = scorer.tokenizer(
        prompts, responses, truncation="longest_first", max_length=scorer.max_length,
        split_special_tokens=True, return_attention_mask=False, verbose=False,
    )  # fmt: skip
    scorer.cut += sum(bool(encoding.overflowing) for encoding in batch.encodings or ())
    return [{name: batch[name][index] for name in batch} for index in range(len(prompts))]


def _autocast(model: nn.Module) -> contextlib.AbstractContextManager:
    parameter = next(model.parameters())
    if parameter.dtype == torch.bfloat16:
        return torch.autocast(parameter.device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _readme(scorer: Scorer) -> str:
    packed = f", quantization_config={PACKED}" if is_packed(scorer.model) else ""
    if isinstance(scorer.model, PeftModel):
        load = (
            "from peft import AutoPeftModelForSequenceClassification as Classifier\n\n"
            f"model = Classifier.from_pretrained(folder, num_labels=1{packed}).eval()\n"
            "model.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id"
        )
    else:
        load = (
            "from transformers import AutoModelForSequenceClassification as Classifier\n\n"
            "model = Classifier.from_pretrained(folder).eval()"
        )
    if scorer.decoder:
        if scorer.tokenizer.chat_template:
            opening = (
                'ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}],\n'
                "                                    add_generation_prompt=True, return_dict=False)"
            )
        else:
            opening = 'ids = tokenizer(f"User:\\n{prompt}\\n\\nAssistant:\\n")["input_ids"]'
        end = end_token(scorer.tokenizer)
        named = "tokenizer.eos_token_id" if end == scorer.tokenizer.eos_token_id else end
        text = (
            f"{opening}\n"
            f'ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [{named}]\n'
            'inputs = {"input_ids": torch.tensor([ids])}'
        )
    else:
        text = (
            f'inputs = tokenizer(prompt, response, truncation="longest_first",\n'
            f'                   max_length={scorer.max_length}, return_tensors="pt")'
        )
    meaning = scorer.notes.get("meaning", "one score for each dialogue")
    title = f"# {scorer.notes.get('objective', 'scorer')}\n\nMade by the CS-RLHF Kit. Score: {meaning}.\n\n"
    if isinstance(scorer.model, Probe):
        return (
            f"{title}It reads states in the middle of {scorer.model.source}, which no classifier of transformers "
            "does, so plain transformers cannot load it.\n\n```python\nfrom csrlhf_kit.models.scorers import "
            "score_texts\n\nscores = score_texts(folder, prompts, responses)\n```\n"
        )
    return (
        f"{title}```python\nimport torch\nfrom transformers import AutoTokenizer\n{load}\n"
        f"tokenizer = AutoTokenizer.from_pretrained(folder)\n{text}\n"
        "with torch.inference_mode():\n    score = model(**inputs).logits[0, 0].item()\n```\n"
        + (f"\n{CAUTION}\n" if unpacks_here(scorer.model) else "")
    )
