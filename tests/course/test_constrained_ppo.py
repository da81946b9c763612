"""The one-file PPO of the notebooks against the package's: the same losses, step by step."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from course.build import FILE, SIZES, read_module
from csrlhf_kit.data.records import Prompt
from csrlhf_kit.data.sources import data_folder, read_records
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.training.constraints import make_constraint
from csrlhf_kit.training.critic import load_critic
from csrlhf_kit.training.ppo import PPOConfig, train_ppo


@pytest.fixture(scope="module")
def one_file():
    return read_module(FILE)


def package_history(method: str) -> list[dict[str, float]]:
    data = data_folder()
    models = data / "recorded" / "models"
    roles = Roles(
        load_base(data / "tiny_base"), reward=models / "reward", cost=models / "semantic", lean=False
    )
    load_critic(roles, models / "critic.safetensors")
    config = PPOConfig(
        epochs=2,
        learning_rate=3e-3,
        critic_learning_rate=4e-3,
        schedule="cosine",
        checkpoint_every=1,
        **SIZES,
    )
    prompts = [p.prompt for p in read_records("shipped", Prompt, split="train").records]
    constraint = make_constraint(method, threshold=0.02, penalty=6.0)
    return train_ppo(roles, load_tokenizer(data / "tiny_base"), prompts, constraint, config)


@pytest.mark.parametrize(
    "method, package_method", [("rectified", "fixed_penalty"), ("lagrangian", "lagrangian")]
)
def test_three_steps_have_the_losses_of_the_package(one_file, method, package_method):
    args = replace(one_file.Args(), method=method, data=str(data_folder()), **SIZES)
    ours, theirs = one_file.train(args, report=lambda line: None), package_history(package_method)
    names = {
        "reward": "objective/reward",
        "cost": "objective/cost",
        "kl": "objective/kl",
        "multiplier": "constraint/multiplier",
        "policy_loss": "policy/loss",
        "reward_loss": "val/reward_loss",
        "cost_loss": "val/cost_loss",
    }
    assert len(ours) == len(theirs) == SIZES["steps"]
    for mine, row in zip(ours, theirs, strict=True):
        shift = args.missing_end * (1 - row["objective/ended"])  # the package reports the bare reward
        for name, known in names.items():
            expected = row[known] - (shift if name == "reward" else 0.0)
            assert mine[name] == pytest.approx(expected, rel=1e-3, abs=1e-4), (mine["step"], name)


def test_the_file_is_short_and_stands_alone():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 300
    assert "import csrlhf_kit" not in text and "from csrlhf_kit" not in text


def test_another_method_is_refused_in_a_sentence():
    done = subprocess.run(
        [sys.executable, str(FILE), "--method", "magic"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr == "--method is 'magic': expected rectified or lagrangian\n"
