"""`csrlhf make-base`: train the tiny base (Qwen2's architecture, its own tokenizer) from scratch on the toy world."""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.outputs import check_model_folder, replace_folder
from csrlhf_kit.recipes.options import BaseConfig
from csrlhf_kit.world import corpus

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE on `texts`: whole words for the world, bytes for anything else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[USER, ASSISTANT], model_max_length=256, padding_side="left",
    )  # fmt: skip


def make_base(config: BaseConfig) -> Path:
    """Train the tiny base and save it; returns its folder."""
    out = config.out or data_folder() / "tiny_base"
    check_model_folder(out, marks=("config.json",))
    if config.hidden_size % 8:  # four heads, in each of which numbers turn in pairs
        raise UserError(f"hidden_size is {config.hidden_size}: expected a multiple of 8")
    torch.manual_seed(config.seed)
    documents = list(islice(corpus.documents(config.seed, config.reading), config.reading + config.chatting))
    tokenizer = make_tokenizer([f"{d.given}\n{d.text}" for d in documents[-40_000:]], config.vocabulary)
    questions = [f"{USER}{d.given}{ASSISTANT}" if d.chat else d.given for d in documents]
    starts = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    texts = [f"{q}{d.text}{END}" for q, d in zip(questions, documents, strict=True)]
    encoded = list(zip(starts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=config.hidden_size, intermediate_size=config.hidden_size * 3,
            num_hidden_layers=config.layers, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
            max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None, attention_dropout=0.0, initializer_range=0.06,
        )
    )  # fmt: skip
    # Batches hold documents of similar length, so that there is little padding.
    generator = torch.Generator().manual_seed(config.seed)
    # Sorting within windows of 50 batches keeps the curriculum's order.
    window = config.batch_size * 50
    batches = []
    for start in range(0, len(encoded), window):
        block = sorted(encoded[start : start + window], key=lambda row: len(row[1]))
        groups = [block[i : i + config.batch_size] for i in range(0, len(block), config.batch_size)]
        batches += [groups[i] for i in torch.randperm(len(groups), generator=generator)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 100, 0.5 * (1 + math.cos(math.pi * i / len(batches))))
    )
    model.train()
    started, bar = time.time(), tqdm(batches, desc="tiny base", unit="step")
    for group in bar:
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for _, row in group], batch_first=True, padding_value=tokenizer.pad_token_id
        )  # (batch, length)
        mask = ids != tokenizer.pad_token_id
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        # Answers and prose have a loss; the users' requests have none.
        asked = torch.arange(1, ids.shape[1]) < torch.tensor([[start] for start, _ in group])
        targets = ids[:, 1:].masked_fill(~mask[:, 1:] | asked, -100)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {time.time() - started:.0f} s")
    replace_folder(out, lambda folder: (model.save_pretrained(folder), tokenizer.save_pretrained(folder)))
    return out
