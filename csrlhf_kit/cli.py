"""`csrlhf ...`: a table of commands, each a dataclass of options and a function; tyro makes the one into the other.

Nothing is imported before a command is chosen: `csrlhf --help` waits for neither PyTorch nor tyro.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from csrlhf_kit.errors import UserError

# Group -> command -> (its options, its function, what it does).
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "train": {
        "run": (
            "csrlhf_kit.recipes.experiments.configs:RunConfig", "csrlhf_kit.cli:run_and_report",
            "Train and judge every method on the toy world, and write a report page",
        ),
        "sft": (
            "csrlhf_kit.training.configs:SFTConfig", "csrlhf_kit.recipes.sft:run_sft",
            "Fine-tune a policy on dialogues",
        ),
        "reward-model": (
            "csrlhf_kit.recipes.options:RewardModelConfig", "csrlhf_kit.recipes.scorers:run_reward_model",
            "Train a model that scores how helpful an answer is",
        ),
        "cost-model": (
            "csrlhf_kit.recipes.options:CostModelConfig", "csrlhf_kit.recipes.scorers:run_cost_model",
            "Train a model that scores how harmful an answer is",
        ),
        "ppo": (
            "csrlhf_kit.recipes.options:PPORunConfig", "csrlhf_kit.recipes.ppo:run_ppo",
            "Train a policy with PPO under a constraint on harm",
        ),
        "direct": (
            "csrlhf_kit.recipes.options:DirectRunConfig", "csrlhf_kit.recipes.dpo:run_direct",
            "Train a policy on preference pairs, without a reward model",
        ),
        "sweep": (
            "csrlhf_kit.recipes.experiments.plans:SweepConfig", "csrlhf_kit.recipes.experiments.sweep:run_sweep",
            "Train every method at several settings and seeds on the toy world",
        ),
        "rounds": (
            "csrlhf_kit.recipes.experiments.configs:RoundsConfig", "csrlhf_kit.recipes.experiments.rounds:run_rounds",
            "Alternate training and red-teaming on the toy world",
        ),
    },
    "judge": {
        "evaluate": (
            "csrlhf_kit.recipes.options:EvaluateConfig", "csrlhf_kit.recipes.evaluate:run_evaluate",
            "Let a policy answer test prompts, and judge its answers",
        ),
        "red-team": (
            "csrlhf_kit.recipes.options:RedTeamConfig", "csrlhf_kit.recipes.red_team:run_red_team",
            "Attack a policy with searched and composed jailbreaks",
        ),
        "arena": (
            "csrlhf_kit.recipes.options:ArenaConfig", "csrlhf_kit.recipes.arena:run_arena",
            "Ask two policies and vote, or rate those of finished runs",
        ),
        "chat": (
            "csrlhf_kit.recipes.options:ChatConfig", "csrlhf_kit.recipes.chat:run_chat",
            "Talk to a trained policy in the terminal",
        ),
        "certify": (
            "csrlhf_kit.recipes.certify:CertifyConfig", "csrlhf_kit.recipes.certify:run_certify",
            "Bound the harm rates of a finished run's policies",
        ),
        "claims": (
            "csrlhf_kit.recipes.claims:ClaimsConfig", "csrlhf_kit.recipes.claims:run_claims",
            "Check the papers' claims against the recorded runs",
        ),
    },
    "explain": {
        "doctor": (
            "csrlhf_kit.recipes.doctor:DoctorConfig", "csrlhf_kit.recipes.doctor:run_doctor",
            "Check what this machine has and lacks for the kit",
        ),
        "plan": (
            "csrlhf_kit.recipes.plan:PlanConfig", "csrlhf_kit.recipes.plan:run_plan",
            "Predict how much memory a PPO run will take",
        ),
        "suggest-penalty": (
            "csrlhf_kit.recipes.suggest_penalty:SuggestPenaltyConfig", "csrlhf_kit.recipes.suggest_penalty:run_suggest_penalty",
            "Estimate the penalty to train with, from scored answers",
        ),
    },
    "make": {
        "make-data": (
            "csrlhf_kit.world.build:DataConfig", "csrlhf_kit.world.build:make_data",
            "Build the toy world's data files",
        ),
        "make-base": (
            "csrlhf_kit.recipes.options:BaseConfig", "csrlhf_kit.recipes.make_base:make_base",
            "Train the toy world's tiny base model",
        ),
        "export": (
            "csrlhf_kit.recipes.options:ExportConfig", "csrlhf_kit.recipes.export:run_export",
            "Give a trained adapter away, alone or merged into its base",
        ),
    },
}  # fmt: skip
MORE = """csrlhf COMMAND --help lists a command's options.
sft, reward-model, cost-model and ppo take --preset NAME and --config FILE."""
OPTIONS = {name: row for group in COMMANDS.values() for name, row in group.items()}


def run_and_report(config: Any) -> None:
    """`csrlhf run`: the head-to-head, its page, and a small table."""
    from csrlhf_kit.evaluation.results import read_results, recorded_policies
    from csrlhf_kit.figures.report import write_report
    from csrlhf_kit.recipes.experiments.head_to_head import run_experiment

    results = run_experiment(config)
    results = read_results(config.out / "results.json")
    write_report(config.out, results | {"recorded": recorded_policies(results["config"])})
    print(results_table(results))
    print(f"\nThe page to look at: {config.out / 'report.html'}")


def results_table(results: dict[str, Any]) -> str:
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


def overview() -> str:
    """What `csrlhf --help` prints."""
    width = max(map(len, OPTIONS)) + 2
    lines = [
        "usage: csrlhf COMMAND [OPTIONS]",
        "",
        "Constrained RLHF: train, judge and explain policies under a limit on harm.",
        "",
    ]
    for group, rows in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:{width}}{told}" for name, (_, _, told) in rows.items()), ""]
    return "\n".join([*lines, MORE])


def find(place: str) -> Any:
    """What `module:name` stands for."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn a `UserError` into one sentence and exit status 2.

    Of several processes (torchrun), only the main one prints.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    try:
        if arguments[0] not in OPTIONS:
            raise UserError(f"no command {arguments[0]!r}: expected one of {', '.join(OPTIONS)}")
        from csrlhf_kit.recipes.presets import expand

        name, *rest = expand(arguments)
    except UserError as error:
        print(f"csrlhf: {error}", file=sys.stderr)
        return 2
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar is for eyes: in a file or a pipe it is noise
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of one library to another, not to the user
    import tyro

    options, function, _ = OPTIONS[name]
    config = tyro.cli(find(options), args=rest, prog=f"csrlhf {name}")
    return run_command(find(function), config)  # only now is torch loaded: not for --help, nor for a typo


def run_command(function: Callable[[Any], Any], config: Any) -> int:
    """Run a command; its exit status."""
    quiet: Any = contextlib.nullcontext()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from csrlhf_kit import distributed

        distributed.start()
        if not distributed.is_main():
            quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with quiet:
            function(config)
    except UserError as error:
        print(f"csrlhf: {error}", file=sys.stderr)
        return 2
    except getattr(sys.modules.get("torch"), "OutOfMemoryError", ()):  # without torch, no GPU is full
        from csrlhf_kit.models.base import LESS_MEMORY

        print(
            f"csrlhf: the GPU's memory is full: take smaller micro-batches, --gradient-checkpointing, or {LESS_MEMORY}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("csrlhf: stopped; --resume goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        from csrlhf_kit.outputs import trouble

        if (reason := trouble(error)) is None:
            raise
        print(f"csrlhf: {reason}; what was whole before is still there", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
