"""Read the answers to criteria from replies, and line them up by criterion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.judge.json_objects import find_objects
from surefoot.rewards.kinds.judge.messages import Call, Missing, Outcome, Reply, Unreadable
from surefoot.rewards.kinds.judge.parsing import CUT, number_of, read_rating, unquoted
from surefoot.rewards.kinds.judge.reasoning import answer_of

__all__ = ["Answers", "answer_table", "read_answers"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What one reply says of the criteria that it was asked about.

    Args:
        key: the call's.
        mark: the reply's, equal for copies; None without a reply.
        rating: of each criterion, in [0, 1], NaN where the reply says nothing of it; None if it says nothing of any.
        why: it says nothing.
    """

    key: str
    mark: str | None
    rating: tuple[float, ...] | None
    why: str = ""


def read_answers(call: Call, outcome: Outcome, criteria: Sequence[Criterion], *, together: bool) -> Answers:
    """Read one call's outcome.

    Args:
        criteria: that the call was about; one, if not `together`.
    """
    if isinstance(outcome, Missing):
        return Answers(call.key, None, None, outcome.reason)
    try:
        if together:
            return Answers(call.key, outcome.mark, _numbered(outcome, criteria))
        rating = read_rating(outcome.content, *criteria[0].ends, outcome.finish)
        return Answers(call.key, outcome.mark, (_share(rating, criteria[0]),))
    except Unreadable as why:
        return Answers(call.key, outcome.mark, None, str(why))


def _numbered(reply: Reply, criteria: Sequence[Criterion]) -> tuple[float, ...]:
    """The rating under each number; NaN where there is none, or two that differ.

    Raises:
        Unreadable: the reply was cut off in a thought or a rating, or no number has a rating.
    """
    text = unquoted(answer_of(reply.content))
    objects = find_objects(text)
    thought = reply.finish in CUT and not text.startswith("{")  # it may be one, whose numbers don't count
    if thought or (objects.at_end is not None and reply.finish != "stop"):
        raise Unreadable("cut off before the rating of each criterion")
    ratings = tuple(
        _only([_read(value, criterion) for key, value in objects.pairs if key.strip() == str(number)])
        for number, criterion in enumerate(criteria, 1)
    )
    if all(math.isnan(rating) for rating in ratings):
        raise Unreadable("no rating in the reply")
    return ratings


def _only(ratings: Sequence[float]) -> float:
    return ratings[0] if ratings and all(rating == ratings[0] for rating in ratings) else math.nan


def _read(value: Any, criterion: Criterion) -> float:
    """A value of JSON as an answer; NaN if it is none."""
    if isinstance(value, bool) and criterion.scale is None:
        return float(value)
    try:
        return _share(number_of(value, criterion.ends[1]), criterion)
    except Unreadable:
        return math.nan


def _share(rating: float, criterion: Criterion) -> float:
    """The rating as a share of the scale, 1 at its upper end.

    Raises:
        Unreadable: it is no number of the scale.
    """
    lowest, highest = criterion.ends
    if not lowest <= rating <= highest or (criterion.scale is None and rating not in (0, 1)):
        raise Unreadable("rating off the scale")
    return (rating - lowest) / (highest - lowest)


def answer_table(
    criteria: Sequence[Criterion],
    verified: Sequence[float],
    answers: Sequence[Answers],
    copied: set[str],
    *,
    samples: int,
    together: bool,
) -> Float[Tensor, "replies criteria"]:
    """One row for each reply, one column for each criterion; a verifier's answer stands in every row.

    Args:
        criteria: all of the prompt's.
        verified: the verifiers' answers in the places of their criteria, NaN where they have none.
        answers: of a completion's calls in their order; none where nothing was asked.
        copied: keys of calls whose replies are copies of other calls' (`judge.reply_rows.copies`).

    Returns:
        (samples, criteria) float64 in [0, 1], NaN where an answer is missing.
    """
    table = torch.tensor(list(verified), dtype=torch.float64).repeat(samples, 1)
    judged = [place for place, criterion in enumerate(criteria) if criterion.judged]
    for position, answer in enumerate(answers):
        if answer.rating is None or answer.key in copied:
            continue
        question, sample = divmod(position, samples)
        places = judged if together else [judged[question]]
        table[sample, places] = torch.tensor(answer.rating, dtype=torch.float64)
    return table
