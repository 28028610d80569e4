"""The labelling page's server: two completions side by side, blind to rewards, every answer on disk before the next.

It listens on loopback. A request needs the token of the address, a Host that is this server's (against DNS rebinding)
and, where a browser names an Origin, one that is this server's (against other sites). The page loads nothing from
elsewhere.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from surefoot.data.messages import message_text
from surefoot.feedback.answers import Answer, AnswerFile, Side, now
from surefoot.feedback.pairs import Pair
from surefoot.types import Text

__all__ = ["listen", "make_app", "shown_left"]

LOOPBACK = "127.0.0.1"
_TEMPLATE = Path(__file__).parent / "page.html"
_LONGEST_BODY = 4096
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Who(BaseModel):
    """Who asks for a pair."""

    annotator: str = Field(min_length=1, max_length=64, pattern=r"\S")


class Given(Who):
    """An answer as the page sends it."""

    pair: str = Field(max_length=64)
    answer: Literal["left", "right", "tie", "skip"]
    strength: Literal[1, 2] = 1
    seconds: float = Field(ge=0, le=1e6)


def listen(port: int = 0) -> socket.socket:
    """A socket on loopback alone.

    Args:
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def shown_left(pair: str, annotator: str, seed: int) -> Side:
    """The completion that an annotator sees on the left: by a hash, so that a pair looks the same when shown again."""
    digest = hashlib.sha256(f"{seed}\n{annotator}\n{pair}".encode()).digest()
    return "a" if digest[0] % 2 else "b"


def make_app(pairs: Sequence[Pair], answers: AnswerFile, token: str, port: int, seed: int = 0) -> FastAPI:
    """The page and its three calls: the next pair, an answer, an undo. Each replies with the pair to show now.

    Args:
        pairs: shown in this order; an annotator sees those that they haven't answered.
        token: which every request must carry.
        port: of the socket, which requests must name.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}
    by_id = {pair.id: pair for pair in pairs}

    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request, hosts, token)
        response = await call(request) if refused is None else JSONResponse({"error": refused[1]}, refused[0])
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "a value is missing or out of range"}, 422)

    @app.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        text = _TEMPLATE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY.format(nonce=nonce)})

    @app.post("/next")
    def show(who: Who) -> dict[str, Any]:
        return _state(pairs, answers, who.annotator.strip(), seed)

    @app.post("/answer", response_model=None)
    def take(given: Given) -> dict[str, Any] | JSONResponse:
        annotator = given.annotator.strip()
        if given.pair not in by_id:
            return JSONResponse({"error": "there is no such pair"}, 404)
        answer = _answer(given, annotator, seed)
        if not answers.add(answer):  # sent twice, or from two windows: the first stands
            held = answers.of(annotator)[given.pair]
            if held.choice != answer.choice:
                return JSONResponse({"error": "this pair was answered already; undo it to change the answer"}, 409)
        return _state(pairs, answers, annotator, seed)

    @app.post("/undo")
    def undo(who: Who) -> dict[str, Any]:
        annotator = who.annotator.strip()
        taken = answers.undo(annotator)
        return _state(pairs, answers, annotator, seed, None if taken is None else by_id[taken.pair])

    return app


def _refusal(request: Request, hosts: set[str], token: str) -> tuple[int, str] | None:
    """Status and reason, where a request isn't from this page."""
    if request.headers.get("host") not in hosts:
        return 421, "this server is reached by its own address only"
    origin = request.headers.get("origin")
    if origin is not None and origin not in {f"http://{host}" for host in hosts}:
        return 403, "another site sent this"
    sent = request.query_params.get("token") if request.method == "GET" else request.headers.get("x-surefoot-token")
    if not secrets.compare_digest((sent or "").encode(), token.encode()):
        return 403, "the address lacks its token; use the address that `surefoot label` printed last"
    if request.method == "POST":
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "JSON is expected"
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > _LONGEST_BODY:
            return 413, "the request is too long"
    return None


def _answer(given: Given, annotator: str, seed: int) -> Answer:
    left = shown_left(given.pair, annotator, seed)
    right: Side = "b" if left == "a" else "a"
    time = now()
    if given.answer in ("left", "right"):
        choice = left if given.answer == "left" else right
        return Answer(given.pair, annotator, choice, left, given.strength, round(given.seconds, 3), time)
    return Answer(given.pair, annotator, given.answer, left, 0, round(given.seconds, 3), time)  # type: ignore[arg-type]


def _state(
    pairs: Sequence[Pair], answers: AnswerFile, annotator: str, seed: int, pair: Pair | None = None
) -> dict[str, Any]:
    """What the page shows: the pair's texts (nothing else of the pair), and how far the annotator is."""
    done = answers.of(annotator)
    pair = pair or next((pair for pair in pairs if pair.id not in done), None)
    shown = None
    if pair is not None:
        sides = (pair.a, pair.b) if shown_left(pair.id, annotator, seed) == "a" else (pair.b, pair.a)
        prompt, left, right = (_rendered(text) for text in (pair.prompt, *sides))
        shown = {"id": pair.id, "prompt": prompt, "left": left, "right": right}
    return {"pair": shown, "done": sum(1 for known in pairs if known.id in done), "of": len(pairs)}


def _rendered(text: Text) -> list[dict[str, str]]:
    """Messages as role and text; a plain text is one message without a role."""
    if isinstance(text, str):
        return [{"role": "", "text": text}] if text else []
    return [{"role": str(message.get("role", "")), "text": message_text(message)} for message in text]
