"""The two explorers: what each slider draws, against the theory and the record themselves."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import PolicyRow, RecordedRuns, read_recorded
from csrlhf_kit.figures.theory import FEW_SAMPLES
from csrlhf_kit.theory import FiniteProblem, hinge_bias
from csrlhf_kit.theory.example import town
from csrlhf_kit.theory.intervals import Estimate
from csrlhf_kit.widgets import explore_penalty, explore_tradeoff, tradeoff
from csrlhf_kit.widgets.penalty_data import (
    KINDS,
    MULTIPLES,
    landscape,
    penalty_figure,
    penalty_lab,
    penalty_point,
    penalty_story,
    penalty_values,
)
from csrlhf_kit.widgets.tradeoff import answers_html
from csrlhf_kit.widgets.tradeoff_data import (
    MULTIPLIERS,
    Tradeoff,
    effective_samples,
    harm_measures,
    legend_name,
    run_point,
    sample_answers,
)

HOSTILE = "<script>alert(1)</script>"


def rate(value: float) -> dict:
    return {"rate": value, "low": value / 2, "high": (1 + value) / 2, "n": 100}


def policy(harm: float, helpfulness: float) -> dict:
    return {
        "harmful_nominal": rate(harm),
        "harmful_jailbreak": rate(harm / 2),
        "by_family": {"fiction": rate(harm), "empty": {"rate": 0, "low": 0, "high": 1, "n": 0}},
        "by_stratum": {"plain": {"helpfulness": 0.25, "refused": rate(0.125)}},
        "helpfulness": helpfulness,
        "reward": 1.0,
        "cost": 0.2,
    }


def results() -> dict:
    row = {
        "objective/cost": 0.3,
        "constraint/window_cost": 0.2,
        "constraint/multiplier": 6.0,
        "objective/reward": 1.0,
    }
    said = {name: {"text": HOSTILE, "harmful": True, "helpfulness": 0.5} for name in ("ppo", HOSTILE)}
    return {
        "config": {"threshold": 0.05, "ppo": {"kl_coefficient": 0.1}},
        "policies": {"ppo": policy(0.5, 0.75), HOSTILE: policy(0.25, 0.5)},
        "curves": {"ppo": [row, {**row, "objective/cost": 0.1}]},
        "samples": [{"prompt": HOSTILE, "responses": said}],
    }


# --- explore_penalty ---


@pytest.mark.parametrize("multiple", [0.3, 1.0, 1.7, 8.0])
def test_the_marks_are_the_exact_optima(multiple):
    problem = town()
    lab = penalty_lab(problem)
    drawn = penalty_values(lab, multiple, 32)
    for kind in KINDS:
        best = problem.penalised_optimum(multiple * lab.multiplier, kind)
        assert drawn[f"now {kind}"]["y"][0] == pytest.approx(best.cost, rel=1e-4)
        assert drawn[f"optimum {kind}"]["y"][0] == pytest.approx(
            problem.penalised_value(best.policy, multiple * lab.multiplier, kind), rel=1e-4
        )
    if multiple > 1:
        assert drawn["now rectified"]["y"][0] == pytest.approx(problem.threshold, abs=1e-5)
        assert drawn["now linear"]["y"][0] < problem.threshold


def test_no_policy_on_the_landscape_is_above_its_optimum():
    problem = town()
    lab = penalty_lab(problem)
    for kind in KINDS:
        for multiple in (0.5, 1.5, 4.0):
            penalty = multiple * lab.multiplier
            best = problem.penalised_value(problem.penalised_optimum(penalty, kind).policy, penalty, kind)
            assert landscape(lab, penalty, kind).max() <= best + 1e-9


def test_the_batch_has_the_bias_of_its_closed_form_and_it_falls_with_the_batch():
    lab = penalty_lab(town())
    points = {batch: penalty_point(lab, 2.0, batch) for batch in (8, 32, 128)}
    for batch, point in points.items():
        assert point.noise == pytest.approx(lab.spread / np.sqrt(batch))
        assert point.bias == pytest.approx(float(hinge_bias(0.0, point.noise)))
    assert points[8].bias == pytest.approx(2 * points[32].bias) == pytest.approx(4 * points[128].bias)


def test_explore_penalty_says_what_it_cannot_show():
    problem = town(threshold=5.0)
    with pytest.raises(UserError, match="binds"):
        penalty_lab(problem)
    with pytest.raises(UserError, match="positive"):
        penalty_values(penalty_lab(town()), 0.0, 8)


def test_moving_lambda_moves_the_live_figure_to_what_the_plain_function_draws():
    shown = explore_penalty(static=False)
    sliders, figure, story = shown.root.children
    sliders.children[0].value, sliders.children[1].value = 4.0, 128
    wanted = {trace.meta: trace for trace in penalty_figure(penalty_lab(town()), 4.0, 128).data}
    for trace in figure.drawing["data"]:
        for axis in "xy":
            assert list(trace[axis]) == list(wanted[trace["meta"]][axis]), trace["meta"]
    assert "4.00 times" in story.value and "batch of 128" in story.value
    shown.close()


@pytest.mark.parametrize("multiple", [0.4, 1.0, 1.5])
def test_the_story_is_sentences_without_a_signed_zero(multiple):
    told = penalty_story(penalty_lab(town()), multiple, 32)
    assert "-0.0" not in told and "+0.0" not in told and "<br>" not in told
    assert told.startswith("λ is ") and told.endswith(".")
    assert ("rectified mean, on the threshold" in told) == (multiple >= 1)


def test_the_batch_curve_runs_on_below_lambda_star_through_its_mark_and_lambda_star_is_drawn():
    lab = penalty_lab(town())
    drawn = penalty_values(lab, float(MULTIPLES[20]), 8)
    x, y = drawn["gate"]["x"], drawn["gate"]["y"]
    assert min(x) < 0.2 and None not in y and y == sorted(y, reverse=True)
    assert y[x.index(drawn["gate now"]["x"][0])] == pytest.approx(drawn["gate now"]["y"][0], rel=1e-3)
    lines = [shape for shape in penalty_figure(lab).layout.shapes if shape.xref == "x2"]
    assert [shape.x0 for shape in lines if shape.x0 == shape.x1] == [1]


# --- explore_tradeoff ---


def board(**options) -> Tradeoff:
    return tradeoff.tradeoff_board(results(), options.get("problem"), options.get("strata"))


def test_the_record_is_read_and_wrong_ones_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()))
    recorded = read_recorded(tmp_path)
    assert [run.name for run in recorded.runs] == ["ppo", HOSTILE]
    assert recorded.runs[0].curve["cost"] == [0.3, 0.1] and not recorded.runs[1].curve
    for text in ("{", '{"policies": 3}', "[]", "{}"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match="expected"):
            read_recorded(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_recorded(tmp_path / "none")


def test_a_sweep_is_read_cell_by_cell():
    cells = [
        {
            "method": "p3o",
            "settings": {"penalty": 2.0},
            "seed": s,
            "policy": policy(0.1, 0.5),
            "curve": {"cost": [1.0]},
        }
        for s in (0, 1)
    ]
    recorded = read_recorded({"cells": cells, "threshold": 0.015})
    assert [run.name for run in recorded.runs] == ["p3o · penalty 2.0 · seed 0", "p3o · penalty 2.0 · seed 1"]
    drawn = Tradeoff(recorded, town()).figure(Tradeoff(recorded, town()).start())
    assert next(len(t.x) for t in drawn.data if t.meta == "runs p3o") == 2


def test_a_folder_of_records_is_read_as_one(tmp_path):
    settings = {"threshold": 0.2}  # of the cell itself, against the sweep's
    cell = {
        "method": "p3o",
        "settings": settings,
        "seed": 0,
        "policy": policy(0.1, 0.5),
        "curve": {"cost": [1.0]},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sweep.json").write_text(json.dumps({"cells": [cell], "threshold": 0.05}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text(json.dumps(results()))
    (tmp_path / "c").mkdir()
    recorded = read_recorded(tmp_path)
    assert [run.name for run in recorded.runs] == [
        "a · p3o · threshold 0.2 · seed 0",
        "b · ppo",
        f"b · {HOSTILE}",
    ]
    assert [run.threshold for run in recorded.runs] == [0.2, 0.05, 0.05] and recorded.problem is None
    here = Tradeoff(recorded, town())
    assert (
        here.values(replace(here.start(), chosen="a · p3o · threshold 0.2 · seed 0"))["curve threshold"]["y"]
        == [0.2] * 2
    )
    assert [row["text"] for row in sample_answers(recorded, "b · ppo")] == [HOSTILE]
    with pytest.raises(UserError, match="no such file"):
        read_recorded(tmp_path / "c")


def test_every_recorded_sweep_is_shown_with_its_intervals():
    """What is drawn against the flat table beside it, which is written from the same cells."""
    for table in sorted((data_folder() / "runs").glob("*/cells.csv")):
        rows = list(csv.DictReader(table.open()))
        here = tradeoff.tradeoff_board(table.parent, None, None)
        assert len(here.recorded.runs) == len(rows) > 0
        drawn = here.values(here.start())
        for method in here.methods:
            trace = drawn[f"runs {method}"]
            own = [row for row in rows if row["method"] == method]
            for name, value in (("", trace["x"]), ("_low", np.subtract(trace["x"], trace["error_x"]["arrayminus"])),
                                ("_high", np.add(trace["x"], trace["error_x"]["array"]))):  # fmt: skip
                wanted = [100 * float(row[f"harmful_nominal{name}"]) for row in own]
                assert value == pytest.approx(wanted, abs=0.01), (table, method, name)


def test_the_shipped_record_opens():
    shipped = tradeoff.tradeoff_board(None, None, None)
    state = shipped.start()
    drawn = shipped.values(state)
    for method in shipped.methods:
        assert len(drawn[f"runs {method}"]["x"]) == 1


def test_runs_stand_where_the_record_says_with_their_intervals():
    drawn = board().values(board().start())["runs ppo"]
    assert drawn["x"] == [50.0] and drawn["y"] == [0.75]
    assert drawn["error_x"]["arrayminus"] == [25.0] and drawn["error_x"]["array"] == [25.0]


def test_a_stratum_brings_its_own_helpfulness_and_empty_groups_are_left_out():
    recorded = read_recorded(results())
    ways = harm_measures(recorded)
    assert "jailbreak: fiction" in ways and "jailbreak: empty" not in ways and "over_refusal" not in ways
    assert run_point(recorded.runs[0], ways["refused, stratum: plain"]) == (
        Estimate(0.125, 0.0625, 0.5625, n=100),
        0.25,
    )


def test_the_frontier_is_that_of_the_theory_at_every_setting():
    here = board()
    state = replace(here.start(), beta=0.2, threshold=0.15, stratum="harmful", multiplier=3.0)
    problem, rows = town(), np.arange(20)
    alone = FiniteProblem(
        problem.reference[rows], problem.reward[rows], problem.cost[rows], beta=0.2, threshold=0.15
    )
    drawn = here.values(state)
    assert drawn["frontier"]["x"] == pytest.approx([s.cost for s in alone.frontier(MULTIPLIERS)], rel=1e-4)
    assert drawn["frontier linear"]["y"] == pytest.approx([alone.tilted(3.0).reward], rel=1e-4)
    assert here.price(state) == pytest.approx(alone.constrained_optimum().multiplier)
    assert drawn["threshold of the frontier"]["x"] == [0.15, 0.15]
    best = alone.penalised_optimum(3.0, "rectified")
    assert drawn["frontier rectified"]["x"] == pytest.approx([best.cost], rel=1e-4)


def test_an_unreachable_threshold_is_said_and_drawn():
    here = board()
    state = replace(here.start(), threshold=1e-6)
    assert "out of reach" in here.story(state) and "smallest mean cost" in here.story(state)
    assert here.values(state)["frontier linear"]["x"][0] > 0


def test_scores_kept_by_a_run_give_a_reweighted_frontier():
    rng = np.random.default_rng(0)
    told = results()
    told["frontier"] = {
        "scores": {"reward": rng.normal(size=(6, 8)).tolist(), "cost": rng.uniform(0, 0.3, (6, 8)).tolist()}
    }
    here = tradeoff.tradeoff_board(told, None, None)
    assert here.of_runs and here.problem.reward.shape == (6, 8) and here.problem.beta == 0.1
    assert "effective" in here.story(here.start())
    figure = here.figure(here.start())
    assert any(t.meta == "learned ppo" for t in figure.data)
    line, wide = next(t for t in figure.data if t.meta == "frontier"), replace(here.start(), beta=5.0)
    tilts = here.frontier(wide)
    hollow = [effective_samples(tilt) < FEW_SAMPLES for tilt in tilts]
    symbols = here.values(wide)["frontier"]["marker"]["symbol"]
    assert symbols == ["circle-open" if few else "circle" for few in hollow]
    assert any(hollow) and not all(hollow) and "best possible" not in line.name and "effective" in line.name
    one = np.full((2, 4), 0.25)
    assert effective_samples(replace(tilts[0], policy=one)) == pytest.approx(4.0)


def test_at_most_four_panels_and_three_controls_with_the_rest_folded():
    here = board()
    figure = here.figure(here.start())
    assert len({trace.xaxis for trace in figure.data}) == 4
    assert sum(trace.showlegend is not False for trace in figure.data) <= len(here.methods) + 3
    shown = explore_tradeoff(results(), static=False)
    visible, fold = shown.root.children[:2]
    assert len(visible.children) == 3 and fold.selected_index is None and fold.titles == ("more",)
    shown.close()


def test_wrong_strata_and_empty_records_are_refused():
    with pytest.raises(UserError, match="one per prompt"):
        board(problem=town(), strata=["a"])
    with pytest.raises(UserError, match="belong to a problem"):
        board(strata=["a"])
    with pytest.raises(UserError, match="no rate"):
        Tradeoff(RecordedRuns((PolicyRow("a", policy={"helpfulness": 1.0}),)), town())
    with pytest.raises(UserError, match="no run"):
        Tradeoff(RecordedRuns(()), town())


def test_a_click_and_the_menu_choose_a_run_and_every_slider_redraws():
    shown = explore_tradeoff(results(), static=False)
    visible, fold, figure, story, said = shown.root.children
    run, judged_on, multiplier = visible.children
    part, _, threshold, beta = fold.children[0].children
    run.value = "ppo"
    drawn = lambda name: next(list(t["x"]) for t in figure.drawing["data"] if t["meta"] == name)  # noqa: E731
    assert drawn("curve cost") == [1, 2]
    figure._handle_custom_msg({"kind": "click", "trace": f"runs {HOSTILE}", "point": 0}, [])
    assert run.value == HOSTILE and drawn("curve cost") == []
    for trace, point in (("runs ppo", 1), ("frontier", 0)):
        figure._handle_custom_msg({"kind": "click", "trace": trace, "point": point}, [])
    assert run.value == HOSTILE, "what is no run's point chooses nothing"
    assert "<script" not in said.value and "&lt;script&gt;" in said.value
    for slider, factor in ((multiplier, 1.5), (threshold, 0.7), (beta, 1.5)):
        before = story.value
        slider.value *= factor
        assert story.value != before, slider.description
    judged_on.value = "harmful, unseen jailbreaks"
    assert drawn("runs ppo") == [25.0]
    part.value = "refused, stratum: plain"
    assert drawn("runs ppo") == [12.5]
    shown.close()


def test_hostile_names_and_answers_are_escaped_everywhere():
    recorded = read_recorded(results())
    assert "<script" not in answers_html(recorded, HOSTILE)
    assert "no responses" in answers_html(replace(recorded, samples=()), "ppo")
    here = Tradeoff(recorded, town())
    figure = here.figure(here.start())
    shown = [trace.name for trace in figure.data] + [
        word for trace in figure.data for word in trace.text or ()
    ]
    assert any("&lt;script&gt;" in word for word in shown) and not any("<script" in word for word in shown)
    assert legend_name("<" * 60) == "&lt;" * 39 + "…" and legend_name("short") == "short"
