"""Messages in one form, and the text of a prompt or completion as people and judges read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surefoot.errors import DataError

if TYPE_CHECKING:
    from surefoot.types import Message, Text

__all__ = ["CutText", "as_messages", "cut_short", "is_blank", "is_cut", "message_text", "plain_text"]

_ROLES = {"human": "user", "gpt": "assistant"}
"""Roles of the from/value layout that no chat template knows."""
_TEXT_PARTS = ("text", "input_text", "output_text")


class CutText(str):
    """Text of a completion that ended at the length limit: it isn't shown to a reward model or judge as finished.

    In messages, the content of the last one is of this type. It is lost where texts are written to a file.
    """


def cut_short(completion: Text) -> Text:
    """The completion, marked as ended by the length limit."""
    if isinstance(completion, str):
        return CutText(completion)
    return [*completion[:-1], {**completion[-1], "content": CutText(completion[-1].get("content") or "")}]


def is_cut(completion: Text) -> bool:
    """Whether the completion was marked by `cut_short`."""
    return isinstance(completion if isinstance(completion, str) else completion[-1].get("content"), CutText)


def as_messages(messages: Any) -> list[Message]:
    """Messages with `role` and `content` as text, and the other keys that have a value.

    Keys that are None are left out at any depth: Arrow puts them where another message has a value. Content parts that
    are text become one text. Messages of the from/value layout are renamed. A content of None is left out beside tool
    calls, as templates expect, and is empty text elsewhere.

    Args:
        messages: a list of messages, or one message.

    Raises:
        DataError: it is something else, a message has no role, or its content is neither text nor parts of text.
    """
    if isinstance(messages, dict):
        messages = [messages]
    if not isinstance(messages, list):
        raise DataError(f"is {type(messages).__name__}, not text or messages")
    return [_message(place, message) for place, message in enumerate(messages)]


def _message(place: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"[{place}] is {type(message).__name__}, not a message")
    held = {{"from": "role", "value": "content"}.get(key, key): value for key, value in _without_none(message).items()}
    role = held.get("role")
    if not isinstance(role, str):
        raise DataError(f"[{place}] has no role; a message has a role and a content")
    held["role"] = _ROLES.get(role, role) if "from" in message else role
    if "content" in held:
        held["content"] = _content(place, held["content"])
    elif not held.get("tool_calls"):
        held["content"] = ""
    if not _are_calls(held.get("tool_calls") or []):
        raise DataError(f"[{place}].tool_calls is not a list of calls, each with a function's name and arguments")
    return held


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function", {}), dict) for call in calls
    )


def _content(place: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"[{place}].content is {type(content).__name__}, not text or parts of text")
    return "".join(part if isinstance(part, str) else _part(place, part) for part in content if part is not None)


def _part(place: int, part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind not in _TEXT_PARTS or not isinstance(part.get("text", ""), str):
        raise DataError(f"[{place}].content has a part of type '{kind}'; only text can be read")
    text: str = part.get("text", "")  # Arrow leaves it out, or None, where another part has another key
    return text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


def message_text(message: Message) -> str:
    """A message's content, and its tool calls as a line of JSON each."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    lines = [json.dumps({key: _json(value) for key, value in call.items()}, ensure_ascii=False) for call in calls]
    content = message.get("content")
    return "\n".join([content, *lines] if content else lines)


def _json(value: Any) -> Any:
    """Arguments of a call that are given as JSON text, read."""
    try:
        return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
    except ValueError:
        return value


def plain_text(text: Text) -> str:
    """The text of a prompt or completion in either format, without roles."""
    return text if isinstance(text, str) else "\n".join(message_text(message) for message in as_messages(text))


def is_blank(text: Text | Sequence[Message]) -> bool:
    """Whether there is nothing in a text, or in the last of some messages."""
    if isinstance(text, str):
        return not text.strip()
    return not text or not message_text(text[-1]).strip()
