"""Run the stages of a job in parallel: one process per core, one line of progress each, stopped together."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from csrlhf_kit.files import write_atomic
from csrlhf_kit.runs import Run, postfix


class Job(Protocol):
    """What `run_stages` needs to know of a job's configuration."""

    out: Path
    workers: int
    methods: tuple[str, ...]
    ppo: Any

    def stage_path(self, name: str) -> Path: ...


def _die_with_parent() -> None:
    """End this worker when the main process ends, so that no worker of a killed run writes to its folder."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_stages(
    needs: Mapping[str, Collection[str]], config: Job, run_stage: Callable[[str, Any], None]
) -> float:
    """Make every missing stage, `config.workers` at a time, and show how far each is.

    Returns the seconds that this job has taken in all, including those before it was resumed.

    needs: for each stage, in the order of preference, the stages that it reads; a stage starts when they are
    finished. Small models spend most time between operations: two processes with one thread each do nearly twice
    the work of one process with two threads.

    Raises ValueError if stages wait for each other.
    """
    quiet = {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    clock = config.stage_path("seconds")
    started = time.perf_counter() - (json.loads(clock.read_text()) if clock.is_file() else 0.0)
    try:
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(config.workers, mp_context=context, initializer=_die_with_parent) as pool,
            _Board(config) as board,
        ):
            waiting = [name for name in needs if not config.stage_path(name).is_file()]
            futures: dict[Future[None], str] = {}
            while waiting or futures:
                # Submit no more than there are workers: the order of submitted stages is fixed.
                for name in [n for n in waiting if not set(needs[n]) & {*waiting, *futures.values()}]:
                    if len(futures) < config.workers:
                        waiting.remove(name)
                        futures[pool.submit(run_stage, name, config)] = name
                if not futures:
                    raise ValueError(f"stages that wait for each other: {', '.join(waiting)}")
                done, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    name = futures.pop(future)
                    try:
                        future.result()
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    board.finish(name)
                board.refresh(futures.values())
                write_atomic(
                    clock, json.dumps(time.perf_counter() - started) + "\n"
                )  # counts after a kill -9
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    return time.perf_counter() - started


class _Board:
    """One progress line per stage, from what the workers have written: harm estimate, reward, KL, λ."""

    def __init__(self, config: Job) -> None:
        self.config = config
        self.bars: dict[str, tqdm] = {}

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *_: Any) -> None:
        for bar in self.bars.values():
            bar.close()

    def bar(self, name: str) -> tqdm:
        if name not in self.bars:
            total = self.config.ppo.steps if name in self.config.methods else 1
            self.bars[name] = tqdm(total=total, desc=f"{name:15}", unit="step" if total > 1 else "model")
        return self.bars[name]

    def finish(self, name: str) -> None:
        bar = self.bar(name)
        bar.update(bar.total - bar.n)

    def refresh(self, running: Iterable[str]) -> None:
        for name in running:
            metrics = self.config.out / "policies" / name / "metrics.jsonl"
            if not metrics.is_file():
                continue
            rows = Run(metrics.parent).history()
            bar = self.bar(name)
            if len(rows) > bar.n:
                bar.set_postfix(postfix(rows[-1]), refresh=False)
                bar.update(len(rows) - bar.n)
