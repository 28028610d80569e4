"""Make a completion's scored row of the answers to its criteria.

Columns: the reward; its variance (of one reply or of the mean, as `variance_of` says); the least variance that equal
replies can show; degrees of freedom; the share of the weights that has no answer. With `variance_from: criteria` each
criterion's contribution w·x/P follows, in the order of the prompt's list.

A criterion with fewer than `min_valid` valid replies has no answer. It is never taken for met or not met:

- if a required one has none, the completion is unscored;
- if more than `most_missing` of the weights (0 by default) have none, the completion is unscored;
- else the reward is that of the others, with their own sum of positive weights.

Where a required verifier isn't met, the reward is the least possible one whatever else would be said: no judge is
asked, and the variance is 0. An unscored row is NaN throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.weighted_sum import WeightedSum, Weights, sum_of_each, sum_together

__all__ = ["FIRST", "Row", "is_decided", "row_of"]

FIRST = 5
"""Place of the first contribution."""


class Row(NamedTuple):
    """A scored row.

    Args:
        columns: the values.
        criteria: that were to be decided.
        answered: of them, those that have an answer.
    """

    columns: list[float]
    criteria: int
    answered: int


def is_decided(criteria: Sequence[Criterion], verified: Sequence[float]) -> bool:
    """Whether a required verifier isn't met.

    Args:
        verified: answers in the places of the verifiers' criteria.
    """
    return any(one.required and value == 0 for one, value in zip(criteria, verified, strict=True))


def row_of(criteria: Sequence[Criterion], table: Float[Tensor, "replies criteria"], config: CriteriaConfig) -> Row:
    """Reduce the answers to a row.

    Args:
        table: of `answer_table`.
    """
    weights, paired = _weights(criteria), config.variance_from == "criteria"
    if is_decided(criteria, table[0].tolist()) and bool(table[:, ~weights.exact].isnan().all()):
        verified = int(weights.exact.sum())
        return Row([float(weights.least), 0.0, 0.0, math.inf, 0.0], verified, verified)
    counts = (~table.isnan()).sum(dim=0)
    known = counts >= torch.where(weights.exact, 1, config.valid)
    share = float(weights.weights[~known].abs().sum() / weights.weights.abs().sum())
    width, answered = FIRST + (len(criteria) if paired else 0), int(known.sum())
    some = Weights(*(value[known] for value in vars(weights).values()))
    answers = table[:, known]
    if config.asking == "together":
        answers = answers[~answers.isnan().any(dim=1)]
    enough = len(answers) >= (config.valid if bool((~some.exact).any()) else 1) and bool((some.weights > 0).any())
    if share > config.most_missing or bool(weights.required[~known].any()) or not enough:
        return Row([math.nan] * width, len(criteria), answered)
    found = (sum_together if config.asking == "together" else sum_of_each)(answers, some)
    columns = [*_columns(found, of_mean=paired or config.variance_of == "mean"), share]
    if paired:
        contributions = torch.full((len(criteria),), torch.nan, dtype=torch.float64)
        contributions[known] = some.shares * answers.nanmean(dim=0)
        columns += contributions.tolist()
    return Row(columns, len(criteria), answered)


def _columns(found: WeightedSum, *, of_mean: bool) -> list[float]:
    variance, floor = (found.mean, found.floor_of_mean) if of_mean else (found.reply, found.floor)
    return [found.reward, variance, floor, found.freedom]


def _weights(criteria: Sequence[Criterion]) -> Weights:
    return Weights(
        weights=torch.tensor([one.weight for one in criteria], dtype=torch.float64),
        required=torch.tensor([one.required for one in criteria]),
        exact=torch.tensor([not one.judged for one in criteria]),
        steps=torch.tensor([1 / (one.ends[1] - one.ends[0]) for one in criteria], dtype=torch.float64),
    )
