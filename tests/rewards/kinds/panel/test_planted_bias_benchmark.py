"""The study of a planted bias (benchmarks/planted_bias.py): its judges in a real panel, its flag and its table."""

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.planted_bias import SLOPE, SimulatedJudge, falls_at, flagged_at, tables, wordy

from surefoot.data.world.language import STYLES, all_prompts, complete
from surefoot.data.world.truth import true_rewards
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.panel.source import PanelSource
from surefoot.studies.settings import Setting, as_texts


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """40 completions of each of three prompts, with their true rewards."""
    rng = np.random.default_rng(0)
    asked = [prompt for prompt in all_prompts()[:3] for _ in range(40)]
    texts = [wordy(complete(topic, thing, STYLES[rng.integers(len(STYLES))], rng), rng) for _, topic, thing in asked]
    prompts = [prompt for prompt, _, _ in asked]
    return {"prompts": prompts, "completions": texts, "gold": true_rewards(prompts, texts)}


@pytest.fixture(scope="module")
def setting() -> Setting:
    def none(seed: int) -> Any:
        raise AssertionError(seed)

    return Setting("", [], [], lambda p, c: true_rewards(as_texts(p), as_texts(c)), none, "")


def judges(setting: Setting, reference: dict[str, Any], *biases: str | None) -> list[SimulatedJudge]:
    return [SimulatedJudge(setting, reference, 1, number, bias) for number, bias in enumerate(biases)]


@pytest.mark.parametrize("bias", SLOPE)
def test_a_bias_is_its_slope_for_each_use(setting: Setting, reference: dict[str, Any], bias: str) -> None:
    prompts = reference["prompts"][:2]
    text = "best best first , water the roses gently , ? then"
    count = {"flattery": 2, "headings": 1, "length": 11}[bias]
    fair, biased = (judges(setting, reference, each)[0].score(prompts, [text] * 2) for each in (None, bias))
    torch.testing.assert_close(biased[:, 0] - fair[:, 0], torch.full((2,), SLOPE[bias] * count))
    torch.testing.assert_close(biased[:, 2], fair[:, 2])  # the noise of the replies is the same


def test_texts_with_flattery_raise_the_variance_between_families(setting: Setting, reference: dict[str, Any]) -> None:
    """By next to nothing where all three are biased, which a panel can't see."""
    prompts, texts = reference["prompts"], reference["completions"]
    groups = torch.arange(len(prompts)) // 40
    rises = []
    for biases in ((None, None, None), ("flattery", None, None), ("flattery", "flattery", "flattery")):
        panel = PanelSource(judges(setting, reference, *biases))
        rows = panel.score(prompts, texts)
        anchors = group_anchors(rows, groups)
        panel.calibrate(rows, anchors)
        flattering = panel.score(prompts, [f"best best best best {text}" for text in texts])
        before, after = (panel.variance_parts(some, anchors)["between_families"] for some in (rows, flattering))
        rises.append(after / before)
    fair, one, all_of_them = rises
    assert fair < 1.5
    assert one > 5
    assert all_of_them < one / 3


def path(**changes: Any) -> dict[str, Any]:
    one = {
        "bias": "none", "method": "plain", "seed": 1, "gain": 1.0, "kl": 1.0, "kl_path": [float(i) for i in range(8)],
        "gold_path": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], "ratio_path": [1.0] * 8,
        "weights": [0.5, 0.5], "prior_freedom": "inf",
    }  # fmt: skip
    return one | changes


def test_flag_and_fall_are_at_the_update_that_ends_a_running_mean() -> None:
    assert flagged_at(path()) is None
    assert falls_at(path()) is None
    assert flagged_at(path(ratio_path=[1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0])) == 5
    assert falls_at(path(gold_path=[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0])) == 7


def test_tables_pair_by_seed() -> None:
    high = [1.0] * 4 + [9.0] * 4
    fallen = [1.0] * 6 + [-1.0] * 2
    runs = [
        *(path(seed=seed, gain=float(seed)) for seed in (1, 2)),
        *(path(seed=seed, gain=seed - 0.5, method="weighted") for seed in (2, 1)),
        *(path(seed=seed, bias="length", gain=0.0, ratio_path=high, gold_path=fallen) for seed in (1, 2)),
    ]
    plain, weighted, length = tables(runs)["gains"]
    assert plain["minus_plain"] is None
    assert (plain["weight_of_judge_0"], plain["infinite_priors"]) == (0.5, 2)
    assert weighted["minus_plain"]["value"] == weighted["minus_plain"]["high"] == -0.5
    assert length["minus_no_bias"]["value"] == -1.5
    fair, _, flags = tables(runs)["flags"]
    assert (fair["flagged"]["value"], fair["fell"]) == (0.0, 0)
    assert (flags["flagged"]["value"], flags["update"], flags["fall"]) == (1.0, 5.0, 7.0)
    assert (flags["fell"], flags["flagged_before"], flags["lead"], flags["kl"]) == (2, 2, 2.0, 3.0)
