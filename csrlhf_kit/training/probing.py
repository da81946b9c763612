"""Fit a probe: one pass through the frozen base, then a head in closed form (see `csrlhf_kit.models.probe`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.base import load_config, load_tokenizer
from csrlhf_kit.models.classifiers import is_decoder
from csrlhf_kit.models.probe import new_probe
from csrlhf_kit.models.scorers import Scorer, pad
from csrlhf_kit.training.configs import ScorerConfig

ROWS_READ = 16  # dialogues per forward pass


def unfitted_probe(config: ScorerConfig) -> Scorer:
    """A probe on the base of `config`. Raises UserError for an encoder, or an objective other than `semantic`."""
    if config.objective != "semantic":
        raise UserError(f"adaptation probe: found the objective {config.objective}, expected semantic")
    if not is_decoder(load_config(config.base)):
        raise UserError(f"adaptation probe: {config.base} is an encoder, expected a causal language model")
    tokenizer = load_tokenizer(config.base, scores=True)
    numbers: dict[str, Any] = {"dtype": config.dtype, "quantization": config.quantization}
    probe = new_probe(
        config.base, config.probe.layers, config.probe.pooling, tokenizer.pad_token_id, **numbers
    )
    return Scorer(probe, tokenizer, True, config.max_length)


def fit_probe(
    config: ScorerConfig, scorer: Scorer, rows: Sequence[dict[str, list[int]]], unsafe: np.ndarray
) -> dict[str, Any]:
    """Fit the head to encoded rows and their labels (rows,); returns what `scorer.json` notes of it."""
    pooled = pooled_states(scorer, rows, progress=config.progress)
    scorer.model.fit(pooled, torch.from_numpy(unsafe).to(pooled.device), config.probe.head)
    return {"probe": scorer.model.reading}


@torch.inference_mode()
def pooled_states(
    scorer: Scorer, rows: Sequence[dict[str, list[int]]], *, progress: bool = False
) -> torch.Tensor:
    """What the probe reads of each encoded row: (rows, states), float32."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for start in tqdm(range(0, len(rows), ROWS_READ), desc="reading", disable=None if progress else True):
        chosen = order[start : start + ROWS_READ]
        batch = pad([rows[index] for index in chosen], scorer.pad_id)
        pooled = scorer.model.pooled(**{name: tensor.to(scorer.device) for name, tensor in batch.items()})
        for index, state in zip(chosen, pooled, strict=True):
            found[index] = state
    return torch.stack(found).clone()
