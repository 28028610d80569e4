"""Answers as the preferences that a reward source is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surefoot.feedback.answers import Answer
from surefoot.feedback.formats import to_trl
from surefoot.feedback.pairs import Pair

__all__ = ["counted_rows", "training_rows"]

_FOR_A = {"a": 1.0, "tie": 0.5, "b": 0.0}


def training_rows(pairs: Sequence[Pair], answers: Sequence[Answer], *, counted: bool) -> list[dict[str, Any]]:
    """Rows with `prompt`, `chosen`, `rejected`.

    Args:
        counted: one row for each pair, as `counted_rows` gives it; otherwise one for each preference, without the
            ties, for sources that read no shares.
    """
    if counted:
        return counted_rows(pairs, answers)
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in to_trl(pairs, answers)]


def counted_rows(pairs: Sequence[Pair], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row for each pair that was answered: `chosen` is the side that more answers prefer.

    `chosen_share` is the share of its `answers` that prefer it, a tie counting as half an answer for each side, and
    thus at least ½. Skips are no answers.
    """
    given: dict[str, list[float]] = {}
    for answer in answers:
        if answer.choice in _FOR_A:
            given.setdefault(answer.pair, []).append(_FOR_A[answer.choice])
    rows = []
    for pair in (pair for pair in pairs if pair.id in given):
        share = sum(given[pair.id]) / len(given[pair.id])
        chosen, rejected = (pair.a, pair.b) if share >= 0.5 else (pair.b, pair.a)
        rows.append(
            {
                "prompt": pair.prompt,
                "chosen": chosen,
                "rejected": rejected,
                "chosen_share": max(share, 1 - share),
                "answers": len(given[pair.id]),
            }
        )
    return rows
