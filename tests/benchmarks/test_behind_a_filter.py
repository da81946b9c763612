"""The rule that puts a cost model behind a policy, and the choice of its threshold, on made scores."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.behind_a_filter import (
    ALONE,
    DECLINED,
    DRAWS,
    JUDGES,
    THRESHOLDS,
    Drawn,
    choose,
    chosen,
    curve,
    given,
    others,
)


def test_the_best_allowed_answer_is_given_or_none():
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    reward = np.array([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    cost = np.array([[0.1, 0.6, 0.3], [0.9, 0.8, 0.7]])
    assert choose(texts, reward, cost, 1.0) == ["b", "f"]
    assert choose(texts, reward, cost, 0.5) == ["c", DECLINED]
    assert choose(texts, reward, cost, 0.3) == ["c", DECLINED], "the limit itself is allowed"
    assert choose(texts, reward, cost, 0.05) == [DECLINED, DECLINED]


def test_the_threshold_is_the_safest_that_refuses_little_more():
    def row(plain: float, wrapped: float, refused: float) -> dict:
        return {
            name: {"rate": rate}
            for name, rate in zip(
                ("harmful_nominal", "harmful_jailbreak", "over_refusal"),
                (plain, wrapped, refused),
                strict=True,
            )
        }

    table = {(j, n, t): row(0.02, 0.1, 0.05) for j in JUDGES for n in DRAWS for t in THRESHOLDS}
    usual = [(j, n, 1.0) for j in JUDGES for n in DRAWS]
    assert chosen(table) == usual and usual[0] == ALONE, "of equals the one that declines least"
    table[5, 4, 0.1] = row(0.02, 0.04, 0.09)
    table[5, 4, 0.01] = row(0.0, 0.0, 0.4)
    assert chosen(table) == [*usual[:-1], (5, 4, 0.1)]


def test_a_rule_reads_its_own_judges_and_its_first_draws():
    cost = {1: np.array([[0.1, 0.2]]), 5: np.array([[0.9, 0.3]])}
    drawn = Drawn([["a", "b"]], np.array([[1.0, 2.0]]), cost)
    assert [given(drawn, (j, n, 0.5)) for j, n in ((1, 1), (1, 2), (5, 1), (5, 2))] == [
        ["a"],
        ["b"],
        [DECLINED],
        ["b"],
    ]


def test_a_curve_has_each_answer_on_its_own(monkeypatch):
    told = []
    monkeypatch.setattr(
        "benchmarks.behind_a_filter.judged",
        lambda prompts, answers: {"told": told.append((list(prompts), list(answers))), "outcomes": ""},
    )
    cost = {judges: np.array([[0.3, 0.01], [0.04, 0.9]]) for judges in JUDGES}
    rows = curve(["p", "q"], Drawn([["a", "b"], ["c", "d"]], np.zeros((2, 2)), cost))
    assert [(row["judges"], row["threshold"]) for row in rows] == [(j, t) for j in JUDGES for t in THRESHOLDS]
    assert all(prompts == ["p", "p", "q", "q"] for prompts, _ in told)
    at = dict(zip(THRESHOLDS, (answers for _, answers in told), strict=False))
    assert at[1.0] == ["a", "b", "c", "d"] and at[0.05] == [DECLINED, "b", "c", DECLINED]


def test_the_other_judges_are_those_of_the_next_seeds(tmp_path):
    for seed in (0, 1, 2, 3, 10):
        (tmp_path / f"seed_{seed}" / "models" / "semantic").mkdir(parents=True)
    found = [path.relative_to(tmp_path).parts[0] for path in others(2, tmp_path)]
    assert found == ["seed_3", "seed_10", "seed_0", "seed_1"]
    (tmp_path / "seed_10" / "models" / "semantic").rmdir()
    with pytest.raises(SystemExit, match="expected 5, from `make converged`"):
        others(2, tmp_path)
