"""Read a reply from the body of a response; ids, counts and log-probabilities beside its text may be missing."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from surefoot.rewards.kinds.judge.messages import Reply, Unreadable
from surefoot.rewards.kinds.judge.reasoning import reasoning_end

__all__ = ["read_body"]

_POSITIONS = 16
"""Tokens of an answer whose log-probabilities are kept; a bare rating is among the first."""
_MOST_TOKENS = 100_000_000
"""Token counts above this are ignored as absurd."""


def _text(content: Any) -> Any:
    """Some servers give the content as a list of parts, some of them thoughts, or null."""
    if isinstance(content, list) and all(part is None or isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part is not None and part.get("type") in _TEXT_PARTS]
        return "".join(text for text in texts if isinstance(text, str))
    return content


_TEXT_PARTS = ("text", "output_text")


def _usage(value: Any) -> Any:
    """Both token counts, or None if either is absurd; the reply counts all the same."""
    names = ("prompt_tokens", "completion_tokens")
    counts = [value.get(name) for name in names] if isinstance(value, dict) else [None]
    fine = all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts)
    return dict(zip(names, counts, strict=True)) if fine else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None if value is None else str(value)[:100]


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] | None = None


_TOKENS = TypeAdapter(list[_Token])


def _tokens(value: Any) -> list[_Token]:
    """The tokens with their probabilities; none where they have another form than OpenAI's."""
    try:
        return _TOKENS.validate_python(value["content"])
    except (ValidationError, TypeError, KeyError):
        return []


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Annotated[str | None, BeforeValidator(_word)] = None
    logprobs: Annotated[list[_Token], BeforeValidator(_tokens)] = []


class _Body(BaseModel):
    id: Annotated[str | None, BeforeValidator(_word)] = None
    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage | None, BeforeValidator(_usage)] = None


def read_body(body: bytes) -> Reply:
    """A chat completion's first choice.

    Raises:
        Unreadable: the bytes are no chat completion, as from a proxy's error page or a connection cut short; asking
            again may help.
    """
    try:
        response = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise Unreadable(f"not a chat completion ({place}: {first['type']})") from None
    choice, usage = response.choices[0], response.usage
    tokens = _answered(choice.logprobs)
    return Reply(
        content=choice.message.content or "",
        mark=f"{response.id}:{hashlib.sha256(body).hexdigest()[:12]}" if response.id else "",
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        finish=choice.finish_reason or "",
        said=[_spaced(token.token) for token in tokens],
        positions=[_alternatives(token) for token in tokens],
    )


def _answered(tokens: list[_Token]) -> list[_Token]:
    """The first tokens after the thought, which some servers list too."""
    left = reasoning_end("".join(token.token for token in tokens))
    while tokens and left > 0:
        left -= len(tokens[0].token)
        tokens = tokens[1:]
    return tokens[:_POSITIONS]


def _alternatives(token: _Token) -> list[tuple[str, float]]:
    listed = [(_spaced(other.token), other.logprob) for other in token.top_logprobs or []]
    said = (_spaced(token.token), token.logprob)
    return listed if said[0] in dict(listed) else [*listed, said]


def _spaced(token: str) -> str:
    """A token's text; some servers give the vocabulary's own signs for spaces and line ends."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
