"""Weights from variances: s̄² of the first batch, then fixed; a row's own weight; rows that have neither."""

from typing import Any

import pytest
import torch

from surefoot.engines.row_weights import VARIANCE, WEIGHT, RowWeights
from surefoot.errors import DataError, VarianceError
from surefoot.maths.objectives import Objective, preset

NAMES = ["a", "b", "c"]


def rows(*variances: Any) -> Any:
    return [{VARIANCE: value} for value in variances]


def test_the_first_batch_fixes_the_reference_variance() -> None:
    make = RowWeights(preset("variance_aware"))
    first = make(NAMES, rows(1.0, 3.0, 99.0), [True, True, False])  # the third fills up the batch
    assert make.reference_variance == 2.0
    torch.testing.assert_close(first, torch.tensor([0.5, 1.5, 10.0]))
    assert float(first[:2].mean()) == 1.0
    later = make(NAMES, rows(4.0, 8.0, 0.0), [True] * 3)
    assert make.reference_variance == 2.0
    torch.testing.assert_close(later, torch.tensor([2.0, 4.0, 0.1]))


def test_a_given_one_stays() -> None:
    make = RowWeights(Objective("mean", weight_ceiling=3.0), 0.5)
    torch.testing.assert_close(make(NAMES, rows(0.25, 1.0, 9.0), [True] * 3), torch.tensor([0.5, 2.0, 3.0]))
    assert make.reference_variance == 0.5


def test_own_weights_are_taken_as_they_are() -> None:
    make = RowWeights(preset("variance_aware"))
    own = [{WEIGHT: value} for value in (0.01, 1.0, 50.0)]
    torch.testing.assert_close(make(NAMES, own, [True] * 3), torch.tensor([0.01, 1.0, 50.0]))
    assert make.reference_variance is None


def test_without_weights_all_are_one() -> None:
    assert RowWeights(preset("lcb"))(NAMES, [{}, {}, {}], [True] * 3).tolist() == [1.0] * 3


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_refused(value: Any) -> None:
    make = RowWeights(preset("variance_aware"))
    with pytest.raises(DataError, match=f"row b came with {VARIANCE}: {value}"):
        make(NAMES, rows(1.0, value, 1.0), [True] * 3)
    with pytest.raises(DataError, match=f"row b came with {WEIGHT}: {value}"):
        make(NAMES, [{WEIGHT: 1.0}, {WEIGHT: value}, {}], [True] * 3)
    with pytest.raises(DataError, match=f"row c came with {VARIANCE}: None"):
        make(NAMES, [*rows(1.0, 1.0), {}], [True] * 3)
    with pytest.raises(VarianceError, match="must be positive"):
        make(NAMES, rows(0.0, 0.0, 0.0), [True] * 3)
