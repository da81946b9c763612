"""What is swept: each plan is a list of (method, settings), each to be run with every seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.experiments.head_to_head import RunConfig
from csrlhf_kit.training.constraints import CONSTRAINTS
from csrlhf_kit.training.dpo import METHODS as DIRECT

Setting = tuple[str, dict[str, Any]]


def penalties() -> list[Setting]:
    """The two papers' question: the rectified and the linear penalty at eight strengths."""
    strengths = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    return [(m, {"penalty": p}) for m in ("fixed_penalty", "linear_penalty") for p in strengths]


def lagrangians() -> list[Setting]:
    """Dual ascent, searched as widely: where lambda starts and how fast it moves, with room above."""
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


def thresholds() -> list[Setting]:
    """What was asked for, and what was got."""
    return [
        (method, {"threshold": d})
        for method in ("fixed_penalty", "lagrangian", "mocan")
        for d in (0.01, 0.02, 0.05, 0.1)
    ]


def prices() -> list[Setting]:
    """A multiplier that finds what the cost limit costs, for `equilibrium.predict`."""
    return [("pid_lagrangian", {"threshold": 0.1, "proportional": 20.0, "integral": 2.0})]


def gates() -> list[Setting]:
    """The rectified penalty behind a gate from the other half of three batch sizes; as many updates a step each."""
    return [
        (
            "fixed_penalty",
            {"threshold": 0.1, "gate": "half", "ppo.batch_size": size, "ppo.minibatch_size": size // 2},
        )
        for size in (32, 64, 128)
    ]


def ablation() -> list[Setting]:
    """The main job's two rivals, to be run with `--cost-model bradley_terry`."""
    return [("lagrangian", {}), ("fixed_penalty", {"penalty": RunConfig().penalty})]


def smoke() -> list[Setting]:
    """One of each kind, to see that everything runs."""
    return [
        ("sft", {}), ("fixed_penalty", {"penalty": 4.0}), ("per_category", {"penalty": 4.0, "ppo.ptx": 1.0}),
        ("dpo_safer", {}), ("mocan", {}),
    ]  # fmt: skip


PLANS: dict[str, Callable[[], list[Setting]]] = {
    "penalties": penalties,
    "lagrangians": lagrangians,
    "published": published,
    "thresholds": thresholds,
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
