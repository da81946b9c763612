"""What the figures of notebooks 06 to 08 claim, asserted from the data that they store: see `test_captions.py`."""

from __future__ import annotations

import numpy as np
import pytest
from stored_figures import STORED, YOURS, Claims, Figure, crossings, falls, near, rises

CLAIMS = Claims(
    tuple(path.name[:2] for path in STORED[6:9]),
    nothing={
        "07": (
            "Four logs (violation → λ in each of five steps): which penalty wrote them?",
            "Mean cost of the policy that a linear penalty trains, with and without the division",
        ),
    },
)
says = CLAIMS.says


@says(
    "06",
    "A slow λ walks towards the crossing; a fast one runs past it, and circles",
    "Each line is 240 steps of training. Dotted: the threshold and λ*.",
)
def slow_and_fast(f: Figure):
    slow, fast, (price,) = f["λ learns slowly"], f["λ learns fast"], f.heights
    assert falls(np.hypot((slow.x - f.down) / f.down, (slow.y - price) / price))  # nearer in every step
    assert (slow.x > f.down).all() and (slow.y < price).all()
    assert fast.x.min() < f.down and fast.y.max() > 2 * price
    assert crossings(fast.x, f.down) >= 3 and crossings(fast.y, price) >= 3
    assert near(f["the optimum"].x[0], f.down, 1e-3) and near(f["the optimum"].y[0], price, 1e-3)


def settled(step: np.ndarray, cost: np.ndarray, level: float) -> float:
    """The step from which on the cost stays within 0.005 of `level`."""
    return float(step[np.flatnonzero(np.abs(cost - level) > 0.005)[-1] + 1])


@says(
    "06",
    "From 0.2 to 0.8: more swings, higher ones, and the same time until they are over",
    "Dotted: the threshold. Only the first descent gets steeper; what follows takes just as long.",
)
def four_times_the_rate(f: Figure):
    calm, hasty = f["rate 0.2"], f["rate 0.8"]
    assert crossings(hasty.y, f.across) > crossings(calm.y, f.across)
    assert hasty.y.min() < calm.y.min() and (hasty.y < f.across).argmax() < (calm.y < f.across).argmax()
    for run in (calm, hasty):
        assert near(settled(run.x, run.y, f.across), f.told("70"), 8)


@says(
    "06",
    "A window of 8 steps feeds the swing: training never arrives",
    "There is no noise in this picture: a mean over past steps is late, and a late answer pushes the swing.",
)
def a_window_feeds_the_swing(f: Figure):
    late = {window: f[f"window {window}"].y[-40:] for window in (1, 4, 8)}
    assert near(late[1], f.across, 0.005) and np.ptp(late[8]) > 0.2 and np.ptp(late[4]) > np.ptp(late[1])
    assert late[8].max() > 3 * f.across and late[8].min() < f.across / 2  # after more than a hundred steps


@says(
    "06",
    "The λ of a PPO run is ten lines of arithmetic on its mean costs",
    "While λ rests on its cap, it acts as a fixed linear penalty, whatever the rate.",
)
def arithmetic_on_mean_costs(f: Figure):
    ours, recorded = f["dual_step, fed with the recorded costs"], f["Lagrangian, recorded by PPO"]
    assert near(ours.y, [recorded.at(step) for step in ours.x], 1e-3)
    assert recorded.y.max() == f["the cap"].y[0] and (recorded.y == recorded.y.max()).sum() > 1


@says(
    "06",
    "Six steps of PPO: λ at ten times the published rate, and at the published one",
    "Your processor's own run.",
)
def at_ten_times_the_rate(f: Figure):
    trained, published = (
        f["Lagrangian, η = 1, as trained"].y,
        f["Lagrangian, η = 0.1, fed with the same costs"].y,
    )
    assert (trained > published).all() and trained[-1] > 2 and published[-1] < 1.5


@says(
    "06",
    "How each method finds the dotted optimum: from which side, and with how many swings",
    "Dotted: the optimal multiplier λ* above, the threshold below. The fixed penalty knows no λ* and has no memory: from "
    "its first crossing on, its gate chatters.",
)
def its_gate_chatters(f: Figure):
    threshold, price = f.heights
    fixed, learnt, damped = (f[n, "x2"].y for n in ("fixed penalty", "Lagrangian", "PID Lagrangian"))
    after = fixed[(fixed < threshold).argmax() :]
    assert crossings(after, threshold) == len(after) - 1  # in every step
    assert crossings(learnt, threshold) >= 3 and (damped > threshold - 1e-3).all()
    assert f["PID Lagrangian"].y.max() < 1.01 * price < 1.5 * price < f["Lagrangian"].y.max()


@says("06", "With your rate, λ should pass 5 at about step 20", solved="6.1")
def passes_five_in_time(f: Figure):
    assert f["goal"].y[0] == 5 and near((f[YOURS].y > 5).argmax(), f.down, 3) and f.down == 20


@says("06", "At the calm rate the price comes up to λ* and stays; it does not turn round", solved="6.2")
def does_not_turn_round(f: Figure):
    assert rises(f[YOURS].y, slack=1e-6) and 0.9 < f[YOURS].y[-1] < 1.001
    assert f["10 times your rate"].y.max() > 1.001  # which does


@says("06", "Safe for 60 steps, then harm comes back: when does the price?")
def the_price_does_not_come_back(f: Figure):
    harm = f["violation × 10"]
    assert f.down == 60 and (harm.where(harm.x < 60) <= 0).all() and (harm.where(harm.x > 60) > 0).all()
    assert (f[YOURS].y == 0).all()  # the planted bug


@says(
    "06",
    "λ while the limit is broken for 20 steps, and kept for 60: it learns fast and forgets slowly",
    solved="6.4",
)
def learns_fast_and_forgets_slowly(f: Figure):
    λ = f[YOURS]
    learning, forgetting = λ.y[λ.x <= f.down], λ.y[λ.x >= f.down]
    assert (
        f.down == 20
        and λ.x[-1] == 80
        and rises(learning)
        and falls(forgetting)
        and λ.y.max() <= f["maximum"].y[0]
    )
    assert (learning[-1] - learning[0]) / 20 > 3 * (forgetting[0] - forgetting[-1]) / 60


@says(
    "07",
    "The rectified penalty stops at the dotted threshold; the linear one goes on",
    "Same town, same λ, same steps. The small teeth are the gate that opens and closes.",
)
def one_stops_and_one_goes_on(f: Figure):
    linear, rectified = f["linear, λ = 20"].y, f["rectified, λ = 20"].y
    late = len(rectified) // 2
    assert len(linear) == len(rectified) and near(rectified[late:], f.across, 0.03)
    assert crossings(rectified[late:], f.across) > 5 and falls(linear[late:], slack=1e-6)
    assert linear[-1] < f.across / 2
    pink_and_blue(f)


def pink_and_blue(f: Figure):
    """The colours that the page tells: of the linear penalty and of the rectified one."""
    for name in f.names:
        if "linear" in name or "rectified" in name:
            assert f[name].colour == ("#CC79A7" if "linear" in name else "#0072B2"), name


@says(
    "07",
    "Once no harm is left to remove, a linear penalty takes help from the benign",
    "Dotted: λ*. Beyond it the rectified penalty changes nothing more: it keeps the harm that the threshold allows.",
)
def takes_help_from_the_benign(f: Figure):
    harm, benefit = f["harmful helped, linear"], f["benign helped well, linear"]
    left = harm.y > 0.01
    assert benefit.y[left].min() > benefit.y[0] - 0.03 and benefit.y[~left][0] - benefit.y[-1] > 0.2
    assert near(100 * benefit.line(20), f.told("84"), 1.5) and near(100 * benefit.at(64), f.told("60"), 1)
    for kind in ("harmful helped", "benign helped well"):
        beyond = f[f"{kind}, rectified"]
        assert np.ptp(beyond.where(beyond.x > f.down)) < 1e-3
    assert f["harmful helped, rectified"].y[-1] > 0.1 and near(100 * beyond.y[-1], f.told("97"), 1)
    pink_and_blue(f)


@says(
    "07",
    "With the division a λ can be too small, and a KL weight too large for any λ",
    "Dotted: the threshold. The solid line never gets there: its limit is the reference tilted by the cost alone.",
)
def too_small_and_too_large(f: Figure):
    plain, divided, strong = f["β = 0.1"], f["β = 0.1, divided"], f["β = 0.5, divided"]
    assert ((plain.y < f.across) & (divided.y > f.across)).any() and divided.y[-1] < f.across
    assert falls(strong.y) and (strong.y > f.told("0.131")).all() and near(strong.y[-1], 0.131, 0.01)


@says(
    "07",
    "One λ, one rule that is kept already: mean cost of six steps of PPO",
    "Your processor's own runs. Dotted: the threshold.",
)
def the_rule_is_kept_already(f: Figure):
    linear, rectified = f["linear, λ = 20"].y, f["rectified, λ = 20"].y
    assert linear[0] == rectified[0] < f.across and rectified[-1] > linear[-1] and linear[-1] < linear[0]
    assert rectified[-3:].mean() > rectified[0] > linear[-3:].mean()  # the cost climbs
    pink_and_blue(f)


@says("07", "Is it getting safer, at what price, and how fast?")
def the_gate_is_six_or_nothing(f: Figure):
    assert set(f["multiplier", "x3"].y) == {0, 6}  # the page says so
    assert f["fixed_penalty"].y[-5:].mean() < f["fixed_penalty"].y[:5].mean() / 2


@says(
    "07",
    "A sweep of λ: what the base's scored answers promise, and what PPO made of it",
    "Dotted: the threshold in training. Lines: reweighted answers of the base. Marks (if recorded): one per seed.",
)
def what_ppo_made_of_it(f: Figure):
    promised, exact = f["predicted from the base's answers, linear"], f["predicted, rectified"]
    assert falls(promised.y) and near(exact.y.min(), f.across, 1e-4)
    trained = {name: f[f"trained, {name}"] for name in ("linear", "rectified")}
    mean = {λ: trained["linear"].y[trained["linear"].x == λ].mean() for λ in (1, 2, 4, 64)}
    assert all((trained[name].x == λ).sum() == 5 for name in trained for λ in mean)
    assert mean[1] > mean[2] > mean[4] > mean[64]  # in direction, yes
    for λ in (1, 2):  # in place, no: two to five times as much
        assert 1.5 < mean[λ] / promised.line(λ) < 7
    assert abs(mean[4] - promised.line(4)) < 0.03  # from here on they agree
    linear, rectified = (
        t.y[t.x <= 2] for t in trained.values()
    )  # the gate is open in every step: one method
    assert near(linear, rectified, 1e-6)
    pink_and_blue(f)


@says("07", "How strongly is a cost advantage weighed (λ = 8), in batches of rising mean cost?")
def not_at_all(f: Figure):
    assert near(f["λ / (1 + λ)"].y, 8 / 9, 1e-3) and rises(f[YOURS].x)
    assert (f[YOURS].y == 0).all()  # the planted bug


@says(
    "07",
    "The spread of the advantages that PPO gets, answers only: whitened it is 1 for every λ",
    solved="7.4",
)
def whitened_it_is_one(f: Figure):
    assert near(f[YOURS].y, 1, 1e-3) and rises(f["not divided, not whitened"].y)


@says(
    "08",
    "What can be promised is the top of each bar, not the grey part",
    "Judged harmful: 15% in all three. 95% confidence, one-sided. The grey part is what papers report.",
)
def the_top_of_each_bar(f: Figure):
    grey, *rest = (f[name] for name in f.names)
    assert (grey.y == 15).all() and len(grey.y) == 3 and grey.colour == "#6e7781"
    assert falls(grey.y + sum(part.y for part in rest)) and all((part.y > 0).all() for part in rest)


@says(
    "08",
    "Above the dotted line a promise is kept: exact intervals keep it at every rate",
    "200 answers. Wilson's interval is shorter, and breaks its promise where safety claims live: at small rates.",
)
def exact_intervals_keep_it(f: Figure):
    exact, wilson = f["Clopper-Pearson, exact"], f["Wilson, approximate"]
    assert f.across == 95 and (exact.y >= f.across).all() and (exact.y >= wilson.y - 1e-9).all()
    assert (wilson.where(wilson.x < 0.3) < f.across).all() and wilson.x[wilson.y.argmin()] < 1


@says(
    "08",
    "A promise about ordinary days says nothing about the others",
    "Dotted: where the filter was calibrated, and the 5% it promised there. Nothing in the mathematics failed; the "
    "prompts changed.",
)
def nothing_about_the_others(f: Figure):
    filtered, bare = f["with the calibrated filter"], f["without the filter"]
    assert f.across == 5 and filtered.at(f.down) <= f.across
    assert (filtered.where(filtered.x >= 2 * f.down) > f.across).all() and (filtered.y < bare.y).all()


@says(
    "08",
    "Best of N under a good judge: what it sees stays at zero, what happens does not",
    "More answers are more chances to find one that the judge misses, and the reward prefers exactly those.",
)
def what_happens_does_not_stay_at_zero(f: Figure):
    seen, true = f["judged by the filter's own judge"], f["true harm"]
    assert (seen.y == 0).all() and rises(true.y) and true.y[-1] > 5 * true.y[0] > 0
    assert (true.y <= f["ceiling 1 − (1 − miss rate)^N"].y + 1e-9).all()


@says("08", "How many harmless answers certify a rate with 95% confidence?", solved="8.1")
def harmless_answers(f: Figure):
    rule = f["the rule of three, 3 / rate"]
    assert near(rule.y, 300 / rule.x, 0.1) and near(f[YOURS].y / rule.y, 1, 0.1)


@says(
    "08",
    "20% are judged unsafe: the bound of true harm falls as people label 'safe' answers",
    solved="8.2",
)
def the_bound_falls(f: Figure):
    assert (f["the judge's word alone"].y == 20).all() and falls(f[YOURS].y)
    assert (f[YOURS].y > f["observed: judge and labels together"].y).all()


@says("08", "How often a policy just above 5% harm gets its certificate, by the number of looks")
def more_looks_more_certificates(f: Figure):
    false, allowed = f[YOURS], f["what 95% confidence allows"]
    assert (allowed.y == 5).all() and rises(false.y) and false.y[-1] > 2 * allowed.y[0]  # the planted bug


@pytest.mark.parametrize("figure", CLAIMS.cases())
def test_a_caption_says_what_its_figure_shows(figure):
    CLAIMS.hold(figure)


def test_no_check_is_left_of_a_figure_that_has_gone():
    assert CLAIMS.stale() == set()
