"""Train the offline world's reference policy, a small Llama, and save it as an ordinary model directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surefoot.data.world.language import STYLES, all_prompts, complete, vocabulary

__all__ = ["build_tokenizer", "train_reference"]

_PAD, _EOS, _UNKNOWN = "<pad>", "<eos>", "<unk>"
_STEPS, _BATCH, _RATE = 500, 64, 3e-3
_EMBEDDING_SPREAD = 0.5


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, split at spaces."""
    words = [_PAD, _EOS, _UNKNOWN, *vocabulary()]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=_UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=_PAD,
        eos_token=_EOS,
        unk_token=_UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def train_reference(folder: Path, seed: int) -> None:
    """Train and save the model and its tokenizer; about twenty seconds on one core."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(tokenizer))
        # Words of one list are used alike, so training alone would give them one embedding. In a real language they
        # differ in meaning: here each keeps a random direction of its own, which reward models can read.
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=_EMBEDDING_SPREAD)
        _train(model, tokenizer, np.random.default_rng(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS, pct_start=0.1)
    prompts = all_prompts()
    for _ in range(_STEPS):
        texts = []
        for _ in range(_BATCH):
            prompt, topic, thing = prompts[rng.integers(len(prompts))]
            texts.append(prompt + complete(topic, thing, STYLES[rng.integers(len(STYLES))], rng) + f" {_EOS}")
        ids = torch.tensor(tokenizer(texts, padding=True, padding_side="right")["input_ids"])
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
