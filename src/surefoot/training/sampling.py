"""Completions of a causal language model, drawn with a seed of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["sample_completions"]


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[str]:
    """One completion of each prompt by plain sampling; the caller's random state is untouched.

    Args:
        model: in eval or train mode; its mode is put back.
        tokenizer: with a pad token; prompts are padded on the left.
        prompts: plain text.
        seed: equal seeds give equal completions on one machine.

    Returns:
        Decoded completions without special tokens, in the order of the prompts.
    """
    training = model.training
    model.eval()
    device = model.device
    completions: list[str] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            inputs: Any = tokenizer(
                prompts[start : start + batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                return_token_type_ids=False,
            ).to(device)
            output: Any = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            completions += tokenizer.batch_decode(new, skip_special_tokens=True)
    model.train(training)
    return completions
