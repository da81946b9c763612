"""What the figures of notebooks 03 to 05 claim, asserted from the data that they store: see `test_captions.py`."""

from __future__ import annotations

import numpy as np
import pytest
from stored_figures import NOT_YET, STORED, YOURS, Claims, Figure, falls, near, rises

CLAIMS = Claims(tuple(path.name[:2] for path in STORED[3:6]), nothing={})
says = CLAIMS.says


@says(
    "03",
    "What a policy is worth under the rectified penalty, for three sizes of λ",
    "Two answers, explained below. Where is the highest point of each curve? Dotted: the threshold.",
)
def the_highest_points(f: Figure):
    assert f.names == ["λ = 0.0", "λ = 1.2", "λ = 2.4"]
    free, _, priced = ((curve.x[curve.y.argmax()], curve.y.max()) for curve in f.traces.values())
    assert near(free[0], np.e / (1 + np.e), 0.02)  # complies freely
    assert near(priced[0], f.down, 0.02) and near(priced[1], 0.0073, 1e-3)  # 2.4 is above λ*


@says(
    "03",
    "The price of the constraint is where the falling curve meets the dotted threshold",
    "Every λ to the left of λ* leaves a violation.",
)
def where_the_falling_curve_meets_the_threshold(f: Figure):
    town = f["the town"]
    assert falls(town.y) and near(town.line(f.down), f.across, 0.01)
    assert (town.where(town.x < f.down) > f.across).all() and (town.where(town.x > f.down) < f.across).all()


@says(
    "03",
    "Past λ* the rectified optimum stays in the kink; the linear one slides past it",
    "A line: the most that a policy of that mean cost can get under the penalty. Its dot: where training "
    "goes. Left: once λ exceeds λ*, every curve peaks in the kink. Right: the peak slides further and "
    "further to the left.",
)
def stays_in_the_kink(f: Figure):
    for axis in ("x", "x2"):
        for name in ("λ = 0.5 λ*", "λ = λ*", "λ = 2 λ*", "λ = 5 λ*"):
            curve, dot = f[name, axis], f[f"best at {name}", axis]
            assert near(dot.y[0], curve.y.max(), 0.01) and near(dot.x[0], curve.x[curve.y.argmax()], 0.02)
    for name in ("λ = 2 λ*", "λ = 5 λ*"):
        assert near(f[f"best at {name}"].x[0], f.down, 1e-3)
    tops = [f[f"best at λ = {times}λ*", "x2"].x[0] for times in ("", "2 ", "5 ")]
    assert falls(np.array(tops)) and near(tops[0], f.down, 1e-3)


@says(
    "03",
    "One penalty stops at the threshold; the other two run past it",
    "Marks: the policies that a penalty of 0.25 λ* to 5 λ* trains. The line: the most that any policy of "
    "that cost can have. The rings pile up on the threshold; the diamonds run past it. The triangles are "
    "notebook 04's.",
)
def one_stops_one_runs_past_one_leaves(f: Figure):
    best, rings, diamonds, third = (f[name] for name in f.names)
    assert near(rings.x[-4:], f.down, 1e-4) and (rings.x >= f.down - 1e-9).all()
    assert (diamonds.x[-3:] < f.down / 2).all() and falls(diamonds.x)
    under = [np.array([best.line(x) for x in marks.x]) - marks.y for marks in (rings, diamonds, third)]
    assert near(under[0], 0, 2e-3) and near(under[1], 0, 2e-3) and under[2].max() > 5e-3 > -under[2].min()
    two = np.flatnonzero([text == "2 λ*" for text in diamonds.text])[0]
    assert near(diamonds.x[two], f.told("0.0363"), 1e-4) and near(diamonds.y[two], f.told("0.9005"), 1e-3)
    assert near(rings.y[two], f.told("1.1134"), 1e-3) and near(rings.x[:3], diamonds.x[:3], 1e-6)


@says(
    "03",
    "No policy lies above the line: what is left to gain bounds what is violated",
    "A larger λ makes the line flatter, so the promise stronger; it does not move the optimum.",
)
def no_policy_lies_above_the_line(f: Figure):
    policies, line = f["40 of the 400 policies"], f["ε / (λ − λ*), at λ = 2 λ*"]
    slope = line.y[-1] / line.x[-1]
    assert (
        len(policies.x) == 40 and (policies.y <= slope * policies.x + 1e-4).all() and (policies.y > 0).all()
    )


@says(
    "03",
    "What scored answers promise for each mean cost, and where the exact optimum lies",
    "Grey: predicted from 100 scored answers per request. Blue: the exact optimum, which the samples never "
    "saw.",
)
def promised_and_exact(f: Figure):
    promised, exact = f["best, predicted from reference samples"], f["the exact optimum"]
    assert (promised.colour, exact.colour) == ("#57606a", "#0072B2")
    assert near(exact.x[0], f.down, 1e-4) and near(exact.y[0], promised.line(f.down), 0.05)
    assert "bar" not in f.caption or len(exact.ends[0])


@says("03", "What a safe policy that you own says about λ*", solved="3.1")
def an_upper_bound(f: Figure):
    assert (f[YOURS].y >= f["λ* itself"].y[0] - 1e-6).all()


@says("03", "The dual: its lowest point should touch the constrained optimum", solved="3.2")
def the_lowest_point_of_the_dual(f: Figure):
    dual = f[YOURS]
    assert near(dual.y.min(), f["F*, the best feasible objective"].y[0], 0.01)
    assert near(dual.x[dual.y.argmin()], f.down, 0.2)


@says("03", "The penalised objective at λ = 2 λ*: the maximum belongs on the dotted threshold")
def the_maximum_is_off_the_threshold(f: Figure):
    curve, top = f["yours"], f["your maximum"]
    assert (
        near(top.y[0], curve.y.max(), 1e-6) and top.x[0] < f.down - 0.05
    )  # the planted bug: safer than asked
    assert (curve.y <= f["F, without a penalty"].y + 1e-9).all()


@says("03", "The price of a unit of cost under the rectified penalty, λ = 6", solved="3.4")
def all_or_nothing(f: Figure):
    price = f[YOURS]
    assert (price.where(price.x > f.down) == 6).all() and (price.where(price.x < f.down) == 0).all()
    assert (f["of the linear penalty"].y == 6).all() and NOT_YET not in f.names


@says(
    "04",
    "Averaged over batches, the kink becomes a curve: even feasible policies are charged",
    "The gap is widest at the dotted threshold, and it is what this notebook is about.",
)
def even_feasible_policies_are_charged(f: Figure):
    written = f["the hinge you wrote, max(v, 0)"]
    assert near(written.y, np.maximum(written.x, 0), 1e-6)
    gaps = {size: f[f"average over batches of {size}"].y - written.y for size in (8, 64)}
    for gap in gaps.values():
        assert (gap[written.x < 0] > 0).all() and near(written.x[gap.argmax()], f.down, 0.006)
    assert gaps[8].max() > 2 * gaps[64].max()


@says(
    "04",
    "With a batch gate, 2 λ* looks like the smallest sufficient penalty",
    "An exact gate is on the dotted threshold for every λ > λ*. The curves meet it at 2 λ* only; small "
    "batches end above them.",
)
def two_looks_like_the_smallest(f: Figure):
    assert f.down == 2
    for size in (8, 64):
        predicted = f[f"predicted, batches of {size}"]
        assert falls(predicted.y) and near(predicted.line(2), f.across, 0.002)
    small = f["simulated training, batches of 8"]
    assert (small.y > [f["predicted, batches of 8"].line(place) for place in small.x]).all()
    assert small.at(1.5) > f.across > small.at(4) and abs(small.at(2) - f.across) < small.at(1.5) - f.across


@says(
    "04",
    "A batch charges even feasible policies, and makes 2λ* look like the least needed",
    "Left: the overcharge at the constrained optimum. Right: where training settles; zero is the threshold.",
)
def the_overcharge_and_where_training_settles(f: Figure):
    formula, simulated = f["closed form, 0.399·σ/√B"], f["simulated batches"]
    assert falls(formula.y) and (formula.y > 0).all()
    assert near(simulated.y / [formula.line(size) for size in simulated.x], 1, 0.25)
    assert near(formula.y[0] / formula.y[-1], np.sqrt(formula.x[-1] / formula.x[0]), 0.1)
    spread = []
    for size in (8, 64, 512):
        settled = f[f"B = {size}", "x2"]
        assert (
            falls(settled.y) and near(settled.line(2), 0, 0.003) and settled.line(1.5) > 0 > settled.line(4)
        )
        spread.append(np.ptp(settled.y))
    assert falls(np.array(spread))  # the larger batch is closer throughout


@says("04", "Drag λ across λ*: the rectified optimum stops at the threshold, the others do not")
def the_rectified_optimum_stops(f: Figure):
    ends = {name: f[name, "x2"] for name in ("rectified mean", "linear penalty", "per-sample hinge")}
    stops = ends["rectified mean"]
    assert (
        near(stops.where(stops.x > 1.01), f.across, 1e-4) and (stops.where(stops.x < 0.99) > f.across).all()
    )
    for other in (ends["linear penalty"], ends["per-sample hinge"]):
        assert falls(other.y, slack=1e-4) and other.y[-1] < 0.6 * f.across


@says(
    "04",
    "A gate on its own batch lets through more of the cost gradient than its share of open steps",
    "The formulas above describe the lower lines. A gate on its own batch is the upper one, and higher for "
    "smaller batches.",
)
def a_gate_on_its_own_batch(f: Figure):
    opened, other, own = (f[name] for name in f.names)
    assert f.names[2] == "gradient carried, gate on its own batch" and near(opened.y, other.y, 0.06)
    assert (own.y > opened.y + 0.02).all() and falls(own.y)
    assert (
        near(opened.at(4), 1 / 3, 0.05) and own.at(4) > 2 / 3
    )  # a third of the steps, two thirds of the gradient


@says(
    "04",
    "Only the rectified penalty is both feasible and free of charge right of the dotted λ*",
    "Given up: against the constrained optimum. What is below 0 is bought with a violation. Above: who is "
    "feasible. Below: what it costs.",
)
def feasible_and_free_of_charge(f: Figure):
    assert f.down == 1
    for name in ("rectified mean", "linear penalty", "per-sample hinge"):
        violation, given = f[name], f[name, "x2"]
        assert (violation.where(given.y < -1e-3) > 0).all()
        right = violation.x > 1.01
        free = (violation.y[right] < 1e-4) & (np.abs(given.y[right]) < 1e-3)
        assert free.all() if name == "rectified mean" else not free.any()
    lost = f.told("1.1134") - f.told("0.9287")  # by the hinge of each sample at 2 λ*
    assert near(f["per-sample hinge", "x2"].line(2), lost, 0.02) and f["per-sample hinge"].line(2) == 0


@says(
    "04",
    "The mean hinge of a policy that sits exactly on the threshold, where the true hinge is 0",
    solved="4.1",
)
def above_zero_on_the_threshold(f: Figure):
    exact, normal = f[YOURS], f["Gaussian: 0.399·σ/√B"]
    assert f.across == 0 and (exact.y > 0).all() and falls(exact.y) and falls(normal.y)
    assert near(exact.y[-1] / normal.y[-1], 1, 0.1)


@says(
    "04",
    "The penalty that makes training settle where you want it: 2 λ* on the threshold itself",
    solved="4.2",
)
def two_on_the_threshold_itself(f: Figure):
    yours, twice = f[YOURS], f["2 λ*"].y[0]
    assert twice == 2 * f["λ*"].y[0] and near(yours.line(f.down), twice, 0.01) and falls(yours.y)


@says("04", "What is a unit of reward worth to the gradient, before and after the gate opens (λ = 8)?")
def divided_before_the_gate_opens(f: Figure):
    assert near(f["1 / (1 + λ)"].y, 1 / (1 + 8), 1e-3) and (f["1"].y == 1).all()
    assert near(f[YOURS].where(f[YOURS].x < f.down), 1 / 9, 1e-3)  # the planted bug: it should be 1


@says(
    "05",
    "One score at the end becomes an advantage for every token",
    "Grey: paid at once. Brown: expected from here on. Blue: what the gradient multiplies each token's "
    "log-probability by.",
)
def an_advantage_for_every_token(f: Figure):
    paid, expected, advantage = f["reward of the token"], f["critic's guess before it"], f["advantage"]
    assert [t.colour for t in (paid, expected, advantage)] == ["#6e7781", "#8a6d00", "#0072B2"]
    assert paid.y.argmax() == 2 and (np.abs(paid.y[:2]) < 0.1).all()
    last = paid.y[2] - expected.y[2]  # by hand, with λ = 0.5, from the last token to the first
    middle = paid.y[1] + expected.y[2] - expected.y[1] + 0.5 * last
    first = paid.y[0] + expected.y[1] - expected.y[0] + 0.5 * middle
    assert near(advantage.y, [first, middle, last], 1e-4) and (advantage.y > 0).all()


@says(
    "05",
    "With a critic that knows nothing, λ decides how far back the praise reaches",
    "An answer of twenty tokens that scores 1. λ = 0 praises only the last token; λ = 1 praises all alike, whoever "
    "earned it.",
)
def how_far_back_the_praise_reaches(f: Figure):
    only, some, most, alike = (f[f"λ = {λ}"].y for λ in ("0.0", "0.8", "0.95", "1.0"))
    assert len(only) == 20 and only[-1] == 1 and (only[:-1] == 0).all() and (alike == 1).all()
    assert (only[:-1] < some[:-1]).all() and (some[:-1] < most[:-1]).all() and (most[:-1] < 1).all()
    assert near(most[0], f.told("0.377"), 1e-3)


@says(
    "05",
    "Clipping stops a token that has gone far enough; it never stops one on its way back",
    "Flat: no gradient. Slope to the right of 1.2 for A = −1: a mistake that grew likelier by accident is still pushed "
    "down.",
)
def clipping_never_stops_one_on_its_way_back(f: Figure):
    for sign, name in ((1, "A = +1"), (-1, "A = −1")):
        token = f[name]
        slope, middle = np.diff(token.y) / np.diff(token.x), (token.x[1:] + token.x[:-1]) / 2
        enough = sign * (middle - 1) > 0.2 + 1e-6  # in the direction that the advantage asks for
        assert near(slope[enough], 0, 1e-6) and near(slope[~enough], sign, 1e-3) and enough.any()


@says(
    "05",
    "Eight steps of PPO without a constraint, live: harm in each batch",
    "Your processor's own run. Where the lines meet, as many answers are called harmful as requests asked "
    "for harm.",
)
def harm_comes_up_to_what_is_asked(f: Figure):
    asked, harmful = f["requests that ask for harm"], f["unconstrained: answers called harmful"]
    assert len(harmful.x) == 8 and harmful.y[0] < asked.y[0]
    assert (asked.y - harmful.y)[-4:].mean() < (asked.y - harmful.y)[0]
    assert "every request for harm got" not in f.caption or (harmful.y <= asked.y).all()


@says(
    "05",
    "Unconstrained, for the whole budget of steps: harm climbs, and stays",
    "Means of the last five steps, read from data/recorded/results.json. About half of the prompts ask for harm.",
)
def harm_climbs_and_stays(f: Figure):
    harm = f["unconstrained: called harmful by the cost model"].y
    later = harm[len(harm) // 2 :]
    assert later.mean() > harm[0] + 10 and later.min() > harm[0] and near(harm[10:], 50, 20)


@says(
    "05",
    "Whatever the KL weight, the best policy complies more often than the reference",
    "Exact. A larger β only brings it back to the reference, from above.",
)
def whatever_the_kl_weight(f: Figure):
    best, reference = f["the best policy"].y, f["the reference"].y
    assert (best > reference[0]).all() and falls(best, slack=1e-6) and best[-1] - reference[0] < 2


@says("05", "What one token says about the KL: the plain estimate is as often negative as positive")
def as_often_negative_as_positive(f: Figure):
    plain = f["plain estimate, −log ratio"]
    assert (plain.y > 1e-9).sum() == (plain.y < -1e-9).sum() > 0 and near(plain.y, -plain.x, 1e-6)


@says("05", "A token with advantage −1: where does clipping stop its gradient? 1 = stopped", solved="5.2")
def clipping_stops_on_one_side(f: Figure):
    stopped, counted = f[YOURS], f["what clipfrac counts"]
    assert (stopped.where(stopped.x < 0.79) == 1).all() and (stopped.where(stopped.x > 0.81) == 0).all()
    assert (counted.where(np.abs(counted.x - 1) > 0.21) == 1).all()  # on both


@says("05", "What an answer earns over its own tokens, against the score that it got")
def an_answer_earns_nothing(f: Figure):
    assert near(f["one for one"].y, f["one for one"].x, 0) and near(f[YOURS].y, 0, 1e-6)  # the planted bug


@says(
    "05",
    "Credit for the first of four tokens when only the last is scored: how far λ lets it reach",
    solved="5.4",
)
def how_far_the_blame_reaches(f: Figure):
    assert (
        rises(f[YOURS].y)
        and near(f[YOURS].y, f[YOURS].x ** 3, 1e-4)
        and (f["Monte Carlo, λ = 1"].y == 1).all()
    )


@says(
    "05", "PPO's loss of one token with advantage 1: beyond 1.2 there is nothing more to gain", solved="5.5"
)
def nothing_more_to_gain(f: Figure):
    loss = f[YOURS]
    assert near(f.down, 1.2, 1e-9) and near(loss.where(loss.x > 1.21), -1.2, 1e-4)
    assert falls(loss.y[loss.x < 1.19]) and falls(f["not clipped"].y)


@pytest.mark.parametrize("figure", CLAIMS.cases())
def test_a_caption_says_what_its_figure_shows(figure):
    CLAIMS.hold(figure)


def test_no_check_is_left_of_a_figure_that_has_gone():
    assert CLAIMS.stale() == set()
