"""Ask an OpenAI-compatible server many calls at once. Each call ends in a reply, or in a reason why there is none.

A call holds one of `concurrency` slots from its claim in the cache until its reply, with its cost, is on disk, also
while it waits to be tried again. So a killed process loses no more replies than there are slots. When something stops
the batch (budget, refused key), calls that were sent are finished and booked, and no further one is sent.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

from aiolimiter import AsyncLimiter

from surefoot.errors import ModelError, RunError
from surefoot.rewards.kinds.judge.call_config import CallConfig
from surefoot.rewards.kinds.judge.messages import Call, Missing, Outcome, Reply, Unreadable
from surefoot.rewards.kinds.judge.reply_body import read_body
from surefoot.rewards.kinds.judge.reply_cache import Booking, ReplyCache, default_path
from surefoot.rewards.kinds.judge.server import Refused, Retriable, Server

__all__ = ["Answers", "ask", "form_fact"]

Read = TypeVar("Read")
_POLL_S = 0.05  # how often a call is looked up that is being made elsewhere, or that the budget may hold later
_SPENT = """\
the budget of {} is spent: no further call was made. Replies so far are in {}; raise the budget and run the same \
again to go on"""
_TOO_LONG = """\
{0.endpoint} answers {1} and asks to wait {2:.0f} s (Retry-After), longer than deadline_s, {0.deadline_s:g}. Run the \
same again then, or raise deadline_s; replies so far are in {3}"""


class Answers(NamedTuple, Generic[Read]):
    """What was read of each completion's outcomes, in order; and what the server said when it last refused."""

    read: list[Read]
    refusal: str | None


def ask(
    model: str,
    config: CallConfig,
    completions: Iterable[Sequence[Call]],
    read: Callable[[Sequence[Call], list[Outcome]], Read],
) -> Answers[Read]:
    """Answer every call: from the cache, or from the server.

    Args:
        completions: the calls of each completion; of calls with equal keys, those that follow a reply have it too.
        read: makes what is wanted of a completion's calls and their outcomes.

    Raises:
        RunError: the budget is spent, or the server asks to wait past the deadline; replies so far are in the cache.
        ModelError: the server refuses the key or the model. ConfigError: there is no key.
    """
    work = _Batch(model, config).run(completions, read)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:  # a loop runs here already, as in a notebook
        return thread.submit(asyncio.run, work).result()


def form_fact(model: str, config: CallConfig) -> str:
    """Name of the cache's fact (`ReplyCache.fact`) that says which of a call's `forms` the server takes."""
    return f"{config.form_name} {config.endpoint} {model}"


class _Deadline:
    """When all calls of one completion must have ended, in the loop's time; unknown until the first has a slot."""

    end = math.inf

    def start(self, seconds: float) -> float:
        self.end = min(self.end, asyncio.get_running_loop().time() + seconds)
        return self.end


class _Batch:
    """The state of one `ask`."""

    def __init__(self, model: str, config: CallConfig) -> None:
        self.config, self.server = config, Server(config, model)
        self.cache = ReplyCache(config.cache or default_path(), config.account(model))
        self.slots = asyncio.Semaphore(config.concurrency)
        self.requests, self.tokens = (_limiter(n) for n in (config.requests_per_minute, config.tokens_per_minute))
        self.stopped: Exception | None = None
        self.paying, self.resume_at = 0, 0.0  # calls that are being made; when a Retry-After ends, in the loop's time
        self.fact = form_fact(model, config)
        self.form = self.cache.fact(self.fact)  # which of a call's `forms` the server is known to take

    async def run(self, completions: Iterable[Sequence[Call]], read: Any) -> Answers[Any]:
        """Answer all calls (see `ask`), with more completions under way than slots, so that requests are ready."""
        results: dict[int, Any] = {}
        numbered = enumerate(completions)

        async def work() -> None:
            try:
                for place, calls in numbered:
                    results[place] = read(calls, await self.outcomes(calls))
                    if self.stopped is not None:
                        return
                    await asyncio.sleep(0)  # replies that have come go first
            except Exception as error:
                self.stop(error)

        try:
            await asyncio.gather(*(work() for _ in range(1 + self.config.concurrency * 3 // 2)))
        finally:
            self.cache.close()
            await self.server.close()
        if self.stopped is not None:
            raise self.stopped
        return Answers([results[place] for place in range(len(results))], self.server.refusal)

    def stop(self, error: Exception) -> None:
        """Send no further request; the first reason counts."""
        self.stopped = self.stopped or error

    async def outcomes(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcomes of one completion's calls, from the cache or from the server."""
        known: dict[str, Outcome] = {**self.cache.replies(call.key for call in calls)}
        new, deadline = {call.key: call for call in calls if call.key not in known}, _Deadline()
        if new:
            self.server.open()  # takes some tenths of a second, which would let requests bunch after the limits
        for call in new.values():  # before the deadline runs: our own limits are not the server's delay
            await self.wait_for_rate(call)
        made = await asyncio.gather(*(self.outcome(call, deadline) for call in new.values()))
        known |= zip(new, made, strict=True)
        return [known[call.key] for call in calls]

    async def wait_for_rate(self, call: Call) -> None:
        for limiter, amount in ((self.requests, 1.0), (self.tokens, float(call.likely_tokens))):
            while limiter is not None and amount > 0 and self.stopped is None:
                await limiter.acquire(min(amount, limiter.max_rate))
                amount -= limiter.max_rate

    async def outcome(self, call: Call, deadline: _Deadline) -> Outcome:
        """Wait for a slot and claim the call, then make it; or wait for the reply of whoever has claimed it."""
        config, loop, tokens = self.config, asyncio.get_running_loop(), call.prompt_tokens + call.most_said
        seconds, money = config.deadline_s + config.timeout_s, config.cost(call.prompt_tokens, call.most_said)
        try:
            while loop.time() < deadline.end:
                async with self.slots:
                    if self.stopped is not None:
                        return Missing("stopped")
                    claim = self.cache.claim(call.key, seconds, tokens, money, config.budget)
                    if claim == "ours":
                        return await self.paid(call, deadline.start(config.deadline_s))
                    if claim == "answered":
                        return self.cache.replies([call.key])[call.key]
                    if claim == "spent" and not self.paying:
                        raise RunError(_SPENT.format(config.budget_in_words, self.cache.path))
                deadline.start(config.deadline_s)
                await asyncio.sleep(_POLL_S)
            return Missing("deadline")
        except Exception as error:
            self.stop(error)
            return Missing("stopped")

    async def paid(self, call: Call, end: float) -> Outcome:
        """Make a claimed call, and write its reply and cost to the cache before its slot is free."""
        loop, booked = asyncio.get_running_loop(), False
        start = loop.time()
        self.paying += 1
        try:
            outcome, tries = await self.tried(call, end)
            if tries:
                reply = outcome if isinstance(outcome, Reply) else None
                used = (0, 0) if reply is None else reply.usage(call)
                what = "reply" if isinstance(outcome, Reply) else outcome.reason
                booking = Booking(what, tries, *used, self.config.cost(*used), loop.time() - start)
                self.cache.settle(call.key, reply, booking)
                booked = True
            return outcome
        finally:
            self.paying -= 1
            if not booked:
                self.cache.release(call.key)

    async def tried(self, call: Call, end: float) -> tuple[Outcome, int]:
        """Send the call until it has a reply or no further try is allowed: its outcome, and how many tries."""
        config, loop, reason, tries, wait = self.config, asyncio.get_running_loop(), "deadline", 0, 0.0
        try:
            async with asyncio.timeout_at(end):
                while tries <= config.retries and await self.may_send(wait, end):
                    if tries:
                        await self.wait_for_rate(call)
                    wait = random.uniform(0.5, 1.0) * min(config.backoff_limit_s, config.backoff_s * 2.0**tries)
                    tries += 1
                    try:
                        async with asyncio.timeout(config.timeout_s):
                            return await self.send(call), tries
                    except TimeoutError:
                        reason = "timeout"
                    except Unreadable:
                        reason = "not a chat completion"
                    except Retriable as error:
                        reason, wait = error.reason, max(wait, error.wait)
                        self.resume_at = max(self.resume_at, loop.time() + error.wait)
                        if error.wait >= config.deadline_s:
                            self.stop(RunError(_TOO_LONG.format(config, reason, error.wait, self.cache.path)))
        except TimeoutError:
            reason = "deadline"
        except Refused as error:
            reason = str(error)
        except ModelError as error:
            self.stop(error)
            reason = "stopped"
        return Missing(reason if tries or self.stopped is None else "stopped"), tries

    async def may_send(self, wait: float, end: float) -> bool:
        """Wait so many seconds and for any Retry-After; return False at once if that passes `end`, or after a stop."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while self.stopped is None:
            if self.resume_at > loop.time():
                until = max(until, self.resume_at + random.uniform(0.0, self.config.backoff_s))  # not all at once
            if until >= end or until <= loop.time():
                return until < end
            await asyncio.sleep(until - loop.time())
        return False

    async def send(self, call: Call) -> Reply:
        """Send the call once in the form that the server is known to take, or else in each form until it takes one.

        The first reply settles which form that is. A refusal after that is of the text, not of the form.
        """
        names = list(call.forms) if self.form is None or self.form not in call.forms else [self.form]
        for place, name in enumerate(names):
            changes, mark = call.forms[name]
            try:
                reply = read_body(await self.server.post(call.body | changes, call.key + mark))
            except Refused:
                if name in (names[-1], self.form):
                    raise
                await self.wait_for_rate(call)
                continue
            if len(call.forms) > 1 and (self.form is None or self.form in names[place + 1 :]):
                self.form = name
                self.cache.note(self.fact, name)
            return reply
        raise AssertionError("the last form gives a reply or raises")


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """A limiter with bursts of a second's worth; with a minute's, the first minute would see twice the rate."""
    burst = max(1.0, (per_minute or 0.0) / 60)
    return None if per_minute is None else AsyncLimiter(burst, 60 * burst / per_minute)
