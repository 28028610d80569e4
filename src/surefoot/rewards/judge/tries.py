"""One call, tried until there is a reply, or trying is no use, or the next try would come after the deadline."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.judge.bodies import read_body
from surefoot.rewards.judge.cache import ReplyCache
from surefoot.rewards.judge.endpoint import Endpoint, Refused, Trouble
from surefoot.rewards.judge.gate import Closed, Gate, Turn
from surefoot.rewards.judge.rates import Rates
from surefoot.rewards.judge.replies import Call, Missing, Reply, Unreadable

__all__ = ["Tries"]


class Tries:
    """How one batch's calls are tried.

    Args:
        model: under whose name the form of JSON that the server knows is remembered.
    """

    def __init__(self, gate: Gate, endpoint: Endpoint, rates: Rates, cache: ReplyCache, model: str) -> None:
        self._gate, self._config, self._endpoint, self._rates = gate, gate.config, endpoint, rates
        self._cache, self._fact = cache, f"structured {gate.config.endpoint} {model}"
        self._structured = cache.fact(self._fact)

    async def outcome(self, call: Call, turn: Turn) -> Reply | Missing:
        """The reply, with the turn still held; or why there is none."""
        reason = "deadline"
        for number in range(self._config.retries + 1):
            wait: float | None = None
            try:
                async with turn:
                    if number:
                        await self._rates.wait(call)
                    return await self._sent(call)
            except Closed:
                break
            except TimeoutError:
                reason = "deadline" if turn.clock.late else "timeout"
            except Trouble as trouble:
                reason, wait = trouble.reason, trouble.wait
            except Unreadable:
                reason = "not a chat completion"
            except Refused as refused:
                return Missing(refused.reason)
            except (ModelError, ConfigError) as error:
                self._gate.stop(error)
                return Missing("stopped")
            if number == self._config.retries or not await self._backed_off(turn, number, wait):
                break
        return Missing(reason if self._gate.stopped is None or turn.tries else "stopped")

    async def _backed_off(self, turn: Turn, number: int, asked: float | None) -> bool:
        """Wait before the next try; False, at once, if that would be past the deadline."""
        loop, config, end = asyncio.get_running_loop(), self._config, turn.clock.start()
        wait = random.uniform(0.5, 1.0) * min(config.backoff_limit_s, config.backoff_s * 2.0**number)
        if asked is not None:
            self._gate.resume = max(self._gate.resume, loop.time() + asked)
            wait = max(wait, asked)
        turn.give()
        if loop.time() + wait >= end:
            return False
        await asyncio.sleep(wait)
        return True

    async def _sent(self, call: Call) -> Reply:
        """One try, with the form of JSON unless the server is known to refuse it.

        As long as that isn't known, calls don't wait for one of them to find out: each that is refused goes again
        without the form. One reply in the form settles it, for what is refused later is refused for what it says.
        """
        if call.structured != "auto" or call.form is None:
            return await self._posted(call, call.form)
        if self._structured == "none":
            return await self._posted(call, None)
        try:
            reply = await self._posted(call, call.form)
        except Refused:
            if self._structured == "json_schema":
                raise
            await self._rates.wait(call)
            reply = await self._posted(call, None)
            if self._structured is None:
                self._found("none")
        else:
            if self._structured != "json_schema":
                self._found("json_schema")
        return reply

    def _found(self, form: str) -> None:
        self._structured = form
        self._cache.note(self._fact, form)

    async def _posted(self, call: Call, form: dict[str, Any] | None) -> Reply:
        body = call.body if form is None else {**call.body, "response_format": form}
        key = call.key if form is None else f"{call.key}-json"
        return read_body(await self._endpoint.post(body, key))
