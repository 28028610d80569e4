"""Calls of many completions at once: concurrency, rates, retries, deadlines and the budget; every call has an outcome.

`ask` opens the cache and the connections, and closes them when every call is answered or given up, so nothing lives
between two batches, and a process may fork. A stop (budget, refused key) lets calls in flight finish and starts no
more.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from surefoot.errors import ModelError, RunError, SurefootError
from surefoot.rewards.judge.cache import Booking, ReplyCache, default_path
from surefoot.rewards.judge.config import JudgeConfig
from surefoot.rewards.judge.endpoint import Endpoint, Refused, Trouble
from surefoot.rewards.judge.parsing import read_body
from surefoot.rewards.judge.rates import Rates
from surefoot.rewards.judge.replies import Call, Missing, Reply, Unreadable

__all__ = ["Answers", "ask"]

_POLL_S = 0.05
"""How often a call that another process is paying for is looked up."""

Outcome = Reply | Missing


@dataclass
class Answers:
    """What came of a batch.

    Args:
        outcomes: of each completion's calls, in order.
        refusal: what the server said when it last refused a request.
    """

    outcomes: list[list[Outcome]]
    refusal: str | None = None


def ask(model: str, config: JudgeConfig, completions: Sequence[Sequence[Call]]) -> Answers:
    """Answer every call: from the cache, or from the server.

    Args:
        completions: the calls of each completion; calls with equal keys are made once.

    Raises:
        RunError: the budget is spent; what was answered before is in the cache.
        ModelError: the server refuses the key or the model. ConfigError: there is no key.
    """
    return _run(_ask(model, config, completions))


def _run(coroutine: Any) -> Any:
    """Run to the end, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((asyncio.run(coroutine), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work, name="surefoot-judge")
    thread.start()
    thread.join()
    result, error = found[0]
    if error is not None:
        raise error
    return result


async def _ask(model: str, config: JudgeConfig, completions: Sequence[Sequence[Call]]) -> Answers:
    cache = ReplyCache(config.cache or default_path(), config.account(model))
    try:
        known = cache.replies(call.key for calls in completions for call in calls)
        if all(call.key in known for calls in completions for call in calls):
            return Answers([[known[call.key] for call in calls] for calls in completions])
        async with Endpoint(config, model) as endpoint:
            batch = _Batch(config, cache, endpoint, model, dict(known))
            return Answers(await batch.all(completions), endpoint.said)
    finally:
        cache.close()


@dataclass
class _Clock:
    """A completion's deadline, which runs from its first call's start."""

    seconds: float
    end: float | None = None

    def start(self) -> float:
        if self.end is None:
            self.end = asyncio.get_running_loop().time() + self.seconds
        return self.end


@dataclass
class _Batch:
    """The state of one `ask`."""

    config: JudgeConfig
    cache: ReplyCache
    endpoint: Endpoint
    model: str
    known: dict[str, Outcome]
    stopped: SurefootError | None = None
    in_flight: int = 0
    resume: float = 0.0
    """When the server may be asked again, after a Retry-After."""
    pending: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.config.concurrency)
        self.rates = Rates(self.config.requests_per_minute, self.config.tokens_per_minute)
        self.probing = asyncio.Lock()
        self.fact = f"structured {self.config.endpoint} {self.model}"
        self.structured = self.cache.fact(self.fact)
        infinite = float("inf")
        tokens, money = self.config.budget_tokens, self.config.budget_money
        self.budget = (infinite if tokens is None else tokens, infinite if money is None else money)

    async def all(self, completions: Sequence[Sequence[Call]]) -> list[list[Outcome]]:
        """Outcomes of all calls; as many completions are under way as calls may be in flight."""
        found: list[list[Outcome]] = [[] for _ in completions]
        places = iter(range(len(completions)))

        async def work(places: Iterator[int]) -> None:
            for place in places:
                found[place] = await self.completion(completions[place])

        await asyncio.gather(*(work(places) for _ in range(min(self.config.concurrency, len(completions)))))
        if self.stopped is not None:
            raise self.stopped
        return found

    async def completion(self, calls: Sequence[Call]) -> list[Outcome]:
        """Outcomes of one completion's calls; those that another completion is making are awaited."""
        clock = _Clock(self.config.deadline_s)
        own = {call.key: call for call in calls if call.key not in self.known and call.key not in self.pending}
        theirs = {key: self.pending[key] for key in (call.key for call in calls) if key in self.pending}
        for key in own:
            self.pending[key] = asyncio.get_running_loop().create_future()
        try:
            for call in own.values():  # before the clock starts: our own limits are not the server's delay
                await self.rates.wait(call)
            if len(own) == 1:
                await self._resolve(next(iter(own.values())), clock)
            elif own:
                await asyncio.gather(*(self._resolve(call, clock) for call in own.values()))
        finally:
            for key in own:
                future = self.pending.pop(key)
                if not future.done():
                    future.set_result(Missing("interrupted"))
        for key, future in theirs.items():
            self.known.setdefault(key, await future)
        return [self.known[call.key] for call in calls]

    async def _resolve(self, call: Call, clock: _Clock) -> None:
        async with self.slots:
            outcome = await self._claimed(call, clock.start())
        self.known[call.key] = outcome
        self.pending[call.key].set_result(outcome)

    async def _claimed(self, call: Call, end: float) -> Outcome:
        """The call's outcome, once it is ours to make, or another process's reply."""
        loop, price = asyncio.get_running_loop(), self._price
        most = price(call.prompt_tokens, call.most_said)
        while self.stopped is None:
            left = end - loop.time()
            if left <= 0:
                return Missing("deadline")
            claim = self.cache.claim(call.key, left, call.prompt_tokens + call.most_said, most, self.budget)
            if claim == "ours":
                return await self._paid(call, end)
            if claim == "answered":
                return self.cache.replies([call.key])[call.key]
            if claim == "spent" and not self.in_flight:
                self.stopped = RunError(
                    f"the budget of {self._budget_text()} is spent: no further call was made. Replies so far are in "
                    f"{self.cache.path}; raise the budget and run the same again to go on"
                )
                break
            await asyncio.sleep(_POLL_S)
        return Missing("stopped")

    def _budget_text(self) -> str:
        tokens, money = self.config.budget_tokens, self.config.budget_money
        parts = [] if tokens is None else [f"{tokens} tokens"]
        return " and ".join(parts if money is None else [*parts, f"{money:g} in money"])

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        into, out = self.config.price_input or 0.0, self.config.price_output or 0.0
        return (prompt_tokens * into + completion_tokens * out) / 1e6

    async def _paid(self, call: Call, end: float) -> Outcome:
        """Make the call, and book what came of it before anybody sees it."""
        loop = asyncio.get_running_loop()
        start, tries = loop.time(), [0]
        self.in_flight += 1
        try:
            outcome = await self._tried(call, end, tries)
        except BaseException:
            self.cache.release(call.key)
            raise
        finally:
            self.in_flight -= 1
        reply = outcome if isinstance(outcome, Reply) else None
        used = (0, 0) if reply is None else self._usage(call, reply)
        booked = "reply" if isinstance(outcome, Reply) else outcome.reason
        self.cache.settle(call.key, reply, Booking(booked, tries[0], *used, self._price(*used), loop.time() - start))
        return outcome

    @staticmethod
    def _usage(call: Call, reply: Reply) -> tuple[int, int]:
        prompt = call.prompt_tokens if reply.prompt_tokens is None else reply.prompt_tokens
        said = len(reply.content) // 4 + 1 if reply.completion_tokens is None else reply.completion_tokens
        return prompt, said

    async def _tried(self, call: Call, end: float, tries: list[int]) -> Outcome:
        """Try until there is a reply, or trying is no use, or the next try would come after the deadline."""
        loop, reason = asyncio.get_running_loop(), "deadline"
        for number in range(self.config.retries + 1):
            pause = self.resume - loop.time()
            if loop.time() + max(pause, 0.0) >= end or self.stopped is not None:
                break
            if pause > 0:
                await asyncio.sleep(pause + random.uniform(0, min(self.config.backoff_s, end - self.resume)))
            tries[0] += 1
            wait: float | None = None
            try:
                async with asyncio.timeout_at(min(loop.time() + self.config.timeout_s, end)):
                    if number:
                        await self.rates.wait(call)
                    return await self._sent(call)
            except TimeoutError:
                reason = "deadline" if loop.time() >= end else "timeout"
            except Trouble as trouble:
                reason, wait = trouble.reason, trouble.wait
            except Unreadable:
                reason = "not a chat completion"
            except Refused as refused:
                return Missing(refused.reason)
            except ModelError as error:
                self.stopped = self.stopped or error
                return Missing("stopped")
            if number < self.config.retries and not await self._backed_off(number, wait, end):
                break
        return Missing(reason)

    async def _backed_off(self, number: int, asked: float | None, end: float) -> bool:
        """Wait before the next try; False, at once, if that would be past the deadline."""
        loop = asyncio.get_running_loop()
        longest = min(self.config.backoff_limit_s, self.config.backoff_s * 2.0**number)
        wait = random.uniform(0.5, 1.0) * longest
        if asked is not None:
            self.resume = max(self.resume, loop.time() + asked)
            wait = max(wait, asked)
        if loop.time() + wait >= end:
            return False
        await asyncio.sleep(wait)
        return True

    async def _sent(self, call: Call) -> Reply:
        """One try, with the form of JSON that the server knows; the first call of all finds out which that is."""
        if call.structured != "auto" or call.form is None:
            return await self._posted(call, call.form)
        if self.structured is None:
            async with self.probing:
                if self.structured is None:
                    return await self._probed(call)
        return await self._posted(call, call.form if self.structured == "json_schema" else None)

    async def _probed(self, call: Call) -> Reply:
        try:
            reply, found = await self._posted(call, call.form), "json_schema"
        except Refused:
            reply, found = await self._posted(call, None), "none"
        self.structured = found
        self.cache.note(self.fact, found)
        return reply

    async def _posted(self, call: Call, form: dict[str, Any] | None) -> Reply:
        body = call.body if form is None else {**call.body, "response_format": form}
        key = call.key if form is None else f"{call.key}-json"
        return read_body(await self.endpoint.post(body, key))
