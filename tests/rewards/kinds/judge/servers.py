"""A local OpenAI-compatible server that behaves as it is told, well or badly; loopback only, no network."""

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

_FENCE = re.compile(r"BEGIN ([A-Z ]+) ([0-9a-f]{16})\n(.*?)\nEND \1 \2", re.DOTALL)


@dataclass
class Request:
    """What came: the JSON, the headers, when, and how often this Idempotency-Key had come before."""

    body: dict[str, Any]
    headers: dict[str, str]
    time: float
    again: int

    @property
    def texts(self) -> dict[str, str]:
        """The fenced texts by name."""
        return {name: text for name, _, text in _FENCE.findall(self.body["messages"][-1]["content"])}

    @property
    def sample(self) -> int:
        return int(re.sub(r"-json$", "", self.headers["idempotency-key"]).rpartition("-")[2])

    @property
    def wording(self) -> str:
        return self.body["messages"][0]["content"].split("\n", 1)[0]


@dataclass
class Act:
    """What the server does.

    Args:
        delay: before the first byte.
        cut: bytes of the body that are sent before the connection closes; all if None.
        drip: seconds between single bytes.
        twice: send the whole response a second time.
        refuse: close without a word.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    drip: float = 0.0
    twice: bool = False
    refuse: bool = False


def reply(content: Any, *, id: str = "", logprobs: Any = None, usage: Any = (100, 5)) -> bytes:
    """A chat completion with this content."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content},
    }
    if logprobs is not None:
        choice["logprobs"] = logprobs
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    return json.dumps(
        {"id": id, "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": counts}
    ).encode()


def rated(value: Any, *, delay: float = 0.0, id: str = "") -> Act:
    """A well-behaved judge's reply."""
    return Act(reply(json.dumps({"rating": value}), id=id), delay=delay)


def number_in(request: Request) -> int:
    """The first number in the answer."""
    found = re.search(r"\d+", request.texts["ANSWER"])
    return int(found[0]) if found else 5


class JudgeServer:
    """Serves `act(request)` on a free port of 127.0.0.1, in a thread; use it as a context.

    Attributes:
        requests: everything that came, in order.
        seen: how often each Idempotency-Key came.
    """

    def __init__(self, act: Callable[[Request], Act]) -> None:
        self.act = act
        self.requests: list[Request] = []
        self.seen: Counter[str] = Counter()
        self.most_at_once = 0
        self._busy = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        key = headers.get("idempotency-key", "")
        request = Request(body, headers, time.monotonic(), self.seen[key])
        self.seen[key] += 1
        self.requests.append(request)
        self._busy += 1
        self.most_at_once = max(self.most_at_once, self._busy)
        try:
            return await self._do(self.act(request), writer)
        finally:
            self._busy -= 1

    async def _do(self, act: Act, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(act.delay)
        if act.refuse:
            return False
        head = f"HTTP/1.1 {act.status} X\r\ncontent-type: application/json\r\ncontent-length: {len(act.body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in act.headers.items()) + "\r\n"
        writer.write(head.encode())
        body = act.body if act.cut is None else act.body[: act.cut]
        if act.drip:
            for i in range(len(body)):
                writer.write(body[i : i + 1])
                await writer.drain()
                await asyncio.sleep(act.drip)
        else:
            writer.write(body)
        if act.twice:
            writer.write(head.encode() + body)
        await writer.drain()
        return act.cut is None
