"""The report's figures by hand, by invariance, and against members whose errors are known."""

import json
import math

import pytest
import torch
from datasets import Dataset

from surefoot.diagnosis.disagreement import disagreement_of_scores, known_errors, measure_disagreement
from surefoot.errors import VarianceError
from surefoot.rewards.kinds.function import FunctionMembers


def test_by_hand() -> None:
    chosen = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 2.0, 0.0]])
    rejected = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 0.5], [2.0, 0.0, 3.0]])
    found = disagreement_of_scores(chosen, rejected)
    # winners by member: (1 1 1), (0 0 1), (1 0 1), (0 1 0)
    assert [one.value for one in found.accuracy_of_members] == [0.5, 0.5, 0.75]
    assert found.split.value == 0.75
    assert found.minority == pytest.approx(1 / 3)
    assert found.agreement == pytest.approx((2 / 4 + 3 / 4 + 1 / 4) / 3)
    assert found.accuracy_of_mean.value == 0.25  # mean margins 2, −1/3, −1/6, −1


def test_offsets_change_nothing_but_their_own_share() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(60, 2, 1, generator=generator, dtype=torch.float64)
    scores = truth + 0.5 * torch.randn(60, 2, 4, generator=generator, dtype=torch.float64)
    offsets = 3 * torch.randn(60, 1, 4, generator=generator, dtype=torch.float64)
    plain = disagreement_of_scores(scores[:, 0], scores[:, 1]).to_dict()
    moved = disagreement_of_scores((scores + offsets)[:, 0], (scores + offsets)[:, 1]).to_dict()
    assert moved["offset_per_prompt"] > 0.9
    assert abs(plain["offset_per_prompt"]) < 0.1
    for values in (plain, moved):
        for name in ("offset_overall", "offset_per_prompt", "verdict"):
            values.pop(name)
    assert json.dumps(_rounded(plain)) == json.dumps(_rounded(moved))


def _rounded(values: object) -> object:
    if isinstance(values, float):
        return round(values, 8)
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return [_rounded(value) for value in values] if isinstance(values, list) else values


def test_a_variance_that_follows_the_errors_is_found_and_one_that_does_not_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.where(torch.rand(800, 1, generator=generator) < 0.5, 0.2, 3.0)
    margins = 0.7 + noise * torch.randn(800, 5, generator=generator)
    useful = disagreement_of_scores(margins, torch.zeros(800, 5))
    assert useful.error_auroc["variance"].low > 0.6
    assert "predicts which pairs the mean ranks wrongly:" in useful.verdict()[2]
    assert useful.prior_freedom is not None
    assert useful.prior_freedom < 5
    even = disagreement_of_scores(0.7 + torch.randn(800, 5, generator=generator), torch.zeros(800, 5))
    assert even.prior_freedom is None or even.prior_freedom > 30
    assert "doesn't differ between pairs beyond chance" in even.verdict()[1]


def test_unscored_pairs_are_left_out() -> None:
    scores = torch.randn(10, 3)
    scores[4, 1] = math.nan
    assert disagreement_of_scores(scores, torch.zeros(10, 3)).pairs == 9
    with pytest.raises(VarianceError, match="only 1 pairs were scored"):
        disagreement_of_scores(scores[3:5], torch.zeros(2, 3))


def test_the_json_is_plain() -> None:
    values = disagreement_of_scores(torch.randn(30, 3), torch.zeros(30, 3)).to_dict()
    json.dumps(values, allow_nan=False)
    assert len(values["verdict"]) == 3


def test_one_member_cannot_disagree() -> None:
    source = FunctionMembers(lambda prompts, completions: [[1.0]] * len(prompts), 1, name="single")
    pairs = Dataset.from_dict({"prompt": ["p"] * 3, "chosen": ["a"] * 3, "rejected": ["b"] * 3})
    with pytest.raises(VarianceError, match="'single' has one member"):
        measure_disagreement(source, pairs)


def test_known_errors_see_heteroscedastic_members() -> None:
    """Errors drawn with standard deviations of .1 or 1: the variance must rank them, whatever the scale and offset."""
    generator = torch.Generator().manual_seed(2)
    groups = torch.arange(600) // 10
    truth = torch.randn(600, generator=generator, dtype=torch.float64)
    sd = torch.where(torch.rand(600, 1, generator=generator) < 0.5, 0.1, 1.0).double()
    members = 4 * (truth[:, None] + sd * torch.randn(600, 6, generator=generator, dtype=torch.float64)) + 7
    source = FunctionMembers(lambda prompts, completions: [[0.0] * 6 for _ in prompts], 6)
    found = known_errors(source, members, truth, groups)
    assert found.spearman.low > 0.2
    assert found.variance_cv > 0.5
    assert found.mean_correlation > found.member_correlation > 0.5
    shifted = known_errors(source, members + groups[:, None].double(), truth, groups)
    assert shifted.spearman.value == pytest.approx(found.spearman.value, abs=1e-9)
