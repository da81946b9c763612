"""Episodes: what the policy answers, and everything about those answers that training needs.

A prompt is padded on the left, answered by Hugging Face `generate`, and stored contiguously with padding on
the right, so that a mini-batch can be trimmed to its longest row and no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from csrlhf_kit.data.chat import encode_prompts
from csrlhf_kit.models.roles import Roles


class Episodes(NamedTuple):
    """Sampled token sequences, prompt and response contiguous, padded on the right."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length), true at real tokens
    actions: Tensor  # (batch, length), true at response tokens, EOS included
    ended: Tensor  # (batch,), whether the response ended with EOS


class Trajectory(NamedTuple):
    """Episodes with everything that is known before the update."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length)
    actions: Tensor  # (batch, length)
    ended: Tensor  # (batch,)
    log_probs: Tensor  # (batch, length), of the sampling policy, from the training path
    reference_log_probs: Tensor  # (batch, length)
    entropy: Tensor  # (batch, length), of the sampling policy
    values: Tensor  # (batch, length, 2), before each action
    reward: Tensor  # (batch,), logits
    cost: Tensor  # (batch,), logits; > 0 is unsafe


def response_mask(tokens: Tensor, eos_token_id: int) -> tuple[Tensor, Tensor]:
    """(actions, ended) of generated `tokens` (batch, response length).

    EOS is an action, since the policy chose to stop; everything after the first one is not. Padding is told
    by its place, never by its id, so a tokenizer whose pad token is its EOS token is fine.
    """
    is_eos = tokens == eos_token_id
    earlier_eos = is_eos.long().cumsum(1) - is_eos.long()
    return earlier_eos == 0, is_eos.any(1)


def pack(ids: Tensor, mask: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move each row's real tokens to the left edge and drop the columns that nobody uses.

    ids, mask, actions: (batch, length) with padding before, after, or both; each row's real tokens
    contiguous.
    """
    start = mask.long().argmax(1, keepdim=True)  # (batch, 1)
    lengths = mask.sum(1, keepdim=True)  # (batch, 1)
    columns = torch.arange(int(lengths.max()), device=ids.device)  # (longest,)
    source = (columns + start).clamp_max(ids.shape[1] - 1)
    packed_mask = columns < lengths
    packed_ids = torch.where(packed_mask, ids.gather(1, source), ids.new_zeros(()))
    return packed_ids, packed_mask, actions.gather(1, source) & packed_mask


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Episodes:
    """Answer each left-padded prompt once. Draws from torch's global generator.

    prompt_ids, prompt_mask: (batch, prompt length). temperature: 0 decodes greedily. Every setting is
    explicit, so that nothing a base ships (top_p, repetition penalty ...) bends the distribution away from
    softmax(logits / temperature), which is what the log-probabilities assume.
    """
    settings = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        top_k=0 if temperature > 0 else 50,
        top_p=1.0,
        min_p=None,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        renormalize_logits=False,
        suppress_tokens=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=True,
    )
    output = model.generate(
        input_ids=prompt_ids, attention_mask=prompt_mask.long(), generation_config=settings
    )
    actions, ended = response_mask(output[:, prompt_ids.shape[1] :], eos_token_id)
    mask = torch.cat([prompt_mask.bool(), actions], 1)
    actions = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), actions], 1)
    return Episodes(*pack(output, mask, actions), ended)


def sample_episodes(
    roles: Roles,
    tokenizer: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    adapter: str | None = "policy",
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Episodes:
    """`sample` with one of the roles' adapters (None: the reference); leading padding columns are dropped."""
    first = int(prompt_mask.long().argmax(1).min())
    roles.activate(adapter)
    return sample(
        roles.model,
        prompt_ids[:, first:].to(roles.device),
        prompt_mask[:, first:].to(roles.device),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )


def response_texts(tokenizer: Any, episodes: Episodes | Trajectory) -> list[str]:
    """Decoded responses, without EOS and other special tokens."""
    rows = [ids[actions].tolist() for ids, actions in zip(episodes.ids, episodes.actions, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def respond(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    adapter: str | None = "policy",
    max_new_tokens: int,
    max_prompt_length: int = 512,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[str]:
    """Answer `prompts` as text with one of the roles' adapters (None: the reference), longest prompts
    first.
    """
    encoded = encode_prompts(tokenizer, list(prompts), max_length=max_prompt_length)
    order = encoded["attention_mask"].sum(1).argsort(descending=True, stable=True)
    answers = [""] * len(prompts)
    for rows in order.split(batch_size):
        episodes = sample_episodes(
            roles,
            tokenizer,
            encoded["input_ids"][rows],
            encoded["attention_mask"][rows],
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        for row, text in zip(rows.tolist(), response_texts(tokenizer, episodes), strict=True):
            answers[row] = text
    return answers


def by_length(mask: Tensor, rows: Tensor, size: int) -> list[tuple[Tensor, int]]:
    """Split `rows` (indices into `mask`) into chunks of similar length: [(rows, longest), ...]."""
    lengths = mask[rows].sum(1)
    order = lengths.argsort(stable=True)
    return [(rows[chunk], int(lengths[chunk].max())) for chunk in order.split(size)]


@torch.no_grad()
def score_episodes(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    episodes: Episodes,
    *,
    temperature: float,
    chunk_size: int = 32,
) -> Trajectory:
    """Log-probabilities of policy and reference, values, reward and cost of each episode: each computed once.

    prompts: the requests as text, read by scorers that do not share the policy's base. The old
    log-probabilities come from the same path as training's, not from `generate`, whose cached attention
    rounds differently.
    """
    batch, length = episodes.ids.shape
    empty = torch.zeros(batch, length, device=episodes.ids.device)
    log_probs, reference, entropy = empty.clone(), empty.clone(), empty.clone()
    values = empty.new_zeros(batch, length, 2)
    scores = {name: empty.new_zeros(batch) for name in ("reward", "cost")}
    for rows, longest in by_length(episodes.mask, torch.arange(batch, device=empty.device), chunk_size):
        ids, mask = episodes.ids[rows, :longest], episodes.mask[rows, :longest]
        actions = episodes.actions[rows, :longest]
        log_probs[rows, :longest], entropy[rows, :longest] = roles.log_probs(
            ids, mask, actions, temperature=temperature
        )
        reference[rows, :longest], _ = roles.log_probs(
            ids, mask, actions, adapter=None, temperature=temperature
        )
        values[rows, :longest] = roles.values(ids, mask)
        for name in roles.score_heads:
            scores[name][rows] = roles.score(name, ids, mask)
    if roles.scorers:
        responses = response_texts(tokenizer, episodes)
        for name, scorer in roles.scorers.items():
            scores[name] = scorer(prompts, responses).to(empty)
    values = torch.where(episodes.actions.unsqueeze(-1), values, 0.0)
    return Trajectory(*episodes, log_probs, reference, entropy, values, scores["reward"], scores["cost"])
