"""PKU's Beaver reward and cost models, as they are published (Dai et al. 2023, arXiv 2310.12773).

A Beaver checkpoint is a Llama trunk with a linear `score_head`, of a class that transformers does not have:

    score(x, y) = w · h,   h: last hidden state at the end token of
    <s>BEGINNING OF CONVERSATION: USER: {x} ASSISTANT:{y}</s>

For a cost, score > 0 means unsafe, as everywhere in the kit. Prompt and response are tokenised together, as in the
model's training; the trunk is loaded as a `LlamaForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from csrlhf_kit.data.chat import cut_texts
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import Quantization, freeze, load_config, load_options, load_tokenizer
from csrlhf_kit.models.classifiers import load_classifier
from csrlhf_kit.models.scorers import Scorer, TextScorer, score_rows

DIALOGUE_TEMPLATE = "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}"
ARCHITECTURES = ("LlamaForScore", "LlamaModelForScore")


def is_beaver(config: Any) -> bool:
    """Whether a model configuration is that of a Beaver checkpoint."""
    return any(name in ARCHITECTURES for name in config.architectures or ())


def load_beaver(path: str | Path, *, dtype: str = "float32", quantization: Quantization = "none") -> Scorer:
    """Load a Beaver reward or cost model from a folder or hub id (versions 2 and later, which have safetensors).

    Raises UserError if it does not load, or its score is not the linear map described above.
    """
    config = load_config(path)
    if not is_beaver(config):
        raise UserError(f"{path} is a {config.architectures}: expected one of {', '.join(ARCHITECTURES)}")
    odd = [name for name in ("bias", "do_normalize") if getattr(config, name, False)]
    if odd or getattr(config, "score_dim", 1) != 1:
        raise UserError(
            f"{path} has {odd[0] if odd else 'score_dim'} set: expected a plain score of one number"
        )
    tokenizer = load_tokenizer(path, scores=True, config=config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    options = load_options(dtype=dtype, quantization=quantization)
    model, info = load_classifier(
        path, config=config, key_mapping={r"^score_head\.": "score."}, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        raise UserError(f"{path}: found no weights for {min(info['missing_keys'])}, expected a score_head")
    return Scorer(freeze(model), tokenizer, decoder=True, max_length=config.max_position_embeddings)


def encode_beaver(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str]
) -> list[dict[str, list[int]]]:
    """`input_ids` of each dialogue in Beaver's format; the start of the prompt, then of the response, may be cut."""

    def ids(texts: list[str]) -> list[int]:
        text = DIALOGUE_TEMPLATE.format(prompt=texts[0], response=texts[1])
        encoded = scorer.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
        return [*encoded, scorer.tokenizer.eos_token_id]

    pairs = zip(prompts, responses, strict=True)
    return [{"input_ids": cut_texts(scorer.tokenizer, pair, ids, scorer.max_length)[1]} for pair in pairs]


def beaver_scorer(
    path: str | Path, *, dtype: str = "float32", quantization: Quantization = "none", batch_size: int = 16
) -> TextScorer:
    """A function (prompts, responses) -> scores (batch,), as `Roles` takes it. Raises as `load_beaver` does."""
    scorer = load_beaver(path, dtype=dtype, quantization=quantization)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        rows = encode_beaver(scorer, prompts, responses)
        return torch.as_tensor(score_rows(scorer, rows, batch_size=batch_size), dtype=torch.float32)

    return score
