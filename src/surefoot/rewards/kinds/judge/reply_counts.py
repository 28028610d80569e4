"""Count the replies that give a rating, and stop a judge whose first replies give none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from surefoot.errors import ModelError
from surefoot.rewards.kinds.judge.messages import Heard, Outcome, Reply

__all__ = ["ReplyCounts", "advice", "unscored_reasons"]

_FIRST = 20
"""Replies after which a judge that gave no rating at all is stopped."""
_EXAMPLE = 200
"""Most characters of a reply that are shown."""
_ADVICE = {
    "empty reply": "a thought takes all of max_tokens, perhaps: raise it, or turn thinking off by `parameters`",
    "cut off": "raise max_tokens",
    "no log-probabilities": "the server gives none to read: set reading: samples",
    "the rating is not one token": "set reading: samples",
    "rating off the scale": "the judge uses another scale: give a rubric with its scale",
    "rating on another scale": "the judge uses another scale: give a rubric with its scale",
    "a copy of another reply": "a proxy or the server repeats responses: turn its cache off, or set sample_seed",
    "": "ask for JSON by structured: json_schema or json_object, or take another model",
}
"""What to do, by the beginning of the reason."""


class ReplyCounts:
    """Replies with and without a rating, counted over a judge's life in this process.

    Attributes:
        replies: that came, from the server or the cache.
        read: of them, those that gave a rating.
        unread: the others by reason.
        example: one of those, shortened.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.replies, self.read, self.example = 0, 0, ""
        self.unread: Counter[str] = Counter()

    def add(self, readings: Iterable[Heard], outcomes: Iterable[Outcome]) -> None:
        """Count a completion's replies.

        Raises:
            ModelError: none of the first replies gave a rating; it shows one, and says what to do.
        """
        for reading, outcome in zip(readings, outcomes, strict=True):
            if not isinstance(outcome, Reply):
                continue
            self.replies += 1
            if reading.rating is not None:
                self.read += 1
            else:
                self.unread[reading.why] += 1
                self.example = self.example or _short(outcome)
        if self.replies >= _FIRST and not self.read:
            raise ModelError(
                f"none of the first {self.replies} replies of '{self.name}' gives a rating ({self.reasons}). One of "
                f"them: {self.example}\nWhat to do: {advice(self.unread)}"
            )

    @property
    def reasons(self) -> str:
        return ", ".join(f"{count} × {reason}" for reason, count in sorted(self.unread.items()))

    @property
    def line(self) -> str:
        """The share of replies that gave a rating, in words."""
        share = f" ({100 * self.read / self.replies:.0f}%)" if self.replies else ""
        return f"replies with a rating: {self.read} of {self.replies}{share}" + (
            f"; {self.reasons}" if self.unread else ""
        )


def advice(unread: Counter[str]) -> str:
    """What to do about the commonest reason for which replies gave no rating.

    Args:
        unread: replies by reason; at least one.
    """
    reason = unread.most_common(1)[0][0]
    return next(text for start, text in _ADVICE.items() if reason.startswith(start))


def _short(reply: Reply) -> str:
    text = " ".join(reply.content.split())
    why = f" (finish_reason: {reply.finish})" if reply.finish else ""
    return (f"“{text[:_EXAMPLE]}{'…' if len(text) > _EXAMPLE else ''}”" if text else "it is empty") + why


def unscored_reasons(missing: Mapping[str, int], refusal: str | None, example: str, reading: str) -> str:
    """Why completions stay unscored, in words.

    Args:
        missing: how many replies have no rating, by reason.
        refusal: what the server said when it last refused a request.
        example: a reply without a rating; "" if there is none.
        reading: of the settings.
    """
    reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(missing.items()))
    text = f"({reasons})" + (f"; the endpoint said: {refusal}" if refusal else "")
    if reading == "logprobs" and any(reason.startswith("HTTP 4") for reason in missing):
        text += "; if it gives no log-probabilities, set reading: samples"
    return text + (f"; one reply without a rating: {example}" if example else "")
