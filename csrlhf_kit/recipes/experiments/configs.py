"""The options of `csrlhf run` and `csrlhf rounds`, without importing torch (those of a sweep: `plans.py`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from csrlhf_kit.contents import content_of
from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.places import SHIPPED, adapter_in, find_base
from csrlhf_kit.training.configs import CriticConfig, PPOConfig
from csrlhf_kit.training.constraints import CONSTRAINTS


@dataclass
class ExperimentConfig:
    """What the head-to-head, a sweep and red-team rounds have in common."""

    out: Path = Path("runs/demo")
    """Folder of the run: results, models, policies, finished stages."""
    base: Path | None = None
    """The base model; None: the shipped tiny base."""
    threshold: float = 0.02
    """Largest mean cost allowed over the training prompts: a probability, so that 0.02 means "2% harmful"."""
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            steps=64, epochs=2, learning_rate=3e-3, critic_learning_rate=4e-3, schedule="cosine"
        )
    )
    """PPO's settings, the same for every policy."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critic, the same for every policy, is first fitted to the base."""
    scorer_epochs: float | None = 1.0
    """Passes over the labels for each scorer; None: chosen by the data's size."""
    evaluate: int = 500
    """Prompts for each of the three rates: harmful and plain, harmful and wrapped, benign but alarming."""
    judged_on: Literal["test", "validation"] = "test"
    """Split of the prompts that policies are judged on; validation is for choosing settings."""
    workers: int = 2
    """Number of stages that run at the same time, each in a process with one thread."""
    resume: bool = False
    """Continue the run in the folder; without this, an existing run is an error."""

    def base_path(self) -> Path:
        """The base model's folder, relative if possible, since models store their base's path.

        Raises UserError if there is none.
        """
        path = self.base or Path(find_base(SHIPPED))
        if not (path / "config.json").is_file() and not adapter_in(path):
            raise UserError(
                f"no base model in {path}: expected a folder with config.json (see csrlhf make-base)"
            )
        here = Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path

    def contents(self) -> dict[str, str]:
        """Fingerprints of the base and of the data that a run reads."""
        world = content_of(data_folder() / "world", ("*.jsonl",))
        return {"base": content_of(self.base_path()), "data": world}

    def stage_path(self, name: str) -> Path:
        """The file that a finished stage has written."""
        return self.out / "stages" / f"{name}.json"

    def read_stage(self, name: str) -> dict[str, Any]:
        """What a finished stage has written."""
        return json.loads(self.stage_path(name).read_text())

    def settings(self, *aside: str) -> dict[str, Any]:
        """What has to be the same when a run goes on: all fields but the folder, the speed, and those `aside`."""
        return {n: v for n, v in asdict(self).items() if n not in ("out", "resume", "workers", *aside)}

    def as_run(self, **own: Any) -> RunConfig:
        """The head-to-head with these common fields; `own`: further fields of `RunConfig`."""
        return RunConfig(**{spec.name: getattr(self, spec.name) for spec in fields(ExperimentConfig)}, **own)


@dataclass
class RunConfig(ExperimentConfig):
    """The head-to-head on the toy world."""

    seed: int = 0
    """Seed of everything."""
    methods: tuple[str, ...] = ("ppo", "lagrangian", "linear_penalty", "fixed_penalty")
    """Policies to train; the base itself is always evaluated, as `sft`."""
    penalty: float = 6.0
    """λ of the rectified and the linear penalty: reward (in standard deviations) per cost of 1."""
    cost_model: Literal["semantic", "bradley_terry"] = "semantic"
    """The cost model to train the policies against: semantic (CS-RLHF's) or bradley_terry (ranking only)."""
    scorer_layers: int | None = 2
    """Adapters of scorers and critic act on this many of the base's last layers, and share the rest; None: all."""
    policy_layers: int | None = None
    """The policy's adapter acts on this many of the base's last layers; None: all."""


MAIN = RunConfig()


@dataclass
class RoundsConfig(ExperimentConfig):
    """Rounds of training and red-teaming on the toy world."""

    out: Path = Path("runs/rounds")
    """Folder of the run: rounds.json, and each round's data, models and policy."""
    method: Literal[tuple(CONSTRAINTS)] = "fixed_penalty"
    """The constraint of every round."""
    rounds: int = 3
    """Number of rounds."""
    start: Literal["previous", "base"] = "previous"
    """A round's policy starts from the previous round's, or from the base. The reference is always the base."""
    penalty: float = MAIN.penalty
    """λ, for the methods with a fixed one."""
    scorer_layers: int | None = MAIN.scorer_layers
    """Adapters of scorers and critic act on this many of the base's last layers; None: all."""
    policy_layers: int | None = MAIN.policy_layers
    """The policy's adapter acts on this many of the base's last layers; None: all."""
    attacked: int = 600
    """Training requests that the red team attacks after each round."""
    attack_tries: int = 16
    """Largest number of tries per request."""
    find_share: float = 0.25
    """Share of its finds, with benign twins, among the prompts of later rounds."""
    judged: int = 300
    """Requests that the held-out red team attacks after each round; always the same ones."""
    judge_tries: int = 64
    """Largest number of tries per request."""
    talks: int = 200
    """Conversations of two turns, and as many of three."""
    seed: int = 0
    """Seed of everything."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The stages that run PPO, for the progress lines."""
        return tuple(f"policy_{k}" for k in range(1, self.rounds + 1))

    def shared(self) -> RunConfig:
        """The configuration of `csrlhf run` that each round shares."""
        return self.as_run(seed=self.seed, scorer_layers=self.scorer_layers, policy_layers=self.policy_layers)

    def data(self, before: int) -> list[Path]:
        """Folders of what the rounds before round `before` have found."""
        return [self.out / "data" / f"round_{k}" for k in range(1, before)]

    def model(self, name: str, k: int) -> Path:
        """Folder of a scorer of round k; round 0 is measured with those of round 1."""
        return self.out / "models" / f"{name}_{max(k, 1)}"

    def scorers(self, k: int) -> dict[str, Path]:
        """Folders of the reward and the cost model of round k."""
        return {"reward": self.model("reward", k), "cost": self.model("semantic", k)}

    def adapter(self, k: int) -> Path | None:
        """The policy of round k; None for the base."""
        return self.out / "policies" / f"policy_{k}" / "adapter" if k else None
