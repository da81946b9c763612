"""A trained scorer for `inspect_cost`: its logits, integrated gradients, and the states that its score head reads.

Builds on models/scorers.py and inspect_data.py; of the files of `inspect_cost`, only this one imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from csrlhf_kit.models.scorers import Scorer, encode, output_layer, pad, score_rows
from csrlhf_kit.widgets.inspect_data import Attribution, Word, check, words

FIRST = 16  # segments of the path at the start
MOST = 768  # no segment is halved further if that would take more gradients than this
NEUTRAL = "."  # every token of the baseline's texts


@dataclass(frozen=True)
class Network:
    """A loaded scorer; calling it with prompts and responses gives their logits, (dialogues,)."""

    scorer: Scorer

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return score_rows(self.scorer, encode(self.scorer, prompts, responses))

    def integrated_gradients(self, prompt: str, response: str, *, tolerance: float = 0.05) -> Attribution:
        """How much each word raises the logit above that of a baseline, in which every token of the texts is ".".

        A word's part is the sum of its tokens' parts by `path_gradients`; tokens outside the first `MOST_WORDS` words
        add up to `rest`. The template's tokens are the same in both dialogues, so their part is 0. tolerance: largest
        error of the sum, in logits. Raises UserError as `check`.
        """
        check(prompt, response)
        row = encode(self.scorer, [prompt], [response])[0]
        places = token_places(self.scorer, row["input_ids"], prompt, response)
        said = torch.tensor([place is not None for place in places])
        neutral = self.scorer.tokenizer(NEUTRAL, add_special_tokens=False)["input_ids"][-1]
        ids = torch.tensor(row["input_ids"])
        layer = self.scorer.model.get_input_embeddings()
        with torch.no_grad():
            end, start = (
                layer(t.to(self.scorer.device)) for t in (ids, ids.where(~said, torch.tensor(neutral)))
            )
        parts, ends = path_gradients(self._of_embeddings(row), start, end, tolerance=tolerance)
        found = words(prompt, response)
        each = np.zeros(len(found))
        rest = 0.0
        for part, place in zip(parts.tolist(), places, strict=True):
            owner = None if place is None else _word_at(found, *place)
            if owner is None:
                rest += part
            else:
                each[owner] += part
        return Attribution(each, rest, baseline=ends[0], score=ends[1])

    def _of_embeddings(self, row: dict[str, list[int]]) -> Callable[[Tensor], Tensor]:
        """A function from embeddings (points, length, width), in place of the row's own, to logits (points,)."""
        model = self.scorer.model.eval()
        options = {"use_cache": False} if self.scorer.decoder else {}

        def score(points: Tensor) -> Tensor:
            batch = {
                name: t.to(points.device) for name, t in pad([row] * len(points), self.scorer.pad_id).items()
            }
            # Only the embedding layer's output is replaced: masks, positions and pooling stay those of the text.
            hook = model.get_input_embeddings().register_forward_hook(lambda *_: points)
            try:
                return model(**batch, **options).logits[:, 0].float()
            finally:
                hook.remove()

        return score

    @torch.inference_mode()
    def states(self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """The state h that the score head reads of each dialogue, (dialogues, width), float32: logit = w · h + b."""
        model, rows = self.scorer.model.eval(), encode(self.scorer, prompts, responses)
        options = {"use_cache": False} if self.scorer.decoder else {}
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        read: list[Tensor] = []
        hook = output_layer(model).register_forward_pre_hook(lambda _, given: read.append(given[0]))
        found: dict[int, np.ndarray] = {}
        try:
            for first in range(0, len(rows), batch_size):
                chosen = order[first : first + batch_size]
                batch = pad([rows[index] for index in chosen], self.scorer.pad_id)
                model(**{name: tensor.to(self.scorer.device) for name, tensor in batch.items()}, **options)
                state = read.pop()
                if state.dim() == 3:  # a decoder's head reads every token; the last one counts
                    state = state[
                        torch.arange(len(chosen)), batch["attention_mask"].sum(1).to(state.device) - 1
                    ]
                found.update(zip(chosen, state.float().cpu().numpy(), strict=True))
        finally:
            hook.remove()
        return np.stack([found[index] for index in range(len(rows))])


def path_gradients(
    score: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, tolerance: float
) -> tuple[Tensor, tuple[float, float]]:
    """Integrated gradients of `score` along the straight line between two points, and its values at both ends.

        part_i = Σ_d (end − start)_id ∫₀¹ ∂score(start + a (end − start)) / ∂x_id da

    score: (points, length, width) -> (points,). start, end: (length, width). Returns the parts, (length,), and the
    values at both ends. The parts add up to score(end) − score(start) (completeness), up to `tolerance`: a segment
    of the path is halved while the gradient in its middle does not give the change of `score` over it, unless that
    takes more than `MOST` gradients. Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, equation 1.
    """
    way = end - start

    def at(places: Tensor) -> Tensor:
        return start + places.to(way)[:, None, None] * way

    edges = torch.linspace(0, 1, FIRST + 1, dtype=torch.float64)
    with torch.no_grad():
        values = score(at(edges)).double().cpu()
    low, high, below, above = edges[:-1], edges[1:], values[:-1], values[1:]
    parts, taken = torch.zeros(len(way), dtype=torch.float64), 0
    while len(low):
        middle = (low + high) / 2
        points = at(middle).requires_grad_()
        with torch.enable_grad():
            value = score(points)
            slope = torch.autograd.grad(value.sum(), points)[0]
        share = (slope * way).sum(-1).double().cpu() * (high - low)[:, None]  # (segments, length)
        taken += len(low)
        known = (share.sum(1) - (above - below)).abs() <= tolerance / FIRST
        if taken + 2 * int((~known).sum()) > MOST:
            known[:] = True
        parts += share[known].sum(0)
        value, open_ = value.detach().double().cpu(), ~known
        low, high = torch.cat([low[open_], middle[open_]]), torch.cat([middle[open_], high[open_]])
        below, above = torch.cat([below[open_], value[open_]]), torch.cat([value[open_], above[open_]])
    return parts, (float(values[0]), float(values[-1]))


Place = tuple[str, int, int]
"""A token's side (`prompt` or `response`), and the range of characters of that text which it spells."""


def token_places(scorer: Scorer, ids: Sequence[int], prompt: str, response: str) -> list[Place | None]:
    """The place of each token of an encoded dialogue in its texts; None for tokens that template or encoder add.

    For a decoder, all tokens of a text are None if the text was cut to fit, since its place is then unknown.
    """
    if not scorer.decoder:
        encoded = scorer.tokenizer(
            prompt, response, truncation="longest_first", max_length=scorer.max_length, split_special_tokens=True,
            return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        sides = [None if side is None else ("prompt", "response")[side] for side in encoded.sequence_ids()]
        spans = encoded["offset_mapping"]
        return [None if side is None else (side, *span) for side, span in zip(sides, spans, strict=True)]
    ids, special = list(ids), set(scorer.tokenizer.all_special_ids)
    decode = partial(scorer.tokenizer.decode, clean_up_tokenization_spaces=False)
    ends = [len(decode(ids[:stop])) for stop in range(len(ids) + 1)]
    spans = list(pairwise(ends))
    whole = decode(ids)
    text = "".join(  # control tokens become NULs, so that their names are not found as words
        "\0" * (end - start) if token in special else whole[start:end]
        for token, (start, end) in zip(ids, spans, strict=True)
    )
    places: list[Place | None] = [None] * len(ids)
    stop = len(text)
    for side, said in (("response", response), ("prompt", prompt)):  # from the end: both may say the same
        bare = said.strip()  # as some templates do
        first = text.rfind(bare, 0, stop)
        if first < 0:
            continue
        shift = first - said.index(bare)
        for index, (start, end) in enumerate(spans):
            if start < first + len(bare) and first < end and ids[index] not in special:
                places[index] = (side, start - shift, end - shift)
        stop = first
    return places


def _word_at(found: Sequence[Word], side: str, start: int, end: int) -> int | None:
    """The index in `found` of the word that a token spells a part of; None if there is none."""
    return next((i for i, w in enumerate(found) if w.side == side and w.start < end and start < w.end), None)
