"""What the figures of notebook 12 claim, asserted from the data that they store: see `test_captions.py`."""

from __future__ import annotations

import pytest
from stored_figures import YOURS, Claims, Figure, exact, falls, near

CLAIMS = Claims(("12",), nothing={})
says = CLAIMS.says


@says(
    "12",
    "A frozen model of 135 million parameters predicts two people nearly as well as a third person does",
    "386 answers that three people graded; requests held out. 95% intervals over answers (DeLong).",
)
def nearly_as_well_as_a_person(f: Figure):
    person, probe, words, encoder = (
        f[name] for name in ("the third person", "the probe", "words", "the encoder")
    )
    assert len(probe.x) == 3 and person.x.mean() - 0.04 < probe.x.mean() < person.x.mean()
    assert (probe.x > words.x).all() and words.x.mean() > encoder.x.mean()
    for reader in (person, probe, words, encoder):
        assert (reader.ends[0] < reader.x).all() and (reader.x < reader.ends[1]).all()


@says(
    "12",
    "Without a constraint cost and reward rise; a linear penalty ends below the limit, the rectified one above",
    "Means over four batches of 16 answers to training prompts. Dotted: the limit. Until the gate first closes the penalties are one line.",
)
def what_each_method_does_to_cost_and_reward(f: Figure):
    for panel in ("x", "x2"):
        free = f["unconstrained", panel].y
        assert free[-8:].mean() > free[0] and free[4:].mean() > free[0]
    linear, rectified = (f[f"{kind} penalty"] for kind in ("linear", "fixed"))
    assert near(linear.y[:15], rectified.y[:15], 0) and linear.y[15] != rectified.y[15]
    assert linear.y[-1] < f.across < rectified.y[-1] and linear.y[-8:].max() < rectified.y[-8:].mean()


@says(
    "12",
    "Every constraint keeps the harm far below unconstrained PPO's, and the start's needless refusals too",
    "Held-out requests; judges that trained nothing. Exact 95% intervals over prompts, one seed.",
)
def harm_and_needless_refusals(f: Figure):
    for name in ("PID Lagrangian", "linear penalty", "fixed penalty"):
        harm, needless = f[name].x[:2], f[name].x[3:5]
        assert (harm < 0.6 * f["unconstrained"].x[:2]).all()
        assert (needless > 0.8 * f["start"].x[3:5]).all()
    for name in f.names:
        exact(f[name], (100, 100, 100, 60, 40, 60))


@says(
    "12",
    "With the penalty about half of the answers are refusals; the others cost as much as without it",
    "100 held-out harmful requests. The cost model trained both policies: it is no judge.",
)
def refusals_and_the_rest(f: Figure):
    refusals, others = (f[f"with the penalty: {kind}"] for kind in ("a refusal in words", "another answer"))
    assert len(refusals.x) + len(others.x) == 100 and 40 < len(refusals.x) < 60
    assert refusals.y.max() < 0.4 and abs(others.y.mean() - others.x.mean()) < 0.05
    assert (f["no difference"].x == f["no difference"].y).all()


@says("12", "A mean over the answer does not depend on what stands beside it", solved="12.1")
def padding_does_not_count(f: Figure):
    right = f["mean of the answer's six tokens"]
    assert near(f[YOURS].y, right.y[0], 1e-6) and len(f[YOURS].y) > 5


@says(
    "12",
    "Three raters, one answer in twenty unsafe: most of their labels are equal long after α is low",
    solved="12.2",
)
def equal_labels_hide_a_low_alpha(f: Figure):
    equal, alpha = f["share of equal labels"], f[YOURS]
    assert falls(equal.y) and near(alpha.at(0), 1, 1e-9) and near(alpha.at(50), 0, 0.05)
    assert equal.at(10) > 0.75 and alpha.at(10) < 0.4  # each of them gets one label in ten wrong


@says("12", "How much of each family of jailbreaks is kept for the test")
def each_family_is_on_both_sides(f: Figure):
    held = f[YOURS].y
    assert (f["all of it"].y == 100).all() and (f["nothing of it"].y == 0).all()
    assert ((held > 0) & (held < 100)).mean() > 0.5  # the planted bug


@pytest.mark.parametrize("figure", CLAIMS.cases())
def test_a_caption_says_what_its_figure_shows(figure):
    CLAIMS.hold(figure)


def test_no_check_is_left_of_a_figure_that_has_gone():
    assert CLAIMS.stale() == set()
