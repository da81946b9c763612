"""Policies compared on the same prompts: which is more helpful, which is less harmful, and by how much.

Everything is computed from scores of answers, the oracle's or a learned model's: pairwise outcomes, Safe RLHF's
2x2 table (better or worse x safe or unsafe), win rates, and Bradley-Terry ratings on the Elo scale. The ratings
are *fitted* to all comparisons at once, so that, unlike the running Elo of chess, they do not depend on the order
of the games. Their spread is bootstrapped over prompts and seeds together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.errors import UserError
from csrlhf_kit.theory.over_seeds import rate_over_seeds
from csrlhf_kit.world.oracle import judge

ELO = 400.0 / np.log(10.0)  # Elo points per nat: 400 points are odds of ten to one
PRIOR = 0.5  # virtual draws per pair in `ratings`, so that a policy that never loses has a finite rating


class Rating(NamedTuple):
    """A policy's rating relative to the anchor in Elo points, with its 95% interval."""

    elo: float
    low: float
    high: float


def outcomes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where `first` scores higher, 0 where `second` does, 1/2 for ties; elementwise."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return 0.5 * (1.0 + np.sign(first - second))


def win_rate(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Mean outcome over prompts, a tie being half a win: {"rate", "low", "high", "n", "ties"}.

    first, second: scores (seeds, prompts) of two policies' answers to the same prompts; row meets row.
    The interval is that of a rate over seeds. Counting a tie as half a win makes it wider than it need be.
    """
    won = outcomes(first, second)  # (seeds, prompts)
    _, low, high, *_ = rate_over_seeds([{"rate": float(row.mean()), "n": row.size} for row in won])
    return {
        "rate": float(won.mean()), "low": low, "high": high, "n": won.size, "ties": float((won == 0.5).mean()),
    }  # fmt: skip


def two_by_two(helpfulness: np.ndarray, rival: np.ndarray, safe: np.ndarray) -> dict[str, dict[str, float]]:
    """Shares of the prompts by (better or worse than the rival) x (own answer safe or unsafe); they add up to 1.

    helpfulness, rival: scores (..., prompts) of the policy's and the rival's answers; a tie counts half as better and
    half as worse. safe: booleans (..., prompts) for the policy's own answers. The four cells are the table of Safe
    RLHF's arena (Dai et al. 2023, arXiv 2310.12773). Raises UserError if there is no prompt.
    """
    better, safe = outcomes(helpfulness, rival), np.asarray(safe, dtype=bool)
    if not better.size:
        raise UserError("arena: found no prompt, expected at least one")
    cells = {"better": better, "worse": 1.0 - better}
    return {
        row: {"safe": float((share * safe).mean()), "unsafe": float((share * ~safe).mean())}
        for row, share in cells.items()
    }


# --- ratings -----------------------------------------------------------------------------------------


def bradley_terry(wins: np.ndarray, *, prior: float = 0.0) -> np.ndarray:
    """Maximum-likelihood strengths θ of P(i beats j) = σ(θ_i − θ_j), mean zero.

    wins: (..., players, players), wins[i, j] = how often i beat j (a draw is half a win for each). prior: virtual
    draws added to every pair's counts. Returns strengths in nats, (..., players). Raises UserError if the maximum is
    not finite: without a prior, some group of players never lost to the others, or never met them (Ford 1957).
    Newton's method on the concave log-likelihood, all leading dimensions at once. Source: Bradley and Terry, Biometrika 39 (1952).
    """
    wins = np.array(wins, dtype=np.float64)
    players = wins.shape[-1]
    if wins.ndim < 2 or wins.shape[-2] != players or players < 2 or not (wins >= 0).all():
        raise UserError(f"wins: found shape {wins.shape}, expected (players, players) of counts >= 0")
    wins = wins + 0.5 * prior * (1.0 - np.eye(players))
    wins[..., np.arange(players), np.arange(players)] = 0.0
    if prior <= 0:
        for table in wins.reshape(-1, players, players):
            if connected_components(csr_array(table), connection="strong")[0] > 1:
                raise UserError(
                    "ratings: some policies never lost to the others, so that no finite rating fits: "
                    "expected wins both ways, or a prior"
                )
    games = wins + wins.swapaxes(-1, -2)
    total = wins.sum(-1)
    theta = np.zeros(wins.shape[:-1])

    def likelihood(theta: np.ndarray) -> np.ndarray:
        return -(wins * np.logaddexp(0.0, theta[..., None, :] - theta[..., :, None])).sum((-1, -2))

    value = likelihood(theta)
    for _ in range(200):
        expected = 1.0 / (1.0 + np.exp(theta[..., None, :] - theta[..., :, None]))
        gradient = total - (games * expected).sum(-1)
        curvature = games * expected * (1.0 - expected)
        # The likelihood does not change along (1, ..., 1); adding ones makes the system regular.
        system = -curvature + np.eye(players) * curvature.sum(-1)[..., None] + 1.0 / players
        step = np.linalg.solve(system, gradient[..., None])[..., 0]
        scale = np.ones(value.shape)
        for _ in range(60):  # halve the step if Newton's method overshoots
            moved = likelihood(theta + scale[..., None] * step)
            worse = moved < value - 1e-9 * np.abs(value)
            if not worse.any():
                break
            scale = np.where(worse, scale / 2, scale)
        theta, value = theta + scale[..., None] * step, np.maximum(moved, value)
        if np.abs(step).max() < 1e-10:
            break
    return theta - theta.mean(-1, keepdims=True)


def ratings(
    scores: Mapping[str, np.ndarray],
    anchor: str,
    *,
    prior: float = PRIOR,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Rating]:
    """Elo ratings relative to `anchor` (whose rating is 0), fitted to all pairs on all prompts.

    scores: policy -> scores (prompts,) or (seeds, prompts) of its answers to the same prompts; higher wins. anchor:
    the policy with rating 0. prior: virtual draws per pair of policies, which keep the rating of a policy that always
    wins finite. resamples: bootstrap draws; each resamples the prompts, and each policy's seeds. The 95% intervals
    are Student's t over the seeds times the draws' standard deviation (percentiles hold too seldom with few seeds);
    with a single seed they do not include the spread between seeds.
    Raises UserError if there are fewer than two policies, no prompt, unequal numbers of prompts, or no anchor.
    """
    if len(scores) < 2 or anchor not in scores:
        raise UserError(
            f"ratings: found policies {', '.join(scores) or 'none'}, expected at least two and {anchor!r}"
        )
    runs = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in scores.items()}
    lengths = {values.shape[1] for values in runs.values()}
    if len(lengths) > 1 or not min(lengths):
        raise UserError(
            f"ratings: found {sorted(lengths)} prompts, expected the same, at least one, for all policies"
        )
    names, prompts = list(runs), lengths.pop()
    owner = np.concatenate([[i] * len(values) for i, values in enumerate(runs.values())])  # (runs,)
    stacked = np.concatenate(list(runs.values()))  # (runs, prompts)
    won = outcomes(stacked[:, None], stacked[None]).reshape(-1, prompts)  # (runs * runs, prompts)
    member = np.eye(len(names))[owner]  # (runs, policies)

    def table(prompt_weights: np.ndarray, run_weights: np.ndarray) -> np.ndarray:
        """Weights (draws, prompts) and (draws, runs) -> wins (draws, policies, policies), in prompts."""
        games = (prompt_weights @ won.T).reshape(-1, len(owner), len(owner))
        weighted = member * run_weights[..., None]  # (draws, runs, policies)
        return weighted.swapaxes(-1, -2) @ games @ weighted

    even = (1.0 / member.sum(0))[owner]
    point = bradley_terry(table(np.ones((1, prompts)), even[None]), prior=prior)[0]
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples).astype(np.float64)
    seeds = [len(values) for values in runs.values()]
    run_weights = [generator.multinomial(n, np.full(n, 1.0 / n), size=resamples) / n for n in seeds]
    sampled = bradley_terry(table(drawn, np.concatenate(run_weights, axis=1)), prior=prior)
    position = names.index(anchor)
    sampled = ELO * (sampled - sampled[:, [position]])
    margin = scipy.stats.t.isf(0.025, [n - 1 or np.inf for n in seeds]) * sampled.std(axis=0)
    centre = ELO * (point - point[position])
    low, high = centre - margin, centre + margin
    return {name: Rating(float(centre[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}


# --- the arena ---------------------------------------------------------------------------------------


def rate_policies(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Mapping[int, Sequence[str]]],
    *,
    anchor: str,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare all policies with each other, judged by the oracle.

    prompts: the prompts that every policy has answered. answers: policy -> seed -> one answer per prompt.
    anchor: the policy with rating 0. The order of policies and seeds changes nothing, the bootstrap's draws included.
    Returns `helpfulness` (benign requests; the oracle's grade decides) and `harmlessness` (harmful requests; safe
    beats unsafe): {"ratings": {policy: {"elo", "low", "high"}}, "prompts"}. `pairs`: for each ordered pair "a vs
    b" of policies that share seeds, seed against the same seed, both win rates and the 2x2 table over all prompts.
    `seeds`: the number of runs of each policy. Raises UserError if a policy's answers do not match the prompts, or
    one of the two kinds of request is missing.
    """
    answers = {name: dict(sorted(runs.items())) for name, runs in sorted(answers.items())}
    for name, runs in answers.items():
        if not runs or any(len(texts) != len(prompts) for texts in runs.values()):
            raise UserError(f"arena: {name} has not answered each of the {len(prompts)} prompts: expected it")
    benign = np.array([p.harmful is False for p in prompts])
    harmful = np.array([p.harmful is True for p in prompts])
    if not benign.any() or not harmful.any():
        raise UserError("arena: found requests of one kind, expected benign and harmful ones")
    helpful, safe, asked = {}, {}, [p.prompt for p in prompts]
    for name, runs in answers.items():
        verdicts = [[judge(*pair) for pair in zip(asked, texts, strict=True)] for texts in runs.values()]
        helpful[name] = np.array([[v.helpfulness for v in row] for row in verdicts])  # (seeds, prompts)
        safe[name] = np.array([[v.safe for v in row] for row in verdicts])
    kinds = {"helpfulness": (helpful, benign), "harmlessness": (safe, harmful)}
    result: dict[str, Any] = {"seeds": {name: len(runs) for name, runs in answers.items()}}
    for kind, (scores, rows) in kinds.items():
        fitted = ratings({n: v[:, rows] for n, v in scores.items()}, anchor, resamples=resamples, seed=seed)
        result[kind] = {
            "ratings": {name: rating._asdict() for name, rating in fitted.items()},
            "prompts": int(rows.sum()),
        }
    result["pairs"] = {}
    for a, b in permutations(answers, 2):
        mine, theirs = (np.isin(list(answers[x]), list(answers[y])) for x, y in ((a, b), (b, a)))
        if mine.any():
            result["pairs"][f"{a} vs {b}"] = {
                "helpfulness": win_rate(helpful[a][mine][:, benign], helpful[b][theirs][:, benign]),
                "harmlessness": win_rate(safe[a][mine][:, harmful], safe[b][theirs][:, harmful]),
                "table": two_by_two(helpful[a][mine], helpful[b][theirs], safe[a][mine]),
            }
    return result
