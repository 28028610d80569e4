"""What comes of trying a judge: calls with what was sent, said and read, and what to make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from surefoot.rewards.kinds.judge.costs import Totals
from surefoot.rewards.kinds.judge.reply_counts import advice

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.prompts import Message
    from surefoot.types import Text

__all__ = ["Trial", "TriedCall", "TriedCompletion"]

_RANKED = 0.8
"""Least share of pairs that a judge worth using ranks rightly; of random ratings it is about 0.5."""


@dataclass(frozen=True)
class TriedCall:
    """One call.

    Args:
        wording, sample: counted from 0.
        messages: as sent; each has `role` and `content`.
        reply: its text, without the key; None if none came.
        finish: the server's `finish_reason`; "" if it gives none.
        rating: that counts, on the rubric's scale (1 to 7 in comparisons); None if none does.
        variance: of the distribution that was read, in rating²; 0 of a number; None without a rating.
        why: there is no rating; "" if there is one.
        tries: requests that were sent.
        seconds: from the first try to the end of the last.
    """

    wording: int
    sample: int
    messages: list[Message]
    reply: str | None
    finish: str
    rating: float | None
    variance: float | None
    why: str
    tries: int
    seconds: float


@dataclass(frozen=True)
class TriedCompletion:
    """One completion.

    Args:
        about, role, prompt, completion: as in `TrialText`.
        mean: its reward, the mean over wordings of their mean ratings; None if it is unscored.
        variance: s² of one reply, in reward², raw; None if it is unknown.
        calls: wording by wording.
    """

    about: str
    role: str
    prompt: Text
    completion: Text
    mean: float | None
    variance: float | None
    calls: list[TriedCall]


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Args:
        source: the judge's name.
        endpoint: where it was asked.
        scale: lowest and highest rating.
        request: fields of its requests but for the messages.
        completions: all, in order, also after an error.
        totals: tokens, money, latency and retries.
        seconds: of the whole trial.
        notes: further things to know, in words.
        error: why it ended early; None if it didn't.
        interrupted: whether that was Ctrl-C.
    """

    source: str
    endpoint: str
    scale: tuple[int, int]
    request: dict[str, Any]
    completions: list[TriedCompletion]
    totals: Totals
    seconds: float
    notes: list[str]
    error: str | None
    interrupted: bool

    @property
    def calls(self) -> list[TriedCall]:
        """All calls, in order."""
        return [call for item in self.completions for call in item.calls]

    @property
    def unread(self) -> Counter[str]:
        """Calls with a reply but no rating that counts, by reason."""
        return Counter(call.why for call in self.calls if call.reply is not None and call.why)

    @property
    def failed(self) -> Counter[str]:
        """Calls without a reply, by reason."""
        return Counter(call.why for call in self.calls if call.reply is None)

    @property
    def replies(self) -> int:
        """How many calls have a reply."""
        return len(self.calls) - self.failed.total()

    @property
    def read(self) -> int:
        """How many calls have a rating."""
        return self.replies - self.unread.total()

    @property
    def verdict(self) -> list[str]:
        """What to make of it, in sentences."""
        return [*self._on_replies(), *self.notes, *self._on_samples(), *self._on_quality()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: all fields, and what is made of them."""
        counts = {"replies": self.replies, "read": self.read, "unread": self.unread, "failed": self.failed}
        return asdict(self) | counts | {"totals": self.totals.to_dict(), "verdict": self.verdict}

    def _on_replies(self) -> list[str]:
        share = f" ({100 * self.read / self.replies:.0f}%)" if self.replies else ""
        lines = [f"{self.read} of {self.replies} replies could be read{share}."]
        if self.unread:
            lines.append(f"Not read: {_counts(self.unread)}. What to do: {advice(self.unread)}.")
        if self.failed:
            lines.append(f"{self.failed.total()} of {len(self.calls)} calls have no reply: {_counts(self.failed)}.")
        if "response_format" in self.request and {"HTTP 400", "HTTP 422"} & set(self.failed):
            lines.append("If it is response_format that the server refuses, set structured: none.")
        if {"timeout", "deadline"} & set(self.failed):
            lines.append("Where the server is slow, lower concurrency, or raise timeout_s and deadline_s.")
        return lines

    def _on_samples(self) -> list[str]:
        """Say so where replicates never differ."""
        ratings: dict[tuple[int, int, str], list[float]] = {}
        for place, item in enumerate(self.completions):
            for call in item.calls:
                if call.rating is not None:
                    asked = (place, call.wording, call.messages[-1]["content"])
                    ratings.setdefault(asked, []).append(call.rating)
        several = [values for values in ratings.values() if len(values) > 1]
        if not several or any(len(set(values)) > 1 for values in several):
            return []
        return [
            "The samples of a wording are equal for every completion. If the server doesn't sample (temperature: 0, "
            "or a model whose own settings are greedy), samples: 1 says the same for less."
        ]

    def _on_quality(self) -> list[str]:
        """Whether good answers are rated above poor ones, and what asking for the highest rating brings."""
        good, poor = self._means("good"), self._means("poor")
        pairs = [(one, other) for one in good for other in poor]
        lines = []
        if pairs:
            right = sum(one > other for one, other in pairs)
            told = f"Good answers have {fmean(good):.1f} on average, poor ones {fmean(poor):.1f}"
            lines.append(f"{told}; of {len(pairs)} pairs of a good and a poor one, {right} are ranked rightly.")
            if right < _RANKED * len(pairs):
                lines.append("That hardly tells good from poor: take another model, unless the rubric asks otherwise.")
            else:
                lines.append(
                    "So few show gross faults only: chance can rank them so; `surefoot diagnose` measures it."
                )
        for item in (item for item in self.completions if item.role == "attack" and item.mean is not None):
            lines += [
                f"A poor answer that asks for the highest rating has {item.mean:.1f}, without that {mean:.1f}. One "
                "case says little: `python -m surefoot.rewards.kinds.judge.prompt_injection` measures it."
                for mean in self._means("poor", item.prompt)[:1]
            ]
        return lines

    def _means(self, role: str, prompt: Text | None = None) -> list[float]:
        those = (item for item in self.completions if item.role == role and prompt in (None, item.prompt))
        return [item.mean for item in those if item.mean is not None]


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
