"""How well frozen models and words read people's grades, beside how well people read one another's.

Requests are held out in five folds; every score is of a model that has not seen the request. The readers:

    words      TF-IDF and logistic regression, the kit's keyword baseline
    probe      SmolLM2's states, Gaussian process or logistic regression (see csrlhf_kit/models/probe.py)
    encoder    MiniLM's embeddings, the same two

and three ways to use grades: whether the mean is at least 0.5 (`hard`), the same weighted by how far it is from 0.5
(`weighted`), and the mean itself (`soft`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.real.config import RealConfig
from benchmarks.real.features import decoder_states, encoder_states
from benchmarks.real.rows import Answer, Files, graded_answers, yes_no_answers
from benchmarks.real.scorers import UNSAFE, auroc_entry, unsafe_by_construction
from csrlhf_kit.evaluation.agreement import bootstrap, cohen_kappa, coincidences, krippendorff_alpha
from csrlhf_kit.evaluation.keyword import fit_keyword, keyword_scores
from csrlhf_kit.evaluation.safety import rate
from csrlhf_kit.models.probe import INVERSE_DECAY, KERNEL_NOISE, KERNEL_WIDTH

FOLDS = 5
USES = ("hard", "weighted", "soft")
Fit = Callable[[np.ndarray, np.ndarray, str], Callable[[np.ndarray], np.ndarray]]
"""(states, mean grades, use) -> a function from states to scores, above 0 for unsafe."""


# --- heads ------------------------------------------------------------------------------------------------


def targets(grades: np.ndarray, use: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets in [0, 1] and weights, both (answers,), of mean grades (answers,)."""
    hard = (grades >= UNSAFE).astype(float)
    if use == "soft":
        return grades, np.ones_like(grades)
    weights = np.ones_like(grades) if use == "hard" else 0.25 + 1.5 * np.abs(grades - UNSAFE)
    return hard, weights


def logistic(states: np.ndarray, grades: np.ndarray, use: str) -> Callable[[np.ndarray], np.ndarray]:
    """Binary cross-entropy on standardised states; a target between 0 and 1 is a row of each label, weighted."""
    scaler = StandardScaler().fit(states)
    target, weight = targets(grades, use)
    z = scaler.transform(states)
    rows = np.vstack([z, z])
    labels = np.repeat([1, 0], len(z))
    weights = np.concatenate([target * weight, (1 - target) * weight])
    kept = weights > 0
    model = LogisticRegression(C=INVERSE_DECAY, max_iter=2000).fit(rows[kept], labels[kept], weights[kept])
    return lambda new: model.decision_function(scaler.transform(new))


def gaussian(states: np.ndarray, grades: np.ndarray, use: str) -> Callable[[np.ndarray], np.ndarray]:
    """The kit's Gaussian process: kernel ridge regression on signs, with the probe's width and noise."""
    scaler = StandardScaler().fit(states)
    target, weight = targets(grades, use)
    signs = 2 * target - 1
    mean = float(np.average(signs, weights=weight))
    ridge = KernelRidge(alpha=KERNEL_NOISE, kernel="rbf", gamma=KERNEL_WIDTH / states.shape[1])
    ridge.fit(scaler.transform(states), signs - mean, sample_weight=weight)
    return lambda new: ridge.predict(scaler.transform(new)) + mean


def held_out(
    folds: np.ndarray, fitted: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
) -> np.ndarray:
    """Scores (answers,), each by a model fitted to the other folds.

    fitted: (which answers to learn from) -> a function from which answers to score to their scores; (answers,) masks.
    """
    scores = np.empty(len(folds))
    for fold in np.unique(folds):
        inside = folds == fold
        scores[inside] = fitted(~inside)(inside)
    return scores


def on_states(states: np.ndarray, grades: np.ndarray, fit: Fit, use: str) -> Callable[[np.ndarray], Any]:
    """`held_out`'s `fitted` for a head on states (answers, states)."""

    def fitted(known: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        head = fit(states[known], grades[known], use)
        return lambda asked: head(states[asked])

    return fitted


def on_words(answers: Sequence[Answer], grades: np.ndarray) -> Callable[[np.ndarray], Any]:
    """The same for the keyword baseline."""
    requests, responses = (np.array(c, dtype=object) for c in zip(*((a.request, a.response) for a in answers), strict=True))  # fmt: skip

    def fitted(known: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        model = fit_keyword(requests[known], responses[known], grades[known] >= UNSAFE)
        return lambda asked: keyword_scores(model, requests[asked], responses[asked])

    return fitted


def request_folds(answers: Sequence[Answer], seed: int) -> np.ndarray:
    """A fold (answers,) for each, by its request: all answers to a request are in one."""
    names = sorted({a.key[0] for a in answers})
    place = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % FOLDS, strict=True))
    return np.array([place[a.key[0]] for a in answers])


# --- figures ----------------------------------------------------------------------------------------------


def measured(scores: np.ndarray, unsafe: np.ndarray) -> dict[str, Any]:
    """AUROC with DeLong's interval, and accuracy at 0."""
    return {"auroc": auroc_entry(scores, unsafe), "accuracy": rate(((scores > 0) == unsafe).tolist())}


def interval_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's α for numbers, whose distance is (a - b)²; ratings (raters, items), nan where one is missing.

    It is 1 - (n - 1) Σ o_ab (a - b)² / Σ n_a n_b (a - b)², of which the kit's nominal α is the one with distance 1.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    meetings = coincidences(ratings).sum(0)
    totals = meetings.sum(1)
    distance = (values[:, None] - values[None]) ** 2
    expected = (np.outer(totals, totals) * distance).sum()
    if expected == 0:
        return float("nan")
    return float(1 - (totals.sum() - 1) * (meetings * distance).sum() / expected)


def raters_beside(scores: dict[str, np.ndarray], grades: np.ndarray) -> dict[str, Any]:
    """Three raters' agreement with one another, and each model's with each rater.

    scores: model -> (answers,). grades: (raters, answers). `against_the_others`: AUROC for "the mean of the other two
    raters is at least 0.5", of the rater left out and of the models: people as readers of one another.
    """
    unsafe = grades >= UNSAFE
    models: dict[str, Any] = {}
    for name, own in scores.items():
        calls = (own > 0).astype(float)
        models[name] = {
            "kappa": {
                f"rater {i + 1}": bootstrap(
                    lambda two: cohen_kappa(two[0], two[1]), np.stack([calls, row.astype(float)])
                )
                for i, row in enumerate(unsafe)
            },
            "alpha_with_raters": bootstrap(krippendorff_alpha, np.vstack([unsafe.astype(float), calls])),
        }
    others = {}
    for i, row in enumerate(grades):
        majority = np.delete(grades, i, axis=0).mean(0) >= UNSAFE
        others[f"rater {i + 1}"] = {
            "rater": auroc_entry(row, majority),
            **{n: auroc_entry(s, majority) for n, s in scores.items()},
        }
    return {
        "answers": grades.shape[1],
        "alpha": {
            "unsafe_or_not": bootstrap(krippendorff_alpha, unsafe.astype(float)),
            "grades": bootstrap(interval_alpha, grades),
        },
        "models": models,
        "against_the_others": others,
    }


def people(config: RealConfig, pyrit: Files) -> dict[str, Any]:
    """All figures on people's grades; minutes on two cores, most of them for SmolLM2's states."""
    counts: Counter[str] = Counter()
    answers = graded_answers(pyrit, counts)[: config.graded]
    texts = [(a.request, a.response) for a in answers]
    grades = np.array([a.mean for a in answers])
    folds = request_folds(answers, config.seed)
    states = {
        "probe": decoder_states(
            texts, config.path("features"), base=config.base, max_length=config.max_length
        ),
        "encoder": encoder_states(texts, config.path("features"), base=config.encoder),
    }
    scores = {"words": held_out(folds, on_words(answers, grades))}
    for name, own in states.items():
        for head in (gaussian, logistic):
            for use in USES:
                scores[f"{name}, {head.__name__}, {use}"] = held_out(folds, on_states(own, grades, head, use))
    unsafe = grades >= UNSAFE
    three = np.array([len(a.labels) == 3 for a in answers])
    best = {name: scores[name] for name in ("words", "probe, gaussian, hard", "encoder, gaussian, hard")}
    return {
        "read": dict(counts),
        "answers": len(answers),
        "requests": len({a.key[0] for a in answers}),
        "unsafe": int(unsafe.sum()),
        "readers": {name: measured(own, unsafe) for name, own in scores.items()},
        "raters": raters_beside(
            {name: own[three] for name, own in best.items()},
            np.array([a.labels for a in answers if len(a.labels) == 3]).T,
        )
        if three.any()
        else None,
        "yes_or_no": yes_no_beside(answers, yes_no_answers(pyrit, Counter())),
    }


def yes_no_beside(graded: Sequence[Answer], yes_no: Sequence[Answer]) -> dict[str, Any]:
    """How "does what was asked" and "mean grade at least 0.5" agree where the same answer has both labels."""
    labels = {a.key: a.mean >= UNSAFE for a in yes_no}
    both = [(a.mean >= UNSAFE, labels[a.key]) for a in graded if a.key in labels]
    kappa = cohen_kappa([a for a, _ in both], [b for _, b in both]) if both else float("nan")
    return {
        "answers": len(both),
        "agreement": rate([bool(a == b) for a, b in both]),
        "kappa": None if kappa != kappa else kappa,
    }


def sources(config: RealConfig, pyrit: Files, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether a head reads harm, or where its rows come from: three sets of rows, one half of the base's answers.

    answers: the base's, rows with `request`, `response` and `stratum`. Each head is a Gaussian process on the same
    states. Returns for each set of rows the AUROC of "the request asks for harm" on the other half of the base's
    answers, and the shares of these that it calls unsafe.
    """
    graded = graded_answers(pyrit, Counter())[: config.graded]
    said = [row for row in answers if row["response"].strip()]
    folder, how = config.path("features"), {"base": config.base, "max_length": config.max_length}
    states = decoder_states([(a.request, a.response) for a in graded], folder, **how)
    own = decoder_states([(row["request"], row["response"]) for row in said], folder, **how)
    grades = np.array([a.mean for a in graded])
    harmful = np.array([row["stratum"] == "harmful" for row in said])
    unsafe = np.array([unsafe_by_construction(row) for row in said])
    known = np.random.default_rng(config.seed).permutation(len(said)) % 2 == 0
    sets = {
        "graded by people": np.zeros(len(said), bool),
        "and the base's harmless answers": known & ~harmful,
        "and its answers to both": known,
    }
    found = {}
    for name, added in sets.items():
        head = gaussian(np.vstack([states, own[added]]), np.append(grades, unsafe[added]), "hard")
        scores, asked = head(own[~known]), harmful[~known]
        found[name] = {
            "auroc": auroc_entry(scores, asked),
            "called_unsafe": {
                told: rate((scores[inside] > 0).tolist())
                for told, inside in (("harmful requests", asked), ("benign requests", ~asked))
            },
        }
    return found
