"""Where a base is: the shipped one, a policy's adapter, one that has moved, another one of the same name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from example_base import build_random_base
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GPT2Config,
    OPTConfig,
    Phi3Config,
)

from csrlhf_kit.cli import main
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.data.sources import may_be_on_hub, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.answers import load_policy
from csrlhf_kit.models.base import load_base, load_config, load_tokenizer
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.classifiers import load_classifier
from csrlhf_kit.models.open_scorer import open_scorer, shares_base, text_scorer
from csrlhf_kit.models.places import base_of, find_base, fingerprint, whole_model
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import load_scorer, new_scorer, save_scorer, score_texts
from csrlhf_kit.recipes.export import ExportConfig, run_export
from csrlhf_kit.training.critic import load_critic, save_critic
from csrlhf_kit.training.sft import SFTConfig, train_sft

IDS = torch.arange(4, 20)[None]
MASK = torch.ones_like(IDS, dtype=torch.bool)
RECORDS = [LabelledResponse(f"ask {i} about the lock", "sure , take a tool", True) for i in range(8)]


def flat(prompts, responses) -> torch.Tensor:
    return torch.zeros(len(prompts))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def lora(model, folder: Path, base: Path, seed: int = 0) -> Path:
    """A policy's adapter with random weights, as peft alone writes it."""
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder)
    return folder


def scorer(base: Path, folder: Path, **options) -> Path:
    made = new_scorer(base, rank=4, **options)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return save_scorer(made, folder)


@pytest.fixture(scope="module")
def policy(random_base, tmp_path_factory) -> Path:
    return lora(load_base(random_base), tmp_path_factory.mktemp("policy") / "adapter", random_base)


@pytest.fixture(scope="module")
def tuned(random_base, policy) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(load_base(random_base), policy).eval())


# --- an adapter as a base ---


def test_a_policys_adapter_as_a_base_is_the_policy(random_base, policy, tuned, tmp_path):
    for folder in (policy, policy.parent):  # the adapter, and the run that holds it
        assert torch.allclose(logits(load_base(folder)), tuned, atol=1e-4)
        assert load_tokenizer(folder).eos_token_id == load_tokenizer(random_base).eos_token_id
        assert load_config(folder).model_type == "qwen2" and whole_model(folder) == str(random_base)
    roles = Roles(load_base(policy), reward=flat, cost=flat, rank=4)
    for adapter in (None, "policy"):
        with torch.no_grad():
            assert torch.allclose(roles.lm_head(roles.hidden(IDS, MASK, adapter)), tuned, atol=1e-3)
    config = AutoConfig.from_pretrained(random_base, num_labels=1)
    states = load_classifier(policy, config=config, dtype=torch.float32).model(IDS).last_hidden_state
    assert torch.allclose(states, load_base(policy).model(IDS).last_hidden_state, atol=1e-4)
    roles.save_policy(tmp_path / "next")
    assert base_of(tmp_path / "next") == str(policy.resolve())
    assert torch.allclose(logits(load_policy(policy, tmp_path / "next")), tuned, atol=1e-3)


def test_an_adapter_is_merged_before_anything_is_quantised(policy, tmp_path):
    pytest.importorskip("bitsandbytes")
    run_export(ExportConfig(policy, tmp_path / "whole", merge=True, dtype="float32"))
    ours, plain = (load_base(p, quantization="nf4", device="cpu") for p in (policy, tmp_path / "whole"))
    assert torch.allclose(logits(ours), logits(plain), atol=1e-3)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_fine_tuning_goes_on_from_fine_tuning(random_base, tmp_path, adaptation, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = {"rank": 4, "batch_size": 4, "epochs": 2.0, "learning_rate": 0.01, "progress": False}
    train_sft(SFTConfig(base=str(random_base), out="one", **shared), RECORDS)
    train_sft(SFTConfig(base="one", out="two", adaptation=adaptation, **shared), RECORDS[:4])
    first, second = logits(load_base("one")), logits(load_base("two"))
    assert not torch.allclose(first, second, atol=1e-3)
    if adaptation == "full":
        with pytest.raises(UserError, match="a whole model already"):
            run_export(ExportConfig(Path("two"), Path("merged"), merge=True))
        return
    run_export(ExportConfig(Path("two"), Path("merged"), merge=True, dtype="float32"))
    assert torch.allclose(second, logits(AutoModelForCausalLM.from_pretrained("merged")), atol=1e-4)


def test_what_is_no_base_is_said_to_be_none(random_base, tmp_path):
    cost = scorer(random_base, tmp_path / "cost")
    with pytest.raises(UserError, match="adapter of a reward or cost model"):
        load_base(cost)
    with pytest.raises(UserError, match="a policy's adapter"):
        load_scorer(lora(load_base(random_base), tmp_path / "policy", random_base))
    shutil.copytree(random_base, tmp_path / "both")
    for file in (tmp_path / "policy").iterdir():
        shutil.copy(file, tmp_path / "both" / file.name)
    with pytest.raises(UserError, match="an adapter beside a model"):
        load_base(tmp_path / "both")


# --- damaged folders ---


def changed(folder: Path, source: Path, name: str, content: bytes | dict) -> Path:
    """A copy of a folder in which one file has another content, or its JSON other values."""
    shutil.copytree(source, folder)
    file = folder / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content).encode()
    file.write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", {"num_hidden_layers": 9, "layer_types": None}, r"does not hold model\.layers\..* expected all weights"),
        ("config.json", {"intermediate_size": 8}, r"does not hold .*mlp.* in the shape that its config.json asks"),
        ("config.json", {"hidden_size": "wide"}, "could not load"),
        ("config.json", b"[]", "could not load"),
        ("tokenizer_config.json", b"[]", "could not load a tokenizer"),
        ("generation_config.json", b"[]", "could not load a causal language model"),
    ],
)  # fmt: skip
def test_a_damaged_base_is_one_sentence(random_base, tmp_path, name, content, words, capfd):
    base = changed(tmp_path / "base", random_base, name, content)
    with pytest.raises(UserError, match=words):
        load_tokenizer(base)
        load_base(base)
    if "does not hold" in words:
        with pytest.raises(UserError, match=words):
            new_scorer(base)
    assert capfd.readouterr().err == "", "nothing but the sentence is told"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_model.safetensors", b"torn"),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", {"r": "x"}),
        ("adapter_config.json", {"target_modules": ["none"]}),
        ("base.json", b"[]"),
        ("scorer.json", b"[]"),
    ],
)
def test_a_damaged_adapter_is_one_sentence(random_base, tmp_path, name, content):
    cost = changed(tmp_path / "bad", scorer(random_base, tmp_path / "cost"), name, content)
    with pytest.raises(UserError, match="bad"):
        load_scorer(cost)
    if name != "scorer.json":
        with pytest.raises(UserError, match="bad"):
            Roles(load_base(random_base), reward=flat, cost=cost)
    if name == "adapter_model.safetensors":
        with pytest.raises(UserError, match="bad"):
            run_export(ExportConfig(cost, tmp_path / "out"))
        assert not (tmp_path / "out").exists()


# --- the same name, other weights ---


def test_a_fingerprint_is_of_the_weights(random_base, tmp_path):
    shutil.copytree(random_base, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(random_base) is not None
    other = build_random_base(tmp_path / "other", seed=1)
    assert fingerprint(other) not in (None, fingerprint(random_base))
    assert fingerprint(tmp_path) is None


def test_a_scorer_of_another_base_of_the_same_name_reads_with_its_own(tmp_path, sentences):
    bases = [build_random_base(tmp_path / name / "base", seed=k) for k, name in enumerate("AB")]
    cost = scorer(bases[0], tmp_path / "A" / "cost")
    own = text_scorer(cost)(sentences, sentences)
    assert shares_base(cost, bases[0]) and not shares_base(cost, bases[1])
    roles = Roles(load_base(bases[1]), reward=flat, cost=cost, rank=4)
    assert torch.allclose(roles.scorers["cost"](sentences, sentences), own, atol=1e-4)
    assert (
        callable(open_scorer(cost, "cost", base=bases[1]))
        and open_scorer(cost, "cost", base=bases[0]) == cost
    )
    (cost / "base.json").unlink()  # of an earlier version: its base is still there to be compared
    assert shares_base(cost, bases[0]) and not shares_base(cost, bases[1])
    shutil.rmtree(tmp_path / "A" / "base")  # and here it is not: the name tells
    assert shares_base(cost, bases[1])


def test_policies_and_critics_are_refused_on_another_base(tmp_path):
    bases = [build_random_base(tmp_path / name / "base", seed=k) for k, name in enumerate("AB")]
    roles, other = (Roles(load_base(base), reward=flat, cost=flat, rank=4) for base in bases)
    roles.save_policy(tmp_path / "run" / "adapter")
    save_critic(roles, tmp_path / "critic.safetensors")
    load_critic(roles, tmp_path / "critic.safetensors")
    with pytest.raises(UserError, match="another base, whose weights differ"):
        load_critic(other, tmp_path / "critic.safetensors")
    adapter = tmp_path / "run" / "adapter"
    for use in (
        lambda: Roles(load_base(bases[1]), reward=flat, cost=flat, rank=16, policy=adapter),
        lambda: load_policy(bases[1], adapter),
        lambda: base_of(adapter, bases[1]),
        lambda: run_export(ExportConfig(tmp_path / "run", tmp_path / "out", merge=True, base=str(bases[1]))),
    ):
        with pytest.raises(UserError, match=r"another base than|has rank"):
            use()
    shutil.rmtree(bases[0])
    shutil.move(bases[1], bases[0])  # the very place, with other weights
    with pytest.raises(UserError, match="another base than"):
        base_of(adapter)


# --- another working directory, other places ---


def test_an_adapter_that_replaces_another_notes_the_way_from_where_it_will_be(tmp_path):
    base = build_random_base(tmp_path / "base")
    roles = Roles(load_base(base), reward=flat, cost=flat, rank=4)
    for _ in range(2):
        adapter = roles.save_policy(tmp_path / "run" / "adapter")
        noted = json.loads((adapter / "base.json").read_text())["path"]
        assert (adapter / noted).resolve() == base.resolve()


def test_a_base_is_found_from_elsewhere_and_after_a_move(tmp_path, monkeypatch):
    place = tmp_path / "here"
    build_random_base(place / "base")
    monkeypatch.chdir(place)
    Roles(load_base("base"), reward=flat, cost=flat, rank=4).save_policy("runs/ppo/adapter")
    Path("runs/ppo/config.json").write_text('{"base": "base"}')
    scorer(Path("base"), Path("runs/cost"))
    monkeypatch.chdir("/")
    adapter = place / "runs" / "ppo" / "adapter"
    assert base_of(adapter) == str(place / "base")
    place.rename(tmp_path / "there")
    place = tmp_path / "there"
    adapter = place / "runs" / "ppo" / "adapter"
    assert Path(base_of(adapter)).resolve() == place / "base"
    assert len(score_texts(place / "runs" / "cost", ["a"], ["b"])) == 1
    (adapter / "base.json").unlink()  # of an earlier version: what was asked for, from a folder above the run
    assert base_of(adapter) == str(place / "base")
    (place / "base").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="--base"):
        base_of(adapter)
    assert base_of(adapter, tmp_path / "gone") == str(tmp_path / "gone")


def test_the_shipped_base_is_where_the_shipped_data_are(random_base, tmp_path, monkeypatch):
    shutil.copytree(random_base, tmp_path / "data" / "tiny_base")
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path / "data"))
    monkeypatch.chdir("/")
    for name in ("shipped", "data/tiny_base"):  # the latter in the records of earlier versions
        assert find_base(name) == str(tmp_path / "data" / "tiny_base")
    assert SFTConfig().base == "shipped" and load_tokenizer("shipped").eos_token == "<|end|>"
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="CSRLHF_DATA"):
        load_base("shipped")


def test_a_path_that_is_not_there_is_never_sent_to_the_hub(tmp_path, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("csrlhf_kit.models.places.HfApi", asked)
    monkeypatch.setattr("csrlhf_kit.data.sources.read_hub", asked)
    (tmp_path / "mine").mkdir()
    for name in ("base", "runs/sft", "mine/sft", "./x", "/x/y", "a/b/c", "data/tiny", "x/"):
        for load in (load_base, load_tokenizer, load_config):
            with pytest.raises(UserError, match="is not a folder"):
                load(name)
    for name in ("runs/some", "mine/some", "data/some"):
        with pytest.raises(UserError, match="no such file or folder"):
            read_records(name, LabelledResponse)
    assert may_be_on_hub("owner/name") and not may_be_on_hub("mine/name")


def test_a_hub_that_is_out_of_reach_is_asked_once(monkeypatch):
    class Deaf:
        asked = 0

        def model_info(self, name, timeout):
            Deaf.asked += 1
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("csrlhf_kit.models.places.HfApi", Deaf)
    with pytest.raises(UserError, match="hub cannot be reached"):
        load_base("owner/name")
    assert Deaf.asked == 1


# --- tokens, and architectures ---


def test_tokens_beyond_the_embeddings_are_refused_before_any_work(random_base, tmp_path, capsys):
    def with_tokens(name: str, **added) -> Path:
        shutil.copytree(random_base, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(random_base)
        tokenizer.add_special_tokens(added) if added else tokenizer.add_tokens(["lock-picking"])
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    rows = load_config(random_base).vocab_size
    for base in (with_tokens("pad", pad_token="[PAD]"), with_tokens("word")):
        for scores in (False, True):
            with pytest.raises(UserError, match=f"the model has embeddings for {rows} ids"):
                load_tokenizer(base, scores=scores)
    data = tmp_path / "labels.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"p{i}", "response": "r", "is_safe": i % 2 == 0}) + "\n" for i in range(40)
        )
    )
    for command in ("sft", "cost-model"):
        assert main([command, "--base", str(base), "--data", str(data), "--out", str(tmp_path / "out")]) == 2
        assert "embeddings for" in capsys.readouterr().err and not (tmp_path / "out").exists()
    unused = with_tokens("image", additional_special_tokens=["<image>"])  # nobody writes it
    assert load_tokenizer(unused).pad_token == "<|pad|>"


def small(kind: type, folder: Path, tokenizer_from: Path, **options) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        **ids,
        **options,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ARCHITECTURES = {
    "gpt2": (GPT2Config, {"initializer_range": 0.2}),
    "opt": (OPTConfig, {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.3}),
    "falcon": (FalconConfig, {"hidden_dropout": 0.3, "initializer_range": 0.2}),
    "phi3": (Phi3Config, {"intermediate_size": 64, "resid_pdrop": 0.3, "initializer_range": 0.2}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_adapters_of_every_kind_work_on_architectures_unlike_llama(name, random_base, tmp_path, sentences):
    kind, options = ARCHITECTURES[name]
    base = small(kind, tmp_path / "base", random_base, **options)
    cost = scorer(base, tmp_path / "cost", layers=1)
    own = text_scorer(cost)(sentences, sentences)
    run_export(ExportConfig(cost, tmp_path / "merged", merge=True, dtype="float32"))
    assert torch.allclose(text_scorer(tmp_path / "merged")(sentences, sentences), own, atol=1e-4)
    roles = Roles(load_base(base), reward=cost, cost=cost, rank=4, layers=1)
    with torch.no_grad():
        for parameter in roles.trainable("policy"):
            parameter.normal_(std=0.1)
        plain = roles.lm_head(roles.hidden(IDS, MASK, "policy"))
        with roles.merged("policy") as model:
            assert torch.allclose(model(IDS).logits, plain, atol=1e-4)
    roles.save_policy(tmp_path / "policy")
    assert torch.allclose(logits(load_policy(base, tmp_path / "policy")), plain, atol=1e-4)
    assert torch.allclose(logits(load_base(tmp_path / "policy")), plain, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointing_gives_the_same_gradients_where_layers_drop_out(name, random_base, tmp_path):
    kind, options = ARCHITECTURES[name]
    base = small(kind, tmp_path / "base", random_base, **options)
    found = []
    for checkpointed in (False, True):
        roles = Roles(load_base(base), reward=flat, cost=flat, rank=4)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in roles.trainable("policy"):
                parameter.normal_(std=0.1)
        if checkpointed:
            checkpoint_activations(roles)
        roles.hidden(IDS, MASK, "policy").square().mean().backward()
        found.append([parameter.grad for parameter in roles.trainable("policy")])
        assert not any(module.training for module in roles.trunk.modules())
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_recorded_adapters_work_from_anywhere(monkeypatch):
    recorded = Path(__file__).parents[2] / "data" / "recorded" / "models"
    monkeypatch.chdir(os.path.sep)
    assert shares_base(recorded / "semantic", "shipped")
    assert Path(base_of(recorded / "semantic")).resolve() == recorded.parents[1] / "tiny_base"
