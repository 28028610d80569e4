"""Sample completions of a causal language model with a seed of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from surefoot.data.messages import cut_short
from surefoot.rewards.trunk.loading import choose_device
from surefoot.rewards.trunk.special_tokens import one_bos
from surefoot.types import Text

__all__ = ["as_completions", "end_tokens", "load_policy", "mark_cut", "prompt_ids", "sample_completions"]


def load_policy(name: str, device: torch.device | None = None) -> Any:
    """Load a causal language model to sample from, in eval mode and in the precision of its file.

    Args:
        device: the first accelerator if None, else the CPU where there is none.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    return model.to(choose_device(device)).eval()


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[Text]:
    """Sample one completion of each prompt; the caller's random state is not changed.

    Args:
        model: in eval or train mode; its mode is put back.
        tokenizer: with a pad token, and a chat template if prompts are messages; prompts are padded on the left.
        prompts: text or messages.
        seed: equal seeds give equal completions on one machine.

    Returns:
        Completions in the prompts' formats and order, without special tokens; marked (`CutText`) where
        `max_new_tokens` cut them off.
    """
    training = model.training
    model.eval()
    device = model.device
    completions: list[Text] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            ids = [prompt_ids(tokenizer, prompt) for prompt in some]
            inputs: Any = tokenizer.pad({"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt")
            output: Any = model.generate(
                **{name: inputs[name].to(device) for name in ("input_ids", "attention_mask")},
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            completions += as_completions(tokenizer, some, new, end_tokens(model, tokenizer))
    model.train(training)
    return completions


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids of a prompt as TRL's trainers read it, with one bos; a last message of the assistant is continued."""
    if isinstance(prompt, str):
        return one_bos(list(tokenizer(prompt)["input_ids"]), tokenizer)
    unfinished = prompt[-1]["role"] == "assistant"
    return list(
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=not unfinished, continue_final_message=unfinished, return_dict=False
        )
    )


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion of this model."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return [token for token in {*listed, tokenizer.eos_token_id} if token is not None]


def as_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], new: Int[Tensor, "rows steps"], ends: list[int]
) -> list[Text]:
    """Decode generated tokens to completions in their prompts' formats; mark those without an end as cut off."""
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    completions: list[Text] = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return mark_cut(completions, (~torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1)).tolist())


def mark_cut(completions: Sequence[Text], cut: Sequence[bool]) -> list[Text]:
    """Mark those of the completions that were cut off."""
    return [cut_short(text) if short else text for text, short in zip(completions, cut, strict=True)]
