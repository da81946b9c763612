"""Episodes: sampling the policy's answers, and computing all that training needs to know about them.

Prompts are padded on the left and answered token by token; then prompt and response are stored contiguously and
padded on the right, so that a mini-batch can be trimmed to its longest row and needs no attention mask.
Builds on roles.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from csrlhf_kit.data.chat import Turns, encode_prompts, end_token, end_tokens
from csrlhf_kit.kernels.masks import last_true
from csrlhf_kit.models import Sampler
from csrlhf_kit.models.decoding import CachedForward, CausalLM, Decoder, pick
from csrlhf_kit.models.roles import Roles


class Episodes(NamedTuple):
    """Sampled token sequences, prompt and response contiguous, padded on the right."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length), true at real tokens
    response_mask: Tensor  # (batch, length), true at response tokens, EOS included
    ended: Tensor  # (batch,), whether the response ended with EOS


class Trajectory(NamedTuple):
    """Episodes with everything that is computed before the update."""

    ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length)
    response_mask: Tensor  # (batch, length)
    ended: Tensor  # (batch,)
    log_probs: Tensor  # (batch, length), of the sampling policy, computed as in training
    reference_log_probs: Tensor  # (batch, length)
    entropy: Tensor  # (batch, length), of the sampling policy
    values: Tensor  # (batch, length, 2), before each action
    reward: Tensor  # (batch,), logits
    cost: Tensor  # (batch,), logits; > 0 is unsafe
    shared_states: Tensor | None = None  # (batch, length, hidden), states after the shared layers, if known


MAX_PROMPT = 512  # tokens; longer prompts are cut
Ends = int | Sequence[int]
"""The token, or several tokens, that end an answer ("EOS")."""


def until_end(tokens: Tensor, eos_token_id: Ends) -> tuple[Tensor, Tensor]:
    """Of generated `tokens` (batch, response length): a mask of what was said, and (batch,) which rows ended.

    The first EOS counts, since the policy chose to stop; nothing after it does. Padding is recognised by its
    place, never by its id, so the pad token may be the EOS token.
    """
    is_eos = torch.isin(tokens, torch.as_tensor(eos_token_id, device=tokens.device))
    earlier_eos = is_eos.long().cumsum(1) - is_eos.long()
    return earlier_eos == 0, is_eos.any(1)


def pack(ids: Tensor, mask: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move each row's real tokens to the left edge, and drop columns without real tokens.

    ids, mask, response_mask: (batch, length); real tokens are contiguous, with padding on either side or both.
    Returns all three, (batch, longest row).
    """
    start = mask.long().argmax(1, keepdim=True)  # (batch, 1)
    lengths = mask.sum(1, keepdim=True)  # (batch, 1)
    columns = torch.arange(int(lengths.max()), device=ids.device)  # (longest,)
    source = (columns + start).clamp_max(ids.shape[1] - 1)
    packed_mask = columns < lengths
    packed_ids = torch.where(packed_mask, ids.gather(1, source), ids.new_zeros(()))
    return packed_ids, packed_mask, response_mask.gather(1, source) & packed_mask


SHRINK = 0.75  # finished rows are dropped when at most this share of the rows is unfinished


def sampling_noise(batch: int, max_new_tokens: int, device: torch.device) -> Tensor:
    """Uniform numbers (batch, max_new_tokens), float64, from torch's global generator: one per possible token, all
    drawn at once, so that an answer does not depend on how long the other rows go on.
    """
    return torch.rand(batch, max_new_tokens, dtype=torch.float64, device=device)


def decode(
    decoder: Decoder,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    eos_token_id: Ends,
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    shrink: float = SHRINK,
) -> Tensor:
    """Answer left-padded prompts (batch, length): tokens (batch, at most max_new_tokens), arbitrary after EOS.

    noise: a result of `sampling_noise`; None draws it here. shrink: see `SHRINK`; it changes no draw.
    """
    batch, device = prompt_ids.shape[0], prompt_ids.device
    noise = sampling_noise(batch, max_new_tokens, device) if noise is None else noise
    tokens = torch.full((batch, max_new_tokens), pad_token_id, device=device)
    rows = torch.arange(batch, device=device)  # the rows that the decoder still has
    going = torch.ones(batch, dtype=torch.bool, device=device)
    ends = torch.as_tensor(eos_token_id, device=device)
    logits = decoder.start(prompt_ids, prompt_mask, max_new_tokens - 1)
    for t in range(max_new_tokens):
        chosen = pick(logits, noise[rows, t], temperature)
        tokens[rows, t] = chosen
        going = going & ~torch.isin(chosen, ends)
        count = int(going.sum())
        if count == 0 or t + 1 == max_new_tokens:
            break
        if count <= shrink * len(rows):
            kept = going.nonzero().squeeze(1)
            rows, chosen, going = rows[kept], chosen[kept], going[kept]
            decoder.keep(kept)
        logits = decoder.step(chosen)
    return tokens[:, : t + 1]


class Draw(LogitsProcessor):
    """Makes Hugging Face's greedy search choose the tokens that `pick` draws."""

    def __init__(self, noise: Tensor, temperature: float, prompt_length: int) -> None:
        self.noise, self.temperature, self.prompt_length = noise, temperature, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = pick(scores, self.noise[:, input_ids.shape[1] - self.prompt_length], self.temperature)
        return torch.full_like(scores, -math.inf).scatter_(1, chosen.unsqueeze(1), 0.0)


def generate(
    model: CausalLM,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    eos_token_id: Ends,
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    static_cache: bool = False,
) -> Tensor:
    """As `decode`, by Hugging Face's `generate`: for models without a plain key-value cache, or with a cache of fixed
    size, which transformers compiles on a GPU, so that a token is one CUDA graph.

    The tokens are those of `decode` with the same noise. Every setting is explicit, so that no default of a base
    (top_p, repetition penalty ...) changes the distribution from softmax(logits / temperature), which the
    log-probabilities assume.
    """
    if noise is None:
        noise = sampling_noise(prompt_ids.shape[0], max_new_tokens, prompt_ids.device)
    settings = GenerationConfig(
        do_sample=False,  # `Draw` samples
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        suppress_tokens=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=True,
        cache_implementation="static" if static_cache and model._supports_default_dynamic_cache() else None,
    )
    output = model.generate(
        input_ids=prompt_ids,
        attention_mask=prompt_mask.long(),
        generation_config=settings,
        logits_processor=LogitsProcessorList([Draw(noise, temperature, prompt_ids.shape[1])]),
    )
    return output[:, prompt_ids.shape[1] :]


@torch.no_grad()
def sample(
    model: CausalLM | Decoder,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    eos_token_id: Ends,
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    sampler: Sampler = "loop",
) -> Episodes:
    """Answer each left-padded prompt once.

    model: a causal LM, or a `Decoder`. prompt_ids, prompt_mask: (batch, prompt length). temperature: 0 decodes
    greedily; otherwise tokens follow softmax(logits / temperature), whatever a base's generation config says.
    noise: a result of `sampling_noise`; None draws it here. sampler: for a causal LM, "loop" is the kit's own
    `decode`, "static" is `generate` with a cache of fixed size; both draw the same tokens.
    """
    if noise is None:
        noise = sampling_noise(prompt_ids.shape[0], max_new_tokens, prompt_ids.device)
    settings: dict[str, Any] = {
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "noise": noise,
    }
    if not isinstance(model, nn.Module):
        tokens = decode(model, prompt_ids, prompt_mask, **settings)
    elif sampler == "static" or not CachedForward.fits(model):
        tokens = generate(model, prompt_ids, prompt_mask, **settings, static_cache=sampler == "static")
    else:
        tokens = decode(CachedForward(model), prompt_ids, prompt_mask, **settings)
    response_mask, ended = until_end(tokens, eos_token_id)
    ids = torch.cat([prompt_ids, tokens], 1)
    mask = torch.cat([prompt_mask.bool(), response_mask], 1)
    response_mask = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), response_mask], 1)
    return Episodes(*pack(ids, mask, response_mask), ended)


def sample_episodes(
    roles: Roles,
    tokenizer: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    adapter: str | None = "policy",
    max_new_tokens: int,
    temperature: float = 1.0,
    noise: Tensor | None = None,
) -> Episodes:
    """`sample` with an adapter of `roles` (None: the reference); common left padding is dropped."""
    first = int(prompt_mask.long().argmax(1).min())
    with roles.decoder(adapter) as model:
        return sample(
            model, prompt_ids[:, first:].to(roles.device), prompt_mask[:, first:].to(roles.device),
            eos_token_id=end_tokens(tokenizer, roles.model.generation_config),
            pad_token_id=tokenizer.pad_token_id, max_new_tokens=max_new_tokens, temperature=temperature,
            noise=noise, sampler=roles.sampler,
        )  # fmt: skip


def response_texts(tokenizer: Any, episodes: Episodes | Trajectory) -> list[str]:
    """Decoded responses, without EOS and other special tokens."""
    rows = [
        ids[said].tolist()[: -1 if ended else None]  # EOS may be no special token
        for ids, said, ended in zip(
            episodes.ids, episodes.response_mask, episodes.ended.tolist(), strict=True
        )
    ]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def in_batches(
    sample_batch: Callable[[Tensor, Tensor], Episodes],
    tokenizer: Any,
    prompts: Sequence[Turns],
    *,
    batch_size: int,
    max_length: int = MAX_PROMPT,
    longest_first: bool = True,
) -> Iterator[tuple[Tensor, Episodes]]:
    """Answer `prompts` in batches of similar length: (indices into `prompts`, their episodes), batch by batch.

    sample_batch: answers left-padded ids and mask (batch, length), such as `sample_episodes` with its first arguments.
    max_length: longest prompt in tokens. longest_first: the order of the batches, on which the draws depend.
    """
    encoded = encode_prompts(tokenizer, prompts, max_length=max_length)
    lengths = encoded["attention_mask"].sum(1)
    for rows in lengths.argsort(descending=longest_first, stable=True).split(batch_size):
        longest = int(lengths[rows].max())
        batch = encoded["input_ids"][rows, -longest:], encoded["attention_mask"][rows, -longest:]
        yield rows, sample_batch(*batch)


def sample_responses(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    adapter: str | None = "policy",
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[str]:
    """One response text per prompt, by an adapter of `roles` (None: the reference); samples longest prompts first."""
    sample_batch = partial(
        sample_episodes, roles, tokenizer,
        adapter=adapter, max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip
    answers = [""] * len(prompts)
    for rows, episodes in in_batches(sample_batch, tokenizer, prompts, batch_size=batch_size):
        for row, text in zip(rows.tolist(), response_texts(tokenizer, episodes), strict=True):
            answers[row] = text
    return answers


def by_length(mask: Tensor, rows: Tensor, size: int) -> list[tuple[Tensor, int]]:
    """Split `rows` (indices into `mask`) into chunks of similar length: [(rows, longest length), ...]."""
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
    policy: bool = True,
    critic: bool = True,
) -> Trajectory:
    """Log-probabilities of policy and reference, values, reward and cost of each episode, each computed once.

    prompts: the requests as text, for scorers that do not share the policy's base. policy, critic: whether to compute
    log-probabilities and entropy, and values; otherwise they are zero. chunk_size: rows per forward pass.
    Log-probabilities are computed as in training, not taken from sampling, whose cached attention rounds differently.
    For scorers, the token that ended an answer is replaced by the end token of training.
    """
    batch, length = episodes.ids.shape
    empty = torch.zeros(batch, length, device=episodes.ids.device)
    log_probs, reference, entropy = empty.clone(), empty.clone(), empty.clone()
    values = empty.new_zeros(batch, length, 2)
    scores = {name: empty.new_zeros(batch) for name in ("reward", "cost")}
    shared_states, last = None, last_true(episodes.mask).unsqueeze(1)  # (batch, 1)
    closed = torch.where(episodes.ended.unsqueeze(1), end_token(tokenizer), episodes.ids.gather(1, last))
    closed = episodes.ids.scatter(1, last, closed)
    for rows, longest in by_length(episodes.mask, torch.arange(batch, device=empty.device), chunk_size):
        ids, mask = episodes.ids[rows, :longest], episodes.mask[rows, :longest]
        response_mask = episodes.response_mask[rows, :longest]
        known = roles.shared_states(ids, mask)
        if policy:
            log_probs[rows, :longest], entropy[rows, :longest] = roles.log_probs(
                ids, mask, response_mask, temperature=temperature, shared_states=known
            )
            reference[rows, :longest], _ = roles.log_probs(
                ids, mask, response_mask, adapter=None, temperature=temperature, shared_states=known
            )
        if critic:
            values[rows, :longest] = roles.values(ids, mask, response_mask, known)
        if critic and known is not None:  # the update needs it again
            if shared_states is None:
                shared_states = empty.new_zeros(batch, length, known.shape[2])
            shared_states[rows, :longest] = known
        read = closed[rows, :longest]
        known = known if torch.equal(read, ids) else roles.shared_states(read, mask)
        for name in roles.score_heads:
            scores[name][rows] = roles.score(name, read, mask, known)
    if roles.scorers:
        responses = response_texts(tokenizer, episodes)
        for name, scorer in roles.scorers.items():
            scores[name] = scorer(prompts, responses).to(empty)
    rewards, costs = scores["reward"], scores["cost"]
    return Trajectory(*episodes, log_probs, reference, entropy, values, rewards, costs, shared_states)
