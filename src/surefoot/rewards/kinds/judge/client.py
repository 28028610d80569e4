"""Calls of many completions at once, as an iterable gives them; every call has an outcome.

`ask` opens the cache and the connections, and closes them when every call is answered or given up, so nothing lives
between two batches, and a process may fork. A stop (budget, refused key) lets calls in flight finish and starts no
more. Completions are taken, and what came of them is read, while other calls are in flight.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from surefoot.rewards.kinds.judge.closing import close_later
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.endpoint import Endpoint
from surefoot.rewards.kinds.judge.gate import Clock, Gate
from surefoot.rewards.kinds.judge.lane import Lane
from surefoot.rewards.kinds.judge.messages import Call, Missing, Reply
from surefoot.rewards.kinds.judge.paying import Paying
from surefoot.rewards.kinds.judge.rates import Rates
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache, default_path
from surefoot.rewards.kinds.judge.tries import Tries

__all__ = ["Answers", "ask"]

Outcome = Reply | Missing
_NEW_OBJECTS = 10_000
Read = TypeVar("Read")


@dataclass
class Answers(Generic[Read]):
    """What came of a batch.

    Args:
        read: what was made of each completion's outcomes, in order; not in the repr, which asyncio makes of a
            finished task and which would take longer than a reply.
        refusal: what the server said when it last refused a request.
    """

    read: list[Read] = field(repr=False)
    refusal: str | None = None


def ask(
    model: str,
    config: JudgeConfig,
    completions: Iterable[Sequence[Call]],
    read: Callable[[Sequence[Call], list[Outcome]], Read],
) -> Answers[Read]:
    """Answer every call: from the cache, or from the server.

    Args:
        completions: the calls of each completion; calls with equal keys are made once.
        read: makes what is wanted of a completion's calls and their outcomes.

    Raises:
        RunError: the budget is spent; what was answered before is in the cache.
        ModelError: the server refuses the key or the model. ConfigError: there is no key.
    """
    with _few_garbage_collections():
        return _run(_ask(model, config, completions, read))


@contextmanager
def _few_garbage_collections() -> Iterator[None]:
    """Collections inside look at new objects only, and only after many.

    A full one over all that torch and its friends keep holds up every call for 0.1 s or more, a small one for some
    milliseconds.
    """
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


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


async def _ask(model: str, config: JudgeConfig, completions: Iterable[Sequence[Call]], read: Any) -> Answers[Any]:
    cache = ReplyCache(config.cache or default_path(), config.account(model))
    try:
        async with Endpoint(config, model) as endpoint:
            batch = _Batch(config, cache, endpoint, model)
            return Answers(await batch.all(completions, read), endpoint.said)
    finally:
        close_later(cache.close)


class _Batch:
    """The state of one `ask`."""

    def __init__(self, config: JudgeConfig, cache: ReplyCache, endpoint: Endpoint, model: str) -> None:
        self.cache, self.gate = cache, Gate(config)
        self.seconds, self.width = config.deadline_s, config.concurrency + _ahead(config.concurrency)
        self.rates = Rates(config.requests_per_minute, config.tokens_per_minute)
        self.paying = Paying(self.gate, cache, Tries(self.gate, endpoint, self.rates, cache, model))
        self.lane = Lane()
        self.under_way = asyncio.Semaphore(self.width)
        self.known: dict[str, Outcome] = {}
        self.pending: dict[str, asyncio.Future[Outcome]] = {}

    async def all(self, completions: Iterable[Sequence[Call]], read: Any) -> list[Any]:
        """What was read of all completions; so many are under way as calls may be in flight or made ready."""
        found: dict[int, Any] = {}
        places = enumerate(completions)

        async def work() -> None:
            await self.lane.turn()
            with self.gate.stopping():
                for place, calls in places:
                    outcomes = await self.completion(calls)
                    await self.lane.turn()
                    found[place] = read(calls, outcomes)
                    if self.gate.stopped is not None:
                        return

        await asyncio.gather(*(work() for _ in range(self.width)))
        if self.gate.stopped is not None:
            raise self.gate.stopped
        return [found[place] for place in range(len(found))]

    async def completion(self, calls: Sequence[Call]) -> list[Outcome]:
        """Outcomes of one completion's calls; those that another completion is making are awaited."""
        new = [call for call in calls if call.key not in self.known and call.key not in self.pending]
        self.known |= self.cache.replies(call.key for call in new)
        own = {call.key: call for call in new if call.key not in self.known}
        theirs = {key: self.pending[key] for key in (call.key for call in calls) if key in self.pending}
        try:
            await self._made(own)
        finally:
            for key in own:
                future = self.pending.pop(key)
                if not future.done():
                    future.set_result(Missing("interrupted"))
        for key, future in theirs.items():
            self.known.setdefault(key, await future)
        return [self.known[call.key] for call in calls]

    async def _made(self, own: dict[str, Call]) -> None:
        self.pending |= {key: asyncio.get_running_loop().create_future() for key in own}
        for call in own.values():  # before the clock starts: our own limits are not the server's delay
            await self.rates.wait(call)
        clock = Clock(self.seconds)
        if len(own) > 1:
            await asyncio.gather(*(self._in_turn(call, clock) for call in own.values()))
        for call in own.values() if len(own) == 1 else ():
            await self._resolve(call, clock)

    async def _in_turn(self, call: Call, clock: Clock) -> None:
        await self.lane.turn()
        await self._resolve(call, clock)

    async def _resolve(self, call: Call, clock: Clock) -> None:
        outcome: Outcome = Missing("stopped")
        with self.gate.stopping():
            async with self.under_way:
                outcome = await self.paying.outcome(call, clock)
        self.known[call.key] = outcome
        self.pending[call.key].set_result(outcome)


def _ahead(concurrency: int) -> int:
    """How many calls are made ready before there is a slot for them."""
    return 1 + concurrency // 2
