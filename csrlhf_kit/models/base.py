"""One frozen base and its tokenizer, with one dtype policy.

Every model in the kit is loaded here: on a CPU or a GPU, dense or in NF4 (QLoRA, Dettmers et al. 2023,
arXiv 2305.14314), from a folder or from the hub, and never with remote code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from csrlhf_kit.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Quantization = Literal["none", "nf4"]
SMALL = 200 * 2**20  # bytes of weights


def load_tokenizer(path: str | Path) -> Any:
    """Tokenizer of `path` (folder or hub id), padding on the left, with a pad token.

    Left padding is what generation needs; a tokenizer without a pad token gets its EOS token as padding,
    which is safe here because no mask in the kit is derived from token ids.

    Raises UserError where the tokenizer cannot be loaded or has no EOS token (an episode could never end).
    """
    tokenizer = _load(AutoTokenizer, path, "a tokenizer", padding_side="left")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path} has no EOS token: expected one, since an answer ends with it"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    path: str | Path,
    *,
    dtype: str = "float32",
    quantization: Quantization = "none",
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Frozen causal language model of `path` (folder or hub id), in evaluation mode.

    dtype: "float32", "bfloat16" or "float16": the dtype of the dense weights, and of the arithmetic of NF4
    ones.
    quantization: "none", or "nf4" for 4-bit weights with double-quantised scales (bitsandbytes).
    device: where it goes; by default the first GPU, else the CPU.

    Raises UserError for an unknown dtype or quantization, a missing path, an unreachable hub or a missing
    library.
    """
    options = load_options(dtype=dtype, quantization=quantization, device=device)
    model = _load(AutoModelForCausalLM, path, "a causal language model", **options)
    # A base may ship top_p, top_k or a repetition penalty: they would bend the policy's distribution unseen.
    model.generation_config = GenerationConfig()
    return freeze(model)


def load_options(
    *, dtype: str = "float32", quantization: Quantization = "none", device: str | torch.device | None = None
) -> dict[str, Any]:
    """`from_pretrained` arguments of the kit's dtype policy (the same for causal LMs and sequence
    classifiers).
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if quantization not in ("none", "nf4"):
        raise UserError(f"unknown quantization {quantization!r}: expected 'none' or 'nf4'")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "device_map": {"": device}}
    if quantization == "nf4":
        options["quantization_config"] = _nf4(DTYPES[dtype])
    return options


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode, no gradients, and 4-bit layers that stay as they are.

    On a CPU with AVX512-BF16, bitsandbytes repacks a `Linear4bit` in place during the first forward without
    gradients; a later training forward then gives zero gradients below it. PPO alternates the two, so the
    repacking is switched off.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False).eval()


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


def _load(auto: Any, path: str | Path, what: str, **options: Any) -> Any:
    """`auto.from_pretrained(path)`, with the reasons for failure told in one sentence."""
    name = str(path)
    local = Path(name).expanduser()
    looks_local = local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not local.is_dir():
        raise UserError(f"{name} is not a folder: expected {what} saved by `save_pretrained`, or a hub id")
    if local.is_dir() and not (local / "config.json").is_file() and not (local / "tokenizer.json").is_file():
        raise UserError(f"{name} holds no config.json: expected {what} saved by `save_pretrained`")
    small = local.is_dir() and sum(f.stat().st_size for f in local.glob("*.safetensors")) < SMALL
    bars = transformers_logging.is_progress_bar_enabled()
    if small:  # loading takes less time than reading the bar
        transformers_logging.disable_progress_bar()
    try:
        return auto.from_pretrained(
            str(local) if local.is_dir() else name, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = (
            ""
            if local.is_dir()
            else " (a hub id needs the network, or a filled cache; a folder needs neither)"
        )
        raise UserError(f"could not load {what} from {name}{hint}: {reason}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
