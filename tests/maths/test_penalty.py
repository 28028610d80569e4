"""The reward and the KL coefficient of each completion, by hand."""

import math

import pytest
import torch

from surefoot.errors import VarianceError
from surefoot.maths.objectives import Objective, preset
from surefoot.maths.penalty import shape_reward
from surefoot.types import RewardEstimate

RATIO = torch.tensor([0.5, -0.25, 1.0], dtype=torch.float64)


def estimate() -> RewardEstimate:
    mean = torch.tensor([7.0, 3.0, math.nan], dtype=torch.float64)
    variance = torch.tensor([3.0, 0.75, math.nan], dtype=torch.float64)
    return RewardEstimate(mean=mean, epistemic=variance, degrees_of_freedom=torch.full_like(mean, math.inf))


def test_a_coefficient_for_each_row() -> None:
    shaped = shape_reward(estimate(), Objective(), 1.5, beta=0.1)
    assert shaped.weight[:2].tolist() == [2.0, 0.5]
    torch.testing.assert_close(shaped.coefficient[:2], torch.tensor([0.2, 0.05], dtype=torch.float64))
    assert shaped.constant[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(
        shaped.total(RATIO)[:2], torch.tensor([7 - 0.2 * 0.5, 3 + 0.05 * 0.25], dtype=torch.float64)
    )
    assert bool(shaped.total(RATIO)[2].isnan())


def test_the_literal_form_pays_for_the_weight_too() -> None:
    shaped = shape_reward(estimate(), Objective(form="literal"), 1.5, beta=0.1)
    torch.testing.assert_close(
        shaped.total(RATIO)[:2], torch.tensor([7 - 0.2 * 1.5, 3 - 0.05 * 0.75], dtype=torch.float64)
    )


@pytest.mark.parametrize("objective", [Objective(), Objective(form="literal"), preset("mean"), preset("lcb")])
def test_the_surcharge_is_what_an_unweighted_kl_lacks(objective: Objective) -> None:
    shaped = shape_reward(estimate(), objective, 1.5, beta=0.1)
    found = shaped.aggregate - 0.1 * RATIO + shaped.surcharge(RATIO, 0.1)
    torch.testing.assert_close(found, shaped.total(RATIO), equal_nan=True)
    if objective.weights == "none":
        assert shaped.surcharge(RATIO, 0.1)[:2].tolist() == [0.0, 0.0]


def test_weighting_needs_a_reference() -> None:
    with pytest.raises(VarianceError, match="mean variance over the reference policy"):
        shape_reward(estimate(), Objective(), None, 0.1)
