"""The server of benchmarks/judge.py: answers each request after exactly the latency, and says how exactly that was.

It runs in a process of its own and shares what it saw. Its loop waits in `select`, whose timeouts are in microseconds;
those of `epoll` are in milliseconds, rounded up.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import selectors
from multiprocessing.connection import Connection
from typing import Any, Self

HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
BODY = json.dumps(
    {
        "id": "%016d",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"rating": 7}'}}
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 8, "total_tokens": 408},
    }
)
BUSY, MOST, COUNT, LATE, LATEST, LEAST = range(6)
"""Places in what is shared: requests at once, now and at most; answers; seconds that they were late, in sum and at
most; least time from a request to its answer."""


class Answering(asyncio.Protocol):
    """One connection."""

    count = 0

    def __init__(self, latency: float, seen: Any) -> None:
        self.latency, self.seen, self.held = latency, seen, b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self.held += data
        head, found, rest = self.held.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0) if found else 0
        if found and len(rest) >= length:
            self.held = rest[length:]
            self.seen[BUSY] += 1
            self.seen[MOST] = max(self.seen[MOST], self.seen[BUSY])
            Answering.count += 1
            body = (BODY % Answering.count).encode()
            self.loop.call_at(now + self.latency, self.answer, now, (HEAD % len(body)).encode() + body)

    def answer(self, came: float, response: bytes) -> None:
        took = self.loop.time() - came
        self.transport.write(response)  # type: ignore[attr-defined]
        late = self.loop.time() - came - self.latency
        seen = self.seen
        seen[BUSY] -= 1
        seen[COUNT] += 1
        seen[LATE] += late
        seen[LATEST], seen[LEAST] = max(seen[LATEST], late), min(seen[LEAST], took)


def serve(latency: float, port: Connection, seen: Any) -> None:
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    server = loop.run_until_complete(loop.create_server(lambda: Answering(latency, seen), "127.0.0.1", 0))
    port.send(server.sockets[0].getsockname()[1])
    loop.run_forever()


class Server:
    """Runs it; use it as a context."""

    def __init__(self, latency: float) -> None:
        self.latency = latency

    def __enter__(self) -> Self:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.seen = context.Array("d", 6, lock=False)
        self.process = context.Process(target=serve, args=(self.latency, theirs, self.seen), daemon=True)
        self.process.start()
        self.endpoint = f"http://127.0.0.1:{ours.recv()}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()

    def start(self) -> None:
        """Count anew; nothing may be under way."""
        assert self.seen[BUSY] == 0
        self.seen[:] = [0.0] * LEAST + [float("inf")]

    def found(self) -> dict[str, float]:
        """Since `start`: requests at once, and how late answers were written, in milliseconds."""
        seen = list(self.seen)
        assert seen[LEAST] >= self.latency - 1e-6, f"an answer after {seen[LEAST]} s, before its time"
        late = {"server_late_ms": 1000 * seen[LATE] / seen[COUNT], "server_latest_ms": 1000 * seen[LATEST]}
        return {"answers": seen[COUNT], "most_at_once": seen[MOST], "least_latency": seen[LEAST], **late}
