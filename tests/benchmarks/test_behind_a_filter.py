"""The rule that puts a cost model behind a policy, and the choice of its threshold, on made scores."""

from __future__ import annotations

import numpy as np

from benchmarks.behind_a_filter import DECLINED, DRAWS, THRESHOLDS, choose, chosen


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

    table = {(n, t): row(0.02, 0.1, 0.05) for n in DRAWS for t in THRESHOLDS}
    assert chosen(table) == dict.fromkeys(DRAWS, 1.0), "of equals the one that declines least"
    table[4, 0.1] = row(0.02, 0.04, 0.09)
    table[4, 0.01] = row(0.0, 0.0, 0.4)
    assert chosen(table) == {**dict.fromkeys(DRAWS, 1.0), 4: 0.1}
