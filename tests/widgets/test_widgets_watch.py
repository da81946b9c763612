"""Watching a run: what its folder says, and what pause and stop leave behind."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
import torch
from ipywidgets.widgets.widget import _instances as alive

from csrlhf_kit import files
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.style import style
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.runs import Run, send_stop_request, stop_request
from csrlhf_kit.theory.intervals import clopper_pearson
from csrlhf_kit.training.constraints import FixedPenalty, Lagrangian
from csrlhf_kit.training.ppo import PPOConfig, config_dict, train_ppo
from csrlhf_kit.training.sample_logger import sample_logger
from csrlhf_kit.widgets import watch
from csrlhf_kit.widgets.watch_data import (
    duration,
    find_run,
    harm,
    read_progress,
    watch_figure,
    watch_story,
    watch_values,
)

HOSTILE = "<script>alert(1)</script>"


def row(step: int, **more) -> dict:
    times = {"time/rollout": 1.0, "time/score": 0.5, "time/update": 0.5}
    told = {"objective/harmful": 0.25, "objective/cost": 0.1, "constraint/threshold": 0.02}
    return {"step": step, **times, **told, **more}


def run_with(folder, steps: int) -> Run:
    run = Run.open(folder, {"steps": 10, "batch_size": 8})
    for step in range(1, steps + 1):
        run.log(row(step))
    return run


# --- what the folder says ---


def test_progress_is_what_the_run_wrote(tmp_path):
    run_with(tmp_path, 4)
    progress = read_progress(tmp_path)
    assert (progress.step, progress.total, progress.batch, progress.stop_request) == (4, 10, 8, "run")
    assert progress.seconds_left() == pytest.approx(6 * 2.0)
    assert "step 4 of 10" in watch_story(progress) and "12 s left" in watch_story(progress)
    drawn = watch_values(progress)
    assert drawn["threshold"] == {"x": [1, 4], "y": [0.02, 0.02]} and drawn["cost"]["y"] == [0.1] * 4


def test_harm_pools_the_last_steps_with_their_interval(tmp_path):
    run_with(tmp_path, 7)
    points = harm(read_progress(tmp_path))
    assert points[0] == (0.25, *clopper_pearson(2, 8)) and points[-1] == (0.25, *clopper_pearson(10, 40))


def test_a_torn_line_and_a_run_that_has_not_begun_are_fine(tmp_path):
    run = run_with(tmp_path / "a", 2)
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 3, "obj')
    assert read_progress(tmp_path / "a").step == 2
    (tmp_path / "b").mkdir()
    empty = read_progress(tmp_path / "b")
    assert empty.step == 0 and empty.seconds_left() is None and "waiting" in watch_story(empty)
    assert len(watch_figure(empty).data) == 10
    with pytest.raises(UserError, match="no such folder"):
        read_progress(tmp_path / "c")
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        read_progress(tmp_path / "b")


def test_a_second_run_is_drawn_dashed_beside_the_first_and_the_legend_names_both(tmp_path):
    for name, steps in (("fixed_penalty", 3), ("lagrangian", 5)):
        run_with(tmp_path / name, steps)
    view = watch(tmp_path / "fixed_penalty", compare=tmp_path / "lagrangian", static=False)
    data = {trace["meta"]: trace for trace in view.root.children[2].drawing["data"]}
    assert data["harm"]["x"] == [1, 2, 3] and data["other harm"]["x"] == [1, 2, 3, 4, 5]
    assert data["other kl"]["line"]["dash"] == "dash" and "dash" not in data["kl"]["line"]
    assert data["harm"]["line"]["color"] == style("fixed_penalty").colour
    assert data["other reward"]["line"]["color"] == style("lagrangian").colour
    Run(tmp_path / "lagrangian").log(row(6))
    view.refresh()
    again = {trace["meta"]: trace for trace in view.root.children[2].drawing["data"]}
    assert again["other seconds"]["x"][-1] == 6
    view.close()
    figure = watch_figure(*(read_progress(tmp_path / name) for name in ("fixed_penalty", "lagrangian")))
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert {
        "fixed_penalty",
        "lagrangian, to compare",
        "95% interval",
        "each batch alone",
        "threshold",
    } == set(named)
    assert all(figure.layout[f"xaxis{n}"].title.text == "step" for n in ("", 2, 3, 4, 5, 6))


def test_of_a_job_the_policy_that_trains_is_watched(tmp_path):
    for name in ("ppo", "fixed_penalty"):
        run_with(tmp_path / "policies" / name, 1)
        time.sleep(0.02)
    assert find_run(tmp_path).name == "fixed_penalty"


@pytest.mark.parametrize(("seconds", "said"), [(3.2, "3 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_durations_read_well(seconds, said):
    assert duration(seconds) == said


# --- pause and stop ---


def test_a_run_that_is_asked_to_stop_has_its_checkpoint_and_goes_on(tmp_path):
    run = run_with(tmp_path, 1)
    send_stop_request(tmp_path, "stop")
    with pytest.raises(KeyboardInterrupt, match="after step 1"):
        run.save(1, {"w": torch.tensor([3.0])}, {})
    again = Run.open(tmp_path, {"steps": 10, "batch_size": 8}, resume=True)
    assert again.load().step == 1 and stop_request(tmp_path) == "run"
    again.save(2, {"w": torch.tensor([4.0])}, {})


def test_a_run_that_is_asked_to_pause_waits_until_it_may_go_on(tmp_path):
    run = run_with(tmp_path, 1)
    send_stop_request(tmp_path, "pause")
    trainer = threading.Thread(target=run.save, args=(1, {"w": torch.zeros(1)}, {}))
    trainer.start()
    trainer.join(1.0)
    assert trainer.is_alive() and run.load().step == 1, "it waits, with its checkpoint on disk"
    send_stop_request(tmp_path, "run")
    trainer.join(30)
    assert not trainer.is_alive()


def test_a_wish_from_before_does_not_stop_a_resumed_run(tmp_path):
    run_with(tmp_path, 1)
    send_stop_request(tmp_path, "stop")
    Run.open(tmp_path, {"steps": 10, "batch_size": 8}, resume=True)
    assert stop_request(tmp_path) == "run"


def test_an_unknown_wish_is_refused_and_a_strange_file_is_none(tmp_path):
    with pytest.raises(UserError, match="one of"):
        send_stop_request(tmp_path, "explode")
    (tmp_path / "request").write_text("explode")
    assert stop_request(tmp_path) == "run"


# --- the widget ---


def test_the_view_follows_the_folder_and_its_buttons_ask(tmp_path):
    run = run_with(tmp_path, 2)
    before = set(alive)
    view = watch(tmp_path, static=False)
    buttons, state, figure, samples = view.root.children
    run.log(row(3))
    files.append(tmp_path / "samples.jsonl", {"step": 3, "prompt": HOSTILE, "text": HOSTILE, "cost": 2.0})
    files.append(tmp_path / "samples.jsonl", {"step": 9, "prompt": "later", "text": "than the metrics"})
    view.refresh()
    assert "step 3 of 10" in state.value
    assert next(t for t in figure.drawing["data"] if t["meta"] == "cost")["x"] == [1, 2, 3]
    assert "<script" not in samples.value and samples.value.count("&lt;script&gt;") == 2
    buttons.children[0].click()
    assert stop_request(tmp_path) == "pause" and "asked to pause" in state.value
    buttons.children[1].click()
    assert stop_request(tmp_path) == "run"
    buttons.children[2].click()
    assert stop_request(tmp_path) == "stop"
    view.close()
    view.refresh()
    assert set(alive) == before


def test_it_looks_again_by_itself_without_a_thread_and_closing_ends_that(tmp_path):
    run = run_with(tmp_path, 1)

    async def session():
        threads = threading.active_count()
        view = watch(tmp_path, every=0.01, static=False)
        run.log(row(2))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if view.progress.step == 2:
                break
        assert view.progress.step == 2 and threading.active_count() == threads
        view.close()
        await asyncio.sleep(0.05)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(session()) == []


def test_a_finished_run_is_looked_at_once(tmp_path):
    run_with(tmp_path, 10)

    async def session():
        view = watch(tmp_path, every=100, static=False)
        await asyncio.sleep(0.2)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        view.close()
        return view.progress.finished, left

    assert asyncio.run(session()) == (True, [])


def test_the_twin_shows_the_curves(tmp_path):
    run_with(tmp_path, 3)
    bundle = watch(tmp_path, static=True)._repr_mimebundle_()
    assert "Static twin" in bundle["text/plain"] and "image/svg+xml" in bundle
    assert json.dumps(bundle) == json.dumps(watch(tmp_path, static=True)._repr_mimebundle_())


# --- with PPO itself ---


def letters(prompts, responses):
    return torch.tensor([float(sum(c.islower() for c in r)) for r in responses])


def vowels(prompts, responses):
    return torch.tensor([4.0 if set("aeiou") & set(r) else -4.0 for r in responses])


def test_ppo_stops_when_asked_and_resumes_as_if_it_never_had(tmp_path, random_base, sentences):
    config = PPOConfig(steps=4, batch_size=8, minibatch_size=8, max_new_tokens=4)
    tokenizer = load_tokenizer(random_base)

    def train(folder, request=None):
        roles = Roles(load_base(random_base, device="cpu"), reward=letters, cost=vowels, rank=4, alpha=8)
        constraint = FixedPenalty(threshold=0.2, penalty=2.0)
        run = Run.open(folder, config_dict(config, constraint), resume=True)
        said = sample_logger(folder, roles, tokenizer, sentences[:2], every=1, max_new_tokens=4)

        def on_step(row):
            said(row)
            if request and row["step"] == 1:
                send_stop_request(folder, request)

        return train_ppo(roles, tokenizer, sentences, constraint, config, run, on_step)

    plain = lambda rows: [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]  # noqa: E731
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", "stop")
    assert read_progress(tmp_path / "stopped").step == 2
    assert plain(train(tmp_path / "stopped")) == plain(whole)
    progress = read_progress(tmp_path / "stopped")
    assert progress.finished and [row["prompt"] for row in progress.samples] == sentences[:2]
    assert [row["step"] for row in progress.samples] == [4, 4]


def test_samples_change_no_digit_of_a_run(tmp_path, random_base, sentences):
    """The same steps with and without: every metric, and every tensor of the checkpoint, generators included."""
    config = PPOConfig(steps=3, batch_size=8, minibatch_size=4, max_new_tokens=5, epochs=2)
    tokenizer = load_tokenizer(random_base)
    rows, checkpoints = {}, {}
    for name in ("with", "without"):
        roles = Roles(load_base(random_base, device="cpu"), reward=letters, cost=vowels, rank=4, alpha=8)
        constraint = Lagrangian(threshold=0.2)
        run = Run.open(tmp_path / name, config_dict(config, constraint))
        said = sample_logger(run.folder, roles, tokenizer, sentences, every=1) if name == "with" else None
        history = train_ppo(roles, tokenizer, sentences, constraint, config, run, said)
        rows[name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in history]
        checkpoints[name] = run.load()
    assert rows["with"] == rows["without"]
    tensors = {name: checkpoint.tensors for name, checkpoint in checkpoints.items()}
    assert tensors["with"].keys() == tensors["without"].keys()
    assert all(torch.equal(tensor, tensors["without"][key]) for key, tensor in tensors["with"].items())
    assert checkpoints["with"].state == checkpoints["without"].state
    told = files.read(tmp_path / "with" / "samples.jsonl")
    assert [row["step"] for row in told] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["prompt"] for row in told[:3]] == [sentences[0], sentences[2], sentences[4]]
    last = told[-1]
    assert (
        last["reward"] == letters([""], [last["text"]]).item()
        and last["cost"] == vowels([""], [last["text"]]).item()
    )
