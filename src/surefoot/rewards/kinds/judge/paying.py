"""Who pays for a call: claims against other processes, the budget, and the booking of what it cost."""

from __future__ import annotations

import asyncio

from surefoot.errors import RunError
from surefoot.rewards.kinds.judge.gate import Clock, Gate, Turn
from surefoot.rewards.kinds.judge.groups import Groups
from surefoot.rewards.kinds.judge.messages import Call, Missing, Reply
from surefoot.rewards.kinds.judge.reply_cache import Booking, Entry, ReplyCache
from surefoot.rewards.kinds.judge.tries import Tries

__all__ = ["Paying"]

_POLL_S = 0.05
"""How often a call that another process is paying for is looked up."""


class Paying:
    """Pays for one batch's calls, each once among all processes."""

    def __init__(self, gate: Gate, cache: ReplyCache, tries: Tries) -> None:
        self._gate, self._config, self._cache, self._tries = gate, gate.config, cache, tries
        self._groups, self._under_way = Groups(cache), 0
        infinite, tokens, money = float("inf"), self._config.budget_tokens, self._config.budget_money
        self._budget = (infinite if tokens is None else tokens, infinite if money is None else money)
        longest = min(self._config.timeout_s, self._config.deadline_s)
        self._claim_s = self._config.deadline_s + 2 * longest
        """A claimed call waits for its turn no longer than two tries of those before it, and then has its deadline."""

    async def outcome(self, call: Call, clock: Clock) -> Reply | Missing:
        """The call's outcome, once it is ours to make, or another process's reply."""
        tokens, money = call.prompt_tokens + call.most_said, self._price(call.prompt_tokens, call.most_said)
        while self._gate.stopped is None:
            if clock.late:
                return Missing("deadline")
            claim = self._cache.claim(call.key, self._claim_s, tokens, money, self._budget)
            if claim == "ours":
                return await self._paid(call, clock)
            if claim == "answered":
                return self._cache.replies([call.key])[call.key]
            if claim == "spent" and not self._under_way:
                self._gate.stop(self._spent())
                break
            clock.start()
            await asyncio.sleep(_POLL_S)
        return Missing("stopped")

    async def _paid(self, call: Call, clock: Clock) -> Reply | Missing:
        """Make the call, and book what came of it before anybody sees it and before its turn is over.

        So no more replies are lost with a killed process than calls may be in flight.
        """
        turn = Turn(self._gate, clock)
        self._under_way += 1
        try:
            outcome = await self._tries.outcome(call, turn)
            await self._book(call, outcome, turn)
        except BaseException:
            self._cache.release(call.key)
            raise
        finally:
            self._under_way -= 1
            turn.give()
        return outcome

    async def _book(self, call: Call, outcome: Reply | Missing, turn: Turn) -> None:
        if not turn.tries and self._gate.stopped is not None:
            self._cache.release(call.key)
            return
        reply = outcome if isinstance(outcome, Reply) else None
        used = (0, 0) if reply is None else _usage(call, reply)
        booked = "reply" if isinstance(outcome, Reply) else outcome.reason
        latency = asyncio.get_running_loop().time() - turn.first if turn.tries else 0.0
        booking = Booking(booked, turn.tries, *used, self._price(*used), latency)
        await self._groups.book(Entry(call.key, reply, booking), turn.give)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        into, out = self._config.price_input or 0.0, self._config.price_output or 0.0
        return (prompt_tokens * into + completion_tokens * out) / 1e6

    def _spent(self) -> RunError:
        tokens, money = self._config.budget_tokens, self._config.budget_money
        parts = [] if tokens is None else [f"{tokens} tokens"]
        budget = " and ".join(parts if money is None else [*parts, f"{money:g} in money"])
        return RunError(
            f"the budget of {budget} is spent: no further call was made. Replies so far are in {self._cache.path}; "
            "raise the budget and run the same again to go on"
        )


def _usage(call: Call, reply: Reply) -> tuple[int, int]:
    """(Prompt's tokens, reply's tokens), at four characters each where the server doesn't count."""
    prompt = call.prompt_tokens if reply.prompt_tokens is None else reply.prompt_tokens
    said = len(reply.content) // 4 + 1 if reply.completion_tokens is None else reply.completion_tokens
    return prompt, said
