"""`python -m benchmarks.real`: the experiment, or a part of it (`--only people`); `--help` lists the settings."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import tyro

    from benchmarks.real.config import RealConfig
    from benchmarks.real.job import run_real
    from csrlhf_kit.cli import run_command

    config = tyro.cli(RealConfig, args=words, prog="python -m benchmarks.real")
    return run_command(run_real, config)


if __name__ == "__main__":
    sys.exit(main())
