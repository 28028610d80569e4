"""The HTTP application: routes, limits, the key, metrics and draining."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from surefoot.errors import DataError, SurefootError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.score_cache import source_hash
from surefoot.rewards.source import RewardSource
from surefoot.serving.anchor_memory import AnchorMemory
from surefoot.serving.arithmetic import estimate_payload, margins_payload
from surefoot.serving.batcher import Batcher, Failure, Full
from surefoot.serving.formats import FORMATS, Answer, Format, Query, Refusal, Row, without_end
from surefoot.serving.logs import log, where_raised
from surefoot.serving.metrics import ROWS, SECONDS, Metrics, resident_bytes
from surefoot.serving.scorer import Job, Scorer, answer_of, describe
from surefoot.serving.settings import ServeArguments

__all__ = ["create_app"]

_GONE = 499
"""Status in logs and metrics of a request whose client left; nobody is sent it."""


def create_app(source: RewardSource, args: ServeArguments) -> FastAPI:
    """The application that serves a source; its lifespan starts and drains the batcher.

    Raises:
        RunError, DataError: the file of anchors, or of clients' anchors, is missing, or another source's.
    """
    service = _Service(source, args)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for route, form in FORMATS.items():
        app.add_api_route(route, service.endpoint(route, service.rewards(form)), methods=["POST"])
    for route, work in (("/v1/estimate", estimate_payload), ("/v1/margins", margins_payload)):
        app.add_api_route(route, service.endpoint(route, service.arithmetic(work)), methods=["POST"])
    app.add_api_route("/v1/source", service.endpoint("/v1/source", service.description), methods=["GET"])
    app.add_api_route("/metrics", service.endpoint("/metrics", service.measurements), methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/ready", service.ready, methods=["GET"])
    return app


class _Service:
    """The state of one worker: its source, its queue and its counters."""

    def __init__(self, source: RewardSource, args: ServeArguments) -> None:
        self.source, self.args, self._key = source, args, args.key
        anchors = None if args.anchor_file is None else AnchorStore.load(args.anchor_file, source)
        shared = args.workers == 1 or args.anchor_memory is not None
        self.memory = AnchorMemory(source, args.anchor_memory, args.max_anchors) if shared else None
        self.scorer = Scorer(source, anchors, self.memory, args.reference_variance)
        self.metrics = Metrics(worker=str(os.getpid()))
        self.running, self._receiving = False, 0
        self._fingerprint: str | None = None  # hashing the weights takes time: when it is first asked for

    def start(self) -> None:
        args, metrics = self.args, self.metrics
        self.batcher: Batcher[Job, Answer] = Batcher(
            self.scorer,
            lambda job: job.tokens,
            batch_tokens=args.batch_tokens,
            max_waiting=args.max_waiting,
            max_waiting_tokens=args.max_waiting_tokens,
            on_batch=self._count_batch,
        )
        self.batcher.start()
        metrics.counter("surefoot_requests_total", "Requests by route and status.")
        metrics.counter("surefoot_rows_total", "Rows by what became of them: scored, unscored or failed.")
        metrics.histogram("surefoot_request_seconds", "From a request's arrival to its response.", SECONDS)
        metrics.histogram("surefoot_batch_seconds", "Time of a batch.", SECONDS)
        metrics.histogram("surefoot_batch_rows", "Rows of a batch.", ROWS)
        metrics.gauge("surefoot_waiting_rows", "Rows in the queue.", lambda: self.batcher.waiting)
        metrics.gauge("surefoot_waiting_tokens", "Their tokens, about.", lambda: self.batcher.waiting_tokens)
        metrics.gauge("surefoot_resident_bytes", "Resident memory of the process.", resident_bytes)
        if self.memory is not None:
            metrics.gauge("surefoot_anchors", "Anchors made from clients' completions.", self.memory.__len__)
        self.running = True
        log.info("ready", extra={"fields": {"source": self.source.name, "worker": os.getpid()}})

    async def stop(self) -> None:
        """Finish what was accepted."""
        self.running = False
        await self.batcher.drain()
        if self.memory is not None:
            self.memory.close()
        log.info("drained", extra={"fields": {"worker": os.getpid()}})

    def endpoint(
        self, route: str, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An answer behind the key, with its refusals as JSON, counted and logged."""

        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            status = _GONE
            try:
                response = await self._refusing(request, answer)
                status = response.status_code
                return response
            except ClientDisconnect:
                return Response(status_code=_GONE)
            finally:
                seconds = time.perf_counter() - start
                self.metrics.add("surefoot_requests_total", route=route, status=str(status))
                self.metrics.observe("surefoot_request_seconds", seconds, route=route)
                fields = {"route": route, "status": status, "seconds": round(seconds, 4)}
                log.info("request", extra={"fields": fields | getattr(request.state, "fields", {})})

        return guarded

    async def _refusing(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            if "origin" in request.headers:  # a web page that a browser shows could otherwise send to loopback
                raise Refusal(403, "browsers aren't served")
            self._check_key(request)
            if not self.running:
                raise Refusal(503, "the server is shutting down", 1)
            return await answer(request)
        except Refusal as refusal:
            return _refused(refusal)  # its reason may quote what the client sent, so it isn't logged
        except ClientDisconnect:
            raise
        except Exception as error:
            request.state.fields = where_raised(error)
            return _refused(Refusal(500, f"internal error ({type(error).__name__})"))

    def rewards(self, form: Format) -> Callable[[Request], Awaitable[Response]]:
        """Read a format's payload, score its rows, and write their answers."""

        async def answer(request: Request) -> Response:
            query = form.read(await self._json(request))
            if form.ends and self.args.end_of_text:
                query = replace(query, rows=without_end(query.rows, self.args.end_of_text))
            self._check_size(query)
            try:
                answers = await _unless_gone(request, self._answers(query))
            except Full as full:
                raise Refusal(form.full, "too many rows wait already: come back later", full.seconds) from None
            payload = form.write(query, answers)
            request.state.fields = {"rows": len(query.rows)}
            return JSONResponse(payload)

        return answer

    def arithmetic(self, work: Callable[[RewardSource, Any], Any]) -> Callable[[Request], Awaitable[Response]]:
        """Arithmetic of the source on scored rows, for clients that have the rows and not the source."""

        async def answer(request: Request) -> Response:
            payload = await self._json(request)
            try:
                return JSONResponse(await asyncio.to_thread(work, self.source, payload))
            except SurefootError as error:
                raise Refusal(422, str(error)) from None

        return answer

    async def description(self, request: Request) -> Response:
        if self._fingerprint is None:
            self._fingerprint = await asyncio.to_thread(source_hash, self.source, self.args.reward_source) or "unknown"
        return JSONResponse(describe(self.source) | {"fingerprint": self._fingerprint})

    async def measurements(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self) -> Response:
        """Whether the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Whether it takes requests: the source is loaded, and it isn't shutting down."""
        return JSONResponse({"status": "ready"}) if self.running else _refused(Refusal(503, "not ready", 1))

    async def _answers(self, query: Query) -> list[Answer]:
        await self._learn(query)
        answers = await self._scored([Job(row, not (query.raw or query.group)) for row in query.rows])
        if query.group:
            answers = self.scorer.grouped(query.rows, answers)
        for answer in answers:
            known = answer.error is None
            outcome = "scored" if known else "failed" if answer.raw is None else "unscored"
            self.metrics.add("surefoot_rows_total", outcome=outcome)
        return answers

    async def _learn(self, query: Query) -> None:
        """Make the anchors of prompts that are seen for the first time from their reference completions."""
        if query.references and self.memory is None:
            raise Refusal(422, "reference needs a server with one worker, or one that was given anchor_memory")
        for prompt, completions in query.references:
            assert self.memory is not None
            if not self.memory.lacks(prompt):
                continue
            if self.memory.is_full:
                raise Refusal(507, "the server keeps no further prompt's anchor: raise its max_anchors")
            answers = await self._scored([Job(Row(prompt, completion), False) for completion in completions])
            failure = next((answer for answer in answers if answer.raw is None), None)
            if failure is not None:
                raise Refusal(500 if failure.fault == "model" else 422, f"a reference completion: {failure.error}")
            try:
                self.memory.add(prompt, completions, torch.tensor([answer.raw for answer in answers]))
            except DataError as error:
                raise Refusal(422, f"reference: {error}") from None

    async def _scored(self, jobs: Sequence[Job]) -> list[Answer]:
        results = await self.batcher.submit(jobs)
        for result in results:
            if isinstance(result, Failure) and not isinstance(result.error, DataError):
                log.warning("a row failed", extra={"fields": where_raised(result.error)})
        return [answer_of(result) for result in results]

    async def _json(self, request: Request) -> Any:
        body = await self._body(request)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(422, "the body is not JSON in UTF-8") from None

    async def _body(self, request: Request) -> bytes:
        """The request's body, within its limits of size and time.

        Raises:
            Refusal: 413 for one that is too large, 408 for one that takes too long, 503 if all that are being received
                are too large together.
        """
        limit, body, counted = self.args.max_body_mib * 2**20, bytearray(), 0
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.args.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._receiving += len(chunk)
                    counted += len(chunk)
                    if len(body) > limit:
                        raise _too_large(limit)
                    if self._receiving > self.args.max_bodies_mib * 2**20:
                        raise Refusal(503, "too many requests are being received: come back later", 1)
        except TimeoutError:
            raise Refusal(408, f"the request took longer than {self.args.body_seconds:g} s to arrive") from None
        finally:
            self._receiving -= counted
        return bytes(body)

    def _check_size(self, query: Query) -> None:
        rows = [*query.rows, *_reference_rows(query)]
        if len(rows) > self.args.max_rows:
            raise Refusal(413, f"{len(rows)} rows in a request, more than {self.args.max_rows}; send them in parts")
        longest = max(Job(row, False).characters for row in rows)
        if longest > self.args.max_characters:
            raise Refusal(413, f"a row of {longest} characters is longer than {self.args.max_characters}")

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = [key.encode("utf-8", "replace") for key in _given_keys(request)]
        if not any(hmac.compare_digest(key, self._key.encode()) for key in given):
            raise Refusal(401, "the key is missing or wrong: send Authorization: Bearer KEY")

    def _count_batch(self, rows: int, seconds: float) -> None:
        self.metrics.observe("surefoot_batch_seconds", seconds)
        self.metrics.observe("surefoot_batch_rows", rows)


async def _unless_gone(request: Request, work: Any) -> list[Answer]:
    """The work's result; the work is cancelled when the client leaves, so that its rows aren't scored.

    Raises:
        ClientDisconnect: it left.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        answers: list[Answer] = task.result()
        return answers
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _given_keys(request: Request) -> list[str]:
    """Keys that a client sent: a bearer token, the password of an address (`http://x:KEY@host`), or `?key=KEY`."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    keys = [request.query_params.get("key", "")]
    if kind.lower() == "bearer":
        keys.append(value.strip())
    elif kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError, ValueError):
            keys.append(base64.b64decode(value, validate=True).decode().partition(":")[2])
    return [key for key in keys if key]


def _reference_rows(query: Query) -> list[Row]:
    return [Row(prompt, completion) for prompt, completions in query.references for completion in completions]


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit // 2**20} MiB; send the rows in parts")


def _refused(refusal: Refusal) -> Response:
    """The refusal in OpenAI's and vLLM's shape, and when to come back; a body that wasn't read ends the connection."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status in (408, 413):
        headers["Connection"] = "close"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    error = {"message": refusal.reason, "type": "refused", "code": refusal.status}
    return JSONResponse({"error": error}, refusal.status, headers)
