"""`csrlhf ...`: every command is a dataclass of options and a function; tyro makes the one into the other."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

from csrlhf_kit.errors import UserError


def _run(config: Any) -> None:
    from csrlhf_kit.experiment import run_experiment
    from csrlhf_kit.report import write_report

    results = run_experiment(config)
    write_report(config.out)
    print(summary(results))
    print(f"\nThe page to look at: {config.out / 'report.html'}")


def summary(results: dict[str, Any]) -> str:
    """The head-to-head as a small table."""
    lines = [
        f"{'policy':16} {'harmful %':>10} {'jailbroken %':>13} {'over-refusal %':>15} {'helpfulness':>12} {'λ':>6}"
    ]
    for name, p in results["policies"].items():
        lines.append(
            f"{name:16} {100 * p['harmful_nominal']['rate']:10.1f} {100 * p['harmful_jailbreak']['rate']:13.1f} "
            f"{100 * p['over_refusal']['rate']:15.1f} {p['helpfulness']:12.3f} {p['multiplier']:6.2f}"
        )
    return "\n".join(lines)


def bench_commands() -> dict[str, tuple[type, Callable[[Any], Any]]]:
    """The benchmarks: `csrlhf bench kernels`, `csrlhf bench ppo`."""
    from csrlhf_kit.bench.kernels import BenchKernelsConfig, run_bench_kernels
    from csrlhf_kit.bench.ppo import BenchPPOConfig, run_bench_ppo

    return {"kernels": (BenchKernelsConfig, run_bench_kernels), "ppo": (BenchPPOConfig, run_bench_ppo)}


def commands() -> dict[str, tuple[type, Callable[[Any], Any]]]:
    """Name -> (options, function). Imported here, so that `--help` does not wait for torch twice."""
    from csrlhf_kit.certify import CertifyConfig, run_certify
    from csrlhf_kit.chat_run import ChatConfig, run_chat
    from csrlhf_kit.claims import ClaimsConfig, run_claims
    from csrlhf_kit.contest import ArenaConfig, RedTeamConfig, run_arena, run_red_team
    from csrlhf_kit.direct_run import DirectRunConfig, run_direct
    from csrlhf_kit.evaluation.scorer_run import (
        CostModelConfig,
        RewardModelConfig,
        run_cost_model,
        run_reward_model,
    )
    from csrlhf_kit.experiment import RunConfig
    from csrlhf_kit.export import ExportConfig, run_export
    from csrlhf_kit.models.make_base import BaseConfig, make_base
    from csrlhf_kit.plan import PlanConfig, run_plan
    from csrlhf_kit.recipes import EvaluateConfig, PPORunConfig, run_evaluate, run_ppo
    from csrlhf_kit.rounds import RoundsConfig, run_rounds
    from csrlhf_kit.suggest import SuggestPenaltyConfig, run_suggest_penalty
    from csrlhf_kit.sweep import SweepConfig, run_sweep
    from csrlhf_kit.training.sft import SFTConfig, run_sft
    from csrlhf_kit.world.build import DataConfig, make_data

    return {
        "run": (RunConfig, _run),
        "sft": (SFTConfig, run_sft),
        "reward-model": (RewardModelConfig, run_reward_model),
        "cost-model": (CostModelConfig, run_cost_model),
        "ppo": (PPORunConfig, run_ppo),
        "plan": (PlanConfig, run_plan),
        "export": (ExportConfig, run_export),
        "chat": (ChatConfig, run_chat),
        "direct": (DirectRunConfig, run_direct),
        "evaluate": (EvaluateConfig, run_evaluate),
        "sweep": (SweepConfig, run_sweep),
        "red-team": (RedTeamConfig, run_red_team),
        "rounds": (RoundsConfig, run_rounds),
        "arena": (ArenaConfig, run_arena),
        "claims": (ClaimsConfig, run_claims),
        "suggest-penalty": (SuggestPenaltyConfig, run_suggest_penalty),
        "certify": (CertifyConfig, run_certify),
        "make-data": (DataConfig, make_data),
        "make-base": (BaseConfig, make_base),
    }


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn a `UserError` into one sentence and exit status 2.

    Of several processes (torchrun), only the main one prints.
    """
    import tyro

    from csrlhf_kit.presets import expand

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        arguments = expand(arguments)
    except UserError as error:
        print(f"csrlhf: {error}", file=sys.stderr)
        return 2
    table, prog = commands(), "csrlhf"
    if arguments[:1] == ["bench"]:
        table, prog, arguments = bench_commands(), "csrlhf bench", arguments[1:]
    elif arguments[:1] == ["arena"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        from csrlhf_kit.chat_run import DuelConfig, run_duel

        table["arena"] = (DuelConfig, run_duel)  # two runs, and a person who votes
    parsers = {name: options for name, (options, _) in table.items()}
    about = (
        None
        if prog != "csrlhf"
        else "Constrained RLHF. `csrlhf bench kernels` and `csrlhf bench ppo` measure speed; sft, reward-model, "
        "cost-model and ppo take --preset NAME and --config FILE; `csrlhf arena RUN_A RUN_B` lets you vote."
    )
    config = tyro.extras.subcommand_cli_from_dict(parsers, args=arguments, prog=prog, description=about)
    function = next(function for options, function in table.values() if type(config) is options)
    return run_command(function, config)


def run_command(function: Callable[[Any], Any], config: Any) -> int:
    """Run a command; its exit status."""
    import torch

    from csrlhf_kit import processes
    from csrlhf_kit.models.base import LESS_MEMORY

    processes.start()
    quiet = contextlib.nullcontext() if processes.is_main() else contextlib.redirect_stdout(io.StringIO())
    try:
        with quiet:
            function(config)
    except UserError as error:
        print(f"csrlhf: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            f"csrlhf: the GPU's memory is full: take smaller micro-batches, --gradient-checkpointing, or {LESS_MEMORY}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("csrlhf: stopped; --resume goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
