"""The nouns of calling a judge: what is asked, what came back, and why something didn't."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ALTERNATIVES", "Call", "Missing", "Reply", "Unreadable", "replicates"]

ALTERNATIVES = (20, 8, 5)
"""Log-probabilities for a token that are asked for until the server allows it: OpenAI's most, two usual limits."""


class Unreadable(Exception):
    """A reply that can't be read; its text says why, without the reply's own words."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request; made by `replicates`.

    Args:
        body: what it says, but for the form in which JSON is asked for.
        form: `response_format`, or None.
        structured: how the form was asked for in the settings.
        question: hash of endpoint, model, whole prompt and parameters; equal for replicates.
        sample: index of the replicate.
    """

    body: dict[str, Any]
    form: dict[str, Any] | None
    structured: str
    question: str
    sample: int

    @property
    def key(self) -> str:
        """What the reply is filed under."""
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


def replicates(
    endpoint: str, body: dict[str, Any], form: dict[str, Any] | None, structured: str, count: int, seed: int | None
) -> list[Call]:
    """`count` calls of one request.

    Args:
        seed: call i carries `seed` this + i; None sends none.
    """
    said = json.dumps([endpoint, body, form, structured, seed], sort_keys=True)
    question = hashlib.sha256(said.encode()).hexdigest()[:48]
    bodies = [body if seed is None else {**body, "seed": seed + i} for i in range(count)]
    return [Call(bodies[i], form, structured, question, i) for i in range(count)]


@dataclass(slots=True)
class Reply:
    """What a judge said.

    Args:
        content: its text.
        mark: what the server calls it and a hash of the whole response, equal for copies; "" if it has no id.
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
        """What the server calls it."""
        return self.mark.rpartition(":")[0]

    def to_json(self) -> str:
        kept = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({name: value for name, value in kept.items() if value not in (None, "", [])})

    @classmethod
    def from_json(cls, text: str) -> Reply:
        values = json.loads(text)
        values["positions"] = [[(token, p) for token, p in one] for one in values.get("positions", [])]
        return cls(**{"content": "", **values})


@dataclass(frozen=True, slots=True)
class Missing:
    """A call without a reply, after its retries.

    Args:
        reason: a few words, the same for the same cause; never the server's own message.
    """

    reason: str


_FIELDS = ("content", "mark", "prompt_tokens", "completion_tokens", "finish", "said", "positions")
