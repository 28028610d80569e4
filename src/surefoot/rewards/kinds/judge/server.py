"""One server: the connection to it, and what it means when a request fails."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time

import httpx2
import openai

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.kinds.judge.config import JudgeConfig

__all__ = ["Refused", "Retriable", "connect", "failure", "retry_after"]

_RETRIED = {408, 409, 425, 429}
"""Statuses after which the same request may succeed, besides those from 500 on."""
_FATAL = {401: "it refuses the key", 402: "it wants to be paid"}
"""Statuses after which no call can succeed."""
_FATAL_AT_FIRST = {403: "it refuses access", 404: "it knows no such address or model"}
"""The same, unless another call has succeeded: some servers refuse single prompts so."""


class Retriable(Exception):
    """A try that failed for a reason that may pass.

    Args:
        reason: a few words.
        wait: seconds that the server asks to wait; 0 if it doesn't say.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class Refused(Exception):
    """A try that the server refused for what the request says; its text is the status."""


def connect(config: JudgeConfig) -> openai.AsyncOpenAI:
    """`openai`'s client, without its retries: they can't be counted and hold back no other call.

    Each request has a connection of its own. On one that is kept, a response that a proxy sends twice would be taken
    for the reply to the next request.

    Raises:
        ConfigError: the settings name a variable that holds no key.
    """
    key = os.environ.get(config.variable or "")
    if not key and config.variable is not None:
        raise ConfigError(f"the environment variable {config.variable} holds no key for {config.endpoint}; set it")
    limits = httpx2.Limits(max_connections=config.concurrency, keepalive_expiry=0)
    return openai.AsyncOpenAI(
        base_url=config.endpoint,
        api_key=key or "none",
        max_retries=0,
        timeout=None,
        http_client=openai.DefaultAioHttpClient(limits=limits, timeout=None, follow_redirects=False),
        default_headers={"Connection": "close"},
    )


def failure(
    error: openai.APIStatusError, model: str, config: JudgeConfig, *, succeeded: bool
) -> tuple[str, Exception]:
    """What the server says in a response that is none of 2xx, without the key; and what it means.

    Args:
        succeeded: another call has had a reply.

    Returns:
        The text; and `ModelError` where no call can succeed, `Retriable`, or `Refused`.
    """
    status, said = error.status_code, error.message
    if config.variable is not None:
        said = _without_key(said, error.request.headers["authorization"].removeprefix("Bearer "))
    said = said[:300]
    fatal = _FATAL.get(status) or (None if succeeded else _FATAL_AT_FIRST.get(status))
    if status == 429 and error.code == "insufficient_quota":
        fatal = "its quota is used up"
    if fatal is not None:
        variable = config.variable
        key = "no key was sent; name its variable in key_variable" if variable is None else f"key from {variable}"
        why = f"{fatal} (HTTP says: {said}; {key})"
        return said, ModelError(f"{config.endpoint} can't judge with '{model}': {why}")
    if status in _RETRIED or status >= 500:
        return said, Retriable(f"HTTP {status}", retry_after(error.response.headers) or 0.0)
    return said, Refused(f"HTTP {status}")


def _without_key(text: str, key: str) -> str:
    """Servers like to quote the key they refuse, or its ends."""
    for part in (key, key[:8], key[-4:]) if len(key) >= 16 else (key,):
        text = text.replace(part, "[key]")
    return text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or else `Retry-After` (seconds or a date) asks for; None if neither is usable."""
    milliseconds, value = _finite(headers.get("retry-after-ms")), headers.get("retry-after")
    if milliseconds is not None:
        return milliseconds / 1000
    if value is None or _finite(value) is not None:
        return _finite(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _finite(value: str | None) -> float | None:
    """A number that isn't negative, infinite or no number at all."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
