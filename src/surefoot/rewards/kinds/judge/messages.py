"""What goes to a judge and what comes back: calls, replies, and why a reply is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = ["Call", "Form", "Heard", "Missing", "Outcome", "Reply", "Unreadable"]


class Unreadable(Exception):
    """A reply without a usable rating or body. Its text says why and quotes nothing of the reply."""


class Form(NamedTuple):
    """One way to put a request that a server may refuse: with a JSON schema and without it, say.

    Args:
        changes: what is added to the request's body, or replaced in it.
        mark: what is added to the call's key to make the Idempotency-Key.
    """

    changes: dict[str, Any]
    mark: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Args:
        body: of the request, but for what its form adds.
        forms: by name, in the order in which they are tried until it is known which one the server takes.
        question: hash of endpoint, model, whole prompt and parameters; equal for replicates.
        sample: index of the replicate.
    """

    body: dict[str, Any]
    forms: Mapping[str, Form]
    question: str
    sample: int

    @property
    def key(self) -> str:
        """Under which its reply is kept in the cache."""
        return f"{self.question}-{self.sample}"

    @property
    def likely_tokens(self) -> int:
        """About how many tokens the call takes: the prompt's at four characters each, and half of what it may say."""
        return self.prompt_tokens + self.most_said // 2

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens at four characters each: for limits, and where a server doesn't count."""
        return 8 + sum(len(message["content"]) for message in self.body["messages"]) // 4

    @property
    def most_said(self) -> int:
        """Most tokens that the reply may have."""
        return int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)


@dataclass(slots=True)
class Reply:
    """What a judge said.

    Args:
        content: its text.
        mark: the server's id and a hash of the whole response, equal for copies; "" if it has no id.
        prompt_tokens, completion_tokens: as counted by the server; None if it doesn't say.
        finish: the server's `finish_reason`; "" if it gives none.
        said: its first tokens after a thought, where log-probabilities were asked for.
        positions: the likeliest tokens at each of those, with their log-probabilities.
    """

    content: str
    mark: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str = ""
    said: list[str] = field(default_factory=list)
    positions: list[list[tuple[str, float]]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The server's id of the reply; "" if it gave none."""
        return self.mark.rpartition(":")[0]

    def usage(self, call: Call) -> tuple[int, int]:
        """(Prompt's tokens, reply's tokens), at four characters each where the server doesn't count."""
        prompt = call.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        said = len(self.content) // 4 + 1 if self.completion_tokens is None else self.completion_tokens
        return prompt, said

    def to_json(self) -> str:
        kept = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({name: value for name, value in kept.items() if value not in (None, "", [])})

    @classmethod
    def from_json(cls, text: str) -> Reply:
        values = json.loads(text)
        positions = values.get("positions", [])
        values["positions"] = [[(token, logprob) for token, logprob in position] for position in positions]
        return cls(**{"content": "", **values})


@dataclass(frozen=True, slots=True)
class Missing:
    """A call without a reply, after its retries.

    Args:
        reason: a few words, the same for the same cause; never the server's own message.
    """

    reason: str


Outcome = Reply | Missing


class Heard(Protocol):
    """What was read of a call, whatever form its rating has: None is a rating that is missing, and `why` says why."""

    @property
    def key(self) -> str: ...
    @property
    def mark(self) -> str | None: ...
    @property
    def rating(self) -> object: ...
    @property
    def why(self) -> str: ...


_FIELDS = ("content", "mark", "prompt_tokens", "completion_tokens", "finish", "said", "positions")
