"""Text to token ids, the same in training and in scoring, for decoders and BERT-style encoders alike."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.types import Text

__all__ = ["TextEncoder", "check_rows", "encode_pairs", "prompt_keys"]


class TextEncoder:
    """Encodes a prompt with its completion as one sequence.

    Plain text is prompt + completion, then the tokenizer's own special tokens, then its eos if it has one (TRL's
    RewardTrainer does the same; ours also works where there is no eos, as in BERT). Messages go through the chat
    template. A sequence longer than `max_length` loses tokens from its left, after the leading special tokens, so
    that the completion's end, which the reward is read from, stays.

    Args:
        tokenizer: must be able to pad (its eos is taken if it has no pad token).
        max_length: in tokens.

    Raises:
        ModelError: the tokenizer has neither a pad token nor an eos token, or is given messages without a template.
        ConfigError: `max_length` isn't positive.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1 token, got {max_length}")
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ModelError(
                    f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has neither a pad token nor an "
                    "eos token, so texts can't be batched; set tokenizer.pad_token and save it again"
                )
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.max_length = max_length
        empty: list[int] = tokenizer("")["input_ids"]
        self._prefix = empty[:1] if empty and empty[0] in (tokenizer.cls_token_id, tokenizer.bos_token_id) else []
        # A BERT's [CLS] and [SEP], which chat templates leave out; a decoder's template writes what it needs itself.
        self._frame = empty if len(empty) == 2 and empty[0] == tokenizer.cls_token_id else []

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[int]]:
        """Token ids of each row, cut to `max_length`."""
        return [self.cut(ids) for ids in self.whole(prompts, completions)]

    def whole(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[int]]:
        """Token ids of each row, uncut."""
        check_rows(prompts, completions)
        if not prompts:
            return []
        if isinstance(completions[0], str):
            texts = [f"{prompt}{completion}" for prompt, completion in zip(prompts, completions, strict=True)]
            encoded: list[list[int]] = self.tokenizer(texts, verbose=False)["input_ids"]
            return [self._with_eos(ids) for ids in encoded]
        self.check_reads(completions[0])
        pairs: Any = zip(prompts, completions, strict=True)
        chats = [[*prompt, *completion] for prompt, completion in pairs]
        return [
            self._framed(self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)) for chat in chats
        ]

    def check_reads(self, text: Text) -> None:
        """Refuse a prompt or completion of a format that this tokenizer can't read.

        Raises:
            ModelError: it is messages, and there is no chat template.
        """
        if not isinstance(text, str) and self.tokenizer.chat_template is None:
            raise ModelError(
                f"tokenizer {self.tokenizer.name_or_path or type(self.tokenizer).__name__} has no chat template, so "
                "messages can't be read; give plain text (diagnose: plain_text: true), or set its chat_template"
            )

    def cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        kept = len(self._prefix) if ids[: len(self._prefix)] == self._prefix else 0
        return [*ids[:kept], *ids[kept - self.max_length :]]

    def _framed(self, ids: list[int]) -> list[int]:
        first, last = self._frame[:1], self._frame[1:]
        return [*([] if ids[:1] == first else first), *ids, *([] if ids[-1:] == last else last)]

    def _with_eos(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        closed = eos is None or (ids and ids[-1] in (eos, self.tokenizer.sep_token_id))
        return ids if closed else [*ids, eos]


def check_rows(prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Refuse batches that don't pair off.

    Raises:
        DataError: there isn't one completion for each prompt.
    """
    if len(prompts) != len(completions):
        raise DataError(
            f"got {len(prompts)} prompts and {len(completions)} completions; give one completion for each prompt, "
            "repeating a prompt that has several"
        )


def prompt_keys(prompts: Sequence[Text]) -> list[str]:
    """One string per prompt, equal for equal prompts of either format."""
    return [prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True) for prompt in prompts]


def encode_pairs(pairs: Dataset, encoder: TextEncoder, *, overlong: str = "drop") -> Dataset:
    """Preference pairs as `chosen_ids` and `rejected_ids` (and `margin`, if there), as TRL's RewardTrainer reads them.

    Args:
        pairs: `prompt`, `chosen`, `rejected`.
        overlong: "drop" leaves out pairs with a side longer than `encoder.max_length`, as TRL does, and warns with
            their number; "truncate" cuts them.

    Raises:
        DataError: every pair is too long.
    """
    sides = {side: encoder.whole(pairs["prompt"], pairs[side]) for side in ("chosen", "rejected")}
    lengths = [max(len(a), len(b)) for a, b in zip(sides["chosen"], sides["rejected"], strict=True)]
    keep = [i for i, length in enumerate(lengths) if overlong == "truncate" or length <= encoder.max_length]
    if not keep:
        raise DataError(
            f"all {len(pairs)} pairs are longer than max_length={encoder.max_length} tokens (the shortest has "
            f"{min(lengths)}); raise max_length, or set overlong: truncate"
        )
    if len(keep) < len(pairs):
        dropped = len(pairs) - len(keep)
        warnings.warn(
            f"{dropped} of {len(pairs)} pairs are longer than {encoder.max_length} tokens, left out", stacklevel=2
        )
    columns: dict[str, Any] = {f"{side}_ids": [encoder.cut(ids[i]) for i in keep] for side, ids in sides.items()}
    if "margin" in pairs.column_names:
        columns["margin"] = [pairs["margin"][i] for i in keep]
    return Dataset.from_dict(columns)
