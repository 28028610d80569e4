"""Sources made of other sources: a mean from one and a variance from another, and sources as members of one."""

from pathlib import Path

import pytest
import torch

from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.borrowed_variance import BorrowedVariance
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.mixed import MixedSources

TEXTS = ["1", "5", "9"]
GROUP = torch.zeros(3, dtype=torch.long)


def members(count: int, step: float) -> FunctionMembers:
    """Member k says step · k more than the number that the completion is."""
    return FunctionMembers(
        lambda prompts, completions: [[float(text) + step * k for k in range(count)] for text in completions], count
    )


def noisy(count: int) -> FunctionMembers:
    """Member k says (1 + k) times the number."""
    return FunctionMembers(
        lambda prompts, completions: [[float(text) * (1 + k) for k in range(count)] for text in completions], count
    )


def test_a_mixed_source_takes_the_reward_of_a_borrowed_one() -> None:
    """Two members whose mean is the number + 50, not the first column, which is the number itself."""
    borrowed = BorrowedVariance(members(2, 100.0), noisy(3))
    mixed = MixedSources([borrowed, members(1, 0.0)])
    assert mixed.score(["p"] * 3, TEXTS).tolist() == [[51.0, 1.0], [55.0, 5.0], [59.0, 9.0]]


def test_the_factor_of_a_borrowed_variance_is_applied_once() -> None:
    borrowed = BorrowedVariance(members(1, 0.0), noisy(3))
    rows = borrowed.score(["p"] * 3, TEXTS)
    anchors = group_anchors(rows, GROUP)
    borrowed.variance.variance_kind = "raw"  # type: ignore[attr-defined]
    reference = borrowed.calibrate(rows, anchors).reference_variance
    variance, margin = borrowed.estimate(rows, anchors).variance, borrowed.margins(rows[:1], rows[1:2]).variance
    borrowed.variance_factor = 2.0
    torch.testing.assert_close(borrowed.estimate(rows, anchors).variance, 2 * variance)
    torch.testing.assert_close(borrowed.margins(rows[:1], rows[1:2]).variance, 2 * margin)
    assert reference is not None
    assert borrowed.calibrate(rows, anchors).reference_variance == pytest.approx(2 * reference)


def test_a_fitted_factor_of_a_borrowed_variance_is_kept() -> None:
    """Margins of 1 with a variance of 1: labels that are mostly wrong ask for more."""
    borrowed = BorrowedVariance(members(1, 0.0), noisy(3))
    chosen, rejected = (borrowed.score(["p"] * 40, [text] * 40) for text in ("1", "3"))
    factor = borrowed.fit_variance_factor(chosen, rejected)
    assert factor > 1
    assert borrowed.variance_factor == borrowed.variance.variance_factor == factor


def test_what_borrowed_and_mixed_say_of_themselves(tmp_path: Path) -> None:
    borrowed = BorrowedVariance(members(1, 0.0), noisy(3))
    assert borrowed.num_columns == 4
    assert borrowed.num_members is None
    assert borrowed.description == "the reward of 1 members, the variance of 3 members"
    assert MixedSources([borrowed, noisy(2)]).num_columns == 2
