"""The nouns refuse what can't be true."""

import math

import pytest
import torch

from surefoot.errors import DataError, VarianceError
from surefoot.types import Calibration, Completions, PreferencePair, RewardEstimate, VariancePrior


def test_an_estimate_from_one_member_has_no_variance_to_read() -> None:
    estimate = RewardEstimate(mean=torch.zeros(3))
    assert not estimate.has_variance
    with pytest.raises(VarianceError, match="at least two members"):
        _ = estimate.variance


@pytest.mark.parametrize("bad", [-1.0, math.inf])
def test_variance_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(DataError, match="finite and not negative"):
        RewardEstimate(mean=torch.zeros(2), epistemic=torch.tensor([1.0, bad]))


def test_an_unscored_row_may_be_nan_throughout() -> None:
    estimate = RewardEstimate(mean=torch.tensor([1.0, math.nan]), epistemic=torch.tensor([1.0, math.nan]))
    assert estimate.scored.tolist() == [True, False]


def test_rows_must_agree() -> None:
    with pytest.raises(DataError, match="members has 3 rows, but mean has 2"):
        RewardEstimate(mean=torch.zeros(2), members=torch.zeros(3, 4))


@pytest.mark.parametrize("prior", [VariancePrior(3.5, 0.2), VariancePrior(math.inf, 1.0), None])
def test_calibration_round_trip(prior: VariancePrior | None) -> None:
    import json

    calibration = Calibration((0.5, -1.0), (1.0, 2.0), prior, None if prior is None else 0.3, 64)
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration


def test_a_constant_member_cannot_be_scaled() -> None:
    with pytest.raises(DataError, match="scales must be positive"):
        Calibration((0.0,), (0.0,), None, None, 3)


@pytest.mark.parametrize(("freedom", "variance"), [(-1.0, 1.0), (math.nan, 1.0), (2.0, 0.0), (2.0, math.inf)])
def test_prior_bounds(freedom: float, variance: float) -> None:
    with pytest.raises(VarianceError):
        VariancePrior(freedom, variance)


def test_preference_pairs() -> None:
    PreferencePair("", "a", "b")  # an implicit prompt is empty, and fine
    with pytest.raises(DataError, match=r"PreferencePair\.rejected is empty"):
        PreferencePair("p", "a", "")
    with pytest.raises(DataError, match=r"PreferencePair\.chosen is None"):
        PreferencePair("p", None, "b")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="margin is nan"):
        PreferencePair("p", "a", "b", margin=math.nan)


def test_completions_need_a_prompt_each() -> None:
    with pytest.raises(DataError, match="2 prompts, 1 completions"):
        Completions(["a", "b"], ["c"], [0, 1])
