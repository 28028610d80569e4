"""Encode prompts and completions as token ids, for training and scoring, decoders and BERT-style encoders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from surefoot.data.messages import as_messages, is_cut
from surefoot.data.rows import read_completion
from surefoot.errors import ConfigError, DataError, ModelError, RowError
from surefoot.rewards.trunk.chat_templates import ChatReader
from surefoot.rewards.trunk.special_tokens import LiteralTokens, one_bos
from surefoot.types import Text

__all__ = ["TextEncoder", "check_rows", "encode_pairs", "prompt_keys"]


class TextEncoder:
    """Encodes a prompt with its completion as one sequence.

    Plain text is prompt + completion, then the tokenizer's own special tokens, then its eos if it has one (TRL's
    RewardTrainer does the same; ours also works where there is no eos, as in BERT). Messages go through the chat
    template. Differences from the tokenizer's own encoding:

    - Special tokens that are written inside a message or a completion are read as text. A prompt given as text may
      hold them, as templated text does; so may the end of a completion, and its bos where there is no prompt.
    - Text that begins with bos gets no second one.
    - A completion that was cut off at the length limit (`CutText`) gets neither eos nor the template's end.
    - A sequence longer than `max_length` loses tokens from its left, after the leading special tokens, so that the
      completion's end, which the reward is read from, stays. The first time is a warning.

    Args:
        tokenizer: must be able to pad (its eos is taken if it has no pad token).
        max_length: in tokens.

    Attributes:
        shortened: sequences that `max_length` has cut so far.

    Raises:
        ModelError: the tokenizer has neither a pad token nor an eos token, or is given messages without a template.
        ConfigError: `max_length` isn't positive. DataError: a row can't be read; the template refuses it, for example.
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
        self.shortened = 0
        empty: list[int] = tokenizer("")["input_ids"]
        self._prefix = empty[:1] if empty and empty[0] in (tokenizer.cls_token_id, tokenizer.bos_token_id) else []
        # A BERT's [CLS] and [SEP], which chat templates leave out; a decoder's template writes what it needs itself.
        self._frame = empty if len(empty) == 2 and empty[0] == tokenizer.cls_token_id else []
        self._literal = LiteralTokens(tokenizer)
        self._chats = ChatReader(tokenizer, self._literal)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[int]]:
        """Token ids of each row, cut to `max_length`."""
        rows = self.whole(prompts, completions)
        self._count(sum(len(ids) > self.max_length for ids in rows), len(rows))
        return [self.cut(ids) for ids in rows]

    def whole(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[int]]:
        """Token ids of each row, uncut."""
        check_rows(prompts, completions)
        rows: list[tuple[Any, Any]] = [_read(i, *row) for i, row in enumerate(zip(prompts, completions, strict=True))]
        texts = {i: self._literal.joined(*row) for i, row in enumerate(rows) if isinstance(row[0], str)}
        plain = self._literal.encode(list(texts.values()))
        ended = {i: self._ended(ids, rows[i][1]) for i, ids in zip(texts, plain, strict=True)}
        return [ended[i] if i in ended else self._framed(self._chats(i, *row)) for i, row in enumerate(rows)]

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
        """Cut token ids to `max_length` on the left, after the leading special token."""
        if len(ids) <= self.max_length:
            return ids
        kept = len(self._prefix) if ids[: len(self._prefix)] == self._prefix else 0
        return [*ids[:kept], *ids[kept - self.max_length :]]

    def _framed(self, ids: list[int]) -> list[int]:
        first, last = self._frame[:1], self._frame[1:]
        return [*([] if ids[:1] == first else first), *ids, *([] if ids[-1:] == last else last)]

    def _count(self, over: int, rows: int) -> None:
        if over and not self.shortened:
            warnings.warn(
                f"{over} of {rows} texts are longer than max_length={self.max_length} tokens: their beginning is cut "
                "off, with the prompt or part of it, and with messages their roles (this is said once)",
                stacklevel=3,
            )
        self.shortened += over

    def _ended(self, ids: list[int], completion: Text) -> list[int]:
        """Token ids with one bos, and an eos unless the text has an end already or was cut off."""
        ids, eos = one_bos(ids, self.tokenizer), self.tokenizer.eos_token_id
        closed = eos is None or (ids and ids[-1] in (eos, self.tokenizer.sep_token_id))
        return ids if closed or is_cut(completion) else [*ids, eos]


def _read(row: int, prompt: Text, completion: Text) -> tuple[Text, Text]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    try:
        return read_completion({"prompt": prompt, "completion": completion})
    except DataError as error:
        raise RowError(row, str(error)) from error


def check_rows(prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Refuse batches with different numbers of prompts and completions.

    Raises:
        DataError: there isn't one completion for each prompt.
    """
    if len(prompts) != len(completions):
        raise DataError(
            f"got {len(prompts)} prompts and {len(completions)} completions; give one completion for each prompt, "
            "repeating a prompt that has several"
        )


def prompt_keys(prompts: Sequence[Text]) -> list[str]:
    """Keys of prompts: strings that are equal for equal prompts of either format."""
    return [p if isinstance(p, str) else json.dumps(as_messages(p), sort_keys=True) for p in prompts]


def encode_pairs(pairs: Dataset, encoder: TextEncoder, *, overlong: str = "drop") -> Dataset:
    """Encode pairs as `chosen_ids` and `rejected_ids`, as TRL's RewardTrainer reads them.

    The columns `margin`, `chosen_share` and `answers` are kept where they are there.

    Args:
        pairs: `prompt`, `chosen`, `rejected`.
        overlong: "drop" leaves out pairs with a side longer than `encoder.max_length`, as TRL does, "truncate" cuts
            them; either way a warning tells their number.

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
    over = sum(length > encoder.max_length for length in lengths)
    if over:
        done = "left out" if overlong == "drop" else "cut on the left, where the prompt is"
        warnings.warn(
            f"{over} of {len(pairs)} pairs are longer than {encoder.max_length} tokens, {done}", stacklevel=2
        )
    columns: dict[str, Any] = {f"{side}_ids": [encoder.cut(ids[i]) for i in keep] for side, ids in sides.items()}
    for name in ("margin", "chosen_share", "answers"):
        if name in pairs.column_names:
            columns[name] = [pairs[name][i] for i in keep]
    return Dataset.from_dict(columns)
