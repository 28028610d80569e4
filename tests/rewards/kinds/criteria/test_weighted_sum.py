"""The arithmetic of weighted criteria: by hand, and unbiased over an enumeration of all replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from surefoot.rewards.kinds.criteria.weighted_sum import (
    WeightedSum,
    Weights,
    paired_spread,
    sum_of_each,
    sum_together,
)

NAN = math.nan


def weights(
    values: Sequence[float], required: Sequence[int] = (), exact: Sequence[int] = (), steps: Sequence[float] = ()
) -> Weights:
    places = range(len(values))
    return Weights(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor([i in required for i in places]),
        torch.tensor([i in exact for i in places]),
        torch.tensor(steps or [1.0] * len(values), dtype=torch.float64),
    )


def table(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_by_hand() -> None:
    """Weights 3, 1, −2: P = 4. Means 1, ½, ½; s² 0, ½, ½ of two replies each."""
    found = sum_of_each(table([1, 0, 1], [1, 1, 0]), weights([3, 1, -2]))
    assert found.reward == pytest.approx((3 + 0.5 - 1) / 4)
    assert found.reply == pytest.approx((1 / 16 + 4 / 16) / 2)
    assert found.mean == pytest.approx(found.reply / 2)
    assert found.floor == pytest.approx((9 + 1 + 4) / 16 / 12)
    assert found.freedom == pytest.approx(14**2 / (81 + 1 + 16))


def test_together_keeps_the_covariance() -> None:
    """The same answers as above, but as two whole replies: 3/4 − 2/4 and 4/4, so that the errors add up."""
    found = sum_together(table([1, 0, 1], [1, 1, 0]), weights([3, 1, -2]))
    assert found.reward == pytest.approx(5 / 8)
    assert found.reply == pytest.approx((0.25 - 1) ** 2 / 2)
    assert found.mean == pytest.approx(found.reply / 2)
    assert found.freedom == 1


def test_healthbench_s_convention() -> None:
    """Points achieved over the sum of the positive points: all good and no bad is 1, the least is below 0."""
    some = weights([5, 3, -4])
    assert sum_of_each(table([1, 1, 0]), some).reward == 1
    assert sum_of_each(table([0, 0, 1]), some).reward == -0.5 == float(some.least)
    assert sum_of_each(table([1, 0, 1]), some).reward == 1 / 8


@pytest.mark.parametrize("reduce", [sum_of_each, sum_together])
def test_a_required_criterion_that_is_not_met(reduce: Callable[[Tensor, Weights], WeightedSum]) -> None:
    some = weights([5, 3, -4], required=[0])
    found = reduce(table([0, 1, 0], [0, 1, 0]), some)
    assert found.reward == -0.5
    assert found.reply == found.mean == 0
    met = reduce(table([1, 1, 0], [1, 1, 0]), some)
    assert met.reward == 1
    half = sum_together(table([1, 1, 0], [0, 1, 0]), some)
    assert half.reward == pytest.approx((1 - 0.5) / 2)
    assert half.reply == pytest.approx(1.5**2 / 2)


CASES = [
    ([3.0, 1.0, -2.0], [], [0.9, 0.3, 0.6]),
    ([3.0, 1.0, -2.0], [0], [0.7, 0.3, 0.6]),
    ([2.0, 1.0, 1.0], [0, 2], [0.7, 0.4, 0.8]),
    ([0.0, 1.0], [0], [0.5, 0.25]),
]


def truth(values: Sequence[float], required: Sequence[int], chances: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of one reply's reward, by summing over all answers; written apart from the code."""
    positive = sum(max(value, 0) for value in values)
    least = sum(min(value, 0) for value in values) / positive
    first = second = 0.0
    for answers in product((0, 1), repeat=len(values)):
        chance = math.prod(p if x else 1 - p for p, x in zip(chances, answers, strict=True))
        y = sum(w * x for w, x in zip(values, answers, strict=True)) / positive
        y = least if any(not answers[j] for j in required) else y
        first, second = first + chance * y, second + chance * y * y
    return first, second - first**2


@pytest.mark.parametrize(("values", "required", "chances"), CASES)
@pytest.mark.parametrize("reduce", [sum_of_each, sum_together])
def test_unbiased_over_all_replies(
    reduce: Callable[[Tensor, Weights], WeightedSum],
    values: list[float],
    required: list[int],
    chances: list[float],
) -> None:
    """E of reward, variance of a reply, and of the mean, over every table of two replies, is the truth."""
    some, count, size = weights(values, required), 2, len(values)
    reward, variance = truth(values, required, chances)
    expected = {"reward": 0.0, "square": 0.0, "reply": 0.0, "mean": 0.0}
    for answers in product((0, 1), repeat=count * size):
        rows = [answers[r * size : (r + 1) * size] for r in range(count)]
        chance = math.prod(p if x else 1 - p for row in rows for p, x in zip(chances, row, strict=True))
        found = reduce(table(*rows), some)
        assert found.reply >= 0
        assert found.mean >= 0
        expected["reward"] += chance * found.reward
        expected["square"] += chance * found.reward**2
        expected["reply"] += chance * found.reply
        expected["mean"] += chance * found.mean
    assert expected["reward"] == pytest.approx(reward, abs=1e-12)
    assert expected["reply"] == pytest.approx(variance, abs=1e-12)
    assert expected["mean"] == pytest.approx(expected["square"] - reward**2, abs=1e-12)


def test_each_is_unbiased_with_different_numbers_of_replies() -> None:
    """Three replies of the required one, two of the other; the products stay unbiased."""
    some, chances = weights([2, 1], required=[0]), (0.6, 0.3)
    reward, variance = truth([2, 1], [0], chances)
    mean = reply = 0.0
    for first in product((0, 1), repeat=3):
        for second in product((0, 1), repeat=2):
            chance = math.prod(0.6 if x else 0.4 for x in first) * math.prod(0.3 if x else 0.7 for x in second)
            found = sum_of_each(table(*zip(first, (*second, NAN), strict=True)), some)
            mean, reply = mean + chance * found.reward, reply + chance * found.reply
    assert (mean, reply) == pytest.approx((reward, variance), abs=1e-12)


def test_a_verifier_has_no_variance() -> None:
    some = weights([3, 1], exact=[0])
    for reduce in (sum_of_each, sum_together):
        found = reduce(table([1, 0], [1, 1]), some)
        assert found.reward == pytest.approx(3.5 / 4)
        assert found.reply == pytest.approx(1 / 16 / 2)
        assert found.floor == pytest.approx(1 / 16 / 12)
        assert found.freedom == pytest.approx(1)
        alone = reduce(table([1, 0]), weights([3, 1], exact=[0, 1]))
        assert (alone.reward, alone.reply, alone.mean, alone.floor) == (0.75, 0, 0, 0)
        assert alone.freedom == math.inf


def test_one_reply_has_an_unknown_variance() -> None:
    for reduce in (sum_of_each, sum_together):
        found = reduce(table([1, 0]), weights([3, 1]))
        assert found.reward == 0.75
        assert math.isnan(found.reply)
        assert math.isnan(found.mean)
        assert found.freedom == 0


def test_the_spread_between_criteria_is_unbiased() -> None:
    """Over all draws of three criteria from a population of four contributions, its mean is Var(Σc)."""
    population = [0.5, 0.0, -0.25, 0.125]
    sums, spreads = [], []
    for drawn in product(population, repeat=3):
        sums.append(sum(drawn))
        spreads.append(float(paired_spread(table(drawn))[0]))
    mean = sum(sums) / len(sums)
    variance = sum((value - mean) ** 2 for value in sums) / len(sums)
    assert sum(spreads) / len(spreads) == pytest.approx(variance, abs=1e-12)


def test_the_spread_leaves_out_what_is_unknown() -> None:
    found = paired_spread(table([0.5, NAN, 0.1], [0.5, NAN, NAN]))
    assert float(found[0]) == pytest.approx(2 * (0.2**2 + 0.2**2))
    assert math.isnan(float(found[1]))
