"""What the figures of notebooks 09 to 11 claim, asserted from the data that they store: see `test_captions.py`."""

from __future__ import annotations

import numpy as np
import pytest
from stored_figures import STORED, YOURS, Claims, Figure, exact, falls, near, rises

CLAIMS = Claims(tuple(path.name[:2] for path in STORED[9:12]), nothing={})
says = CLAIMS.says
AXES = ("xaxis", "yaxis")


@says(
    "09",
    "Which of these differences would be there again tomorrow?",
    "One seed each; Clopper-Pearson 95% intervals over prompts; the oracle judges.",
)
def clopper_pearson_over_prompts(f: Figure):
    assert len(f.names) == 5
    for name in f.names:  # 504 prompts, 72 of each of seven families
        exact(f[name], 504)
    low, high = (np.array([f[name].ends[end][0] for name in f.names]) for end in (0, 1))
    assert (
        high[2:].max() < low[:2].min() and low[2:].max() < high[2:].min()
    )  # two gaps, and three that overlap


@says(
    "09",
    "Intervals over prompts alone find differences that are not there",
    "Two equally safe methods, 500 prompts per seed. Dotted: the 5% that a 95% interval allows.",
)
def differences_that_are_not_there(f: Figure):
    prompts, rule = f["prompts only, 3 seeds"], f["the rule, 3 seeds"]
    assert f.across == 5 and rises(prompts.y) and prompts.y[-1] > 5 * f.across and near(prompts.y[0], 5, 5)
    assert near(prompts.at(3), 42, 14) and (rule.y < f.across + 5).all()  # four in ten; 120 comparisons each


@says(
    "09",
    "Where does safety leak? Harmful answers by jailbreak family, worst average on top",
    "Look for a policy whose rate in one family stands clear of its intervals in the others.",
)
def the_worst_family_on_top(f: Figure):
    worst = np.mean(
        [f[name].x for name in f.names], axis=0
    )  # over the policies: that is what the order goes by
    assert len(worst) == 7 and falls(worst) and f.layout["yaxis"]["range"][0] > f.layout["yaxis"]["range"][1]
    for name in f.names:
        exact(f[name], 72)
    for name in ("linear penalty", "fixed penalty"):  # the families differ, the page says
        assert f[name].x.max() > f[name].ends[1].min()


@says("09", "Safe and helpful is upper left: what is possible, and what was trained?")
def upper_left_is_possible(f: Figure):
    assert f.layout["yaxis"]["title"]["text"].startswith("helpfulness")
    limit = f["threshold of the frontier", "x2"].x[0]
    linear, rectified = (f[f"{kind} optimum at λ", "x2"] for kind in ("linear", "rectified"))
    assert near(rectified.x[0], limit, 1e-4) and linear.x[0] < limit
    frontier = f["predicted; hollow: < 5 effective samples", "x2"]
    for best in (linear, rectified):
        assert near(best.y[0], frontier.line(best.x[0]), 0.02)


@says(
    "09",
    "One number would have to choose a corner: two ratings show the trade",
    "Scripted policies; fitted to all games at once; up and to the right is better.",
)
def two_ratings_show_the_trade(f: Figure):
    place = {name: np.array([f[name].x[0], f[name].y[0]]) for name in f.names}
    harmless, helpful = place["refuses"] - place["complies"]
    assert (
        harmless > 100
        and helpful < -100
        and all(f.layout[a]["range"][0] < f.layout[a]["range"][1] for a in AXES)
    )
    assert (place["careful"] >= np.max(list(place.values()), axis=0) - 40).all()  # the corner
    assert near(place["careful"][0], place["refuses"][0], 10)  # the two are equal, the page says


@says(
    "09",
    "What two papers, their reviewers and this kit claim, and what has been settled",
    "Grey: undecided. Context, which nobody here can settle, is left out.",
)
def grey_is_undecided(f: Figure):
    red, green, blue = (int(f["undecided"].colour[k : k + 2], 16) for k in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 16 and f["undecided"].x.sum() > 0
    assert "context" not in f.names and len(f["agrees"].y) == 4
    theory = f["proved"].x + f["refuted"].x  # of one source: what was trained is never called that
    assert (theory > 0).sum() == 1


@says(
    "09",
    "11 against 6 of 40, and the same shares of more prompts: from how many prompts on do they differ?",
    solved="9.1",
)
def from_where_on_they_differ(f: Figure):
    assert near(f["measured difference"].y, 100 * (11 - 6) / 40, 1e-6)
    assert f[YOURS].y[0] < f.across < f[YOURS].y[-1] and rises(f[YOURS].y)


@says("09", "Every pair of three policies: does the difference of strengths explain who won?", solved="9.2")
def strengths_explain_who_won(f: Figure):
    assert near(f[YOURS].y, [f["σ(difference)"].line(place) for place in f[YOURS].x], 4)


@says("09", "'At least 90% safe', where 92% is the truth: your verdict as evidence grows")
def undecided_while_there_is_little_evidence(f: Figure):
    rule, yours = f["the rule of the ledger"], f[YOURS]
    assert rule.y[0] == 0 and rule.y[-1] == 1 and rises(rule.y)
    assert (yours.y[rule.y == 0] == -1).all()  # the planted bug


@says(
    "10",
    "Three policies of one harm rate under attack: what an average does not say",
    "100 harmful requests, attacked with held-out wrappers. All three are harmful in about one answer of seven.",
)
def what_an_average_does_not_say(f: Figure):
    hand, policies = f["by hand, (6/7)^k"], [f[name] for name in ("dice", "hole", "grudge")]
    assert near(hand.y, 100 * (6 / 7) ** hand.x, 0.01)
    assert near([policy.at(1) for policy in policies], 100 * 6 / 7, 8)
    dice, hole, grudge = (policy.at(32) for policy in policies)
    assert max(dice, hole) < 10 and grudge > 75 and np.ptp(policies[2].y) < 5


@says(
    "10",
    "A guided search opens one lock after the other; chance needs all three at once",
    "The same policy, budget and wrappers. The two attackers differ only in whether they use the score.",
)
def a_guided_search(f: Figure):
    chance, search = f["at random"], f["searching"]
    assert (chance.x == search.x).all() and chance.y[0] == search.y[0] == 0 and (search.y >= chance.y).all()
    assert search.y[-1] > 1.5 * chance.y[-1] > 0 and near(
        search.y[-1], f.told("73") if "73" in f.prose else 73, 1
    )


@says(
    "10",
    "Before and after ten steps of PPO: requests that still hold",
    "Your processor's own policy, attacked at 40 requests by the held-out team.",
)
def sixteen_tries_undo_much(f: Figure):
    base, trained = f["base"], f["trained"]
    assert trained.at(4) > base.at(4) and falls(base.y) and falls(trained.y)
    assert (100 - trained.at(16)) > (100 - trained.at(1))
    assert near(base.y * 40 / 100, np.round(base.y * 40 / 100), 1e-6)  # of 40 requests


@says(
    "10",
    "Without twins a round teaches wrappers, not harm: it is safe because it stops answering",
    "Requests in training wrappers, a filter of words that is retrained each round. Benign should stay up and harmful "
    "come down; neither way does both.",
)
def neither_way_does_both(f: Figure):
    for way, keeps in (("without", False), ("with", True)):
        benign, harmful = (f[f"{kind} answered, {way} twins"].y for kind in ("benign", "harmful"))
        stays_up, comes_down = benign[-1] > 0.75 * benign[0], harmful[-1] < harmful[0] / 2
        assert (stays_up, comes_down) == (keeps, not keeps)
    assert f["benign answered, without twins"].y[-1] < 25


@says(
    "10",
    "The held-out red team: after three rounds more requests hold than before",
    "300 requests per seed, the same before and after. The dotted goal of this kit was 90%.",
)
def more_requests_hold(f: Figure):
    assert f.across == 90 and "after each round" not in f.title
    seeds = f["one seed"].y.reshape(-1, 5)[:, :4]  # (seeds, rounds), with gaps between the seeds
    assert len(seeds) >= 3 and (seeds[:, -1] > seeds[:, 0]).all() and seeds.max() < f.across / 2
    assert f["mean over the seeds"].y == pytest.approx(seeds.mean(0), abs=0.1)


@says(
    "10",
    "Every policy that helps gives way: 27 settings against a searching attacker",
    "A dot is three seeds with 100 requests each. Named are those that hold over 2% and that no other beats in both "
    "respects.",
)
def every_policy_that_helps_gives_way(f: Figure):
    dots = f[""]
    assert len(dots.x) == 27 and (dots.where(dots.x > 0.3) < 10).all()
    assert dots.where(dots.y > 50).size == 1 and dots.x[dots.y.argmax()] < 0.05  # it refuses everything
    for name, x, y in zip(dots.text, dots.x, dots.y, strict=True):
        beaten = ((dots.x > x) & (dots.y > y)).any()
        assert bool(name) == (y > 2 and not beaten)


@says(
    "10",
    "A wider base with a strict filter reaches what no single change reaches",
    'A dot is a seed. Without "wider base" a filter reads the answers of the recipe\'s own five policies.',
)
def a_wider_base_with_a_strict_filter(f: Figure):
    dots, rows = f["recorded runs", "x2"], f.layout["yaxis"]["ticktext"]
    harm = {row: dots.x[np.round(dots.y) == place].mean() for place, row in enumerate(rows)}
    assert len(dots.x) == 5 * len(rows)
    recipe, wider = harm.pop("the recipe"), [harm.pop(row) for row in rows if row.startswith("wider base")]
    assert len(wider) == 2 and max(wider) < 2 < min(harm.values())  # 2%: the goal
    filters = [harm.pop(row) for row in rows if row.endswith("as a filter") and row in harm]
    assert near(harm.pop("no wrappers in training"), 2 * recipe, 0.2 * recipe)
    assert len(filters) == 2 and max(filters) < recipe / 2
    assert near(list(harm.values()), recipe, 0.5 * recipe)  # nothing else does half as much


@says("10", "Ten answers in a hundred are harmful: all of them on one request in five", solved="10.1")
def all_on_one_request_in_five(f: Figure):
    even, uneven = f["every request alike, 0.9^k"], f[YOURS]
    assert near(even.y, 100 * 0.9**even.x, 0.01) and near(uneven.y[0], even.y[0], 1e-6)
    assert near(uneven.y[-1], 80, 0.1) and (uneven.y[1:] > even.y[1:]).all()


@says(
    "10",
    "Every try is harmful with probability 5%: what is read off logs of different budgets",
    solved="10.2",
)
def read_off_logs(f: Figure):
    assert (f["the truth"].y == 5).all() and near(f[YOURS].y, 5, 0.6)


@says("10", "What the next model could learn from the wrapper alone")
def the_wrapper_tells(f: Figure):
    assert (f["nothing: a coin"].y == 50).all()
    assert f[YOURS].y.max() > 60 and f[YOURS].y.min() < 40  # the planted bug


@says(
    "11",
    "The same six roles of a 7B model: where the memory goes, and where it need not go",
    "Llama-2-7B, LoRA of rank 16 on every linear layer. Weights and optimiser only; activations come later.",
)
def where_the_memory_goes(f: Figure):
    parts = {name: f[name] for name in ("frozen weights", "trained weights", "gradients", "Adam")}
    total = {way: sum(part.at(way) for part in parts.values()) for way in parts["Adam"].x}
    assert near(total["six models"], f.told("363.9"), 0.1) and near(
        total["one base, NF4"], f.told("5.3"), 0.1
    )
    assert parts["Adam"].at("six models") > total["six models"] / 2  # nothing large need be trained
    trained = total["six models"] - total["one base"], total["one base"] - total["one base, NF4"]
    assert trained[0] > 10 * trained[1]  # the largest saving is not the 4 bit
    for name, part in parts.items():
        assert all(f[name, "x2"].at(way) == part.at(way) for way in f[name, "x2"].x)  # the same, enlarged


@says(
    "11",
    "NF4's levels stand close where weights are many, and far apart where they are few",
    "Blocks of 64 normal weights. The largest of each block is ±1 by definition, and always exact.",
)
def close_where_weights_are_many(f: Figure):
    levels, weights = f["NF4's 16 levels"].x, f["normal weights"]
    steps, middles = np.diff(levels), (levels[1:] + levels[:-1]) / 2
    assert len(levels) == 16 and {-1, 0, 1} <= set(levels)
    assert weights.line(0) > 5 * weights.line(1) and weights.line(0) > 5 * weights.line(-1)
    order = np.argsort(np.abs(middles))
    assert steps[order[:4]].max() < steps[order[-4:]].min()
    assert np.ptp(np.diff(f["16 levels at equal distances"].x)) < 1e-3


@says(
    "11",
    "The gain depends on the block: NF4 is made for large ones, and loses on small ones",
    "Small blocks are accurate and expensive: with 16 weights per block the scales alone take 2 bits per weight in float32.",
)
def the_gain_depends_on_the_block(f: Figure):
    ours, equal = f["NF4"], f["16 levels at equal distances"]
    gain = 1 - ours.y / equal.y
    assert rises(gain) and gain[0] < 0 < gain[2] and ours.x[0] == 16 == 32 / 2
    assert rises(ours.y) and rises(equal.y)  # small blocks are accurate
    assert near(ours.at(64), f.told("9.2"), 0.1) and near(equal.at(64), f.told("10.0"), 0.1)


@says(
    "11",
    "What grows with the batch: plain logits outgrow a 24 GB card, chunks do not",
    "Qwen2.5-7B in NF4, arithmetic, not a measurement. Dotted: a 24 GB card. A chunk of logits is kept at 0.5 GB.",
)
def plain_logits_leave_the_card_behind(f: Figure):
    logits, chunks = f["+ logits of all tokens, one copy"], f["+ logits in chunks, a checkpoint per layer"]
    assert f.across == 24 and logits.y[-1] > f.across > chunks.y.max() and rises(logits.y) and rises(chunks.y)
    stays, per_thousand = (
        f["weights, adapters, Adam"].y,
        (chunks.y[-1] - chunks.y[0]) / (chunks.x[-1] - chunks.x[0]),
    )
    assert np.ptp(stays) == 0 and near(chunks.y[0] - chunks.x[0] * per_thousand - stays[0], 0.5, 0.02)


@says("11", "What a 4-bit weight takes with its share of the scales, scales in 8 bits", solved="11.1")
def what_a_4_bit_weight_takes(f: Figure):
    assert (f["the brochure"].y == 4).all() and falls(f[YOURS].y)
    assert (f[YOURS].y > 4).all() and (f[YOURS].y < 8).all() and near(f[YOURS].at(64), 4.127, 1e-3)


@says("11", "How far the log of the total lies above the largest logit", solved="11.2")
def above_the_largest_logit(f: Figure):
    right = f["what it should be"]
    assert (right.y >= f.across).all() and falls(right.y) and near(f[YOURS].y, right.y, 1e-4)


@says("11", "Twenty-four weights, as they were stored and as they come back")
def neighbours_have_changed_places(f: Figure):
    stored, back = f["stored"].y, f[YOURS].y
    assert len(stored) == 24 and not near(stored, back, 0.1)
    assert near(stored[0::2], back[1::2], 1e-6) and near(stored[1::2], back[0::2], 1e-6)  # the planted bug


@pytest.mark.parametrize("figure", CLAIMS.cases())
def test_a_caption_says_what_its_figure_shows(figure):
    CLAIMS.hold(figure)


def test_no_check_is_left_of_a_figure_that_has_gone():
    assert CLAIMS.stale() == set()
