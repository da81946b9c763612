"""`csrlhf ...`: a table of commands, each a dataclass of options and a function; tyro makes the one into the other.

Nothing is imported before a command is chosen: `csrlhf --help` waits for neither PyTorch nor tyro.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from csrlhf_kit.errors import UserError, check_numbers

# Group -> command -> (its options, its function, what it does); both are `module:name` in this package.
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "train": {
        "run": ("recipes.experiments.configs:RunConfig", "cli:run_and_report",
            "Train and judge every method on the toy world, and write a report page"),
        "sft": ("training.configs:SFTConfig", "recipes.sft:run_sft",
            "Fine-tune a policy on dialogues"),
        "reward-model": ("recipes.options:RewardModelConfig", "recipes.scorers:run_reward_model",
            "Train a model that scores how helpful an answer is"),
        "cost-model": ("recipes.options:CostModelConfig", "recipes.scorers:run_cost_model",
            "Train a model that scores how harmful an answer is"),
        "ppo": ("recipes.options:PPORunConfig", "recipes.ppo:run_ppo",
            "Train a policy with PPO under a constraint on harm"),
        "direct": ("recipes.options:DirectRunConfig", "recipes.dpo:run_direct",
            "Train a policy on preference pairs, without a reward model"),
        "sweep": ("recipes.experiments.plans:SweepConfig", "recipes.experiments.sweep:run_sweep",
            "Train every method at several settings and seeds on the toy world"),
        "rounds": ("recipes.experiments.configs:RoundsConfig", "recipes.experiments.rounds:run_rounds",
            "Alternate training and red-teaming on the toy world"),
    },
    "judge": {
        "evaluate": ("recipes.options:EvaluateConfig", "recipes.evaluate:run_evaluate",
            "Let a policy answer test prompts, and judge its answers"),
        "red-team": ("recipes.options:RedTeamConfig", "recipes.red_team:run_red_team",
            "Attack a policy with searched and composed jailbreaks"),
        "arena": ("recipes.options:ArenaConfig", "recipes.arena:run_arena",
            "Ask two policies and vote, or rate those of finished runs"),
        "chat": ("recipes.options:ChatConfig", "recipes.chat:run_chat",
            "Talk to a trained policy in the terminal"),
        "certify": ("recipes.certify:CertifyConfig", "recipes.certify:run_certify",
            "Bound the harm rates of a finished run's policies"),
        "claims": ("recipes.claims:ClaimsConfig", "recipes.claims:run_claims",
            "Check the papers' claims against the recorded runs"),
    },
    "explain": {
        "doctor": ("recipes.doctor:DoctorConfig", "recipes.doctor:run_doctor",
            "Check what this machine has and lacks for the kit"),
        "plan": ("recipes.plan:PlanConfig", "recipes.plan:run_plan",
            "Predict how much memory a PPO run will take"),
        "suggest-penalty": ("recipes.suggest_penalty:SuggestPenaltyConfig", "recipes.suggest_penalty:run_suggest_penalty",
            "Estimate the penalty to train with, from scored answers"),
    },
    "make": {
        "make-data": ("world.build:DataConfig", "world.build:make_data",
            "Build the toy world's data files"),
        "make-base": ("recipes.options:BaseConfig", "recipes.make_base:make_base",
            "Train the toy world's tiny base model"),
        "export": ("recipes.options:ExportConfig", "recipes.export:run_export",
            "Give a trained adapter away, alone or merged into its base"),
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

    run_experiment(config)
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
    return getattr(import_module(f"csrlhf_kit.{module}"), name)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn a `UserError` into one sentence and exit status 2.

    Characters that the terminal cannot show are printed as their code. A closed output (`| head`) ends the
    command without a word. Of several processes (torchrun), only the main one prints.
    """
    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a notebook's; read already
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python will flush once more
        if error.errno == errno.ENOSPC:
            print("csrlhf: the output cannot be written: no space left on device", file=sys.stderr)
        return 1 if error.errno == errno.EPIPE else 2


def _main(arguments: list[str]) -> int:
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

    def work(config: Any) -> None:
        check_numbers(config)
        find(function)(config)  # only now is torch loaded: not for --help, nor for a typo

    return run_command(work, tyro.cli(find(options), args=rest, prog=f"csrlhf {name}"))


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
        more = "; --resume goes on from here" if hasattr(config, "resume") else ""
        print(f"csrlhf: stopped{more}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        from csrlhf_kit.outputs import trouble

        if (reason := trouble(error)) is None:
            raise
        print(f"csrlhf: {reason}; what was whole before is still there", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
