"""Presets and settings files become a command line, which the command line proper overrides."""

from __future__ import annotations

import dataclasses

import pytest
import tyro

from csrlhf_kit import cli
from csrlhf_kit.errors import UserError
from csrlhf_kit.recipes.presets import PRESET_COMMANDS, PRESETS, as_arguments, expand, read_settings

REQUIRED = {"ppo": ["--reward", "a", "--cost", "b", "--out", "c"]}


def parse(command: str, arguments: list[str]):
    return tyro.cli(cli.find(cli.OPTIONS[command][0]), args=arguments)


@pytest.mark.parametrize("command", PRESET_COMMANDS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_understood_by_every_recipe(name, command):
    got = parse(command, as_arguments(PRESETS[name], command) + REQUIRED.get(command, []))
    settings = PRESETS[name]["all"] | PRESETS[name][command]
    for field, value in settings.items():
        found = getattr(got, field)
        if isinstance(value, dict):
            assert {k: getattr(found, k) for k in value} == value
        else:
            assert found == value, field
    if command == "ppo":
        dataclasses.replace(got.ppo)  # its own checks accept it


def test_what_is_given_on_the_command_line_wins(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "all: {base: here}\nppo:\n  gradient_checkpointing: true\n  ppo: {steps: 3, whiten_advantages: false}\n"
    )
    given = ["ppo", "--preset", "qwen2.5-0.5b", f"--config={file}", "--ppo.steps", "5", *REQUIRED["ppo"]]
    got = parse("ppo", expand(given)[1:])
    assert (got.base, got.ppo.steps, got.ppo.whiten_advantages) == ("here", 5, False)
    assert got.gradient_checkpointing and got.dtype == "bfloat16" and got.ppo.max_new_tokens == 256
    assert expand(["sft", "--base", "x"]) == ["sft", "--base", "x"] and expand([]) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "broken YAML"),
        ("sft: {data: caf\xe9}", "broken YAML"),
        ("sft: {epochs: 2020-99-99}", "broken YAML"),
        ("[" * 5000, "broken YAML"),
        ("- 1\n", "found list"),
        ("pppo: {}\n", "found section 'pppo', expected all, sft"),
        ("ppo: 3\n", "section ppo is 3"),
    ],
)
def test_a_settings_file_that_does_not_serve_is_one_sentence(text, words, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        read_settings(tmp_path / "bad.yaml")


def test_mistakes_around_presets_are_told(tmp_path, capsys):
    for arguments, words in (
        (["ppo", "--preset", "qwen3"], "expected one of laptop"),
        (["ppo", "--preset"], "--preset (nothing)"),
        (["certify", "--preset", "laptop"], "--preset is for sft, reward-model"),
        (["sft", "--config", str(tmp_path / "none.yaml")], "cannot be read"),
    ):
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "odd.yaml").write_text("sft: {bsae: x}\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["sft", "--config", str(tmp_path / "odd.yaml")])
    assert stop.value.code == 2 and "bsae" in capsys.readouterr().err
