"""What the commands can be told: a dataclass each. Nothing here loads torch, so that `csrlhf COMMAND --help` waits
for none.

The functions are in the file of the command's name. Commands whose own files load no torch (certify, claims, doctor,
plan, suggest-penalty) keep their options there; the experiments' are in `experiments/configs.py`, training's in
`csrlhf_kit/training/configs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from csrlhf_kit.models import CostSign, Sampler
from csrlhf_kit.models.places import SHIPPED
from csrlhf_kit.training.configs import CriticConfig, DirectConfig, PPOConfig, ScorerConfig
from csrlhf_kit.training.configs import Method as DirectMethod
from csrlhf_kit.training.constraints import CONSTRAINTS
from csrlhf_kit.training.optimizers import OptimizerName

Method = Literal[tuple(CONSTRAINTS)]


@dataclass
class RewardModelConfig(ScorerConfig):
    """Train a reward model on which response is more helpful, and measure its ranking."""

    data: str = "shipped"
    """Preference pairs: `shipped`, a file, a hub id, or a mixture `source:amount,source:amount`."""
    test_data: str = ""
    """A further source to test on; --data is then split into train and validation alone."""
    out: str = "runs/reward_model"
    """Folder for model, predictions and metrics; one that is there already is replaced at the very end."""
    objective: Literal["reward"] = "reward"
    """reward: -log sigmoid(R_w - R_l) with Safe RLHF's regulariser."""


@dataclass
class CostModelConfig(ScorerConfig):
    """Train a cost model and compare it with the keyword baseline on held-out rows."""

    data: str = "shipped"
    """Labelled responses (or pairs): `shipped`, a file, a hub id, or a mixture `source:amount,...`."""
    test_data: str = ""
    """A further source to test on; --data is then split into train and validation alone."""
    out: str = "runs/cost_model"
    """Folder for model, predictions and metrics; one that is there already is replaced at the very end."""
    objective: Literal["semantic", "safe_rlhf", "bradley_terry"] = "semantic"
    """semantic (labels), safe_rlhf (ranking + sign) or bradley_terry (ranking alone)."""


@dataclass
class PPORunConfig:
    """Train one policy with PPO under a constraint."""

    reward: Path
    """The reward model: a folder that `csrlhf reward-model` wrote, where an adapter of the policy's base is free; or
    a folder or hub id of a sequence classifier or a Beaver model."""
    cost: Path
    """The cost model: likewise, or judge:ID (a guard), or ask:ID (an instruction-tuned judge)."""
    out: Path
    """Folder of the run: metrics.jsonl, checkpoints, adapter."""
    cost_sign: CostSign = "checked"
    """checked: a cost model that was not trained here must score plain harm above harmless answers, or the run is
    refused; flipped: its negative is taken, for one that scores safety; trusted: as it is."""
    base: str = SHIPPED
    """The policy's base: a folder, a hub id, `shipped` (the tiny base), or a policy of `csrlhf sft`."""
    prompts: str = "shipped"
    """Where prompts come from: shipped, a file, a hub id, or a mixture `name:fraction,name:fraction`."""
    method: Method = "fixed_penalty"
    """The constraint."""
    threshold: float = 0.01
    """Largest mean cost allowed, in the unit of the costs (see --ppo.cost-scale)."""
    penalty: float = 20.0
    """The fixed λ, for the methods that have one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; bfloat16 for large bases on a GPU."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (bitsandbytes NF4) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter; its scale alpha is twice that."""
    layers: int | None = None
    """The policy's adapter acts on this many of the base's last layers; None: all. Scorers keep theirs, and the critic
    has the cost model's."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw_8bit: its moments in 8 bit; paged_adamw_8bit: moved to the host when a GPU's memory is short."""
    gradient_checkpointing: bool = False
    """Keep one state a layer and compute the rest again in the backward pass: less memory, a third more time."""
    rollout: Sampler = "loop"
    """loop: the kit's own sampling; static: a cache of fixed size, which transformers compiles on a GPU. Both
    draw the same tokens."""
    track: str = "none"
    """Send the metrics to a tracker of Accelerate too: tensorboard, wandb, mlflow ... (it must be installed)."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critic is fitted to the base's own answers first; --critic.episodes 0: not at all."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO's own settings."""
    strict: bool = False
    """Refuse prompts with any empty row; else up to 1% of such rows are left out."""
    resume: bool = False
    """Go on with what is in the folder."""


@dataclass
class DirectRunConfig:
    """Train one policy on preference pairs, without rewards and without sampling (but for MoCAN's offline answers)."""

    out: Path
    """Folder of the run: metrics.jsonl and checkpoints of each step, adapter."""
    method: DirectMethod = "safedpo"
    """dpo_safer | dpo_better | safedpo | sacpo | mocan."""
    base: str = SHIPPED
    """The policy's base: a folder, a hub id, `shipped` (the tiny base), or a policy of `csrlhf sft`."""
    data: str = "shipped"
    """Judged pairs: `shipped`, a file, a hub id, or a mixture; for mocan the prompts to answer."""
    reward: Path | None = None
    """The reward model, for mocan: as in `csrlhf ppo`."""
    cost: Path | None = None
    """The cost model, for mocan: as in `csrlhf ppo`."""
    max_new_tokens: int = 32
    """Longest answer that mocan samples from the base."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (bitsandbytes NF4) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter."""
    strict: bool = False
    """Refuse data with any row that lacks an answer or a label; else up to 1% of such rows are left out."""
    direct: DirectConfig = field(default_factory=DirectConfig)
    """Settings of loss and training."""


@dataclass
class EvaluateConfig:
    """Answer test prompts with a policy and judge the answers."""

    reward: Path
    """The reward model (for mean scores)."""
    cost: Path
    """The cost model: it judges where there is no oracle."""
    out: Path
    """File to write: a JSON object of rates with intervals, and every answer."""
    cost_sign: CostSign = "checked"
    """As in `csrlhf ppo`: checked, flipped or trusted."""
    policy: Path | None = None
    """The policy: an adapter's folder, or that of a `csrlhf ppo` run; None: the base itself."""
    base: str | None = None
    """The base of policy and scorers; None: the policy's own, or `shipped`, the tiny base."""
    prompts: str = "shipped"
    """Where prompts come from; on the shipped ones the toy world's oracle judges, elsewhere the cost model."""
    limit: int | None = None
    """At most this many prompts, drawn at random; None: all."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    batch_size: int = 128
    """Prompts answered at once; fewer where memory is short."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the frozen weights; None: as the policy's run had them."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit or as it is; None: as the policy's run did."""
    strict: bool = False
    """Refuse prompts with any empty row; else up to 1% of such rows are left out."""
    seed: int = 0
    """Seed of sampling."""


@dataclass
class RedTeamConfig:
    """Attack a policy with composed and searched jailbreaks, and hold conversations with it."""

    out: Path
    """File to write: a JSON object with the shares that held, and examples of what broke it."""
    policy: Path | None = None
    """The policy's run or adapter folder; None: the base itself."""
    base: str | None = None
    """The policy's base; None: its own, or `shipped`, the tiny base."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base's weights; None: as the policy's run had them."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit or as it is; None: as the policy's run did."""
    cost: Path | None = None
    """A cost model to guide the search; None: the oracle guides. The verdict is always the oracle's."""
    team: Literal["held_out", "train"] = "held_out"
    """held_out: test families on test compositions; train: training families on training compositions."""
    requests: int = 300
    """Harmful requests to break."""
    tries: int = 64
    """Tries at each."""
    talks: int = 400
    """Conversations of two, and of three turns; 0 for none."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Seed of requests, stacks, wordings and sampling."""


@dataclass
class TalkConfig:
    """How policies are loaded and answer."""

    base: str | None = None
    """The policy's base; None: the one that the run names."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base's weights; None: the run's own."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit or as it is; None: as the run did."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    seed: int = 0
    """Seed of sampling."""


@dataclass
class ArenaConfig(TalkConfig):
    """Set policies against each other: with RUN_A RUN_B you ask both and vote, with --runs the oracle judges.

    Which is which is hidden until you leave. Vote 1, 2, = (a tie), 0 (both bad) or nothing; /quit leaves. Each vote is
    on disk before the next question; votes that are there already are counted, so that asking again goes on.
    """

    duel: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A RUN_B")] = ()
    """Folders of the runs to talk to: of `csrlhf ppo` or `csrlhf sft`, or an adapter's."""
    runs: tuple[Path, ...] = ()
    """Folders of `csrlhf run` or `csrlhf sweep`, whose stored answers are rated; runs of one policy are its seeds."""
    out: Path | None = None
    """File of the votes, appended one JSON object a line, or of the ratings, replaced; None: votes.jsonl or arena.json
    beside the first run's folder."""
    anchor: str = "sft"
    """The policy with rating 0, with --runs."""


@dataclass
class ChatConfig(TalkConfig):
    """Talk to a trained policy in the terminal; /reset forgets the conversation, /quit leaves."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of `csrlhf ppo` or `csrlhf sft`, or an adapter's; without one, the base itself (--base)."""


@dataclass
class BaseConfig:
    """Train the toy world's tiny base model."""

    out: Path | None = None
    """Folder to write: model.safetensors, config, tokenizer; None: where `shipped` looks for it."""
    reading: int = 100_000
    """How many short documents about the world it reads first."""
    chatting: int = 150_000
    """How many documents follow, three in four of them exchanges; each is read once."""
    batch_size: int = 64
    """Documents a step."""
    learning_rate: float = 2e-3
    """Peak learning rate (AdamW, short warm-up, cosine to zero)."""
    hidden_size: int = 128
    """Width."""
    layers: int = 4
    """Depth."""
    vocabulary: int = 2048
    """Tokens of the byte-level BPE vocabulary, the special ones included."""
    seed: int = 0
    """Seed of the corpus and of the weights."""


@dataclass
class ExportConfig:
    """Give a trained adapter away: as PEFT's files, or merged into its base."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of `csrlhf sft`, `reward-model`, `cost-model` or `ppo`, or an adapter's."""
    out: Path
    """Folder to write; it must not exist, or be empty."""
    merge: bool = False
    """Fold the adapter into the base's weights, so that plain transformers loads the result without peft."""
    base: str | None = None
    """The base, where it is no longer where the adapter says."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of merged weights; None: the run's own, bfloat16 where it says nothing. An adapter that was trained
    on a 4-bit base is merged into the dense one."""
