"""One request to an OpenAI-compatible server: the body of its response, or what its failure means."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx2
import openai

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.kinds.judge.call_config import CallConfig

__all__ = ["Refused", "Retriable", "Server", "retry_after"]

_RETRIED = {408, 409, 425, 429}
"""Statuses after which the same request may succeed, besides those from 500 on."""
_FATAL = {401: "it refuses the key", 402: "it wants to be paid"}
"""Statuses after which no call can succeed."""
_FATAL_AT_FIRST = {403: "it refuses access", 404: "it knows no such address or model"}
"""The same, unless another call has succeeded: some servers refuse single prompts so."""
_TURNS = 6
"""Turns of the event loop for which a request is started alone: until it is built, connected and sent.

Requests that follow replies of the same moment would otherwise go through these steps together. All would be sent when
the last one is ready, be answered at the same moment, and so on (docs/judge.md has what that costs).
"""


class Retriable(Exception):
    """A request that failed for a reason that may pass.

    Args:
        reason: a few words.
        wait: seconds that the server asks to wait; 0 if it doesn't say.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class Refused(Exception):
    """A request that the server refused for what it says; its text is the status."""


class Server:
    """`openai`'s client for one judge, made when it is first needed, so that replies from the cache need no key.

    Its own retries are off: they can't be counted and hold back no other call. Each request has a connection of its
    own. On one that is kept, a response that a proxy sends twice would be taken for the reply to the next request.

    Attributes:
        refusal: what the server said when it last failed a request, without the key; for a warning, never kept.
    """

    def __init__(self, config: CallConfig, model: str) -> None:
        self.config, self.model = config, model
        self.refusal: str | None = None
        self._address = f"{config.endpoint.rstrip('/')}/chat/completions"
        self._key: str | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._succeeded = False
        self._starting = asyncio.Lock()

    async def post(self, body: dict[str, Any], idempotency_key: str) -> bytes:
        """Send a request once.

        Args:
            body: of the request.
            idempotency_key: a header; servers that know it charge once for a request that is repeated.

        Raises:
            Retriable, Refused: see there. ModelError: no request can succeed. ConfigError: as `open`.
        """
        try:
            response = await self._started(body, {"headers": {"Idempotency-Key": idempotency_key}})
        except openai.APIStatusError as error:
            raise self._failure(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError):  # also its timeouts: none is set, so it isn't one
            raise Retriable("no connection") from None
        self._succeeded = True
        return response.content

    async def _started(self, body: dict[str, Any], options: Any) -> httpx2.Response:
        """Send a request once it has been started alone (`_TURNS`), and return the response."""
        async with self._starting:
            post = self.open().post(self._address, body=body, cast_to=httpx2.Response, options=options)
            request = asyncio.ensure_future(post)
            try:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
            except BaseException:
                request.cancel()
                raise
        return await request

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def open(self) -> openai.AsyncOpenAI:
        """The client, made by the first call.

        Raises:
            ConfigError: the settings name a variable that holds no key.
        """
        if self._client is None:
            self._client = self._made()
        return self._client

    def _made(self) -> openai.AsyncOpenAI:
        config, variable = self.config, self.config.variable
        self._key = None if variable is None else os.environ.get(variable)
        if variable is not None and not self._key:
            raise ConfigError(f"the environment variable {variable} holds no key for {config.endpoint}; set it")
        limits = httpx2.Limits(max_connections=config.concurrency, keepalive_expiry=0)
        return openai.AsyncOpenAI(
            base_url=config.endpoint,
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAioHttpClient(limits=limits, timeout=None, follow_redirects=False),
            default_headers={"Connection": "close"},
        )

    def _failure(self, error: openai.APIStatusError) -> ModelError | Retriable | Refused:
        status, variable = error.status_code, self.config.variable
        self.refusal = self._without_key(error.message)[:300]
        fatal = _FATAL.get(status) or (None if self._succeeded else _FATAL_AT_FIRST.get(status))
        if status == 429 and error.code == "insufficient_quota":
            fatal = "its quota is used up"
        if fatal is not None:
            key = "no key was sent; name its variable in key_variable" if variable is None else f"key from {variable}"
            why = f"{fatal} (HTTP says: {self.refusal}; {key})"
            return ModelError(f"{self.config.endpoint} can't judge with '{self.model}': {why}")
        if status in _RETRIED or status >= 500:
            return Retriable(f"HTTP {status}", retry_after(error.response.headers) or 0.0)
        return Refused(f"HTTP {status}")

    def _without_key(self, text: str) -> str:
        """Servers like to quote the key they refuse, or its ends."""
        key = self._key
        for part in () if key is None else (key, key[:8], key[-4:]) if len(key) >= 16 else (key,):
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
