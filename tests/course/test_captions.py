"""What the figures of notebooks 00 to 02 claim, asserted from the data that they store.

A figure with a new title fails until its claim is entered: here, in `test_captions_of_penalties.py` (03 to 05), in
`test_captions_of_training.py` (06 to 08) or in `test_captions_of_evidence.py` (09 and on). One with a new caption fails
until somebody has looked at it again.
"""

from __future__ import annotations

import numpy as np
import pytest
from stored_figures import STORED, YOURS, Claims, Figure, falls, near, rises

from csrlhf_kit.world.lexicon import ALARMING

CLAIMS = Claims(
    tuple(path.name[:2] for path in STORED[:3]),
    nothing={"00": ("Nine policies: which of them does no other one beat?",)},
)
says = CLAIMS.says
PENALISED = ("Lagrangian", "linear penalty", "fixed penalty")
WORDS_OR_MEANING = "Who can tell what sounds alarming from what is harmful: words or meaning?"


@says(
    "00",
    "Thirty-six requests: which act on which thing is harmful?",
    "Each row and each column holds both kinds. The three acts on the left sound alarming.",
)
def both_kinds_everywhere(f: Figure):
    kinds = [f["benign"], f["harmful"]]
    assert sum(len(kind.x) for kind in kinds) == 36
    for kind in kinds:  # half of the six, the page says
        assert np.bincount(kind.x.astype(int)).tolist() == np.bincount(kind.y.astype(int)).tolist() == [3] * 6
    acts = f.layout["xaxis"]["ticktext"]
    assert [act in ALARMING for act in acts] == [True] * 3 + [False] * 3


@says(
    "00",
    WORDS_OR_MEANING,
    "One stratum at a time, and 95% intervals over the test labels. Read the text below first: a single panel can mislead.",
)
def the_filter_of_words_sorts_answers(f: Figure):
    assert all(
        (t.ends[0] <= t.x).all() and (t.x <= t.ends[1]).all()
        for t in (f["semantic"], f["keyword"], f["keyword", "x2"])
    )
    auroc = {name: dict(zip(f[name].text, f[name].x, strict=True)) for name in ("semantic", "keyword")}
    for stratum in ("overt", "covert"):  # about as well as the models that read
        assert abs(auroc["semantic"][stratum] - auroc["keyword"][stratum]) < 5
    assert auroc["semantic"]["all"] - auroc["keyword"]["all"] > 15  # far behind
    more_alarms_where_harm_is_asked_for(f)


def more_alarms_where_harm_is_asked_for(f: Figure):
    """The models that read raise more false alarms on harmful requests, the filter of words does not."""
    for name in ("semantic", "ranking + sign"):
        alarms = dict(zip(f[name, "x2"].text, f[name, "x2"].x, strict=True))
        assert min(alarms["overt"], alarms["covert"]) > 2 * max(alarms["plain"], alarms["benign alarming"])
    words = dict(zip(f["keyword", "x2"].text, f["keyword", "x2"].x, strict=True))
    assert (
        abs(words["plain"] - words["benign alarming"]) < 5
    )  # as often on plain requests as on alarming ones


@says(
    "00",
    "Safe and helpful is the upper left corner: who gets there, and who stays there?",
    "Up and to the left is better. Each bar is a 95% Clopper-Pearson interval; the judge is the oracle.",
)
def help_alone_teaches_harm(f: Figure):
    assert "harmful" in f.layout["xaxis"]["title"]["text"] and "helpful" in f.layout["yaxis"]["title"]["text"]
    assert all(f.layout[axis]["range"][0] < f.layout[axis]["range"][1] for axis in ("xaxis", "yaxis"))
    harm, hard = ({name: f[name, axis].x[0] for name in f.names} for axis in ("x", "x2"))
    benefit = {name: f[name].y[0] for name in f.names}
    assert harm["PPO, unconstrained"] > harm["SFT"] + 15 > max(harm[name] for name in PENALISED) + 15
    for name in PENALISED:
        assert hard[name] > harm[name]  # more frequent where training had not seen the tricks
        assert (
            benefit[name] < 0.95 * benefit["PPO, unconstrained"]
        )  # more than the twentieth that was aimed at
        assert f[name].ends[0][0] <= harm[name] <= f[name].ends[1][0]


@says(
    "00",
    "Does the cost come under its dotted threshold, and what λ does that take?",
    "Every fourth step of four runs. Where does each cost line end, and what does that cost in reward?",
)
def every_fourth_step_of_four_runs(f: Figure):
    assert len(set(f.names)) == 4 and len([s for s in f.layout["shapes"] if s["y0"] == s["y1"]]) == 1
    for name in set(f.names):
        assert set(np.diff(f[name, "x2"].x)) == {4}
        λ, reward = f[name, "x2"].y, f[name, "x4"].y
        if name == "PPO, unconstrained":
            assert (λ == 0).all()
        else:  # the reward pays
            assert λ.max() > 0 and reward[-1] < f["PPO, unconstrained", "x4"].y[-1]


@says(
    "00",
    "Your minute of training: harm and its price",
    "Your processor's own numbers: they differ from machine to machine. About half of the prompts ask for harm.",
)
def harm_falls_by_more_than_half(f: Figure):
    harm = f["called harmful by the cost model"].y
    assert harm[-3:].mean() < harm[:3].mean() / 2 and harm.max() < 0.65
    assert set(f["gate open (λ = 10) or shut"].y) <= {0, 1}


@says("00", "Nine policies, from bold to timid: less harm, more refusals of harmless requests")
def from_bold_to_timid(f: Figure):
    policies = f["what it should be"]
    assert len(policies.x) == 9 and falls(policies.x) and rises(policies.y, slack=2)


@says("00", "A helpful and harmful answer: pushed up while harm is rare, and down once it is not")
def pushed_up_then_down(f: Figure):
    right, wrong = f["what it should be"], f[YOURS]
    assert (right.where(right.x < f.down) > 0).all() and (right.where(right.x > f.down) < 0).all()
    assert (wrong.y < 0).all()  # the planted bug


@says(
    "01",
    "Three kinds of pairs; one in seven is astride the boundary",
    "The toy world's pairs, made to have the proportions of PKU-SafeRLHF.",
)
def one_in_seven_is_astride(f: Figure):
    pairs = f["pairs"]
    assert len(pairs.x) == 3 and near(pairs.y.sum(), 100, 0.1) and near(pairs.at("astride"), 100 / 7, 1)
    assert near([pairs.at("both safe"), pairs.at("both unsafe")], [41.2, 44.2], 0.5)  # PKU-SafeRLHF's


@says(
    "01",
    "Where one of two answers is unsafe, the helpful one is mostly the unsafe one",
    "The same pairs. Astride the boundary the two labels disagree five times in six.",
)
def five_times_in_six(f: Figure):
    agree, disagree = f["better is safer"], f["better is not safer"]
    astride = disagree.at("astride") / (agree.at("astride") + disagree.at("astride"))
    assert near(astride, 5 / 6, 0.04)
    assert near(agree.y.sum(), 75, 4)  # over all pairs they agree in three of four


@says(
    "01",
    "Agreement on one mixed label falls as people weigh harm more differently",
    "The two flat lines do not depend on taste. Up to x of about 2, the mixed label is agreed on as well as "
    "helpfulness.",
)
def agreement_falls(f: Figure):
    mixed, helpful, safer = f["preferred, all in all"], f["more helpful"], f["safer"]
    assert falls(mixed.y) and np.ptp(helpful.y) == np.ptp(safer.y) == 0
    assert (mixed.where(mixed.x <= 2) > helpful.y[0] - 4).all() and (
        mixed.where(mixed.x >= 3) < helpful.y[0] - 4
    ).all()


@says("01", "How often the majority is wrong when each annotator is wrong in one case of ten", solved="1.1")
def a_majority_is_wrong_more_rarely(f: Figure):
    assert (f["one annotator"].y == 10).all() and near(f[YOURS].y[0], 10, 1e-6) and falls(f[YOURS].y)


@says(
    "01",
    "Two annotators, each wrong in 5% of cases, on data with more and more unsafe answers",
    solved="1.2",
)
def agreement_stays_and_kappa_does_not(f: Figure):
    assert rises(f["equal labels"].x) and near(f["equal labels"].y, 0.95**2 + 0.05**2, 0.02)
    assert rises(f[YOURS].y)  # κ says less where unsafe answers are rare


@says("01", "The sign that the costlier answer of a pair is taught: +1 is harmful, −1 is safe")
def the_signs(f: Figure):
    right = f["what it should be"]
    assert right.y.tolist() == [-1, 1, 1]  # both safe, astride, both unsafe
    assert near(f[YOURS].y, -right.y, 1e-9)  # the planted bug


@says(
    "02",
    "One word says little about harm, two words say nearly all",
    "Complying answers in the training labels. Hurting what is good and helping what is bad is harm; no single word is.",
)
def two_words_say_nearly_all(f: Figure):
    one, both = f["one word"], f["both words"]
    assert np.ptp(one.y) < 10 and near(one.y, 40, 8)
    assert min(both.at("hurts + good"), both.at("helps + bad")) > 80
    assert max(both.at("hurts + bad"), both.at("helps + good")) < 5


@says(
    "02",
    "The verdict flips only if about three in four rank the doubtful answer worse",
    "Dotted across: the verdict 'unsafe' begins. Dotted down: annotators who rank by their own two verdicts.",
)
def three_in_four(f: Figure):
    first, other = f["ranking + sign, the first answer"], f["ranking + sign, the other answer"]
    assert f.across == 50 and first.line(73) < 50 < first.line(76)
    assert (other.y < 50).all() and (f["the first answer, by labels alone"].y < 50).all()
    assert first.line(f.down) < first.line(50) + 10 and first.line(f.down) < 50  # no verdict flips there


@says(
    "02",
    "Unanimous ranking pulls two equally doubtful answers apart, and clear ones hardly",
    "Exact minima; all annotators rank the same answer worse. Above the dotted line the verdict is 'unsafe': a false alarm.",
)
def doubtful_answers_are_pulled_apart(f: Figure):
    labels, lower, upper = (f[name] for name in f.names)
    gap = upper.y - lower.y
    assert near(labels.y, labels.x, 1e-3) and (labels.y < f.across).all()  # the majority says safe
    assert rises(gap) and gap[-1] > 30 and gap[0] < 3 and (upper.y > f.across).any()
    assert near(lower.y + upper.y, 2 * labels.y, 0.1)  # the sum of the two is right


@says(
    "02",
    "More data cut the false alarms of labels and ranking + sign, hardly those of ranking alone",
    "Frozen features, one linear head, three losses. Bars: lowest and highest of three draws.",
)
def more_data_cure_false_alarms(f: Figure):
    labels, both, alone = (f[name] for name in ("labels", "ranking + sign", "ranking alone"))
    for cured in (labels, both):
        assert falls(cured.y) and cured.y[-1] < cured.y[0] / 2
    assert alone.y[-1] > 0.75 * alone.y[0]
    assert (both.y > labels.y).all()  # at equal data
    assert all(
        (t.ends[0] <= t.y + 1e-9).all() and (t.y <= t.ends[1] + 1e-9).all() for t in (labels, both, alone)
    )


@says(
    "02",
    WORDS_OR_MEANING,
    "Left: harm that is found, where there is harm. Right: alarms where there is none. 95% Clopper-Pearson intervals.",
)
def words_find_a_minority_of_the_harm(f: Figure):
    found = {name: dict(zip(f[name].text, f[name].x, strict=True)) for name in ("semantic", "keyword")}
    for stratum in ("overt", "covert"):
        assert found["keyword"][stratum] < 50 < 85 < found["semantic"][stratum]
    assert abs(found["keyword"]["overt"] - found["keyword"]["covert"]) < 15
    more_alarms_where_harm_is_asked_for(f)


@says(
    "02",
    "Which model calls it harmful, and which words make it do so?",
    "Without a small word, the phrase around it falls apart too: it can weigh more than a noun.",
)
def a_small_word_can_weigh_more_than_a_noun(f: Figure):
    words = f.layout["xaxis2"]["ticktext"]
    nouns, small = (
        [w in group for w in words]
        for group in (
            ("rumour", "newspaper", "expert"),
            ("how", "do", "i", "a", "sure", "first", "the", "then"),
        )
    )
    for model in ("keyword", "semantic"):
        weight = np.abs(f[model, "x2"].y)
        assert weight[small].max() > weight[nouns].min()


@says(
    "02",
    "Ten times too loud, it misstates harm both ways; divided by T, it lies nearer the diagonal",
    "The head on labels, on the half of the test answers that the temperature was not fitted on.",
)
def divided_by_t(f: Figure):
    loud, mended = f["ten times too loud"], f["mended"]
    assert loud.y[0] > loud.x[0] and loud.y[-1] < loud.x[-1]  # too little, too much
    assert np.abs(mended.y - mended.x).mean() < np.abs(loud.y - loud.x).mean()
    assert max(abs(mended.y[0] - mended.x[0]), abs(mended.y[-1] - mended.x[-1])) < 8
    assert near(f["a perfect statement"].x, f["a perfect statement"].y, 0)


@says(
    "02",
    "On the diagonal, a stated 30% means 30%; above it, harm is understated",
    "The recorded models on test answers. The longer a bar, the fewer the answers that its point rests on.",
)
def stated_and_observed(f: Figure):
    stated, observed = (f.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis"))
    assert (
        "states" in stated and "is harmful" in observed
    )  # so above the diagonal there is more than is stated
    for model in f.traces.values():
        length = model.ends[1] - model.ends[0]
        sure = (model.x < 5) | (model.x > 95)  # nearly all answers of the models that read are there
        if sure.sum() == 2:
            assert length[sure].max() < length[~sure].min()


@says("02", "Two bell curves of scores, drawn apart: from a coin's AUROC towards 1", solved="2.1")
def from_a_coin_towards_one(f: Figure):
    theory, yours = f["theory, Φ(distance / √2)"], f[YOURS]
    assert rises(theory.y) and near(theory.y[0], f.across, 1e-9) and 0.95 < theory.y[-1] < 1
    assert near(yours.y, [theory.at(place) for place in yours.x], 0.01)


@says(
    "02",
    "Stated too boldly (left), too timidly (right): the calibration error has a valley at T = 1",
    solved="2.2",
)
def a_valley_at_one(f: Figure):
    yours = f[YOURS]
    assert yours.x[yours.y.argmin()] == 1 and falls(yours.y[yours.x <= 1]) and rises(yours.y[yours.x >= 1])


@says("02", "The score of one and the same answer, beside longer and longer neighbours in its batch")
def a_neighbour_moves_the_score(f: Figure):
    assert np.ptp(f["on its own"].y) == 0 and rises(f[YOURS].x)
    assert np.ptp(f[YOURS].y) > 1 and near(f[YOURS].y[0], f["on its own"].y[0], 1e-3)  # the planted bug


@pytest.mark.parametrize("figure", CLAIMS.cases())
def test_a_caption_says_what_its_figure_shows(figure):
    CLAIMS.hold(figure)


def test_no_check_is_left_of_a_figure_that_has_gone():
    assert CLAIMS.stale() == set()
