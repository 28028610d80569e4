"""What every source promises of its variance: anchors decide it, siblings don't, and the estimate names its anchor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from surefoot.errors import DataError, VarianceError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.kinds.smoothed import SmoothedVariance, smooth_variance
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.types import Anchors
from tests.models import WORDS

KINDS = ["members", "raw members", "linear", "sandwich", "smoothed"]
REFERENCE = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:8]]
"""Sixteen completions that stand for the reference policy's."""


@pytest.fixture(scope="module")
def make(policy_path: Path, pairs: Dataset) -> Callable[[str], RewardSource]:
    def heads() -> SharedTrunkHeads:
        return train_heads(pairs, policy_path, HeadsConfig(members=6, layer=0, epochs=3), device="cpu")

    def raw() -> MemberSource:
        source = heads()
        source.variance_kind = "raw"
        return source

    makers: dict[str, Callable[[], RewardSource]] = {
        "members": heads,
        "raw members": raw,
        "linear": lambda: fit_linear(pairs, policy_path, LinearConfig(layer=0), device="cpu"),
        "sandwich": lambda: fit_linear(pairs, policy_path, LinearConfig(layer=0, covariance="sandwich"), device="cpu"),
        "smoothed": lambda: smooth_variance(heads(), pairs, policy_path),
    }
    return lambda kind: makers[kind]()


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, make: Callable[[str], RewardSource]) -> RewardSource:
    found = make(request.param)
    rows = found.score(["the "] * 16, REFERENCE)
    found.calibrate(rows, anchors_of(rows.mean(dim=0), 16))
    return found


def anchors_of(row: Tensor, batch: int) -> Anchors:
    """One prompt's anchor over sixteen reference completions, for each of a batch."""
    return Anchors(row.double().expand(batch, -1), "reference", torch.full((batch,), 16.0))


def close(found: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


def scored(source: RewardSource) -> tuple[Tensor, Tensor]:
    """(rows of five completions of a prompt, the prompt's anchor row)."""
    rows = source.score(["a "] * 5, ["cat runs", "dog", "red and blue", "the cat", "sleeps"]).double()
    return rows, source.score(["a "] * 16, REFERENCE).double().mean(dim=0)


def test_siblings_do_not_matter(source: RewardSource) -> None:
    rows, anchor = scored(source)
    whole = source.estimate(rows, anchors_of(anchor, 5))
    assert len(set(whole.variance.tolist())) == 5
    fewer = source.estimate(rows[:2], anchors_of(anchor, 2))
    close(fewer.variance, whole.variance[:2])
    close(fewer.mean, whole.mean[:2])
    others = source.estimate(torch.cat([rows[:2], 3 * rows[2:] + 1, rows]), anchors_of(anchor, 10))
    close(others.variance[:2], whole.variance[:2])
    for i in range(5):
        close(source.estimate(rows[[i]], anchors_of(anchor, 1)).variance, whole.variance[[i]])


def test_a_constant_per_prompt_changes_nothing(source: RewardSource) -> None:
    """Added to every column of a prompt's completions and to its anchor: an offset that preferences can't fix."""
    rows, anchor = scored(source)
    constant = torch.linspace(-7, 9, rows.shape[1], dtype=torch.float64)
    before = source.estimate(rows, anchors_of(anchor, 5))
    after = source.estimate(rows + constant, anchors_of(anchor + constant, 5))
    close(after.variance, before.variance, rtol=1e-9)
    moved = after.mean - before.mean
    close(moved, moved[:1].expand(5), rtol=1e-9)


def test_the_anchor_moves_the_variance(source: RewardSource) -> None:
    """Where the anchor is the completion itself, nothing is left but the prior of moderated members."""
    rows, anchor = scored(source)
    at_itself = source.estimate(rows, Anchors(rows, "reference", torch.full((5,), 1.0)))
    far = source.estimate(rows, anchors_of(anchor, 5))
    assert bool((at_itself.variance < far.variance).all())
    if not isinstance(source, MemberSource) or source.variance_kind == "raw":
        assert at_itself.variance.tolist() == [0.0] * 5


def test_the_mean_weight_over_the_calibration_is_one(source: RewardSource) -> None:
    rows = source.score(["the "] * 16, REFERENCE)
    for anchors in (anchors_of(rows.double().mean(dim=0), 16), group_anchors(rows, torch.arange(16) // 4), None):
        found = source.calibrate(rows, anchors)
        assert found.reference_variance is not None
        weight = source.estimate(rows, anchors).variance / found.reference_variance
        assert float(weight.mean()) == pytest.approx(1.0, rel=1e-12)
        assert found.notes["weight_cv"] == pytest.approx(float(weight.std(correction=1)), rel=1e-9)
        assert found.rows == 16


def test_without_anchors_the_calibration_is_the_anchor_and_says_so(source: RewardSource) -> None:
    rows, _ = scored(source)
    found = source.estimate(rows)
    assert found.anchor_kinds == ["calibration"] * 5
    own = source._calibration_anchor()
    assert own is not None
    close(found.variance, source.estimate(rows, anchors_of(own, 5)).variance)


def test_a_row_without_an_anchor_falls_back_alone(source: RewardSource) -> None:
    rows, _ = scored(source)
    anchors = group_anchors(rows, torch.tensor([0, 0, 1, 0, 2]), "dataset")
    found = source.estimate(rows, anchors)
    assert found.anchor_kinds == ["dataset", "dataset", "calibration", "dataset", "calibration"]
    close(found.variance[[2, 4]], source.estimate(rows[[2, 4]]).variance)
    group = rows[[0, 1, 3]]
    assert source.estimate(rows, anchors_of(rows[0], 5)).anchor_kinds == ["reference"] * 5
    close(found.variance[[0, 1, 3]], source.estimate(group, anchors_of(group.mean(dim=0), 3)).variance, rtol=1e-9)


def test_an_uncalibrated_source_asks_for_an_anchor(make: Callable[[str], RewardSource]) -> None:
    source = make("members")
    rows, anchor = scored(source)
    with pytest.raises(DataError, match="no calibration to centre by; give anchors, or calibrate it first"):
        source.estimate(rows)
    with pytest.raises(DataError, match=r"row 2 has no anchor \(no other completion of its prompt was scored\)"):
        source.estimate(rows, group_anchors(rows, torch.tensor([0, 0, 1, 0, 2])))
    assert source.estimate(rows, anchors_of(anchor, 5)).has_variance


def test_a_closed_form_has_its_training_texts_to_fall_back_on(make: Callable[[str], RewardSource]) -> None:
    source = make("linear")
    rows, _ = scored(source)
    assert source.calibration is None
    assert source.estimate(rows).anchor_kinds == ["calibration"] * 5


def test_anchors_of_another_source_are_refused(source: RewardSource) -> None:
    rows, anchor = scored(source)
    with pytest.raises(DataError, match=r"anchors of shape \(5, \d+\) for scores of shape \(5, \d+\); give one row"):
        source.estimate(rows, anchors_of(anchor[:-1], 5))
    with pytest.raises(DataError, match=r"anchors of shape \(4, \d+\) for scores"):
        source.estimate(rows, anchors_of(anchor, 4))


def test_an_unscored_row_stays_unknown(source: RewardSource) -> None:
    rows, anchor = scored(source)
    rows[1] = math.nan
    found = source.estimate(rows, anchors_of(anchor, 5))
    assert bool(found.mean[1].isnan())
    assert bool(found.variance[1].isnan())
    assert bool(found.variance[[0, 2, 3, 4]].isfinite().all())


def test_the_variance_factor_is_applied_once(source: RewardSource) -> None:
    rows, anchor = scored(source)
    before = source.estimate(rows, anchors_of(anchor, 5)).variance
    a, b = source.margins(rows[:2], rows[2:4]).variance, source.margins(rows[2:4], rows[:2]).variance
    close(a, b)
    source.variance_factor = 3.0
    close(source.estimate(rows, anchors_of(anchor, 5)).variance, 3 * before)
    close(source.margins(rows[:2], rows[2:4]).variance, 3 * a)


def test_the_reference_variance_has_the_factor_too(source: RewardSource) -> None:
    """Otherwise every weight would be off by the factor."""
    rows, anchor = scored(source)
    before = source.calibrate(rows, anchors_of(anchor, 5)).reference_variance
    assert before is not None
    source.variance_factor = 3.0
    after = source.calibrate(rows, anchors_of(anchor, 5))
    assert after.variance_factor == 3.0
    assert after.reference_variance == pytest.approx(3 * before, rel=1e-12)


def test_a_row_says_its_reward_without_an_anchor(source: RewardSource) -> None:
    rows, anchor = scored(source)
    reward = source.reward_of(rows)
    close(reward - reward[0], (lambda mean: mean - mean[0])(source.estimate(rows, anchors_of(anchor, 5)).mean), 1e-9)
    close(source.margins(rows[:2], rows[2:4]).mean, reward[:2] - reward[2:4], 1e-9)
    members = source.members_of(rows)
    assert (None if members is None else members.shape[1]) == source.num_members
    assert rows.shape[1] == source.num_columns
    with pytest.raises(DataError, match=rf"reads rows of {source.num_columns} columns"):
        source.reward_of(torch.cat([rows, rows[:, :1]], dim=1))


def test_a_failed_calibration_leaves_the_old_one(source: RewardSource) -> None:
    held = source.calibration
    rows, _ = scored(source)
    with pytest.raises((DataError, VarianceError)):
        source.calibrate(torch.full_like(rows[:1], math.nan))
    assert source.calibration is held


def test_reliability_is_noted(source: RewardSource) -> None:
    assert source.calibration is not None
    reliability = source.calibration.notes["reliability"]
    if isinstance(source, MemberSource | SmoothedVariance):  # of six members, and sixteen completions
        assert -1 < reliability < 1
    else:
        assert reliability == 1.0


# Members given by a function


def members_of(scores: Tensor) -> FunctionMembers:
    return FunctionMembers(lambda prompts, completions: [], scores.shape[1])


def test_one_member_has_a_mean_and_nothing_else() -> None:
    rows = torch.tensor([[1.0], [3.0]])
    source = members_of(rows)
    for anchors in (None, group_anchors(rows, torch.tensor([0, 0])), anchors_of(torch.tensor([9.0]), 2)):
        found = source.estimate(rows, anchors)
        assert found.mean.tolist() == [1.0, 3.0]
        assert not found.has_variance
    calibration = source.calibrate(rows, group_anchors(rows, torch.tensor([0, 0])))
    assert calibration.reference_variance is None
    assert "reliability" not in calibration.notes
    with pytest.raises(VarianceError, match="comes from one member"):
        _ = source.estimate(rows).variance


def test_an_anchor_of_some_members_leaves_the_others_out() -> None:
    """Member 2 scored no reference completion of the prompt: the variance is that of members 0 and 1."""
    source = members_of(torch.zeros(1, 3))
    source.variance_kind = "raw"
    anchor = torch.tensor([1.0, 2.0, math.nan], dtype=torch.float64)
    found = source.estimate(torch.tensor([[2.0, 5.0, 70.0]]), anchors_of(anchor, 1))
    assert found.variance.tolist() == [2.0]
    assert found.mean.tolist() == [2.0 + 1.5]


@pytest.mark.parametrize(("members", "known"), [(3, False), (4, True)])
def test_reliability_needs_four_members(members: int, known: bool) -> None:
    scores = torch.randn(40, members, generator=torch.Generator().manual_seed(0))
    assert ("reliability" in members_of(scores).calibrate(scores).notes) is known


def test_reliability_of_precise_and_of_noisy_members() -> None:
    stream = torch.Generator().manual_seed(1)
    noise = torch.randn(300, 60, generator=stream)
    size = torch.logspace(-1, 1, 300)[:, None]
    precise, even = (members_of(x).calibrate(x).notes["reliability"] for x in (size * noise, noise))
    assert precise > 0.95
    assert abs(even) < 0.3


def test_a_given_variance_needs_no_anchor() -> None:
    source = FunctionReward(lambda p, c: ([1.0, 2.0], [0.5, 0.25]))
    rows = source.score(["a", "b"], ["c", "d"])
    found = source.estimate(rows, group_anchors(rows, torch.tensor([0, 0])))
    assert found.variance.tolist() == [0.5, 0.25]
    assert found.anchor_kinds == [None, None]
