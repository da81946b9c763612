"""Finished dialogues for training a policy: token ids, and which of them belong to the response.

They have the tensors of PPO's episodes (`ids`, `mask`, `response_mask`), but their responses come from data:
demonstrations to imitate (PTX) and preference pairs (DPO and its variants).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csrlhf_kit.data.chat import encode_dialogues, tell_cut
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import by_length


class Dialogues(NamedTuple):
    """Prompt, response and end token of each row, padded on the right."""

    ids: Tensor  # (rows, length)
    mask: Tensor  # (rows, length), true at real tokens
    response_mask: Tensor  # (rows, length), true at response tokens, EOS included

    def take(self, rows: Tensor, longest: int | None = None) -> Dialogues:
        """The given rows, trimmed to `longest` tokens; None: to the longest of them."""
        longest = int(self.mask[rows].sum(1).max()) if longest is None else longest
        return Dialogues(*(tensor[rows, :longest] for tensor in self))

    def to(self, device: torch.device) -> Dialogues:
        return Dialogues(*(tensor.to(device) for tensor in self))


def encode_responses(
    tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], *, max_length: int = 512
) -> Dialogues:
    """Encode each prompt with its response and the end token, as `csrlhf_kit.data.chat` renders them.

    If a row has more than `max_length` tokens, its prompt loses its beginning; the number of such rows is
    printed. Raises UserError if a response leaves no room for its prompt.
    """
    encoded = encode_dialogues(tokenizer, list(prompts), list(responses), max_length=max_length)
    mask = encoded["attention_mask"].bool()
    alone = tokenizer(list(responses), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    learnt = torch.tensor([len(ids) + 1 for ids in alone])  # (rows,), EOS is one more
    lengths = mask.sum(1)
    tell_cut(int((encoded["cut"] == 1).sum()), len(prompts), max_length, "dialogues")
    if (encoded["cut"] == 2).any():
        row = int((encoded["cut"] == 2).nonzero()[0])
        raise UserError(
            f"the response to {prompts[row]!r:.60} has {learnt[row]} tokens: expected room for a part of its "
            f"prompt in max_length ({max_length})"
        )
    columns = torch.arange(mask.shape[1])
    return Dialogues(encoded["input_ids"], mask, mask & (columns >= (lengths - learnt).unsqueeze(1)))


@torch.no_grad()
def sequence_log_probs(roles: Roles, dialogues: Dialogues, *, adapter: str | None) -> Tensor:
    """log pi(response | prompt) in nats, (rows,), without gradients; `adapter` None: the base's."""
    total = torch.zeros(len(dialogues.ids))
    for rows, longest in by_length(dialogues.mask, torch.arange(len(total)), 64):
        batch = dialogues.take(rows, longest).to(roles.device)
        total[rows] = roles.log_probs(*batch, adapter=adapter)[0].sum(1).cpu()
    return total


def imitation_backward(
    roles: Roles, dialogues: Dialogues, rows: Tensor, weight: float, *, microbatch_size: int
) -> float:
    """Add the gradient of weight * (mean negative log-likelihood per response token); return that mean in nats.

    rows: indices of the dialogues to use. PTX keeps a policy that is optimised for rewards close to its
    demonstrations (InstructGPT, Ouyang et al. 2022, arXiv 2203.02155, equation 2; Safe RLHF's weight is 16).
    """
    tokens = dialogues.response_mask[rows].sum()
    total = 0.0
    for part, longest in by_length(dialogues.mask, rows, microbatch_size):
        log_probs, _ = roles.log_probs(*dialogues.take(part, longest).to(roles.device))
        loss = -log_probs.sum() / tokens
        (weight * loss).backward()
        total += float(loss.detach())
    return total
