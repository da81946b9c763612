"""`make test` runs every stage, counts, and fails where one did."""

from __future__ import annotations

import sys

import pytest
from stages import main, run_stage

GOOD = "print('.....  [100%]'); print('5 passed, 2 skipped, 33 warnings in 260.31s (0:04:20)')"
BAD = "print('=== 3 failed, 4 passed, 1 error in 1.2s ==='); raise SystemExit(1)"
LINT = "print('found 7 failed hopes'); raise SystemExit(1)"
KILLED = "print('9 passed in 0.1s'); import os; os.abort()"


@pytest.mark.parametrize(("script", "counts"), [
    (GOOD, (5, 0)), (BAD, (4, 4)), (LINT, (0, 1)), (KILLED, (9, 1)), ("print('clean')", (0, 0)),
    ("print('1 passed, 1 warning in 2.0s'); print('2 failed, 1 passed in 3.0s'); raise SystemExit(1)", (2, 2)),
])  # fmt: skip
def test_a_stage_is_counted(script, counts):
    assert run_stage([sys.executable, "-c", script]) == counts


def test_every_stage_runs_and_the_last_line_counts_them_all(capfd):
    assert main([BAD, LINT, GOOD], make=(sys.executable, "-c")) == 1
    said = capfd.readouterr().out
    assert said.splitlines()[-1] == "9 passed, 5 failed" and "clean" not in said
    assert said.count("FAILED") == 2 and said.index("found 7") < said.index("[100%]")
    assert main([GOOD], make=(sys.executable, "-c")) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "5 passed, 0 failed"
