"""How `openai`'s client reaches the server: over aiohttp, whole responses only.

httpx's own connection pool costs more CPU than the rest of a call together (benchmarks/judge.py). And a connection
that holds bytes nobody asked for, such as a response that a proxy sent twice, must not be used again: they would be
taken for the reply to the next request. aiohttp looks when a connection is given back, not when it is taken out; here
both are looked at, and a connection's first response is given a moment to show that it comes twice.
"""

from __future__ import annotations

import asyncio
import select
from contextvars import ContextVar
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler

from surefoot.rewards.kinds.judge.gate import enter

__all__ = ["Client"]

_OF_THE_WIRE = {b"content-encoding", b"content-length", b"transfer-encoding"}
"""Headers that say how the body came; it is decoded here."""
_SECOND_COPY_S = 0.01
"""How long a connection's first response is given to show that it comes twice, before the next request takes it."""
_MADE: ContextVar[list[ResponseHandler] | None] = ContextVar("made", default=None)
"""Where a request's task finds the connection that was made for it."""


class _Clean(ResponseHandler):
    """A connection that counts as closed if bytes are waiting on it, read by the loop or not yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        made = _MADE.get()
        if made is not None:
            made.append(self)

    def is_connected(self) -> bool:
        return super().is_connected() and not self.should_close and not _readable(self.transport)


def _readable(transport: Any) -> bool:
    """Whether the kernel holds bytes, or the other side's end, that the loop hasn't seen."""
    held = transport.get_extra_info("socket")
    if held is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(held.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Client(httpx2.AsyncClient):
    """aiohttp in the shape of an httpx client, whose own merging of headers, cookies and addresses it leaves out.

    Args:
        endpoint: the one server it will be asked for; a proxy is looked up in the environment once for it, where
            aiohttp would do so in a thread for each request.
        connections: most that are open at once.

    Make it inside a running loop.
    """

    def __init__(self, endpoint: str, connections: int) -> None:
        super().__init__(transport=httpx2.AsyncBaseTransport(), timeout=None, trust_env=False)
        connector = aiohttp.TCPConnector(limit=connections)
        connector._factory = partial(_Clean, loop=connector._loop)  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            proxy=_proxy(endpoint),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._addresses: dict[str, httpx2.URL] = {}

    def build_request(self, method: str, url: Any, *, content: Any = None, headers: Any = None, **_: Any) -> Any:
        """A request with these headers and no others; aiohttp adds those of the wire."""
        address = self._addresses.get(url) or self._addresses.setdefault(url, httpx2.URL(url))
        request = httpx2.Request(method, address, headers=headers, stream=httpx2.ByteStream(content))
        request.read()
        return request

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """The whole response, once it is the request's turn (`enter`)."""
        await enter()
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        made: list[ResponseHandler] = []
        _MADE.set(made)
        try:
            async with self._session.request(
                request.method, str(request.url), headers=headers, data=request.content, allow_redirects=False
            ) as response:
                content = await response.read()
            if made:
                await asyncio.sleep(_SECOND_COPY_S)
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.NetworkError(type(error).__name__, request=request) from None
        kept = [(name, value) for name, value in response.raw_headers if name.lower() not in _OF_THE_WIRE]
        return httpx2.Response(response.status, headers=kept, content=content, request=request)

    async def aclose(self) -> None:
        await self._session.close()


def _proxy(endpoint: str) -> str | None:
    address = urlsplit(endpoint)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
