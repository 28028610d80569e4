"""One call, tried until there is a reply, or trying is no use, or the next try would come after the deadline."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

from surefoot.errors import ConfigError, ModelError, RunError
from surefoot.rewards.kinds.judge.bodies import read_body
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.endpoint import Endpoint, Refused, Trouble
from surefoot.rewards.kinds.judge.gate import Closed, Gate, Turn
from surefoot.rewards.kinds.judge.messages import ALTERNATIVES, Call, Missing, Reply, Unreadable
from surefoot.rewards.kinds.judge.rates import Rates
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache

__all__ = ["Tries"]


class Tries:
    """How one batch's calls are tried.

    Args:
        model: under whose name it is remembered which form of JSON, or how many alternatives, the server knows.
    """

    def __init__(self, gate: Gate, endpoint: Endpoint, rates: Rates, cache: ReplyCache, model: str) -> None:
        self._gate, self._config, self._endpoint, self._rates = gate, gate.config, endpoint, rates
        what = "top_logprobs" if gate.config.reading == "logprobs" else "structured"
        self._cache, self._fact = cache, f"{what} {gate.config.endpoint} {model}"
        self._known = cache.fact(self._fact)

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
                if wait is not None and wait >= self._config.deadline_s:
                    self._gate.stop(self._too_long(trouble.reason, wait))
                    return Missing(reason)
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

    def _too_long(self, reason: str, wait: float) -> RunError:
        return RunError(
            f"{self._config.endpoint} answers {reason} and asks to wait {wait:.0f} s (Retry-After), longer than "
            f"deadline_s, {self._config.deadline_s:g}. Run the same again then, or raise deadline_s; replies so far "
            f"are in {self._cache.path}"
        )

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
        """One try, in the way that the server is known to take, or else in each until it takes one.

        As long as none is known, calls don't wait for one of them to find out: each that is refused goes again in the
        next way. One reply settles its way and those before it, for what is refused later is refused for what it says.
        """
        ways = _ways(call, self._config)
        names = [self._known] if self._known in ways else list(ways)
        for place, name in enumerate(names):
            try:
                reply = read_body(await self._endpoint.post({**call.body, **ways[name].changes}, ways[name].key))
            except Refused:
                if name in (names[-1], self._known):
                    raise
                await self._rates.wait(call)
            else:
                if len(ways) > 1 and (self._known is None or self._known in names[place + 1 :]):
                    self._known = name
                    self._cache.note(self._fact, name)
                return reply
        raise AssertionError("the last way gives a reply or raises")


class _Way(NamedTuple):
    """One way to put a request: what is changed in its body, and its Idempotency-Key."""

    changes: dict[str, Any]
    key: str


def _ways(call: Call, config: JudgeConfig) -> dict[str, _Way]:
    """By name: with the form of JSON and without it, or with fewer and fewer alternatives; or just one."""
    if config.reading == "logprobs" and config.top_logprobs is None:
        return {f"{most}": _Way({"top_logprobs": most}, f"{call.key}-top{most}") for most in ALTERNATIVES}
    if call.form is None:
        return {"none": _Way({}, call.key)}
    with_form = {call.structured: _Way({"response_format": call.form}, f"{call.key}-json")}
    if call.structured != "auto":
        return with_form
    return {"json_schema": with_form["auto"], "none": _Way({}, call.key)}
