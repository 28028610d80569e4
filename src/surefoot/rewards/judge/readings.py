"""From the outcomes of a completion's calls to its row of numbers, and a tally of what was missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from surefoot.rewards.judge.parsing import read_distribution, read_rating
from surefoot.rewards.judge.prompts import COMPARISON
from surefoot.rewards.judge.replies import Call, Missing, Reply, Unreadable

__all__ = ["Reader", "Wording", "copies"]

Outcome = Reply | Missing


@dataclass(frozen=True)
class Wording:
    """What one wording says of one completion.

    Args:
        mean: of its valid replicates; NaN without one.
        variance: s² of a replicate (divisor n − 1), or of the distribution; NaN if unknown.
        count: n, valid replicates; infinite where the distribution was read.
    """

    mean: float
    variance: float
    count: float


class Reader:
    """Reads outcomes, and counts what is missing and why.

    Args:
        scale: lowest and highest rating; `COMPARISON` where positions are swapped.
        paired: calls come in pairs, the completion first and then second; their mean is one replicate, in which what
            a judge gives to a position cancels, and half a pair is missing.
        distribution: read log-probabilities.
    """

    def __init__(self, scale: tuple[int, int], *, paired: bool, distribution: bool) -> None:
        self.scale, self.paired, self.distribution = scale, paired, distribution
        self.missing: Counter[str] = Counter()

    def wording(self, calls: Sequence[Call], outcomes: Sequence[Outcome], copied: set[str]) -> Wording:
        """One wording's replicates.

        Args:
            copied: keys of calls whose replies are copies of other calls' (`copies`).
        """
        read = [self._read(call, outcome, copied) for call, outcome in zip(calls, outcomes, strict=True)]
        found = [one for one in (self._pairs(read) if self.paired else read) if one is not None]
        if not found:
            return Wording(math.nan, math.nan, 0)
        if self.distribution:
            return Wording(*found[0], math.inf)
        values = [value for value, _ in found]
        return Wording(fmean(values), variance(values) if len(values) > 1 else math.nan, len(values))

    def _read(self, call: Call, outcome: Outcome, copied: set[str]) -> tuple[float, float] | None:
        """(value, variance) of one reply; None if it is missing."""
        try:
            if isinstance(outcome, Missing):
                raise Unreadable(outcome.reason)
            if call.key in copied:
                raise Unreadable("a copy of another reply")
            if self.distribution:
                return read_distribution(outcome, *self.scale)
            return read_rating(outcome.content, *self.scale), 0.0
        except Unreadable as why:
            self.missing[str(why)] += 1
            return None

    @staticmethod
    def _pairs(read: Sequence[tuple[float, float] | None]) -> Iterable[tuple[float, float] | None]:
        """How much better the completion is than the reference: the mean over both positions, equal being 0."""
        middle = sum(COMPARISON) / 2
        for first, second in zip(read[::2], read[1::2], strict=True):
            if first is None or second is None:
                yield None
            else:
                yield ((middle - first[0]) + (second[0] - middle)) / 2, (first[1] + second[1]) / 4


def copies(calls: Iterable[Call], outcomes: Iterable[Outcome]) -> set[str]:
    """Keys of calls that were answered with another call's whole response, as caching proxies do.

    Copies aren't replicates: their variance of 0 would mean nothing. The first stays. Ids that are the same for all
    calls are no ids, and then nothing can be told.
    """
    replies = {call.key: outcome for call, outcome in zip(calls, outcomes, strict=True) if isinstance(outcome, Reply)}
    if len({reply.id for reply in replies.values()}) < 2 and len({key.rpartition("-")[0] for key in replies}) > 1:
        return set()
    first: dict[str, str] = {}
    return {key for key, reply in replies.items() if reply.mark and first.setdefault(reply.mark, key) != key}
