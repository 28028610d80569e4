"""Prompts and completions of either format as one text, as a judge reads it: content parts and tool calls too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from surefoot.errors import DataError

if TYPE_CHECKING:
    from surefoot.types import Text

__all__ = ["shown"]


def shown(text: Text) -> str:
    """Plain text as it stands; messages one below the other, each under its role.

    Raises:
        DataError: a part of a message is no text, such as an image: a judge would rate what it can't see.

    >>> print(shown([{"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}]))
    [assistant]
    Hello.
    """
    return text if isinstance(text, str) else "\n\n".join(_message(message) for message in text)


def _message(message: Mapping[str, Any]) -> str:
    name = f" {message['name']}" if message.get("name") else ""
    parts = [_content(message.get("content")), *_calls(message)]
    return f"[{message['role']}{name}]\n" + "\n".join(part for part in parts if part)


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part) for part in ([content] if isinstance(content, Mapping) else content))


def _part(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    kind = part.get("type")
    if kind not in (None, "text", "input_text", "output_text") or not isinstance(part.get("text"), str | None):
        raise DataError(
            f"a message has a part of type '{kind}', which a judge can't be shown: it reads text. Drop such rows, or "
            "put what the part holds into words"
        )
    return part.get("text") or ""


def _calls(message: Mapping[str, Any]) -> Iterator[str]:
    """A line for each call: its name, and its arguments as JSON."""
    calls = [*(message.get("tool_calls") or []), message.get("function_call")]
    for call in calls:
        if call is not None:
            function = call.get("function") or call
            yield f"[calls {function.get('name')}] {_arguments(function.get('arguments'))}".rstrip()


def _arguments(arguments: Any) -> str:
    """JSON; keys that are None were filled in by a table whose other rows have them."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    if isinstance(arguments, Mapping):
        arguments = {name: value for name, value in arguments.items() if value is not None}
    return json.dumps(arguments, ensure_ascii=False)
