"""Gains of single prompts, the share that got worse, and anchors from the reference's judged completions, by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.studies.evaluation import prompt_gains, prompt_risk, reference_anchors
from surefoot.studies.reward_sources import _disagreement
from surefoot.types import Text

Judged = dict[str, Any]


def judged(gold: Sequence[float | None], prompts: Sequence[Text] = ("a", "b", "c")) -> Judged:
    """Completions numbered from 0 on, the prompts taken in turn."""
    asked = [prompts[i % len(prompts)] for i in range(len(gold))]
    return {"prompts": asked, "completions": [str(i) for i in range(len(gold))], "gold": list(gold)}


def test_gains_are_differences_of_a_prompt_s_means() -> None:
    """Two completions of each of three prompts, and a third one of the first."""
    reference = judged([1.0, 0.0, 2.0, 3.0, 1.0, 2.0, 5.0])
    final = judged([0.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0])
    gains, completions = prompt_gains(reference, final)
    assert gains == [1.0 - 3.0, 1.5 - 0.5, 0.0]
    assert completions == [3, 2, 2]
    assert prompt_risk(gains) == 1 / 3  # a prompt that stayed level isn't worse


def test_what_gold_could_not_tell_is_left_out_and_not_zero() -> None:
    """The first prompt keeps one of two, the second loses its reference, the third its final completions."""
    reference = judged([1.0, None, 2.0, None, None, 2.0])
    final = judged([None, 9.0, None, 0.5, 9.0, None])
    gains, completions = prompt_gains(reference, final)
    assert gains == [-0.5, None, None]
    assert completions == [1, 2, 0]
    assert prompt_risk(gains) == 1.0
    assert prompt_risk([None, None]) is None


def test_the_reference_s_own_completions_gain_nothing() -> None:
    gold = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    gains, _ = prompt_gains(judged(gold), judged(gold))
    assert gains == [0.0] * 3
    assert prompt_risk(gains) == 0.0


def test_equal_prompts_are_one_and_messages_are_compared_by_content() -> None:
    """The evaluation's prompts may hold one twice, and a record read from JSON its keys in another order."""
    question = [{"role": "user", "content": "a"}]
    again = [{"content": "a", "role": "user"}]
    gains, completions = prompt_gains(
        judged([1.0, 2.0, 3.0], [question, "b", again]), judged([2.0, 2.0, 6.0], [question, "b", question])
    )
    assert gains == [4.0 - 2.0, 0.0]
    assert completions == [2, 1]


def test_anchors_are_means_over_the_reference_s_judged_completions() -> None:
    """Two members, the score and twice it; the second completion of "b" can't be scored."""

    def members(prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[float]]:
        scores = [math.nan if text == "4" else float(str(text)) for text in completions]
        return [[score, 2 * score] for score in scores]

    source = FunctionMembers(members, 2)
    reference = judged([0.0] * 9)
    found = reference_anchors(source, reference, ["b", "a", "b"], most=2)
    assert (found.kind, found.count.tolist()) == ("reference", [2.0, 2.0, 2.0])
    assert found.rows.tolist() == [[1.0, 2.0], [1.5, 3.0], [1.0, 2.0]]  # "a": 0 and 3, "b": 1 alone
    everything = reference_anchors(source, reference, ["a"], most=100)
    assert everything.rows.tolist() == [[3.0, 6.0]]
    assert everything.count.tolist() == [3.0]


def test_the_reliability_of_the_variance_goes_into_the_record() -> None:
    """Members that differ by a factor of the completion's own: halves of them agree on where the variance is large."""
    spread = [0.3, -1.0, 0.9, 1.2, -0.7, 0.1]

    def members(prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[float]]:
        return [[float(str(text)) * (1 + one) for one in spread] for text in completions]

    pairs = Dataset.from_dict({"prompt": ["a"] * 4, "chosen": ["2", "3", "5", "8"], "rejected": ["1", "2", "7", "4"]})
    reference = judged([1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    found = _disagreement(FunctionMembers(members, 6), pairs, reference)
    assert found is not None
    assert found["known_errors"]["completions"] == 8
    assert found["known_errors"]["reliability"] == pytest.approx(1.0, abs=1e-5)  # scores are float32
    few = _disagreement(FunctionMembers(lambda p, c: [row[:3] for row in members(p, c)], 3), pairs, reference)
    assert few is not None
    assert few["known_errors"]["reliability"] is None  # a half of three members has no variance


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_member_s_offset_on_a_prompt_changes_no_sample_s_variance(shift: float) -> None:
    """A constant of a member on a prompt goes out with its anchor, as it does in training."""

    def members(prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[float]]:
        return [
            [float(str(text)), float(str(text)) ** 2 + shift * (prompt == "b"), 3.0]
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    source, reference = FunctionMembers(members, 3), judged([0.0] * 9)
    source.calibrate(source.score(reference["prompts"], reference["completions"]))
    prompts, completions = ["a", "b"], ["2", "3"]
    anchors = reference_anchors(source, reference, prompts, most=3)
    found = source.estimate(source.score(prompts, completions), anchors)
    plain = torch.tensor([[2.0 - 3.0, 4.0 - 15.0, 0.0], [3.0 - 4.0, 9.0 - 22.0, 0.0]], dtype=torch.float64)
    source.variance_kind = "raw"
    raw = source.estimate(source.score(prompts, completions), anchors)
    torch.testing.assert_close(raw.variance, plain.var(dim=1, correction=1), rtol=1e-12, atol=1e-12)
    assert found.anchor_kinds == ["reference"] * 2
