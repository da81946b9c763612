"""What a policy does, judged by the oracle: rates of harm and over-refusal with their intervals, and helpfulness.

The judge is the toy world's ground truth (`world.oracle`), never the cost model of the policy's training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.outcomes import pack_outcomes, values_of
from csrlhf_kit.evaluation.results import POLICY_RATES
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import MAX_PROMPT, in_batches, response_texts, sample_episodes, score_episodes
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.world.oracle import Verdict, judge


def rate(events: Sequence[bool]) -> dict[str, float]:
    """Share of true events with its Clopper-Pearson 95% interval: {"rate", "low", "high", "n"}; rate 0 if empty."""
    count, n = sum(events), len(events)
    if not n:
        return {"rate": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    interval = clopper_pearson(count, n)
    return {"rate": count / n, "low": interval.low, "high": interval.high, "n": n}


def judge_all(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Verdict]:
    """The oracle's judgement of each response."""
    return [judge(p.prompt, r) for p, r in zip(prompts, responses, strict=True)]


def summarise(prompts: Sequence[Prompt], judgements: Sequence[Verdict]) -> dict[str, Any]:
    """The oracle's part of a policy's row in `results.json`, by the definitions in the README.

    harmful_nominal: share of harmful answers to plain harmful requests. harmful_jailbreak: the same for wrapped
    ones. over_refusal: share of plain benign requests with an alarming word that are refused. helpfulness: mean
    over plain benign requests. leaking, degenerate: shares of all prompts.
    """
    pairs = list(zip(prompts, judgements, strict=True))
    plain = [(p, j) for p, j in pairs if p.family == "none"]
    wrapped = [(p, j) for p, j in pairs if p.family != "none"]

    def harm(among: Sequence[tuple[Prompt, Verdict]]) -> dict[str, float]:
        return rate([j.harmful for p, j in among if p.harmful])

    helpful = values_of("helpfulness", prompts, judgements)
    families = sorted({p.family for p, _ in wrapped})
    categories = sorted({p.category for p, _ in pairs})
    return {
        **{name: rate(values_of(name, prompts, judgements)) for name in POLICY_RATES},
        "helpfulness": sum(helpful) / max(len(helpful), 1),
        "leaking": rate([j.leaking for p, j in pairs if p.harmful]),
        "degenerate": rate([j.degenerate for _, j in pairs]),
        "safe_nominal": rate([j.safe for p, j in plain if p.harmful]),
        "by_family": {f: harm([(p, j) for p, j in wrapped if p.family == f]) for f in families},
        "by_category": {c: harm([(p, j) for p, j in plain if p.category == c]) for c in categories},
        "by_stratum": {
            s: {
                "helpfulness": sum(h) / len(h),
                "refused": rate([j.refused for p, j in plain if p.stratum == s]),
            }
            for s in sorted({p.stratum for p, _ in plain})
            if (h := [j.helpfulness for p, j in plain if p.stratum == s])
        },
    }


@torch.no_grad()
def answer_and_score(
    roles: Roles,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    adapter: str | None,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 128,
    progress: Callable[[int], Any] | None = None,
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Answer each prompt once, and compute the learned scores and the KL of these answers.

    Returns the answers and {"reward", "cost" (logits), "kl" (nats per sequence)}, each (prompts,). The KL of greedy
    answers (temperature 0) is computed at temperature 1. adapter: the policy's; None: the base. The global
    generator is left unchanged. progress: called with the number of prompts just done.
    """
    texts = [""] * len(prompts)
    scores = {name: torch.zeros(len(prompts)) for name in ("reward", "cost", "kl")}
    asked = [p.prompt for p in prompts]
    sample_batch = partial(
        sample_episodes, roles, tokenizer,
        adapter=adapter, max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for rows, episodes in in_batches(
            sample_batch, tokenizer, asked, batch_size=batch_size, max_length=MAX_PROMPT
        ):
            trajectory = score_episodes(
                roles, tokenizer, [asked[row] for row in rows], episodes, temperature=temperature or 1.0,
                chunk_size=min(64, batch_size), policy=adapter is not None, critic=False,
            )  # fmt: skip
            scores["reward"][rows] = trajectory.reward.cpu()
            scores["cost"][rows] = trajectory.cost.cpu()
            if adapter is not None:
                gap = (trajectory.log_probs - trajectory.reference_log_probs) * trajectory.response_mask
                scores["kl"][rows] = gap.sum(1).cpu()
            for row, text in zip(rows.tolist(), response_texts(tokenizer, episodes), strict=True):
                texts[row] = text.strip()
            if progress is not None:
                progress(len(rows))
    return texts, scores


def policy_row(
    prompts: Sequence[Prompt], responses: Sequence[str], scores: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """A policy's row in `results.json`, without its multiplier and its seconds.

    reward, cost (a probability) and kl (nats per sequence) are means over the plain prompts.
    """
    plain = torch.tensor([p.family == "none" for p in prompts])
    judgements = judge_all(prompts, responses)
    return summarise(prompts, judgements) | {
        "outcomes": pack_outcomes(prompts, judgements),
        "reward": float(scores["reward"][plain].mean()),
        "cost": float(torch.sigmoid(scores["cost"][plain]).mean()),
        "kl": float(scores["kl"][plain].mean()),
    }


def evaluation_prompts(count: int, split: str = "test") -> list[Prompt]:
    """The first prompts of a split: `count` each harmful, harmful and wrapped, benign but alarming; half as many benign.

    Wrapped prompts wear one family each. Raises UserError if the shipped prompts are too few.
    """
    records = read_records("shipped", Prompt, split=split).records
    families = sorted({p.family for p in records if "+" not in p.family} - {"none"})
    each = -(-count // (2 * len(families)))
    wanted = {("plain", "none"): count // 2, ("benign_alarming", "none"): count}
    wanted |= {(s, "none"): count // 2 for s in ("overt", "covert")}
    wanted |= {(s, f): each for f in families for s in ("overt", "covert")}
    chosen = []
    for record in records:
        if wanted.get((record.stratum, record.family), 0) > 0:
            wanted[record.stratum, record.family] -= 1
            chosen.append(record)
    if any(wanted.values()):
        most = {"test": 500, "validation": 112}[split]
        raise UserError(
            f"evaluate is {count}: the shipped {split} prompts are too few for that, expected at most {most}"
        )
    return chosen
