"""From a server's bytes to a reply, and from a reply to a rating; what is doubtful is unreadable, never a guess."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from surefoot.rewards.judge.replies import Reply, Unreadable

__all__ = ["read_body", "read_distribution", "read_rating"]

_POSITIONS = 16
"""Tokens of a reply whose probabilities are kept; a bare rating is among the first."""
_LEAST_MASS = 0.5
"""Least probability on the scale's numbers; below it the judge was about to say something else."""


def _text(content: Any) -> Any:
    """Some servers give the content as a list of parts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content


def _usage(value: Any) -> Any:
    """A usage that isn't two counts is as good as none: the reply is still one."""
    names = ("prompt_tokens", "completion_tokens")
    counts = [value.get(name) for name in names] if isinstance(value, dict) else [None]
    fine = all(type(count) is int and count >= 0 for count in counts)
    return dict(zip(names, counts, strict=True)) if fine else None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Body(BaseModel):
    id: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage | None, BeforeValidator(_usage)] = None


def read_body(body: bytes) -> Reply:
    """A chat completion's first choice.

    Raises:
        Unreadable: the bytes are no chat completion, as from a proxy's error page or a connection cut short; asking
            again may help.
    """
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise Unreadable(f"not a chat completion ({place}: {first['type']})") from None
    choice, usage = found.choices[0], found.usage
    tokens = (choice.logprobs.content if choice.logprobs is not None else None) or []
    positions = [[(one.token, one.logprob) for one in token.top_logprobs] for token in tokens[:_POSITIONS]]
    for position, token in zip(positions, tokens, strict=False):
        if token.token not in dict(position):
            position.append((token.token, token.logprob))
    said = [token.token for token in tokens[:_POSITIONS]]
    return Reply(
        content=choice.message.content or "",
        mark=f"{found.id}:{hashlib.sha256(body).hexdigest()[:12]}" if found.id else "",
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        said=said,
        positions=positions,
    )


_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A\s*```\w*\s")
_NUMBER = r"([-+]?\d+(?:\.\d+)?)(?![\d]|\.\d)"
_OF = r"(?:\s*(?:/|out of)\s*(\d+))?"
_LABELLED = re.compile(rf"\b(?:rating|score|grade)\b[\s\"':=*_-]*(?:is|of)?[\s\"':=*_]*{_NUMBER}{_OF}", re.IGNORECASE)
_BARE = re.compile(rf"[\s\"'*_`]*{_NUMBER}{_OF}[\s\"'*_`.]*")
_CUT_OFF = re.compile(r"\"rating\"\s*:\s*(-?\d+(?:\.\d+)?)\s*[,}\s]")


def read_rating(content: str, lowest: int, highest: int) -> float:
    """The one rating that a reply gives.

    JSON first, anywhere in the reply and cut off at its end or not; else a labelled number ("Rating: 7/9"); else a
    reply that is a number and nothing else. Two ratings that differ are unreadable: one may be the text's own.

    Raises:
        Unreadable: no rating, several, one of the wrong type, or one off the scale (it is never moved onto it).

    >>> read_rating('Sure! {"reason": "clear", "rating": 7}', 1, 9)
    7.0
    """
    text = _FENCE.sub("", _THOUGHT.sub("", content)).strip()
    if not text:
        raise Unreadable("empty reply")
    values = {_number(value) for value in _json_ratings(text)} or _plain_ratings(text, highest)
    if len(values) != 1:
        raise Unreadable("no rating in the reply" if not values else "several ratings in the reply")
    value = values.pop()
    if not lowest <= value <= highest:
        raise Unreadable("rating off the scale")
    return value


def _plain_ratings(text: str, highest: int) -> set[float]:
    """Ratings outside whole JSON. In an object that was cut off, only a rating that ends before the cut counts."""
    if text.startswith("{"):
        return {_number(found) for found in _CUT_OFF.findall(text)}
    bare = _BARE.fullmatch(text)
    found = [bare.group(1, 2)] if bare else _LABELLED.findall(text)
    return {_of(one, highest) for one in found}


def _json_ratings(text: str) -> list[Any]:
    """Every value of a key "rating" in the JSON objects of the text; those inside JSON strings don't count."""
    found: list[Any] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(value for key, value in pairs if key.lower() == "rating")
        return dict(pairs)

    decoder, place = json.JSONDecoder(object_pairs_hook=keep), text.find("{")
    while place >= 0:
        before = len(found)
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            del found[before:]
            end = place + 1
        place = text.find("{", end)
    return found


def _number(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Unreadable("rating of a wrong type") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable("rating of a wrong type")
    return float(value)


def _of(found: tuple[str | Any, ...], highest: int) -> float:
    value, scale = found
    if scale and int(scale) != highest:
        raise Unreadable("rating on another scale")
    return float(value)


def read_distribution(reply: Reply, lowest: int, highest: int) -> tuple[float, float]:
    """Mean and variance of the rating, from the probabilities of its token.

    Args:
        lowest, highest: of one digit each, so that no rating's token begins another's.

    Raises:
        Unreadable: the server gave no probabilities, no rating was said, or less than half of the probability lies on
            the scale.
    """
    if not reply.positions:
        raise Unreadable("no log-probabilities in the reply")
    scale = {str(value) for value in range(lowest, highest + 1)}
    place = next((i for i, token in enumerate(reply.said) if token.strip() in scale), None)
    if place is None:
        raise Unreadable("no rating in the reply")
    chances = list(_chances(reply.positions[place], scale))
    mass = sum(chance for _, chance in chances)
    if mass < _LEAST_MASS:
        raise Unreadable("less than half of the probability is on the scale")
    mean = sum(value * chance for value, chance in chances) / mass
    return mean, sum((value - mean) ** 2 * chance for value, chance in chances) / mass


def _chances(position: list[tuple[str, float]], scale: set[str]) -> Iterator[tuple[int, float]]:
    for token, logprob in position:
        if token.strip() in scale and not math.isnan(logprob):
            yield int(token.strip()), math.exp(min(logprob, 0.0))
