"""Rollouts by transformers' continuous batching: each answer has its own pages of one cache, and leaves when it ends.

Nothing is padded, and long answers do not wait for short ones or the other way round. The tokens are those that
`decode` would draw: each request keeps its row of uniform numbers, whoever shares its batch, and turns them into
tokens by the same function. The cache holds what the rollout can need and is given back at its end.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    ContinuousBatchingManager,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from csrlhf_kit.errors import UserError
from csrlhf_kit.models.decoding import only_picked

PAGE = 64  # tokens
READ_AT_ONCE = 2048  # tokens of prompts: the attention mask grows with them


class DrawEach(ContinuousBatchingLogitsProcessor):
    """Makes greedy decoding take the tokens that `pick` draws, each request by its own row of `noise`."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, noise: Tensor, temperature: float) -> None:
        self.noise, self.temperature = noise, temperature

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list) -> Tensor:
        """Where in the flat noise the number of each request's next token stands; request ids are row numbers."""
        places = []
        for state in (request.state for request in requests_with_new_token):
            first = state._true_initial_tokens  # 0, or the prompt's length once the request was put back
            done = state.generated_len() + (len(state.initial_tokens) - first if first else 0)
            places.append(int(state.request_id) * self.noise.shape[1] + done)
        return torch.tensor(places, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        noise = self.noise.flatten()[tensor_arg[: len(scores)].long()]
        return only_picked(scores, noise, self.temperature)


def generate_continuously(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float,
    noise: Tensor,
) -> Tensor:
    """Tokens (batch, at most max_new_tokens) after left-padded prompts, as `rollout.decode` gives them.

    noise: (batch, max_new_tokens), as `sampling_noise` draws it. Raises UserError where a request fails.
    """
    prompts = [ids[mask].tolist() for ids, mask in zip(prompt_ids, prompt_mask.bool(), strict=True)]
    blocks = sum(-(-(len(prompt) + max_new_tokens) // PAGE) for prompt in prompts)
    manager = model.init_continuous_batching(
        GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        ),
        ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=blocks + 2,
            max_batch_tokens=max(len(prompts), min(READ_AT_ONCE, sum(map(len, prompts)))),
            max_requests_per_batch=len(prompts),
            safety_margin=0.0,
            allow_block_sharing=False,
            use_async_batching=False,  # else the place in the noise would be that of the token before
            auto_switch_to_flash=False,  # it might fetch a kernel from the hub
        ),
    )
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(
        LogitsProcessorList([DrawEach(noise, temperature)])
    )
    manager.logit_processor.tensors_required = 1
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # transformers seeds the global generators anew
        found = _answers(manager, prompts)
    longest = max(map(len, found.values()))
    tokens = torch.full((len(prompts), longest), pad_token_id, device=prompt_ids.device)
    for row, answer in found.items():
        tokens[row, : len(answer)] = torch.tensor(answer, device=tokens.device)
    return tokens


def _answers(manager: ContinuousBatchingManager, prompts: list[list[int]]) -> dict[int, list[int]]:
    """Row -> its answer's tokens; the manager is started for it, and ended."""
    found: dict[int, list[int]] = {}
    manager.start()
    try:
        for row, prompt in enumerate(prompts):
            manager.add_request(prompt, request_id=str(row))
        while len(found) < len(prompts):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise UserError(
                    "continuous batching stopped before all were answered: expected --rollout loop"
                )
            if result is not None and result.error is not None:
                raise UserError(f"continuous batching failed ({result.error}): expected --rollout loop")
            if result is not None and result.is_finished():
                found[int(result.request_id)] = result.generated_tokens
    finally:
        manager.stop(block=True)
        manager.destroy()
    return found
