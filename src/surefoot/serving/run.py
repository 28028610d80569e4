"""Start uvicorn with the application: one process, or several behind one address."""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from surefoot.errors import RunError
from surefoot.rewards.registry import load_source
from surefoot.serving.app import create_app
from surefoot.serving.logs import LOG_CONFIG
from surefoot.serving.settings import ServeArguments

__all__ = ["load_app", "serve"]

_HEADER_SECONDS = 20.0
_WORKER_SECONDS = 120  # in which a worker must answer its parent; loading a model can hold the interpreter for long


class _Impatient(H11Protocol):
    """Close a connection whose client hasn't sent a request's headers in time, which uvicorn waits for forever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_HEADER_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def load_app(args: ServeArguments) -> FastAPI:
    """Load the source and make the application.

    Raises:
        ModelError, DataError, RunError: the source or its anchors can't be used.
    """
    return create_app(load_source(args.reward_source, args.device), args)


def serve(args: ServeArguments) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted, for `drain_seconds` at most, and return.

    Raises:
        ConfigError: settings that can't be served. RunError: the address is taken. Others: as `load_app`.
    """
    args.check()
    app: Any = load_app(args)
    if args.workers > 1:
        app = partial(load_app, args)  # each worker loads its own; loading once here told what is wrong, in one line
    config = uvicorn.Config(
        app,
        factory=args.workers > 1,
        host=args.host.strip("[]"),
        port=args.port,
        workers=args.workers,
        http=_Impatient,
        ws="none",
        access_log=False,
        server_header=False,
        log_config=LOG_CONFIG,
        limit_concurrency=args.max_connections,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=int(args.drain_seconds + 0.5),
        timeout_worker_healthcheck=_WORKER_SECONDS,
    )
    sockets = [_listening(config.host, args.port)]
    if args.workers > 1:
        Multiprocess(config, sockets=sockets).run()
        return
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has drained
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=sockets)


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket; connections wait in it until a worker is ready."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise RunError(f"can't listen on {host} port {port}: {error.strerror or error}") from None
    listening.set_inheritable(True)  # workers have it from their parent
    return listening
