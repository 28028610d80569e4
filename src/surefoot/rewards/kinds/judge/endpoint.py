"""One try of one call: bytes to a server and bytes back, or a trouble that says whether trying again may help.

`openai`'s client carries it, over a lean transport and without building its response models, which together would
cost more than a millisecond of CPU a call (benchmarks/judge.py). Its own retries are off.
"""

from __future__ import annotations

import math
import os
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.extra import need

__all__ = ["Endpoint", "Refused", "Trouble"]

_AGAIN = {408, 409, 425, 429}
"""Statuses after which the same request may succeed, besides those from 500 on."""
_NEVER = {401: "it refuses the key", 402: "it wants to be paid"}
"""Statuses after which no call can succeed."""
_NEVER_AT_FIRST = {403: "it refuses access", 404: "it knows no such address or model"}
"""The same, unless another call has succeeded: some servers refuse single prompts so."""

_USUAL = {"security": {"bearer_auth": True}, "params": {}, "max_retries": 0, "timeout": None}
"""Options of every request; the first two are `openai`'s own, which it would else copy each time."""
_OF_THE_MACHINE = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
"""What `openai` says of this machine in headers; no judge needs them, and each costs CPU."""


class Trouble(Exception):
    """A try that failed and may be repeated.

    Args:
        reason: a few words.
        wait: seconds that the server asks to wait, or None.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class Refused(Exception):
    """A try that the server refused for what it says; repeating it is no use.

    Args:
        status: of HTTP.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.reason = f"HTTP {status}"


class Endpoint:
    """A server, with the key from the environment in its client and nowhere else; use it as a context.

    Args:
        model: in errors.

    It is opened by the first request, so that replies from the cache need no key.
    """

    def __init__(self, config: JudgeConfig, model: str) -> None:
        self.config, self._model = config, model
        self._openai, self._httpx = need("openai"), need("httpx2")
        self._key: str | None = None
        self._client: Any = None
        self._heard = False
        self._address = f"{config.endpoint.rstrip('/')}/chat/completions"
        self.said: str | None = None
        """What the server said when it last refused a request; for a warning, never kept."""

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    def _open(self) -> Any:
        need("aiohttp")
        from surefoot.rewards.kinds.judge.transport import Client

        self._key = _key(self.config)
        client = Client(self.config.endpoint, self.config.concurrency)
        found = self._openai.AsyncOpenAI(
            base_url=self.config.endpoint,
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,
            http_client=client,
            default_headers={f"X-Stainless-{name}": self._openai.Omit() for name in _OF_THE_MACHINE},
        )
        found._platform = self._openai._base_client.get_platform()  # else every first request asks, in threads
        return found

    async def post(self, body: dict[str, Any], key: str) -> bytes:
        """Send a request once.

        Args:
            key: sent as Idempotency-Key, so that a server that knows it charges once for a repeated call.

        Raises:
            Trouble, Refused: see there. ModelError: no call can succeed. ConfigError: the variable that the settings
                name isn't set, or the extra isn't installed.
        """
        if self._client is None:
            self._client = self._open()
        options = {"headers": {"Idempotency-Key": key}, "idempotency_key": key, **_USUAL}
        try:
            response = await self._client.post(self._address, cast_to=self._httpx.Response, body=body, options=options)
            content: bytes = response.content
        except self._openai.APIStatusError as error:
            raise self._read_status(error) from None
        except self._openai.APITimeoutError:
            raise Trouble("timeout") from None
        except (self._openai.APIConnectionError, self._httpx.HTTPError):
            raise Trouble("no connection") from None
        self._heard = True
        return content

    def _read_status(self, error: Any) -> Exception:
        status: int = error.status_code
        self.said = self._without_key(str(error.message))[:300]
        fatal = _NEVER.get(status) or (None if self._heard else _NEVER_AT_FIRST.get(status))
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            fatal = "its quota is used up"
        if fatal is not None:
            return ModelError(f"{self.config.endpoint} can't judge with '{self._model}': {fatal} ({self._advice()})")
        if status in _AGAIN or status >= 500:
            return Trouble(f"HTTP {status}", retry_after(error.response.headers))
        return Refused(status)

    def _advice(self) -> str:
        variable = self.config.variable
        key = "no key was sent; name its variable in key_variable" if variable is None else f"key from {variable}"
        return f"HTTP says: {self.said}; {key}"

    def _without_key(self, text: str) -> str:
        """Servers like to quote the key they refuse."""
        if self._key is None:
            return text
        ends = (self._key, self._key[:8], self._key[-4:]) if len(self._key) >= 16 else (self._key,)
        for part in ends:
            text = text.replace(part, "[key]")
        return text


def _key(config: JudgeConfig) -> str | None:
    variable = config.variable
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"the environment variable {variable} holds no key for {config.endpoint}; set it")
    return key


def retry_after(headers: Any) -> float | None:
    """Seconds that `retry-after-ms` or else `Retry-After` (seconds or a date) asks for; None if neither is usable."""
    milliseconds = _finite(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _finite(value)
    if value is None or seconds is not None:
        return seconds
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
