"""`make test`: every stage, also after one has failed; then a table, and a closing line that counts.

python tests/stages.py STAGE ...    each a target of the Makefile
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")
SUMMARY = re.compile(r"^(=+ )?(\d+ \w+, )*\d+ \w+ in [\d.]+s")  # pytest's last line, with or without its rule


def run_stage(command: list[str]) -> tuple[int, int]:
    """Run a command, show what it prints, and return how many tests have passed and failed.

    A command that fails without a failed test (a linter, a crash) counts as one that failed.
    """
    passed = failed = 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        if SUMMARY.match(line):
            counts = [(int(number), kind) for number, kind in COUNT.findall(line)]
            passed += sum(number for number, kind in counts if kind == "passed")
            failed += sum(number for number, kind in counts if kind != "passed")
    if process.wait() and not failed:
        failed = 1
    return passed, failed


def main(stages: list[str], make: tuple[str, ...] = ("make", "--no-print-directory")) -> int:
    rows = []
    for stage in stages:
        print(f"\n--- {stage} ---", flush=True)
        started = time.monotonic()
        passed, failed = run_stage([*make, stage])
        rows.append((stage, passed, failed, time.monotonic() - started))
    print(f"\n{'stage':20}{'passed':>8}{'failed':>8}{'seconds':>9}")
    for stage, passed, failed, seconds in rows:
        print(f"{stage:20}{passed:8}{failed:8}{seconds:9.0f}  {'FAILED' if failed else 'ok'}")
    failures = sum(row[2] for row in rows)
    print(f"{sum(row[1] for row in rows)} passed, {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
