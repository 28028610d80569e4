"""Tokenize special tokens that are written inside a text as text, so that "</s>" in a completion doesn't end it."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.data.messages import is_cut

__all__ = ["LiteralTokens", "one_bos", "without_bos"]

MARK = "\ufdd0"
"""Put after the first character of a special token that is to be read as text, so that templates and tokenizers don't
recognise it. It is a Unicode noncharacter, which no text may hold, and is removed before anything is tokenized."""


class LiteralTokens:
    """Tokenizes text in which marked special tokens are text.

    Text without a mark is tokenized by the tokenizer's own call. Otherwise the stretch between the special tokens
    before and after a marked one is tokenized with special tokens split up, which gives what the tokenizer gives if it
    knows none (but for a space that some tokenizers put before each text).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        held: dict[int, Any] = tokenizer.added_tokens_decoder
        names = {token.content for token in held.values() if token.special} | set(tokenizer.all_special_tokens)
        words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if len(name) > 1)
        self._special = re.compile(f"({words})") if words else re.compile("(?!)")
        self._end = re.compile(rf"(?:{words}|\s)*\Z") if words else re.compile(r"\Z")
        self._before, self._after = _ends(tokenizer)

    def marked(self, text: str) -> str:
        """Mark the special tokens of a text as text."""
        return self._special.sub(lambda match: f"{match[0][0]}{MARK}{match[0][1:]}", text)

    def joined(self, prompt: str, completion: str) -> str:
        """Join prompt and completion; special tokens stay special in the prompt and at the completion's end."""
        if not self._special.search(completion):
            return prompt + completion
        bos = self.tokenizer.bos_token
        start = len(bos) if bos and not prompt and completion.startswith(bos) else 0
        end = len(completion) if is_cut(completion) else self._end.search(completion, start).start()  # type: ignore[union-attr]
        return prompt + completion[:start] + self.marked(completion[start:end]) + completion[end:]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of plain texts, with the special tokens that the tokenizer puts around them."""
        plain = [text for text in texts if MARK not in text]
        ids = iter(self.tokenizer(plain, verbose=False)["input_ids"] if plain else [])
        return [[*self._before, *self.parts(text), *self._after] if MARK in text else next(ids) for text in texts]

    def parts(self, text: str) -> list[int]:
        """Token ids of a marked text, without special tokens around it."""
        ids: list[int] = []
        for literal, pieces in groupby(self._special.split(text), key=lambda piece: MARK in piece):
            part = "".join(pieces)
            ids += self._as_text(part) if literal else self._ids(part, split=False)
        return ids

    def _as_text(self, marked: str) -> list[int]:
        ids = self._ids(marked.replace(MARK, ""), split=True)
        written = self._special.findall(marked.replace(MARK, ""))
        if not set(ids) & set(self.tokenizer.convert_tokens_to_ids(written)):
            return ids
        # The vocabulary itself has the token as well (Unigram's does), so it is tokenized in two parts.
        return [token for piece in marked.split(MARK) for token in self._ids(piece, split=True)]

    def _ids(self, text: str, *, split: bool) -> list[int]:
        encoding: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)
        ids: list[int] = encoding["input_ids"]
        return ids


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids that the tokenizer puts before and after a text."""
    alone, whole = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    before = next(i for i in range(len(whole) + 1) if whole[i : i + len(alone)] == alone)
    return whole[:before], whole[before + len(alone) :]


def one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Remove a second bos at the beginning, which the tokenizer adds to text that begins with bos."""
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Remove the bos that a text begins with, if the tokenizer puts one before every text."""
    adds = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(str(tokenizer.bos_token)) if adds else text
