"""One frozen base, many roles: policy, reward, cost and critic are adapters on the same weights.

Safe RLHF keeps six models in memory. Here one base (dense or NF4) carries four LoRA adapters (Hu et al. 2021,
arXiv 2106.09685) and three small heads; the reference policy is the base without adapters, and one critic predicts
the values of both reward and cost. Builds on adapters.py, open_scorer.py and kernels/.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels import fuse, linear_logprob
from csrlhf_kit.kernels.cpu_trunk import Trunk, TrunkDecoder, fits
from csrlhf_kit.kernels.masks import last_true, position_ids
from csrlhf_kit.models import Sampler
from csrlhf_kit.models.adapters import (
    copy_adapter,
    folds,
    load_adapter,
    lowest_layer,
    mount_scorer,
    without_dropout,
)
from csrlhf_kit.models.base import freeze, loading
from csrlhf_kit.models.classifiers import has_conv1d, last_layers, linear_names
from csrlhf_kit.models.decoding import CausalLM, Decoder
from csrlhf_kit.models.open_scorer import open_scorer
from csrlhf_kit.models.places import note_base
from csrlhf_kit.models.scorers import TextScorer
from csrlhf_kit.outputs import replace_folder


def _before(response_mask: Tensor) -> Tensor:
    """The columns (batch, length) whose state comes before each response token: one to the left."""
    return nn.functional.pad(response_mask[:, 1:].bool(), (0, 1))


class Roles(nn.Module):
    """A frozen causal LM with adapters `policy`, `critic` and, if they share its base, `reward` and `cost`.

    base: causal LM from `load_base`; peft wraps it in place.
    reward, cost: a source for `open_scorer`, such as a folder with a PEFT SEQ_CLS adapter, or any `TextScorer`.
    policy: optional folder of a PEFT CAUSAL_LM adapter to start from (the reference stays the bare base).
    rank, alpha, targets: LoRA shape of fresh adapters. Dropout is zero, to keep noise out of PPO's ratio.
    critic_from: the scorer from whose adapter the critic starts, if it shares the base; None: a fresh adapter.
        Safe RLHF starts from the reward model. Here the cost model is better: it has learnt what a prompt asks
        for, which mostly determines the cost value, and predicts the reward value nearly as well
        (benchmarks/results/critic_start.csv).
    layers: how many of the last layers fresh adapters act on; None: all. Layers below all adapters of scorers and
        critic are shared: on a lean trunk, one pass through them serves reference, critic, reward and cost
        (and the policy if its adapter does not reach lower), without gradients.
    fused: run the LoRA layers by `csrlhf_kit.kernels.lora_linear`, if the base's layers allow it.
    lean: run a small dense Llama-family base on a CPU by `csrlhf_kit.kernels.cpu_trunk`: the same numbers with less
        work, at the cost of a folded copy of the layers' weights between forward and backward.
    sampler: how answers are sampled, see `rollout.sample`; the lean trunk is used for "loop" only.
    seed: seed of fresh adapters; the global generators are not changed.

    Only `policy`, `critic` and `value_head` are trainable. Raises UserError for an adapter that does not fit.
    """

    def __init__(
        self,
        base: CausalLM,
        *,
        reward: str | Path | TextScorer,
        cost: str | Path | TextScorer,
        policy: str | Path | None = None,
        rank: int = 16,
        alpha: int = 32,
        targets: str | list[str] = "all-linear",
        critic_from: Literal["reward", "cost"] | None = "cost",
        layers: int | None = None,
        fused: bool = True,
        lean: bool = True,
        sampler: Sampler = "loop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        hidden_size = base.get_input_embeddings().weight.shape[1]
        if layers is not None and targets == "all-linear":
            targets = linear_names(base, ())  # peft picks layers from named targets only
        fresh = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=targets,
            layers_to_transform=last_layers(base.config.num_hidden_layers, layers), lora_dropout=0.0,
            fan_in_fan_out=has_conv1d(base), task_type="CAUSAL_LM",
        )  # fmt: skip
        with torch.random.fork_rng(), warnings.catch_warnings():
            # peft asks transformers for an attribute that was renamed
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self.model: Any = PeftModel(base, copy.deepcopy(fresh), adapter_name="policy")
            self.scorers: dict[str, TextScorer] = {}
            self.score_heads = nn.ModuleDict()
            for name, source in (("reward", reward), ("cost", cost)):
                if not callable(source):  # an adapter on another base becomes a `TextScorer`
                    dtype = str(base.dtype).removeprefix("torch.")
                    source = open_scorer(source, name, base=base.name_or_path or None, dtype=dtype)
                if callable(source):
                    self.scorers[name] = source
                else:
                    with loading(source, f"a {name} model"):
                        self.score_heads[name] = mount_scorer(self.model, name, source, hidden_size)
            start = critic_from if critic_from and critic_from in self.score_heads else None
            shape: Any = self.model.peft_config[start] if start else fresh
            self.model.add_adapter("critic", without_dropout(shape, base))
            self.value_head = nn.Linear(hidden_size, 2)  # (reward value, cost value)
        if policy is not None:
            with loading(policy, "a policy"):
                load_adapter(self.model, "policy", Path(policy))
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if start:
            copy_adapter(self.model, start, "critic")
        if fused:
            fuse(self.model)
        self.to(base.device)
        self.trunk = base.base_model  # the transformer without its language-model head
        self.lm_head = base.get_output_embeddings()
        self._layers: list[Any] = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        self.eval()
        freeze(base)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(
                ".policy." in name or ".critic." in name or name.startswith("value_head.")
            )
        for parameter in self.trainable("policy") + self.trainable("critic"):
            parameter.data = parameter.data.float()  # in half precision, Adam's steps would round to nothing
        self.lean = Trunk(base) if lean and fits(base) else None
        self.lowest: dict[str | None, int] = {a: lowest_layer(self.model, a) for a in self.model.peft_config}
        self.shared = min(layer for name, layer in self.lowest.items() if name != "policy")
        self._check_head()

    # --- forward passes ---

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    def activate(self, adapter: str | None) -> None:
        """Make `adapter` the active one; None switches all off (the reference policy).

        Not by peft's `set_adapter`, which also sets `requires_grad` and would give the frozen scorers gradients.
        """
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]

    @contextlib.contextmanager
    def decoder(self, adapter: str | None) -> Iterator[CausalLM | Decoder]:
        """The fastest model or decoder with `adapter` active that `sample` can use for this base."""
        if self.lean is not None and self.sampler == "loop":
            yield TrunkDecoder(self.lean, self.lm_head, adapter)
        else:
            with self.merged(adapter) as model:
                yield model

    @contextlib.contextmanager
    def merged(self, adapter: str | None) -> Iterator[CausalLM]:
        """The causal LM with `adapter` folded into its weights within the block, if that is exact up to rounding.

        It is for plain LoRA on dense float32 layers, and takes a second copy of their weights. Other models (NF4,
        half precision, DoRA ...) run with the adapter beside the base. Afterwards each layer has its original
        weights, and `adapter` is active.
        """
        kept: list[tuple[nn.Parameter, Tensor]] = []
        self.activate(adapter)
        if adapter is not None and all(folds(layer, adapter) for layer in self._layers):
            for layer in self._layers:
                if adapter in layer.lora_A:
                    weight = layer.get_base_layer().weight
                    kept.append((weight, weight.data))
                    weight.data = weight.data + layer.get_delta_weight(adapter)
            self.activate(None)
        try:
            yield self.model
        finally:
            for weight, data in kept:
                weight.data = data
            self.activate(adapter)

    def hidden(self, ids: Tensor, mask: Tensor, adapter: str | None) -> Tensor:
        """Last hidden states (batch, length, hidden) of `ids` (batch, length) under `adapter`.

        mask: (batch, length), true at real tokens, which are contiguous in each row; padding on either side.
        The model needs it only for padding on the left, since a causal model ignores later tokens.
        """
        self.activate(adapter)
        if bool(mask[:, 0].all()):
            output = self.trunk(input_ids=ids, use_cache=False)
        else:
            output = self.trunk(
                input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
            )
        return output.last_hidden_state

    def hidden_at(
        self, ids: Tensor, mask: Tensor, adapter: str | None, read: Tensor, shared_states: Tensor | None
    ) -> Tensor:
        """Last hidden states (read tokens, hidden) where `read` (batch, length) is true, row by row."""
        if self.lean is None:
            return self.hidden(ids, mask, adapter)[read]
        if self.lowest.get(adapter, self.shared) < self.shared:
            shared_states = None
        return self.lean.hidden(ids, mask, adapter, read, shared_states=shared_states, first=self.shared)

    def shared_states(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """The states (batch, length, hidden) after the shared layers; None if there are none, or no lean trunk."""
        if self.lean is None or self.shared == 0:
            return None
        return self.lean.shared_states(ids, mask, None, self.shared)

    def log_probs(
        self,
        ids: Tensor,
        mask: Tensor,
        response_mask: Tensor,
        *,
        adapter: str | None = "policy",
        temperature: float = 1.0,
        shared_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (nats) of each response token under softmax(logits / temperature).

        ids, mask, response_mask: (batch, length); `response_mask` is true at the tokens that the policy chose.
        Returns two float32 tensors (batch, length), zero elsewhere; column t is for token t, predicted from those
        before it. The language-model head runs at these positions only.
        shared_states: what `shared_states` returned for these rows, if known.
        """
        log_probs, entropy = linear_logprob(
            self.hidden_at(ids, mask, adapter, _before(response_mask), shared_states),  # (tokens, hidden)
            self.lm_head.weight,
            ids[response_mask],
            temperature=temperature,
            bias=getattr(self.lm_head, "bias", None),
        )
        empty = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        found = (log_probs.float(), entropy.float())
        return empty.masked_scatter(response_mask, found[0]), empty.masked_scatter(response_mask, found[1])

    def values(
        self, ids: Tensor, mask: Tensor,
        response_mask: Tensor | None = None, shared_states: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Values (batch, length, 2) of reward and cost in the state *before* each token; zero in column 0.

        response_mask: (batch, length), true at the tokens whose values are computed, others are zero; None: at all
        tokens, and at the one after the last. shared_states: what `shared_states` returned for these rows.
        """
        read = _before(nn.functional.pad(mask[:, :-1], (1, 0)) if response_mask is None else response_mask)
        states = self.hidden_at(ids, mask, "critic", read, shared_states)
        values = self.value_head(states.float())  # (read tokens, 2)
        empty = values.new_zeros(*ids.shape, 2)
        return empty.masked_scatter(nn.functional.pad(read[:, :-1], (1, 0)).unsqueeze(-1), values)

    def score(self, name: str, ids: Tensor, mask: Tensor, shared_states: Tensor | None = None) -> Tensor:
        """Logit (batch,) of the `reward` or `cost` adapter at the last real token of each row of ids (batch, length).

        shared_states: what `shared_states` returned for these rows, if known.
        """
        last = torch.zeros_like(mask, dtype=torch.bool).scatter_(1, last_true(mask).unsqueeze(1), True)
        states = self.hidden_at(ids, mask, name, last, shared_states)
        return self.score_heads[name](states.float()).squeeze(-1)

    # --- trained weights ---

    def trainable(self, role: str) -> list[nn.Parameter]:
        """Parameters of the `policy` or of the `critic` (with its value head), in a fixed order."""
        found = [
            parameter
            for name, parameter in self.model.named_parameters()
            if f".{role}." in name and parameter.requires_grad
        ]
        return found + (list(self.value_head.parameters()) if role == "critic" else [])

    def trained_state(self) -> dict[str, Tensor]:
        """All trained tensors by name: policy adapter, critic adapter, value head."""
        return {
            name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad
        }

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trained_state` returned. Raises UserError if names or shapes differ."""
        own = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            odd = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
            raise UserError(f"the checkpoint does not fit these adapters: expected the same {odd[0]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def save_policy(self, folder: str | Path) -> Path:
        """Save the policy as a PEFT adapter that `PeftModel.from_pretrained(base, folder)` loads."""

        def write(fresh: Path) -> None:
            self.model.save_pretrained(str(fresh), selected_adapters=["policy"], save_embedding_layers=False)
            written = fresh / "policy"  # peft gives each named adapter a folder of its own
            for file in written.iterdir():
                file.replace(fresh / file.name)
            written.rmdir()
            note_base(fresh, self.model.get_base_model().name_or_path)

        replace_folder(Path(folder), write)
        return Path(folder)

    # --- set-up ---

    @torch.no_grad()
    def _check_head(self) -> None:
        """Raise UserError if the model scales or caps its logits after the head: log-probabilities would be wrong."""
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        ours = self.lm_head(
            self.hidden(ids, torch.ones_like(ids), "policy").to(self.lm_head.weight.dtype)
        ).float()
        self.activate("policy")
        if not torch.allclose(logits.log_softmax(-1), ours.log_softmax(-1), atol=2e-2):
            raise UserError(
                f"{type(self.lm_head).__name__} of {self.model.config.model_type} is not the whole head: "
                "expected logits that are a linear function of the last hidden state (no scale, no soft cap)"
            )
        if self.lean is not None:  # `fits` may not know every option of a configuration
            mask = torch.ones_like(ids, dtype=torch.bool)
            theirs, ours = self.hidden(ids, mask, None)[mask], self.lean.hidden(ids, mask, None, mask)
            if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3):
                self.lean = None
            self.activate("policy")
