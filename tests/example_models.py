"""Models that tests of several rooms share: random, tiny, written to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

PROMPTS = ["how do i open the lock", "feed the dog", "kill the rumour please", "the [SEP] fence", "a"]
RESPONSES = ["sorry , i can not", "sure , take a small tool and turn it slowly", "sure", "no", "yes yes"]


def build_bert(folder: Path, kind: str = "bert") -> Path:
    """A random encoder (two layers, 32 wide) with a word-piece tokenizer of a few words."""
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        DistilBertConfig,
        DistilBertModel,
    )

    words = sorted({word for text in PROMPTS + RESPONSES for word in text.lower().split() if word.isalpha()})
    letters = [*"abcdefghijklmnopqrstuvwxyz,.?[]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words]))
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "bert":
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
        )
        BertModel(config).save_pretrained(folder)
    else:
        config = DistilBertConfig(
            vocab_size=len(vocabulary),
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=128,
        )
        DistilBertModel(config).save_pretrained(folder)
    return folder
