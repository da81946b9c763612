"""One base, six roles, dense and in 4 bit: what is trained gets gradients, and what is saved scores elsewhere as here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from csrlhf_kit.data.chat import encode_dialogues, encode_prompts
from csrlhf_kit.data.records import LabelledResponse, PreferencePair
from csrlhf_kit.errors import UserError
from csrlhf_kit.models import base as bases
from csrlhf_kit.models.base import load_base, load_tokenizer, why_not_loaded
from csrlhf_kit.models.beaver import beaver_scorer, load_beaver
from csrlhf_kit.models.checkpointing import active, again_under, checkpoint_activations
from csrlhf_kit.models.judge import QUESTION, Verdicts, judge_scorer, verdict_tokens
from csrlhf_kit.models.open_scorer import open_scorer, shares_base
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.rollout import decode, generate, sample_episodes
from csrlhf_kit.training.constraints import FixedPenalty
from csrlhf_kit.training.optimizers import make_optimizer
from csrlhf_kit.training.ppo import PPOConfig, train_ppo
from csrlhf_kit.training.reward_modeling import ScorerConfig, train_scorer

pytest.importorskip("bitsandbytes")

SMALL = PPOConfig(
    steps=1, batch_size=4, minibatch_size=4, microbatch_size=2, max_new_tokens=5, learning_rate=1e-3, seed=3
)
NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["lm_head", "score"],
)  # fmt: skip


def random_llama(folder: Path, tokenizer_from: Path, *, vocabulary: int = 400) -> Path:
    """A random Llama without pad token and chat template (pad falls back to EOS), on another's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.pad_token, tokenizer.chat_template = None, None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, pad_token_id=None,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(random_base: Path, tmp_path_factory) -> Path:
    return random_llama(tmp_path_factory.mktemp("llama"), random_base)


@pytest.fixture
def repacking(monkeypatch):
    """bitsandbytes as on a CPU with AVX512-BF16: new 4-bit layers are marked for repacking."""
    import bitsandbytes.nn.modules as modules

    made = modules.Linear4bit.__init__

    def marked(self, *arguments, **options):
        made(self, *arguments, **options)
        self.support_avx512bf16_for_cpu = True

    monkeypatch.setattr(modules.Linear4bit, "__init__", marked)
    return modules.Linear4bit


def scorers(base: Path, folder: Path, sentences: list[str], quantization: str) -> dict[str, Path]:
    """A reward and a cost model, trained for two steps each."""
    labelled = [
        LabelledResponse(p, r, bool(i % 2))
        for i, (p, r) in enumerate(zip(sentences, sentences[::-1], strict=True))
    ]
    pairs = [
        PreferencePair(p, sentences[3], sentences[4], None, None, i % 2, i % 2)
        for i, p in enumerate(sentences)
    ]
    made, packed = {}, quantization == "nf4"  # short of memory, short of it everywhere
    for objective, records, name in (("reward", pairs[:4], "reward"), ("semantic", labelled[:4], "cost")):
        made[name] = train_scorer(
            ScorerConfig(
                base=str(base), out=str(folder / name), objective=objective, rank=4, alpha=8.0, epochs=2.0,
                batch_size=4, learning_rate=1e-2, quantization=quantization, progress=False,
                gradient_checkpointing=packed, optimizer="adamw_8bit" if packed else "adamw",
            ),
            records,
        )  # fmt: skip
    return made


def gradients(roles: Roles, role: str) -> dict[str, float]:
    """Largest gradient of each matrix of an adapter."""
    return {
        name: 0.0 if p.grad is None else float(p.grad.abs().max())
        for name, p in roles.named_parameters()
        if f".{role}." in name
    }


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_all_roles_train_and_the_saved_scorers_score_the_same_in_plain_transformers(
    kind, quantization, random_base, llama, sentences, tmp_path, repacking, bitsandbytes_unpacks
):
    bitsandbytes_unpacks("by_rows")  # as on such a CPU: these bases have rows of 32, half a block
    path = random_base if kind == "qwen2" else llama
    folders = scorers(path, tmp_path, sentences, quantization)
    tokenizer = load_tokenizer(path)
    base = load_base(path, quantization=quantization, device="cpu")
    packed = [m for m in base.modules() if isinstance(m, repacking)]
    assert bool(packed) == (quantization == "nf4")
    if kind == "qwen2":
        assert base.model.layers[0].self_attn.q_proj.bias is not None, "this test is about biased layers"
    bytes_before = [m.weight.data.clone() for m in packed]
    roles = Roles(base, **folders, rank=4, alpha=8)
    encoded = encode_dialogues(tokenizer, sentences, sentences[::-1], max_length=64)
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    response_mask = mask & (torch.arange(ids.shape[1]) >= 5)
    with torch.no_grad():  # the forward pass that would repack
        for adapter in ("policy", "critic", "reward", "cost", None):
            roles.hidden(ids, mask, adapter)
        for parameter in roles.trainable("policy") + roles.trainable("critic"):
            parameter.normal_(std=0.1)
    assert all(torch.equal(m.weight.data, old) for m, old in zip(packed, bytes_before, strict=True))
    roles.log_probs(ids, mask, response_mask)[0].sum().backward()
    roles.values(ids, mask).square().sum().backward()
    for role in ("policy", "critic"):
        found = gradients(roles, role)
        assert found and all(size > 0 for size in found.values()), f"{role}: a zero gradient in {found}"
    roles.zero_grad(set_to_none=True)

    before = {n: p.clone() for n, p in roles.trained_state().items()}
    row = train_ppo(roles, tokenizer, sentences, FixedPenalty(threshold=0.1), SMALL)[-1]
    assert row["policy/max_log_ratio_first"] < 1e-4
    changed = [n for n, p in roles.trained_state().items() if not torch.equal(p, before[n])]
    assert any(".policy." in n for n in changed) and any(".critic." in n for n in changed)

    options = {"quantization_config": NF4} if quantization == "nf4" else {}
    bitsandbytes_unpacks("definition")  # for plain transformers, which there scores differently
    for name, folder in folders.items():
        plain = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **options)
        plain.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
        plain = PeftModel.from_pretrained(plain, folder).eval()
        for module in plain.modules():  # as bitsandbytes on this CPU really is
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        with torch.no_grad():
            alone = [
                plain(input_ids=row[m].unsqueeze(0)).logits[0, 0] for row, m in zip(ids, mask, strict=True)
            ]
            ours = roles.score(name, ids, mask)
        torch.testing.assert_close(ours, torch.stack(alone), rtol=1e-5, atol=1e-5)
        assert float(ours.std()) > 1e-3


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_bfloat16_base_trains_float32_adapters(quantization, random_base, sentences):
    base = load_base(random_base, dtype="bfloat16", quantization=quantization, device="cpu")
    roles = Roles(base, reward=lengths, cost=lengths, rank=4)
    assert base.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in roles.trainable("policy") + roles.trainable("critic")} == {torch.float32}
    row = train_ppo(roles, load_tokenizer(random_base), sentences, FixedPenalty(), SMALL)[-1]
    assert row["policy/max_log_ratio_first"] < 0.05 and row["policy/grad_norm"] > 0


def lengths(prompts, responses):
    return torch.tensor([0.1 * len(response) for response in responses])


def noisy_roles(base: Path, **options) -> Roles:
    roles = Roles(load_base(base, device="cpu"), reward=lengths, cost=lengths, rank=4, lean=False, **options)
    with torch.no_grad():
        for index, parameter in enumerate(roles.trainable("policy") + roles.trainable("critic")):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(index))
    return roles


def test_checkpointing_changes_memory_and_nothing_else(random_base, sentences):
    """Same gradients, even where another adapter is in use when the backward pass computes a layer again."""
    plain, sparse = noisy_roles(random_base), noisy_roles(random_base)
    checkpoint_activations(sparse)
    ids = torch.randint(4, 300, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    response_mask = mask & (torch.arange(10) >= 4)
    for roles in (plain, sparse):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            loss = roles.log_probs(ids, mask, response_mask)[0].sum()
        roles.kept = sum(kept)
        with again_under(roles, None):  # as a careless caller would leave it
            loss.backward()
        assert active(roles) == "policy"
        roles.values(ids, mask).square().sum().backward()
        assert not any(module.training for module in roles.modules()), "dropout stays off"
    assert sparse.kept < 0.7 * plain.kept
    for (name, a), (_, b) in zip(plain.named_parameters(), sparse.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    encoded = encode_prompts(load_tokenizer(random_base), sentences, max_length=32)
    noise = torch.rand(len(sentences), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    texts = []
    for roles in (plain, sparse):
        with torch.no_grad(), roles.decoder("policy") as model:
            texts.append(generate(model, *encoded.values(), eos_token_id=-1, pad_token_id=0, max_new_tokens=6, noise=noise))  # fmt: skip
    assert torch.equal(*texts), "sampling keeps its cache"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_every_sampler_draws_the_same_tokens(kind, temperature, random_base, llama, sentences):
    """A static cache, against the kit's own loop."""
    path = random_base if kind == "qwen2" else llama
    tokenizer = load_tokenizer(path)
    encoded = encode_prompts(tokenizer, [*sentences, "why", sentences[0]], max_length=32)
    noise = torch.rand(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 12, "temperature": temperature, "noise": noise}
    both = {name: noisy_roles(path, sampler=name) for name in ("loop", "static")}
    endless = sample_episodes(both["loop"], tokenizer, *encoded.values(), **options)
    said = endless.ids[0][endless.response_mask[0]]
    tokenizer = SimpleNamespace(eos_token_id=int(said[4]), pad_token_id=tokenizer.pad_token_id)
    state = torch.get_rng_state()
    ours, theirs = (sample_episodes(r, tokenizer, *encoded.values(), **options) for r in both.values())
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn besides the noise, nor seeded anew"
    assert int(ours.response_mask[0].sum()) <= 5 and ours.ended[0], "some answers end early"
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_generate_draws_the_tokens_of_our_own_loop(random_base, sentences):
    from csrlhf_kit.models.decoding import CachedForward

    model = load_base(random_base, device="cpu")
    encoded = encode_prompts(load_tokenizer(random_base), sentences, max_length=32)
    options = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 8, "temperature": 0.7}
    noise = torch.rand(len(sentences), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = decode(CachedForward(model), *encoded.values(), **options, noise=noise)
        theirs = generate(model, *encoded.values(), **options, noise=noise)
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        end = a.index(1) + 1 if 1 in a else len(a)
        assert a[:end] == b[:end]


def test_8_bit_adam_trains_and_a_stopped_run_goes_on(random_base, sentences, tmp_path):
    from dataclasses import replace

    from csrlhf_kit.runs import Run

    tokenizer, results = load_tokenizer(random_base), []
    for stops in (False, True):
        run = Run.open(tmp_path / str(stops), {})
        for steps in (2,) if not stops else (1, 2):
            roles = noisy_roles(random_base)
            config = replace(SMALL, steps=steps)
            train_ppo(roles, tokenizer, sentences, FixedPenalty(), config, run, optimizer="adamw_8bit")
        results.append(roles.trained_state())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_optimizers_that_cannot_be_had_are_told():
    parameter = torch.nn.Parameter(torch.zeros(4))
    options = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        make_optimizer("paged_adamw_8bit", [parameter], **options)
    with pytest.raises(UserError, match="expected one of adamw"):
        make_optimizer("sgd", [parameter], **options)


# --- published scorers ---


@pytest.fixture(scope="module")
def beaver(random_base: Path, tmp_path_factory) -> tuple[Path, LlamaModel, torch.Tensor]:
    """A checkpoint as PKU publishes them, made by hand: `model.*`, `score_head.weight`, `LlamaForScore`."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("beaver")
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(9)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    trunk, head = LlamaModel(config).eval(), torch.randn(1, 32)
    state = {f"model.{name}": value for name, value in trunk.state_dict().items()}
    save_file(state | {"score_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {
        "architectures": ["LlamaForScore"], "score_dim": 1, "bias": False, "do_normalize": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(written))
    return folder, trunk, head


def test_a_beaver_checkpoint_scores_as_its_formula_says(beaver, sentences):
    folder, trunk, head = beaver
    tokenizer = AutoTokenizer.from_pretrained(folder)
    got = open_scorer(folder, "cost")(sentences[:3], ["ok", sentences[3], ""])
    for score, prompt, response in zip(got, sentences, ["ok", sentences[3], ""], strict=False):
        text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}"
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            expected = head @ trunk(input_ids=ids).last_hidden_state[0, -1]
        assert float(score) == pytest.approx(float(expected), abs=1e-5)
    assert float(got.std()) > 1e-2
    packed = beaver_scorer(folder, quantization="nf4")(sentences[:3], ["ok", sentences[3], ""])
    assert float((packed - got).abs().max()) < 3.0 * float(got.std()), (
        "4 bit is near, and its head is not packed"
    )
    scorer = load_beaver(folder)
    assert float((scorer.model.score.weight - head).abs().max()) == 0.0, (
        "costs keep their sign: > 0 is unsafe"
    )


def test_a_beaver_checkpoint_with_another_formula_is_refused(beaver, tmp_path):
    folder, _, _ = beaver
    for name in ("bias", "do_normalize"):
        config = json.loads((folder / "config.json").read_text()) | {name: True}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"has {name} set"):
            load_beaver(tmp_path)


@pytest.mark.parametrize("style", ["guard", "ask"])
def test_a_judge_costs_the_log_odds_of_its_first_word(style, random_base, sentences):
    verdicts = Verdicts(style, safe="sure", unsafe="sorry", opening="\n\n")
    got = judge_scorer(random_base, verdicts, batch_size=2)(sentences[:3], sentences[3:])
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    model = load_base(random_base, device="cpu")
    shared, safe, unsafe = verdict_tokens(tokenizer, verdicts)
    for cost, prompt, response in zip(got, sentences, sentences[3:], strict=False):
        if style == "guard":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        else:
            turns = [{"role": "user", "content": QUESTION.format(prompt=prompt, response=response)}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            p = model(input_ids=torch.tensor([[*ids, *shared]])).logits[0, -1].softmax(-1)
        assert float(cost.sigmoid()) == pytest.approx(float(p[unsafe] / (p[unsafe] + p[safe])), abs=1e-5)


def test_verdicts_are_told_apart_at_their_first_differing_token(random_base):
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    shared, safe, unsafe = verdict_tokens(tokenizer, Verdicts(safe="xa", unsafe="xb", opening="\n\n"))
    assert tokenizer.decode([*shared, safe]) == "\n\nxa" and tokenizer.decode([*shared, unsafe]) == "\n\nxb"
    with pytest.raises(UserError, match="alike"):
        verdict_tokens(tokenizer, Verdicts(safe="x", unsafe="x"))


def test_an_adapter_of_another_base_reads_the_text_with_its_own_tokenizer(
    random_base, llama, sentences, tmp_path
):
    cost = scorers(llama, tmp_path, sentences, "none")["cost"]
    assert shares_base(cost, llama) and not shares_base(cost, random_base)
    assert open_scorer(cost, "cost", base=llama) == cost
    own = open_scorer(cost, "cost", base=random_base)
    roles = Roles(load_base(random_base, device="cpu"), reward=lengths, cost=own, rank=4)
    row = train_ppo(roles, load_tokenizer(random_base), sentences, FixedPenalty(), SMALL)[-1]
    assert 0 < row["objective/cost"] < 1


def test_a_policy_pads_with_its_end_token_and_a_scorer_with_another(llama, tmp_path):
    policy, scorer = load_tokenizer(llama), load_tokenizer(llama, scores=True)
    assert policy.padding_side == "left" and policy.pad_token_id == policy.eos_token_id == scorer.eos_token_id
    assert scorer.pad_token_id not in (None, scorer.eos_token_id)
    endless = AutoTokenizer.from_pretrained(llama)
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    for scores in (False, True):
        with pytest.raises(UserError, match="has no end token"):
            load_tokenizer(tmp_path, scores=scores)


# --- what goes wrong on the way ---


def test_why_a_model_does_not_load_is_told(random_base, monkeypatch, tmp_path):
    import httpx
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    answer = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid/"))
    for cause, words in (
        (GatedRepoError("no", response=answer), "it is gated"),
        (RepositoryNotFoundError("no", response=answer), "knows no such model"),
        (OfflineModeIsEnabled("no"), "cannot be reached"),
        (ConnectionError("no"), "cannot be reached"),
    ):
        error = OSError("long story\nwith lines")
        error.__cause__ = cause
        assert words in why_not_loaded(error)
    assert why_not_loaded(ValueError("first\nsecond")) == "first second"

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bases.AutoModelForCausalLM, "from_pretrained", full)
        with pytest.raises(UserError, match=r"the GPU has no room .* nf4 .*csrlhf plan"):
            load_base(random_base, device="cpu")
    (tmp_path / "config.json").write_text((random_base / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="could not load a causal language model"):
        load_base(tmp_path, device="cpu")
