"""One frozen base and its tokenizer, with one dtype policy.

Every model in the kit is loaded here: on a CPU or a GPU, dense or in NF4 (QLoRA, Dettmers et al. 2023,
arXiv 2305.14314), from a folder or from the hub, as safetensors, and never with remote code. Builds on places.py.

The dtype policy: frozen weights are stored and multiplied in the given `dtype` (NF4 weights are unpacked to it);
embeddings, norms and language-model head are never quantised. Trained weights (adapters, score and value heads) are
float32, and are cast when combined with the base. Log-probabilities, advantages and losses are float32.
This is what autocast would do, so only `transformers.Trainer` uses autocast.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from peft import PeftConfig, PeftModel, TaskType
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from csrlhf_kit import distributed
from csrlhf_kit.data.chat import encode_dialogues, end_token, end_tokens
from csrlhf_kit.errors import UserError
from csrlhf_kit.kernels.linear4bit import mend_4bit
from csrlhf_kit.models.places import adapter_in, base_of, find_base, whole_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Quantization = Literal["none", "nf4"]
SMALL = 2**30  # bytes of weights, which are loaded in seconds
LESS_MEMORY = "take --quantization nf4 or a smaller base; `csrlhf plan` says what fits"


def load_tokenizer(path: str | Path, *, scores: bool = False, config: Any = None) -> Any:
    """Tokenizer of `path` (folder or hub id; for an adapter without one, its base's), with a pad token.

    A policy's tokenizer pads on the left, as generation needs it; without a pad token, it pads with EOS, which
    is safe because the kit derives no mask from token ids.

    scores: a scorer's tokenizer, whose pad token must differ from its end token. transformers' classifiers read the
    score at the last token whose *id* is not the pad token's; if the end token were the pad token, that would be the
    token before the end, while PPO reads scores at the end. The opening token is taken, if there is one.

    config: the model's configuration, if it is already loaded.

    Raises UserError if the tokenizer cannot be loaded, has no end token (an episode could never end), or writes
    tokens that the model has no embedding for.
    """
    name = find_base(path)
    if (adapter := adapter_in(name)) and not any(adapter.glob("tokenizer*.json")):
        return load_tokenizer(base_of(adapter), scores=scores, config=config)
    with loading(name, "a tokenizer"):
        side = {} if scores else {"padding_side": "left"}
        tokenizer: Any = AutoTokenizer.from_pretrained(str(adapter or name), trust_remote_code=False, **side)
    try:
        end = end_token(tokenizer)
    except UserError:
        end = None
    if end is None and not (scores and tokenizer.pad_token_id is not None):
        raise UserError(
            f"the tokenizer of {path} has no end token: expected one, since an answer ends with it"
        )
    if scores and tokenizer.pad_token_id in (None, end):
        others = (tokenizer.bos_token_id, tokenizer.unk_token_id, 0, 1)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(i for i in others if i not in (None, end)))
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(end)
    if config or adapter or not os.path.isdir(name) or os.path.isfile(f"{name}/config.json"):
        check_tokens(tokenizer, config or load_config(name), path)
    return tokenizer


def check_tokens(tokenizer: Any, config: Any, path: str | Path) -> None:
    """Raise UserError if text or the chat format may become tokens that the model of `config` has no embedding for.
    Control tokens that are never written do no harm: Gemma 3's smaller models have one for images.
    """
    rows = config.get_text_config().vocab_size
    beyond = {index for index in tokenizer.get_vocab().values() if index >= rows}
    if not beyond:
        return
    control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    template = encode_dialogues(tokenizer, ["a"], ["a"], max_length=2**20)["input_ids"].flatten().tolist()
    used = {*template, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    if found := beyond & used or beyond - control:
        raise UserError(
            f"the tokenizer of {path} has the token {tokenizer.convert_ids_to_tokens(max(found))!r} with id {max(found)}, "
            f"and the model has embeddings for {rows} ids, 0 to {rows - 1}: expected a tokenizer that fits, or the "
            "model saved after `resize_token_embeddings`"
        )


def load_base(
    path: str | Path,
    *,
    dtype: str = "float32",
    quantization: Quantization = "none",
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """The frozen causal language model of `path` (see `places.find_base`), in evaluation mode.

    A policy's adapter is merged into its dense base before any quantization.
    dtype: "float32", "bfloat16" or "float16": of dense weights, and of the arithmetic with NF4 weights.
    quantization: "none", or "nf4" for 4-bit weights with double-quantised scales (bitsandbytes).
    device: by default this process's GPU, else the CPU.

    Raises UserError for an unknown dtype or quantization, a missing path, an unreachable or gated model, a missing
    library, or a GPU without enough memory.
    """
    options = load_options(dtype=dtype, quantization=quantization, device=device)
    model = load_model(AutoModelForCausalLM, path, **options)
    # A base may ship top_p, top_k or a repetition penalty, which would silently change the policy's distribution.
    model.shipped, kept = model.generation_config, ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.shipped, name) for name in kept})
    return freeze(model)


def save_model(model: Any, tokenizer: Any, folder: str | Path, **options: Any) -> None:
    """Save a model from `load_base`, or an adapter around it, with its tokenizer and generation config."""
    model.save_pretrained(folder, **options)
    save_tokenizer(tokenizer, model.shipped, folder)


def save_tokenizer(tokenizer: Any, shipped: GenerationConfig, folder: str | Path) -> None:
    """Save the tokenizer, and the generation config that the base shipped with all of the kit's end tokens, so that
    plain transformers stops where the kit stops.
    """
    tokenizer.save_pretrained(folder)
    generation = copy.deepcopy(shipped)
    ends = end_tokens(tokenizer, shipped)
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation._from_model_config = False  # else transformers would take the model's own eos
    generation.to_json_file(Path(folder) / "generation_config.json")


def shipped_generation(path: str | Path) -> GenerationConfig:
    """The generation config of a model (folder or hub id), without loading it."""
    try:
        return GenerationConfig.from_pretrained(whole_model(path))
    except OSError:  # older models have none
        return GenerationConfig.from_model_config(load_config(path))


def load_options(
    *, dtype: str = "float32", quantization: Quantization = "none", device: str | torch.device | None = None
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the kit's dtype policy. Raises UserError for unknown options."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if quantization not in ("none", "nf4"):
        raise UserError(f"unknown quantization {quantization!r}: expected 'none' or 'nf4'")
    device = distributed.device() if device is None else torch.device(device)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "device_map": {"": device}}
    if quantization == "nf4":
        options["quantization_config"] = _nf4(DTYPES[dtype])
    return options


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Put `model` into evaluation mode without gradients, with 4-bit layers mended by `mend_4bit`; returns it."""
    mend_4bit(model)
    return model.requires_grad_(False).eval()


def is_packed(model: Any) -> bool:
    """Whether a model's weights are quantised, by option or in its folder: adapters cannot be folded into them."""
    return getattr(model, "is_quantized", False)


def _nf4(compute_dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401  (transformers would fail later, with a stack trace)
    except ImportError as error:
        raise UserError("quantization 'nf4' needs bitsandbytes: expected it to be installed") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["lm_head", "score", "classifier"],  # heads stay dense: one is trained
    )


def why_not_loaded(error: BaseException) -> str:
    """Why `from_pretrained` failed and what to do about it, as part of a sentence."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return "it is gated; ask for access on its page, then log in with `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return "the hub knows no such model, or it is private; check the name, or log in with `hf auth login`"
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError | ConnectionError):
            return "the hub cannot be reached and the cache does not hold it; connect, or give a folder"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:200] or type(error).__name__


def load_config(base: str | Path) -> Any:
    """The configuration of a base (folder or hub id). Raises UserError as `load_model` does."""
    name = whole_model(base)
    if os.path.isdir(name) and not os.path.isfile(f"{name}/config.json"):
        raise UserError(f"{name} holds no config.json: expected a model saved by `save_pretrained`")
    with loading(name, "a configuration"):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def load_model(auto: Any, base: str | Path, **options: Any) -> Any:
    """`auto.from_pretrained` of a base (see `places`), from safetensors; a policy's adapter is first merged into its
    dense base, whatever the `options`. Raises UserError with the reason for a failure in one sentence, also if the
    folder lacks weights, which transformers would draw at random.
    """
    name, informed = find_base(base), options.pop("output_loading_info", False)
    options |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    what = "a causal language model" if auto is AutoModelForCausalLM else "a sequence classifier"
    source: str | None = name
    with loading(name, what):
        if adapter := adapter_in(name):
            merged = _merged(adapter, options["dtype"])
            config = options.pop("config", merged.config)
            auto, source = auto._model_mapping[type(config)], None
            options |= {"config": config, "state_dict": merged.state_dict()}
        model, info = auto.from_pretrained(source, output_loading_info=True, **options)
    # A classifier's head, and the pooling before it, may be new: they have no number.
    own = auto is not AutoModelForCausalLM
    lost = {key for key in info["missing_keys"] if not own or any(p.isdigit() for p in key.split("."))}
    if lost := lost | {key for key, *_ in info["mismatched_keys"]}:
        raise UserError(
            f"{name} does not hold {min(lost)} in the shape that its config.json asks for: expected all weights"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{name} holds an adapter beside a model, or is one on the hub: expected a folder with either"
        )
    if adapter:
        model.name_or_path = model.config._name_or_path = str(adapter)
        model.generation_config = merged.generation_config
    return (model, info) if informed else model


def _merged(adapter: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base of a policy's adapter, dense, on the CPU, with the adapter folded in (4 bits would round it off)."""
    if adapter_config(adapter).task_type == TaskType.SEQ_CLS:
        raise UserError(f"{adapter} is the adapter of a reward or cost model: expected a base, or a policy")
    base = load_model(AutoModelForCausalLM, base_of(adapter), dtype=dtype, device_map={"": "cpu"})
    if is_packed(base):
        raise UserError(
            f"{adapter} cannot be merged: the weights of {base.name_or_path} are quantised, expected dense ones"
        )
    return with_adapter(base, adapter).merge_and_unload()


def adapter_config(folder: str | Path) -> Any:
    """The PEFT configuration of an adapter. Raises UserError if it cannot be read."""
    with loading(folder, "an adapter"):
        return PeftConfig.from_pretrained(str(folder))


def with_adapter(model: Any, folder: str | Path) -> Any:
    """`model` with an adapter on it. Raises UserError if it cannot be read, or does not fit."""
    with loading(folder, "an adapter"):
        return PeftModel.from_pretrained(model, str(folder))


@contextlib.contextmanager
def loading(name: str | Path, what: str) -> Iterator[None]:
    """Turn errors of loading into a UserError with one sentence, whatever the files made transformers raise; without
    its reports, and for small local models without its progress bar.
    """
    local = os.path.isdir(name)
    small = local and sum(f.stat().st_size for f in Path(name).glob("*.safetensors")) < SMALL
    bars, before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if small:
        transformers_logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU has no room for {name}: {LESS_MEMORY}") from error
    except Exception as error:
        hint = "" if local else " from the hub"
        raise UserError(f"could not load {what}{hint}, {name}: {why_not_loaded(error)}") from error
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
