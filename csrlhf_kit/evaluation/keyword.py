"""The keyword baseline: what words alone say about harm, without their meaning.

TF-IDF of words and word pairs with scikit-learn's logistic regression, on the same (prompt, response) text that a
cost model reads. A cost model that is no better has learnt a list of alarming words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from csrlhf_kit.errors import UserError


def fit_keyword(prompts: Sequence[str], responses: Sequence[str], unsafe: Sequence[bool]) -> Pipeline:
    """Fit TF-IDF (1- and 2-grams) and logistic regression (scikit-learn's defaults) on labelled dialogues.

    Raises UserError if all labels are equal, or the texts hold no word.
    """
    labels = np.asarray(unsafe, dtype=bool)
    if labels.size == 0 or labels.all() or not labels.any():
        raise UserError(f"keyword baseline: found {labels.size} labels of one kind, expected both kinds")
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    try:
        return pipeline.fit(joined_texts(prompts, responses), labels)
    except ValueError as error:
        raise UserError(f"keyword baseline: found no words in the texts ({error}), expected some") from error


def keyword_scores(pipeline: Pipeline, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Logits of "unsafe" by the keyword baseline, (dialogues,): above 0 means unsafe."""
    return pipeline.decision_function(joined_texts(prompts, responses))


def joined_texts(prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
    """One text per dialogue: prompt, line break, response."""
    return [f"{prompt}\n{response}" for prompt, response in zip(prompts, responses, strict=True)]
