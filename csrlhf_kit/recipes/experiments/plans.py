"""The plans of `csrlhf sweep`, each a list of (method, settings) to run with every seed; and its options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.experiments.configs import MAIN, ExperimentConfig, RunConfig
from csrlhf_kit.training.configs import METHODS as DIRECT
from csrlhf_kit.training.configs import DirectConfig
from csrlhf_kit.training.constraints import CONSTRAINTS

CELL_METHODS: tuple[str, ...] = ("sft", *CONSTRAINTS, "per_category", *DIRECT)
RATES = ("harmful_nominal", "harmful_jailbreak", "over_refusal", "leaking", "degenerate")
Setting = tuple[str, dict[str, Any]]


def penalties() -> list[Setting]:
    """The question of the two papers: the rectified and the linear penalty at eight strengths."""
    strengths = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    return [(m, {"penalty": p}) for m in ("fixed_penalty", "linear_penalty") for p in strengths]


def lagrangians() -> list[Setting]:
    """Dual ascent, searched as widely: initial lambda and its rate, with a high maximum."""
    grid = product((1.0, 5.0, 20.0), (0.1, 1.0, 10.0))
    return [("lagrangian", {"initial": a, "rate": eta, "maximum": 100.0}) for a, eta in grid]


def published() -> list[Setting]:
    """Every method at its published constants, and the ablations that the reviewers asked for."""
    plain = [("sft", {}), *((m, {}) for m in CONSTRAINTS if m != "rectified_prompt")]
    shaped = [("reward_shaping", {"weight": nu}) for nu in (0.01, 0.1, 10.0, 100.0)]  # Safe RLHF's range
    gates = [("fixed_penalty", {"gate": gate}) for gate in ("batch", "half", "ema")]
    return [
        *plain,
        ("rectified_prompt", {"ppo.samples_per_prompt": 4}),
        ("per_category", {}),
        ("fixed_penalty", {"ppo.ptx": 16.0}),  # Safe RLHF's weight
        *gates,
        *shaped,
        *((m, {}) for m in DIRECT),
    ]


def contested() -> list[Setting]:
    """What three seeds of these sweeps leave undecided in the ledger; to be run with ten, and scorers of their own."""
    shaped = [(m, chosen) for m, chosen in published() if m == "reward_shaping" and chosen]
    strengths: list[Setting] = [("fixed_penalty", {"penalty": p}) for p in (8.0, 16.0, 32.0)]
    direct = ("safedpo", "sacpo", "mocan", "dpo_safer")
    plain: list[Setting] = [(m, {}) for m in ("fixed_penalty", "linear_penalty", "lagrangian", *direct)]
    return [*plain, ("fixed_penalty", {"gate": "batch"}), *strengths, *shaped]


def tuning() -> list[Setting]:
    """As many settings of the rectified penalty as of dual ascent at the scale of probabilities: judge on validation."""
    strengths = (3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
    unscaled = [
        ("lagrangian", {"initial": 5.0, "rate": eta, "maximum": 50.0, "scaled": False})
        for eta in (0.1, 0.3, 1.0)
    ]
    gains = ((10.0, 1.0), (20.0, 2.0), (40.0, 1.0))
    controlled = [("pid_lagrangian", {"initial": 3.0, "proportional": p, "integral": i}) for p, i in gains]
    return [*(("fixed_penalty", {"penalty": p}) for p in strengths), *unscaled, *controlled]


# The best of `tuning` on validation prompts (data/runs/tuning); dual ascent's published constants are for logit costs.
TUNED: list[Setting] = [
    ("pid_lagrangian", {"initial": 3.0, "proportional": 10.0, "integral": 1.0}), ("fixed_penalty", {"penalty": 3.0}),
]  # fmt: skip


def converged_policies() -> list[Setting]:
    """What the head-to-head compares, to be run with more steps, and what an equal search found."""
    fixed = [(m, {"penalty": MAIN.penalty}) for m in ("linear_penalty", "fixed_penalty")]
    return [("sft", {}), ("ppo", {}), ("lagrangian", {}), *fixed, *TUNED]


def prices() -> list[Setting]:
    """A multiplier that finds what the cost limit costs, for `equilibrium.predict_cost`."""
    return [("pid_lagrangian", {"threshold": 0.1, "proportional": 20.0, "integral": 2.0})]


def gates() -> list[Setting]:
    """The rectified penalty gated by the other half of the batch, at three batch sizes; equal updates per step."""
    return [
        (
            "fixed_penalty",
            {"threshold": 0.1, "gate": "half", "ppo.batch_size": size, "ppo.minibatch_size": size // 2},
        )
        for size in (32, 64, 128)
    ]


def ablation() -> list[Setting]:
    """The Lagrangian and the fixed penalty of `csrlhf run`, to be run with `--cost-model bradley_terry`."""
    return [("lagrangian", {}), ("fixed_penalty", {"penalty": MAIN.penalty})]


def smoke() -> list[Setting]:
    """One method of each kind, to see that everything runs."""
    return [
        ("sft", {}), ("fixed_penalty", {"penalty": 4.0}), ("per_category", {"penalty": 4.0, "ppo.ptx": 1.0}),
        ("dpo_safer", {}), ("mocan", {}),
    ]  # fmt: skip


PLANS: dict[str, Callable[[], list[Setting]]] = {
    "penalties": penalties,
    "lagrangians": lagrangians,
    "published": published,
    "contested": contested,
    "tuning": tuning,
    "converged": converged_policies,
    "prices": prices,
    "gates": gates,
    "ablation": ablation,
    "smoke": smoke,
    "all": lambda: [*penalties(), *lagrangians(), *published()],
}


def grid_settings(methods: tuple[str, ...], grid: tuple[str, ...]) -> list[Setting]:
    """All combinations of `name=value,value` for each method. Raises UserError for a malformed entry."""
    axes: list[list[tuple[str, Any]]] = []
    for entry in grid:
        name, _, values = entry.partition("=")
        if not name or not values:
            raise UserError(f"--grid {entry!r}: expected name=value or name=value,value")
        axes.append([(name, _value(text)) for text in values.split(",")])
    return [(method, dict(chosen)) for method in methods for chosen in product(*axes)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Cell:
    """A method, its settings where they differ from the published constants, and a seed."""

    method: str
    """A name in `CELL_METHODS`."""
    settings: tuple[tuple[str, Any], ...] = ()
    """(name, value): options of the constraint or of `DirectConfig`; with the prefix `ppo.`, of `PPOConfig`."""
    seed: int = 0
    """Seed for the adapters, the order of prompts or pairs, and sampling."""

    @classmethod
    def of(cls, method: str, settings: Mapping[str, Any], seed: int) -> Cell:
        return cls(method, tuple(sorted(settings.items())), seed)

    @property
    def name(self) -> str:
        """Method, settings and seed as a file name."""
        chosen = [f"{key.removeprefix('ppo.')}_{value}" for key, value in self.settings]
        return "-".join([self.method, *chosen, f"seed_{self.seed}"])

    @property
    def settings_text(self) -> str:
        """The settings as compact JSON, which tables show and group seeds by."""
        return json.dumps(dict(self.settings), separators=(",", ":"))


@dataclass
class SweepConfig(ExperimentConfig):
    """Methods x settings x seeds on the toy world."""

    out: Path = Path("runs/sweep")
    """Folder of the sweep: scorers, policies, stages, tables."""
    plan: Literal[(*PLANS, "grid")] = "smoke"
    """The cells: a named plan, or `grid`, made of --method and --grid."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each cell is run with each of them."""
    method: tuple[str, ...] = ("fixed_penalty",)
    """Methods of the plan `grid`."""
    grid: tuple[str, ...] = ()
    """Settings of the plan `grid`, each `name=value,value`; all combinations are run."""
    scorer_seed: int = 0
    """Seed of the scorers and the critic that all cells share."""
    cost_model: Literal["semantic", "bradley_terry"] = "semantic"
    """Which cost model the policies are trained against: CS-RLHF's, or Safe RLHF's."""
    direct: DirectConfig = field(default_factory=DirectConfig)
    """Settings of the preference-only methods."""
    attacked: int = 0
    """Requests that the held-out red team attacks, 64 tries each, with every policy; 0: no attack."""
    record: Path | None = None
    """Also write the tables to this folder (data/runs/<plan>)."""

    def shared(self) -> RunConfig:
        """The main job's configuration, of which the sweep's cells are variants."""
        return self.as_run(cost_model=self.cost_model, seed=self.scorer_seed)

    def cells(self) -> dict[str, Cell]:
        """Every cell by its name; all settings with the first seed come first, then the next seed."""
        chosen = grid_settings(self.method, self.grid) if self.plan == "grid" else PLANS[self.plan]()
        made = [Cell.of(method, settings, seed) for seed in self.seeds for method, settings in chosen]
        return {cell.name: cell for cell in made}

    def attack_on(self, name: str) -> str:
        """Name of the stage that attacks a cell's policy; it includes the number of requests, which may change."""
        return f"attack_{self.attacked}-{name}"

    def attacks(self) -> dict[str, Cell]:
        """The stages that attack -> the cells that they attack."""
        return {self.attack_on(name): cell for name, cell in self.cells().items()} if self.attacked else {}

    @property
    def rates(self) -> tuple[str, ...]:
        """The rates of a row."""
        return (*RATES, "robust") if self.attacked else RATES

    @property
    def methods(self) -> tuple[str, ...]:
        """The stages that run PPO, for the progress lines."""
        return tuple(name for name, cell in self.cells().items() if cell.method not in ("sft", *DIRECT))
