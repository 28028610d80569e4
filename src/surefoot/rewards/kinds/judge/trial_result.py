"""What comes of trying a judge or criteria: calls with what was sent, said and read, and what to make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from surefoot.rewards.kinds.judge.costs import Totals
from surefoot.rewards.kinds.judge.reply_counts import advice

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.prompts import Message
    from surefoot.types import Text

__all__ = ["Read", "Trial", "TriedCall", "TriedCompletion", "TriedCriterion"]

Read = float | tuple[float | None, ...]
"""A rating; or one for each criterion, None where the reply says nothing of it."""
_RANKED = 0.8
"""Least share of pairs that a judge worth using ranks rightly; of random ratings it is about 0.5."""


@dataclass(frozen=True)
class TriedCall:
    """One call.

    Args:
        question: the rubric's wording or the criterion that it is about, such as "wording 1"; or "all criteria".
        sample: counted from 0.
        messages: as sent; each has `role` and `content`.
        reply: its text, without the key; None if none came.
        finish: the server's `finish_reason`; "" if it gives none.
        rating: that counts, on the rubric's scale (1 to 7 in comparisons), of criteria from 0 to 1; None if none does.
        variance: of the distribution that was read, in rating²; 0 of a number; None without a rating.
        why: there is no rating; "" if there is one.
        tries: requests that were sent.
        seconds: from the first try to the end of the last.
    """

    question: str
    sample: int
    messages: list[Message]
    reply: str | None
    finish: str
    rating: Read | None
    variance: float | None
    why: str
    tries: int
    seconds: float


@dataclass(frozen=True)
class TriedCriterion:
    """A criterion of a completion.

    Args:
        text, kind, weight, required: as in `Criterion`.
        answers: of each reply, or of the verifier, from 0 to 1; None where it is missing.
        answer: their mean; None if there are too few.
    """

    text: str
    kind: str
    weight: float
    required: bool
    answers: list[float | None]
    answer: float | None


@dataclass(frozen=True)
class TriedCompletion:
    """One completion.

    Args:
        about, role, prompt, completion: as in `TrialText`.
        mean: its reward; None if it is unscored.
        variance: in reward², raw; None if it is unknown.
        calls: question by question.
        criteria: of its prompt, if the source has any.
        decided: a required verifier isn't met, so that the judge isn't asked.
    """

    about: str
    role: str
    prompt: Text
    completion: Text
    mean: float | None
    variance: float | None
    calls: list[TriedCall]
    criteria: list[TriedCriterion] = field(default_factory=list)
    decided: bool = False


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Args:
        source: the judge's name.
        endpoint: where it was asked.
        scale: lowest and highest rating; None of criteria, whose reward is 1 at most.
        request: fields of the first request but for the messages; empty if nothing is asked.
        completions: all, in order, also after an error.
        totals: tokens, money, latency and retries.
        seconds: of the whole trial.
        notes: further things to know, in words.
        error: why it ended early; None if it didn't.
        interrupted: whether that was Ctrl-C.
    """

    source: str
    endpoint: str
    scale: tuple[int, int] | None
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
        lines = [*self._on_criteria(), *self.notes, *self._on_samples(), *self._on_quality()]
        return [*self._on_replies(), *lines] if self.calls else lines

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

    def _on_criteria(self) -> list[str]:
        """How many criteria have an answer, and what to do about replies that leave some out."""
        criteria = [
            one for item in self.completions for one in item.criteria if not (item.decided and one.kind == "judged")
        ]
        if not criteria:
            return []
        answered = sum(one.answer is not None for one in criteria)
        lines = [f"{answered} of {len(criteria)} criteria have an answer."]
        partial = sum(isinstance(call.rating, tuple) and None in call.rating for call in self.calls)
        if partial:
            lines.append(
                f"{partial} replies leave criteria out. Raise max_tokens if they are cut off, or set asking: each."
            )
        return lines

    def _on_samples(self) -> list[str]:
        """Say so where replicates never differ."""
        ratings: dict[tuple[int, str, str], list[Read]] = {}
        for place, item in enumerate(self.completions):
            for call in item.calls:
                if call.rating is not None:
                    asked = (place, call.question, call.messages[-1]["content"])
                    ratings.setdefault(asked, []).append(call.rating)
        several = [values for values in ratings.values() if len(values) > 1]
        if not several or any(len(set(values)) > 1 for values in several):
            return []
        what = "wording" if self.scale else "criterion"
        return [
            f"The samples of a {what} are equal for every completion. If the server doesn't sample (temperature: 0, "
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
