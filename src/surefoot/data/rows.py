"""Read one row of preference, completion or prompt data, in any layout, as prompt and completions.

A layout is read as TRL's `maybe_extract_prompt` reads it; where TRL would lose a prompt or give it twice, the field's
meaning is taken:

| prompt | sides | is read as |
|---|---|---|
| text | text | as it is |
| messages | messages | as it is, but a prompt that both sides repeat is taken off them |
| none, or text | whole conversations | the prompt is the messages that the sides share |
| none | text | the prompt is the text that the sides share |
| text | replies as messages | the prompt is one message of the user |
| messages | text | each side is one message of the assistant |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import extract_prompt

from surefoot.data.messages import as_messages, is_blank
from surefoot.errors import DataError
from surefoot.types import Text

__all__ = ["read_completion", "read_pair", "read_prompt"]

_SIDES = ("chosen", "rejected")


def read_pair(row: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    """Read a pair as (prompt, chosen, rejected), all text or all messages.

    Args:
        row: `chosen`, `rejected`, and perhaps `prompt`.

    Raises:
        DataError: a value is None, empty or unreadable, or the sides differ in format.
    """
    prompt = _read(row, "prompt") if "prompt" in row else None
    chosen, rejected = (_read(row, side) for side in _SIDES)
    for side, value in zip(_SIDES, (chosen, rejected), strict=True):
        if is_blank(value):
            raise DataError(f"{side} is empty")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"chosen is {type(chosen).__name__}, but rejected is {type(rejected).__name__}")
    parts = _apart(prompt, chosen, rejected)
    for side, value in zip(_SIDES, parts[1:], strict=True):
        if is_blank(value):
            raise DataError(f"{side} is empty after the prompt that it shares with the other side")
    return parts


def read_completion(row: Mapping[str, Any]) -> tuple[Text, Text]:
    """Read a completion as (prompt, completion), both text or both messages.

    A whole conversation is split after the user's last message.

    Args:
        row: `completion` (it may be empty) and `prompt`.

    Raises:
        DataError: a value is None or unreadable, or a conversation holds no reply.
    """
    prompt, completion = _read(row, "prompt"), _read(row, "completion")
    if isinstance(completion, str):
        return (prompt, completion) if isinstance(prompt, str) else (prompt, _said("assistant", completion))
    if isinstance(prompt, list) and prompt:
        return prompt, _after(prompt, completion)
    if not completion or completion[0]["role"] in ("assistant", "tool"):
        return (_said("user", prompt) if prompt else []), completion
    parted = 1 + max(place for place, message in enumerate(completion) if message["role"] not in ("assistant", "tool"))
    if parted == len(completion):
        raise DataError("completion is a conversation that ends without a reply")
    return completion[:parted], completion[parted:]


def read_prompt(row: Mapping[str, Any]) -> Text:
    """Read a row's prompt, as `read_pair` or `read_completion` does where the row has sides or a completion.

    Raises:
        DataError: as those.
    """
    beside = [row[name] for name in (*_SIDES, "completion") if row.get(name) is not None]
    if "prompt" in row and (row["prompt"] is None or not isinstance(row["prompt"], str)):
        return _read(row, "prompt")
    if "prompt" in row and all(isinstance(value, str) for value in beside):
        return _read(row, "prompt")
    return read_pair(row)[0] if set(_SIDES) <= set(row) else read_completion(row)[0]


def _read(row: Mapping[str, Any], name: str) -> Text:
    value = row[name]
    if value is None:
        raise DataError(f"{name} is None")
    if isinstance(value, str):
        return value
    try:
        return as_messages(value)
    except DataError as error:
        raise DataError(f"{name}{'' if str(error).startswith('[') else ' '}{error}") from None


def _apart(prompt: Text | None, chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    if isinstance(prompt, list) and prompt:
        if isinstance(chosen, str):
            return prompt, _said("assistant", chosen), _said("assistant", rejected)
        if chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
            return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
        return prompt, chosen, rejected
    if isinstance(prompt, str) and isinstance(chosen, str):
        return prompt, chosen, rejected
    if isinstance(prompt, str) and prompt and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return _said("user", prompt), chosen, rejected
    return _shared(chosen, rejected)


def _shared(chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    """(shared prompt, rest of chosen, rest of rejected), by TRL's `extract_prompt`."""
    if chosen == rejected:
        raise DataError("chosen and rejected are the same, so that no prompt can be told from them")
    if chosen[0] != rejected[0]:  # TRL looks at the last character then
        return chosen[:0], chosen, rejected
    apart: Any = extract_prompt({"chosen": chosen, "rejected": rejected})
    return apart["prompt"], apart["chosen"], apart["rejected"]


def _after(prompt: Any, completion: Any) -> Text:
    """The completion without the prompt, if it begins by repeating it."""
    repeats = len(completion) > len(prompt) and completion[: len(prompt)] == prompt
    return completion[len(prompt) :] if repeats else completion


def _said(role: str, text: Any) -> Text:
    return [{"role": role, "content": text}]
