"""Tokenize messages through a chat template, and report messages that the template refuses."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from surefoot.data.messages import is_cut
from surefoot.errors import ModelError, RowError
from surefoot.rewards.trunk.special_tokens import MARK, LiteralTokens
from surefoot.types import Message

__all__ = ["ChatReader"]

_REFUSALS = (TemplateError, TypeError)
"""Exceptions of rendering: the template's own error, or an expression on a value that it didn't expect."""
_PROBE = "probe"


class ChatReader:
    """Tokenizes messages as the tokenizer's chat template writes them.

    Special tokens in their contents are text. Content is given as text, or, to a template that reads only lists of
    parts, as one part.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, literal: LiteralTokens | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self._literal = literal or LiteralTokens(tokenizer)

    def __call__(self, row: int, prompt: Any, completion: Any) -> list[int]:
        """Token ids of a prompt and completion; a completion that was cut off gets no end.

        Args:
            row: its place in the batch, for errors.

        Raises:
            RowError: the template refuses the messages. ModelError: there is no template.
        """
        chat = [self._given(message) for message in (*prompt, *completion)]
        unfinished = bool(completion) and is_cut(completion)
        try:
            return self._ids(chat, unfinished)
        except _REFUSALS as error:
            raise RowError(row, self._refusal(chat, error)) from error

    def objection(self, prompt: Any, completion: Any) -> str | None:
        """Why the template refuses the messages; None if it takes them, or there is none."""
        if self.tokenizer.chat_template is None:
            return None
        chat = [self._given(message) for message in (*prompt, *completion)]
        try:
            self.tokenizer.apply_chat_template(chat, tokenize=False)
        except _REFUSALS as error:
            return self._refusal(chat, error)
        return None

    def _refusal(self, chat: list[Message], error: Exception) -> str:
        roles = ", ".join(message["role"] for message in chat)
        return f"the chat template of {self.name} refuses these messages (of {roles}): {error}"

    def _ids(self, chat: list[Message], unfinished: bool) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"tokenizer {self.name} has no chat template, so messages can't be read; give plain text (diagnose: "
                "plain_text: true), or set its chat_template"
            )
        if MARK in json.dumps(chat, ensure_ascii=False):
            return self._literal.parts(self._rendered(chat, unfinished, tokenize=False))
        ids: list[int] = self._rendered(chat, unfinished, tokenize=True)
        return ids

    def _rendered(self, chat: list[Message], unfinished: bool, *, tokenize: bool) -> Any:
        render = self.tokenizer.apply_chat_template
        if unfinished:
            try:
                return render(chat, tokenize=tokenize, return_dict=False, continue_final_message=True)
            except ValueError:  # the template writes another text than the content, or none
                pass
        return render(chat, tokenize=tokenize, return_dict=False)

    def _given(self, message: Message) -> Message:
        """The message in the form that the template reads."""
        given: Message = self._marked({key: value for key, value in message.items() if key != "role"})
        if "content" in given and self._reads_parts_only:
            given["content"] = [{"type": "text", "text": given["content"]}]
        return {"role": message["role"], **given}

    def _marked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._marked(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._marked(part) for part in value]
        return self._literal.marked(value) if isinstance(value, str) else value

    @cached_property
    def _reads_parts_only(self) -> bool:
        return not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    def _shows(self, content: Any) -> bool:
        """Whether the template accepts this content and writes the probe."""
        try:
            return _PROBE in self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except (*_REFUSALS, ValueError):
            return False
