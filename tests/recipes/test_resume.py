"""A run goes on as it began, or not at all: what it was told, and what it reads, by content and not by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_base import build_random_base
from example_records import dialogues, pairs
from test_scorer_recipes import cs_rlhf_rows, write_rows

from csrlhf_kit import cli
from csrlhf_kit.contents import content_of, content_of_records
from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.models.scorers import new_scorer, save_scorer
from csrlhf_kit.recipes import dpo, ppo
from csrlhf_kit.recipes.experiments import head_to_head, rounds, sweep
from csrlhf_kit.recipes.experiments.head_to_head import RunConfig, run_experiment
from csrlhf_kit.recipes.experiments.rounds import RoundsConfig, run_rounds
from csrlhf_kit.recipes.experiments.sweep import SweepConfig, run_sweep
from csrlhf_kit.recipes.scorers import CostModelConfig, RewardModelConfig, run_cost_model, run_reward_model
from csrlhf_kit.recipes.sft import run_sft
from csrlhf_kit.training.sft import SFTConfig
from csrlhf_kit.training.supervised import SupervisedConfig, TimedCheckpoints, checkpoint_folder


class Stopped(BaseException):
    """As a kill: nobody catches it."""


def stopped(*arguments: Any, **options: Any) -> None:
    raise Stopped


@pytest.fixture(scope="module")
def places(random_base, tmp_path_factory) -> dict[str, str]:
    """Two bases of one shape, and files of each kind of record in two versions."""
    top = tmp_path_factory.mktemp("resume")
    other = build_random_base(top / "other", seed=7)
    rows = cs_rlhf_rows(dialogues(160))
    judged = [
        {
            "prompt": f"{pair.prompt} {index}", "response_0": pair.response_0, "response_1": pair.response_1,
            "is_response_0_safe": True, "is_response_1_safe": False,
            "better_response_id": pair.better_response_id, "safer_response_id": 0,
        }
        for index, pair in enumerate(pairs(140))
    ]  # fmt: skip
    rows = [row | {"prompt": f"{row['prompt']} {index}"} for index, row in enumerate(rows)]
    files = {
        "labels": rows[:120], "other labels": rows[20:120], "test": rows[120:140], "other test": rows[140:],
        "pairs": judged[:120], "other pairs": judged[20:120], "test pairs": judged[120:],
        "other test pairs": judged[121:],
    }  # fmt: skip
    written = {name: str(write_rows(top / f"{name}.jsonl", rows)) for name, rows in files.items()}
    for seed, name in enumerate(("reward", "cost")):
        save_scorer(new_scorer(random_base, adaptation="lora", rank=4, seed=seed), top / name)
    scorers = {name: str(top / name) for name in ("reward", "cost")}
    return written | scorers | {"base": str(random_base), "other": str(other)}


# --- fingerprints ---


def test_a_model_is_known_by_its_content(random_base, places, tmp_path):
    moved = shutil.copytree(random_base, tmp_path / "moved")
    assert content_of(moved) == content_of(random_base) != content_of(places["other"])
    (moved / "README.md").write_text("mine")
    (moved / "answers.json").write_text("{}")
    assert content_of(moved) == content_of(random_base), "what lies beside a model is not the model"
    with open(moved / "model.safetensors", "r+b") as file:
        file.seek(-5, 2)
        file.write(b"!")
    assert content_of(moved) != content_of(random_base)
    assert content_of("nobody/nothing") == "nobody/nothing" and content_of("judge:a/b") == "judge:a/b"


def test_a_hub_id_is_known_by_what_the_cache_holds(random_base, tmp_path, monkeypatch):
    cached = shutil.copytree(random_base, tmp_path / "snapshot")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file: str(cached / file) if name == "own/er" else None,
    )
    assert content_of("own/er") == content_of("judge:own/er") == content_of(random_base)


def test_of_large_files_pieces_from_end_to_end_are_read(tmp_path):
    size, found = 90 * 2**20, set()
    for place in (None, 0, size // 2, size - 1):
        with open(tmp_path / "model.safetensors", "wb") as file:
            file.truncate(size)  # a hole: no disk is filled
            if place is not None:
                file.seek(place // (size // 64) * (size // 64))
                file.write(b"x")
        found.add(content_of(tmp_path))
    assert len(found) == 4


def test_records_are_known_by_content_order_and_part():
    a, b = Prompt(prompt="a"), Prompt(prompt="b")
    prints = [content_of_records(*p) for p in (([a, b],), ([b, a],), ([a], [b]), ([], [a, b]), ([a],))]
    assert len(set(prints)) == 5 and content_of_records([Prompt(prompt="a"), b]) == prints[0]


# --- fine-tuning and scorers ---

SMALL = {"epochs": 2.0, "batch_size": 8, "learning_rate": 1e-3, "rank": 2, "progress": False}
COMMANDS: dict[str, tuple[Callable[..., Any], type, dict[str, str]]] = {
    "sft": (run_sft, SFTConfig, {"data": "labels"}),
    "cost-model": (run_cost_model, CostModelConfig, {"data": "labels", "test_data": "test"}),
    "reward-model": (run_reward_model, RewardModelConfig, {"data": "pairs", "test_data": "test pairs"}),
}


@pytest.fixture(scope="module", params=COMMANDS)
def begun(request, places, tmp_path_factory) -> tuple[Callable[..., Any], SupervisedConfig]:
    """A command and its run, stopped after a checkpoint."""
    run, kind, sources = COMMANDS[request.param]
    out = tmp_path_factory.mktemp("begun") / "run"
    named = {option: places[name] for option, name in sources.items()}
    config = kind(base=places["base"], out=str(out), checkpoint_seconds=0.0, **SMALL, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedCheckpoints, "on_save", stopped)
        with pytest.raises(Stopped):
            run(config)
    assert list(checkpoint_folder(config).glob("checkpoint-*"))
    return run, replace(config, resume=True, checkpoint_seconds=1e9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base", "other"), ("data", "other"), ("test_data", "other"), ("seed", 5), ("rank", 4), ("alpha", 8.0),
        ("learning_rate", 2e-3), ("epochs", 3.0), ("batch_size", 4), ("micro_batch_size", 4), ("max_length", 40),
        ("objective", "safe_rlhf"), ("layers", 1), ("adaptation", "full"), ("dtype", "bfloat16"),
        ("optimizer", "adamw_8bit"), ("warmup", 0.2), ("safe_only", True), ("calibrate", False),
    ],
)  # fmt: skip
def test_a_run_that_is_asked_for_something_else_is_refused_by_the_setting(begun, places, name, value):
    run, config = begun
    if not hasattr(config, name) or (name, type(config)) in (
        ("objective", RewardModelConfig), ("safe_only", RewardModelConfig)
    ):  # fmt: skip
        pytest.skip("has no such setting")
    if name == "data":
        value = f"other {Path(config.data).stem}"
    if name == "test_data":
        value = {"test": "other test", "test pairs": "other test pairs"}[Path(config.test_data).stem]
    if name == "objective":
        config = replace(config, data=places["pairs"], test_data="")
    before = sorted(checkpoint_folder(config).rglob("*"))
    told = r"(objective|data|test_data)" if name == "objective" else name
    with pytest.raises(UserError, match=rf"cannot be resumed: {told} "):
        run(replace(config, **{name: places.get(value, value) if isinstance(value, str) else value}))
    assert sorted(checkpoint_folder(config).rglob("*")) == before, "what was there is kept"


def test_a_file_that_has_changed_is_refused_under_the_same_name(begun, places, tmp_path):
    run, config = begun
    changed = shutil.copy(config.data, tmp_path / "d.jsonl")
    lines = Path(changed).read_text().splitlines(keepends=True)
    file = Path(config.data)
    file.write_text("".join(lines[20:]))
    try:
        with pytest.raises(UserError, match="cannot be resumed: data has another content than it had"):
            run(config)
    finally:
        file.write_text("".join(lines))


def test_a_run_of_another_command_is_refused(begun, places):
    run, config = begun
    other = run_sft if run is not run_sft else run_cost_model
    kind = SFTConfig if run is not run_sft else CostModelConfig
    asked = kind(base=config.base, out=config.out, data=places["labels"], resume=True, **SMALL)
    with pytest.raises(UserError, match="cannot be resumed: "):
        other(asked)


def test_what_has_moved_goes_on(begun, tmp_path):
    """Base, data and run in other places, as fast or slow, and a checkpoint that was torn is passed over."""
    run, config = begun
    moved = replace(
        config,
        base=str(shutil.copytree(config.base, tmp_path / "a base")),
        data=str(shutil.copy(config.data, tmp_path / "rows.jsonl")),
        out=str(tmp_path / "moved"),
        gradient_checkpointing=True,
    )
    shutil.copytree(checkpoint_folder(config), checkpoint_folder(moved))
    torn = checkpoint_folder(moved) / "checkpoint-99"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TimedCheckpoints,
            "on_step_end",
            lambda self, args, state, *_, **__: steps.append(state.global_step),
        )
        run(moved)
    assert steps[0] == 2, "the first step was not made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a base", "moved", "rows.jsonl"]


def test_checkpoints_that_do_not_say_how_they_began_are_refused(begun, tmp_path):
    run, config = begun
    moved = replace(config, out=str(tmp_path / "moved"))
    shutil.copytree(checkpoint_folder(config), checkpoint_folder(moved))
    (checkpoint_folder(moved) / "settings.json").unlink()
    with pytest.raises(UserError, match=r"expected settings\.json, or no --resume"):
        run(moved)


def test_checkpoints_stay_on_the_volume_that_out_is(tmp_path):
    (tmp_path / "volume").mkdir()
    inside = checkpoint_folder(SFTConfig(out=str(tmp_path / "volume")))
    assert inside.parent == tmp_path / "volume"
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    assert checkpoint_folder(SFTConfig(out=str(tmp_path / "link"))) == inside
    assert checkpoint_folder(SFTConfig(out=str(tmp_path / "new"))).parent == tmp_path


# --- ppo, direct ---


@pytest.fixture
def copies(places, tmp_path) -> dict[str, str]:
    """Everything that ppo and direct read, under other names."""
    copied = {
        name: str(shutil.copytree(places[name], tmp_path / f"my {name}"))
        for name in ("base", "reward", "cost")
    }
    for name in ("labels", "pairs"):
        copied[name] = str(shutil.copy(places[name], tmp_path / f"my {name}.jsonl"))
    return copied


def swapped_weights(folder: str) -> None:
    """Another model in the same place."""
    from safetensors.torch import load_file, save_file

    for file in Path(folder).glob("*.safetensors"):
        save_file({k: v + 0.01 if v.is_floating_point() else v for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize("command", ["ppo", "direct"])
def test_a_policys_run_compares_content_and_not_names(command, places, copies, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ppo, "train_ppo", stopped)
    monkeypatch.setattr(dpo, "train_direct", stopped)
    data = "prompts" if command == "ppo" else "data"
    more = "--critic.episodes 0 --cost-sign trusted --resume" if command == "ppo" else "--method mocan --direct.offline-prompts 2 --direct.offline-samples 2"  # fmt: skip
    source = "labels"

    def ask(given: dict[str, str], **changes: str) -> int:
        words = (
            {n: given[n] for n in ("base", "reward", "cost")} | {data: given[source], "rank": "2"} | changes
        )
        options = [word for name, value in words.items() for word in (f"--{name}", value)]
        return cli.main([command, *options, "--out", str(tmp_path / "run"), *more.split()])

    for given in (places, places, copies):
        with pytest.raises(Stopped):
            ask(given)
    for changes in ({"base": places["other"]}, {"cost": places["reward"]}, {data: places["other labels"]}, {"rank": "4"}):  # fmt: skip
        assert ask(places, **changes) == 2
        assert f"cannot be resumed: {next(iter(changes))} was" in capsys.readouterr().err
    for name in ("reward", "base"):
        swapped_weights(copies[name])
        words = f"cannot be resumed: {name} was" if name == "reward" else "cannot be resumed: "
        assert ask(copies) == 2 and words in capsys.readouterr().err
    file = Path(places[source])
    rows = file.read_text()
    file.write_text(rows.replace("how", "why", 1) if "how" in rows else rows.partition("\n")[2])
    assert ask(places) == 2
    assert f"cannot be resumed: {data} has another content than it had" in capsys.readouterr().err
    file.write_text(rows)


# --- run, sweep, rounds ---


@pytest.mark.parametrize(
    ("run", "module", "kind"),
    [
        (run_experiment, head_to_head, RunConfig),
        (run_sweep, sweep, SweepConfig),
        (run_rounds, rounds, RoundsConfig),
    ],
    ids=["run", "sweep", "rounds"],
)
def test_a_whole_job_compares_base_and_world(run, module, kind, places, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_stages", stopped)
    shutil.copytree(data_folder() / "world", tmp_path / "data" / "world")
    base = shutil.copytree(places["base"], tmp_path / "my base")
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path / "data"))
    config = kind(out=tmp_path / "run", base=Path(places["base"]), evaluate=28, resume=True)
    for asked in (config, config, replace(config, base=base, workers=1)):
        with pytest.raises(Stopped):
            run(asked)
    with pytest.raises(UserError, match="cannot be resumed: base was"):
        run(replace(config, base=Path(places["other"])))
    with pytest.raises(UserError, match=r"cannot be resumed: threshold was 0\.02"):
        run(replace(config, threshold=0.5))
    swapped_weights(str(base))
    with pytest.raises(UserError, match="cannot be resumed: base"):
        run(replace(config, base=base))
    file = tmp_path / "data" / "world" / "labels_train.jsonl"
    file.write_text(file.read_text().partition("\n")[2])
    with pytest.raises(UserError, match="cannot be resumed: data has another content than it had"):
        run(config)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(stored["contents"]) == {"base", "data"} and stored["base"] == places["base"]
