"""Next-token logits, one token per row at a time: the interface between the sampling loop and a model.

A decoder has three methods. `start(ids, mask, room)` reads left-padded prompts, and `step(tokens)` one more token of
each row; both return the logits (batch, vocabulary) of the next token. `keep(rows)` drops all other rows, so that
finished answers cost nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from csrlhf_kit.kernels.masks import position_ids

CausalLM = Any
"""A causal language model of transformers, or a `PeftModel` around one: what both can do, neither's type tells."""


class Decoder(Protocol):
    """Reads prompts once, then one token per row and step."""

    def start(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        """Logits (batch, vocabulary) after left-padded `ids` (batch, length) with their `mask`; at most `room`
        steps follow.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (batch, vocabulary) after one more token (batch,) of each row."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices into the current rows)."""


def pick(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Tokens (batch,) drawn from softmax(logits / temperature) by inverting its cumulative distribution.

    logits: (batch, vocabulary); noise: (batch,), uniform in [0, 1), float64. A token of probability zero is never
    drawn. temperature 0 takes the most likely token. This needs one random number per row, where
    `torch.multinomial` draws one per logit.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    target = (noise * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)


class CachedForward:
    """A `Decoder` that uses a Hugging Face causal LM's forward pass and a growing key-value cache."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.options = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    @staticmethod
    def fits(model: CausalLM) -> bool:
        """Whether the model works with a plain key-value cache, from which rows can be dropped."""
        if (
            model.config.is_encoder_decoder
            or model._is_stateful
            or not model._supports_default_dynamic_cache()
        ):
            return False
        layers = DynamicCache(config=model.config).layers
        return all(isinstance(layer, DynamicLayer) for layer in layers)

    def start(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        self.cache = DynamicCache(config=self.model.config)
        self.mask, positions = mask.long(), position_ids(mask)
        self.next_position = positions[:, -1:] + 1
        return self._logits(ids, positions)

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        logits = self._logits(tokens.unsqueeze(1), self.next_position)
        self.next_position = self.next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.next_position = self.mask[rows], self.next_position[rows]

    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions,
            past_key_values=self.cache, use_cache=True, **self.options,
        )  # fmt: skip
        return output.logits[:, -1]
