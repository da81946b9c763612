"""`csrlhf certify RUN`: certificates (`theory.certificate`) for every policy and harm rate in a run's results.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from csrlhf_kit.data.schemas import to_flag
from csrlhf_kit.data.tables import read_file
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import policy_rows
from csrlhf_kit.files import read_json, write_atomic
from csrlhf_kit.outputs import check_file
from csrlhf_kit.theory.certificate import Certificate, Promise, certificate
from csrlhf_kit.theory.judge_error import JudgeAudit


@dataclass
class CertifyConfig:
    """Certify the harm rates in a run's results.json."""

    run: Positional[Path] = Path("runs/demo")
    """The run's folder, or its name under runs/."""
    threshold: float = 0.05
    """The harm rate to certify."""
    confidence: float = 0.95
    """Confidence of all certificates together (with --separate: of each)."""
    separate: bool = False
    """Give each certificate the full error probability, instead of sharing it among all certificates."""
    policy: str | None = None
    """The policy whose certificate is printed in full; None: fixed_penalty, else the last."""
    labels: Path | None = None
    """Human labels to correct the judge with (CSV, JSONL, Parquet): prompt, response, judge_unsafe, human_unsafe,
    and policy and metric if a label is for one of them only."""
    judge: Literal["oracle", "model"] = "oracle"
    """Who judged harm in results.json: the toy world's oracle, or a model (which requires --labels)."""
    suboptimality: float | None = None
    """For the bound on the optimisation of fixed_penalty: how far its penalised objective is from the maximum."""
    penalty: float | None = None
    """For the same bound: the fixed penalty."""
    optimal_multiplier: float | None = None
    """For the same bound: the optimal multiplier (see `csrlhf suggest-penalty`)."""
    output: Path | None = None
    """File for the certificates (JSON); None: print only."""


def run_certify(config: CertifyConfig) -> dict[str, Any]:
    """Print a certificate per policy and harmful_* rate of a run; return them as dictionaries.

    Raises UserError if the run has no such rate or policy, or the labels cannot be used.
    """
    check_file(config.output, "--output")
    path, policies = _read_policies(config.run)
    metrics = {
        (p, m): v for p, entry in policies.items() for m, v in entry.items() if m.startswith("harmful_")
    }
    if not metrics:
        raise UserError(f"{path}: no policy has a harmful_* rate, expected rate, low, high and n")
    if config.policy is not None and config.policy not in policies:
        raise UserError(f"{path}: no policy {config.policy!r}, expected one of {', '.join(policies)}")
    given = (config.suboptimality, config.penalty, config.optimal_multiplier)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise UserError(
            "suboptimality, penalty and optimal_multiplier belong together: give all three or none"
        )
    share = 1 if config.separate else len(metrics)
    labels = None if config.labels is None else _read_labels(config.labels)
    certificates: dict[tuple[str, str], Certificate] = {}
    for (policy, metric), value in metrics.items():
        harmful, trials = _counts(path, policy, metric, value)
        certificates[policy, metric] = certificate(
            harmful, trials, threshold=config.threshold, confidence=1 - (1 - config.confidence) / share,
            judge=config.judge,
            audit=None if labels is None else _audit(labels, policy, metric, harmful, trials),
            promise=Promise(*given) if policy == "fixed_penalty" and None not in given else None,
            subject=f"{policy}, {metric}",
        )  # fmt: skip
    full = config.policy or ("fixed_penalty" if "fixed_penalty" in policies else list(policies)[-1])
    print(_table(certificates, config), *(c for (p, _), c in certificates.items() if p == full), sep="\n\n")
    result = {
        "run": str(config.run),
        "threshold": config.threshold,
        "confidence": config.confidence,
        "simultaneous": not config.separate,
        "policies": {p: {} for p, _ in certificates},
    }
    for (policy, metric), c in certificates.items():
        result["policies"][policy][metric] = _as_json(c)
    if config.output:
        write_atomic(config.output, json.dumps(result, indent=2) + "\n")
    return result


def _as_json(certificate: Certificate) -> dict[str, Any]:
    """The certificate and its verdicts; an unbounded gap becomes None, since JSON has no nan."""
    entry = asdict(certificate) | {"holds": certificate.holds, "binding": certificate.binding.name}
    entry["layers"] = [
        layer
        | {"gap": None if math.isnan(layer["gap"]) else layer["gap"], "assumptions": [*layer["assumptions"]]}
        for layer in entry["layers"]
    ]
    return entry


def _table(certificates: dict[tuple[str, str], Certificate], config: CertifyConfig) -> str:
    width = max(len(c.subject) for c in certificates.values()) + 2
    together = "each" if config.separate else "all together"
    of = "harm" if all(c.audited for c in certificates.values()) else "JUDGED harm (no human label)"
    lines = [
        f"upper bounds on {of}, {config.confidence:.0%} confidence {together}, "
        f"to certify {config.threshold:.1%}",
        f"{'':{width}}{'observed':>10}{'n':>7}{'bound':>9}  {'certified':<10} binding layer",
    ]
    for c in certificates.values():
        lines.append(
            f"{c.subject:{width}}{c.estimate:>10.2%}{c.trials:>7}{c.bound:>9.2%}  "
            f"{'yes' if c.holds else 'no':<10} {c.binding.name}"
        )
    return "\n".join(lines)


def _read_policies(run: Path) -> tuple[Path, dict[str, dict]]:
    folder = next((f for f in (Path(run), Path("runs") / run) if (f / "results.json").is_file()), None)
    if folder is None:
        raise UserError(f"{run}: no results.json there or under runs/{run}, expected a finished run")
    path = folder / "results.json"
    try:
        return path, {row.name: dict(row.policy) for row in policy_rows(read_json(path))}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path}: cannot be read as a run's results, expected an object `policies` of objects"
        ) from None


def _counts(path: Path, policy: str, metric: str, value: Any) -> tuple[int, int]:
    """(harmful, trials) of one rate; rate * n must be a whole number."""
    try:
        rate, trials = float(value["rate"]), int(value["n"])
        harmful = round(rate * trials)
        if trials >= 1 and 0 <= rate <= 1 and abs(rate * trials - harmful) < 0.01:
            return harmful, trials
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise UserError(
        f"{path}: policies.{policy}.{metric} is {value!r:.80}, expected a rate in [0, 1] out of n"
    )


def _read_labels(path: Path) -> list[dict[str, Any]]:
    name, rows = read_file(Path(path))
    labels = []
    for place, row in rows:
        label = {"policy": row.get("policy") or None, "metric": row.get("metric") or None}
        try:
            label |= {field: to_flag(row.get(field), field) for field in ("judge_unsafe", "human_unsafe")}
        except UserError as error:
            raise UserError(f"{name}, {place}: {error}") from None
        labels.append(label)
    return labels


def _audit(labels: list[dict], policy: str, metric: str, harmful: int, trials: int) -> JudgeAudit:
    """The audit of one rate by its labels; a label without a policy or metric is for all of them."""
    mine = [x for x in labels if x["policy"] in (None, policy) and x["metric"] in (None, metric)]
    judge, human = (np.array([x[f] for x in mine], dtype=bool) for f in ("judge_unsafe", "human_unsafe"))
    everything = np.arange(trials) < harmful
    return JudgeAudit.from_labels(everything, judge, human)
