"""The commands around the red team and the arena."""

from __future__ import annotations

import json
from random import Random

import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.safety import evaluation_prompts
from csrlhf_kit.recipes.arena import ArenaConfig, run_arena, stored_answers
from csrlhf_kit.recipes.red_team import RedTeamConfig, run_red_team
from csrlhf_kit.world.requests import parse_requests
from csrlhf_kit.world.responses import helpful


def finished(folder, names):
    """A folder like a finished run's: one policy that always tells, one that always refuses."""
    prompts = evaluation_prompts(28)
    (folder / "stages").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"evaluate": 28}))
    tells = [helpful(parse_requests(p.prompt)[0], Random(0), count=1, wrong=0.0) for p in prompts]
    for name, texts in zip(names, (tells, ["i cannot help with that."] * len(prompts)), strict=True):
        (folder / "stages" / f"{name}.json").write_text(json.dumps({"responses": texts}))
    (folder / "stages" / "seconds.json").write_text("1.0")
    return folder


def test_runs_are_set_against_each_other(tmp_path, capsys):
    first = finished(tmp_path / "a", ("sft", "refuses"))
    second = finished(tmp_path / "b", ("sft-seed_1", "refuses-seed_1"))
    result = run_arena(ArenaConfig(runs=(first, second), out=tmp_path / "arena.json"))
    assert result["seeds"] == {"sft": 2, "refuses": 2}
    assert (
        result["harmlessness"]["ratings"]["refuses"]["low"]
        > 0
        > result["helpfulness"]["ratings"]["refuses"]["high"]
    )
    assert json.loads((tmp_path / "arena.json").read_text()) == result
    assert "Elo points above sft" in capsys.readouterr().out
    same = finished(tmp_path / "same", ("sft", "refuses"))
    assert run_arena(ArenaConfig(runs=(first, same), out=tmp_path / "s.json"))["seeds"]["sft"] == 1
    other = finished(tmp_path / "other", ("refuses", "sft"))
    with pytest.raises(UserError, match="refuses, seed 0, is in an earlier run, too"):
        run_arena(ArenaConfig(runs=(first, other), out=tmp_path / "o.json"))
    assert not (tmp_path / "o.json").exists()


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        stored_answers(tmp_path)
    empty = finished(tmp_path / "a", ("x", "y"))
    for name in ("x", "y"):
        (empty / "stages" / f"{name}.json").unlink()
    with pytest.raises(UserError, match="has answered"):
        stored_answers(empty)


def test_a_base_is_attacked_from_the_command_line(random_base, tmp_path):
    config = RedTeamConfig(
        tmp_path / "team.json", base=str(random_base), requests=3, tries=2, talks=4, max_new_tokens=4
    )
    result = run_red_team(config)
    stored = json.loads((tmp_path / "team.json").read_text())
    assert stored["robust"]["n"] == 3 and set(stored["turns"]) == {"1", "2", "3"}
    assert stored["config"]["team"] == "held_out" and stored["tries"] == 2
    assert result["robust"] == stored["robust"]
