"""Turn the replies of a completion's calls into its scored row, and count what is missing by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from surefoot.rewards.kinds.judge.messages import Call, Heard, Missing, Outcome, Unreadable
from surefoot.rewards.kinds.judge.parsing import read_distribution, read_rating
from surefoot.rewards.kinds.judge.prompts import COMPARISON

__all__ = ["COPY", "Reader", "Reading", "Wording", "copies", "missing"]

COPY = "a copy of another reply"
"""Why a reading that `copies` names counts as missing."""


@dataclass(frozen=True)
class Wording:
    """The ratings of one completion under one wording.

    Args:
        mean: of its valid replicates; NaN without one.
        variance: s² of a replicate (divisor n − 1), or of the distribution; NaN if unknown.
        count: n, valid replicates; infinite where the distribution was read.
    """

    mean: float
    variance: float
    count: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The rating of one call, or why it is missing.

    Args:
        key: the call's.
        mark: the reply's, equal for copies; None without a reply.
        rating: (value, variance); None if it is missing.
        why: it is missing.
    """

    key: str
    mark: str | None
    rating: tuple[float, float] | None
    why: str = ""


class Reader:
    """Reads outcomes.

    Args:
        scale: lowest and highest rating; `COMPARISON` where positions are swapped.
        paired: calls come in pairs, the completion first and then second; their mean is one replicate, in which what
            a judge gives to a position cancels, and half a pair is missing.
        distribution: read log-probabilities.
    """

    def __init__(self, scale: tuple[int, int], *, paired: bool, distribution: bool) -> None:
        self.scale, self.paired, self.distribution = scale, paired, distribution

    def read(self, calls: Sequence[Call], outcomes: Sequence[Outcome]) -> list[Reading]:
        """The reading of each outcome."""
        return [self._read(call.key, outcome) for call, outcome in zip(calls, outcomes, strict=True)]

    def _read(self, key: str, outcome: Outcome) -> Reading:
        if isinstance(outcome, Missing):
            return Reading(key, None, None, outcome.reason)
        try:
            if self.distribution:
                return Reading(key, outcome.mark, read_distribution(outcome, *self.scale))
            return Reading(key, outcome.mark, (read_rating(outcome.content, *self.scale, outcome.finish), 0.0))
        except Unreadable as why:
            return Reading(key, outcome.mark, None, str(why))

    def row(self, readings: Sequence[Reading], wordings: int, copied: set[str], min_valid: int) -> list[float]:
        """A completion's columns: the mean over wordings, then the mean, variance and count of each.

        Args:
            readings: of all its calls, wording by wording.
            copied: keys of calls whose replies are copies of other calls' (`copies`).
            min_valid: with fewer valid replicates all is NaN.
        """
        size = len(readings) // wordings
        read = [self._wording(readings[v * size : (v + 1) * size], copied) for v in range(wordings)]
        if sum(1 if math.isinf(wording.count) else wording.count for wording in read) < min_valid:
            return [math.nan] * (1 + 3 * wordings)
        known = [wording.mean for wording in read if not math.isnan(wording.mean)]
        columns = [(wording.mean, wording.variance, wording.count) for wording in read]
        return [sum(known) / len(known), *(value for column in columns for value in column)]

    def _wording(self, readings: Sequence[Reading], copied: set[str]) -> Wording:
        read = [None if reading.key in copied else reading.rating for reading in readings]
        ratings = [value for value in (self._pairs(read) if self.paired else read) if value is not None]
        if not ratings:
            return Wording(math.nan, math.nan, 0)
        if self.distribution:
            return Wording(*ratings[0], math.inf)
        if len(ratings) == 1:
            return Wording(ratings[0][0], math.nan, 1)
        values = [value for value, _ in ratings]
        return Wording(fmean(values), variance(values), len(values))

    @staticmethod
    def _pairs(read: Sequence[tuple[float, float] | None]) -> Iterable[tuple[float, float] | None]:
        """Rewards relative to the reference (0 is equal), each the mean over both positions."""
        middle = sum(COMPARISON) / 2
        for first, second in zip(read[::2], read[1::2], strict=True):
            if first is None or second is None:
                yield None
            else:
                yield ((middle - first[0]) + (second[0] - middle)) / 2, (first[1] + second[1]) / 4


def missing(readings: Iterable[Heard], copied: set[str]) -> Counter[str]:
    """Count missing readings by reason."""
    gone = [reading for reading in readings if reading.rating is None or reading.key in copied]
    return Counter(COPY if reading.key in copied else reading.why for reading in gone)


def copies(readings: Iterable[Heard]) -> set[str]:
    """Keys of calls that were answered with another call's whole response, as caching proxies do.

    Copies aren't replicates: their variance of 0 would mean nothing. The first stays. Ids that are the same for all
    calls are no ids, and then nothing can be told.
    """
    marks = {reading.key: reading.mark for reading in readings if reading.mark is not None}
    if len(set(marks.values())) == len(marks):
        return set()
    ids = {mark.rpartition(":")[0] for mark in marks.values()}
    if len(ids) < 2 and len({key.rpartition("-")[0] for key in marks}) > 1:
        return set()
    first: dict[str, str] = {}
    return {key for key, mark in marks.items() if mark and first.setdefault(mark, key) != key}
