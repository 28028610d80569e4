"""Requests and tokens per minute, with bursts of no more than a second's worth."""

from __future__ import annotations

from typing import Any

from surefoot.rewards.kinds.judge.extra import need
from surefoot.rewards.kinds.judge.messages import Call

__all__ = ["Rates"]


class _Rate:
    """So much a minute. The bucket holds one second's worth, so that a minute sees the rate and not twice it."""

    def __init__(self, per_minute: float) -> None:
        self.size = max(1.0, per_minute / 60)
        self._limiter: Any = need("aiolimiter").AsyncLimiter(self.size, 60 * self.size / per_minute)

    async def wait(self, amount: float) -> None:
        while amount > 0:
            await self._limiter.acquire(min(amount, self.size))
            amount -= self.size


class Rates:
    """The limits of one process.

    Args:
        requests, tokens: per minute; None for no limit.
    """

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._requests = None if requests is None else _Rate(requests)
        self._tokens = None if tokens is None else _Rate(tokens)

    async def wait(self, call: Call) -> None:
        """Until the call may be sent."""
        if self._requests is not None:
            await self._requests.wait(1)
        if self._tokens is not None:
            await self._tokens.wait(call.likely_tokens)
