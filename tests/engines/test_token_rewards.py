"""Token rewards by hand, the share of the penalty beside the trainers' own, and β across a checkpoint."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from surefoot.engines.token_rewards import (
    RowCoefficient,
    batch_share,
    check_token_rewards,
    expected_token_rewards,
    sequence_log_ratio,
)
from surefoot.errors import ConfigError, DataError, RunError
from surefoot.maths.objectives import Objective
from surefoot.maths.penalty import shape_reward
from surefoot.training.metrics import penalty_share
from surefoot.training.shaping import ShapedRewards
from surefoot.types import RewardEstimate

LOG_PROBS = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.5, -2.5]])
REFERENCE = torch.tensor([[-2.0, -1.5, -1.0], [-1.0, -1.0, -1.0]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
SCORES = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
WEIGHT = torch.tensor([2.0, 0.5])


def test_by_hand() -> None:
    made = expected_token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, WEIGHT, 0.1)
    # β·w is .2 and .05; the log-ratios are 1, −.5 (and a masked one), and .5, −.5, −1.5.
    by_hand = [[-0.2, 2.1, 0.0], [-0.025, 0.025, -0.925]]
    torch.testing.assert_close(made, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-7)


def test_they_sum_to_the_reward_of_the_sequence() -> None:
    ratio = sequence_log_ratio(LOG_PROBS, REFERENCE, MASK)
    assert ratio.tolist() == [0.5, -1.5]
    estimate = RewardEstimate(SCORES.sum(dim=1), epistemic=WEIGHT)
    shaped = shape_reward(estimate, Objective("mean"), 1.0, 0.1)
    made = expected_token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, WEIGHT, 0.1)
    torch.testing.assert_close(made.sum(dim=1), shaped.total(ratio).double(), rtol=0, atol=1e-6)


def test_a_masked_token_without_a_number_costs_nothing() -> None:
    holed = LOG_PROBS.clone()
    holed[0, 2] = torch.nan
    made = expected_token_rewards(SCORES, holed, REFERENCE, MASK, WEIGHT, 0.1)
    assert made[0, 2] == 0
    assert not made.isnan().any()
    assert sequence_log_ratio(holed, REFERENCE, MASK).tolist() == [0.5, -1.5]


@pytest.mark.parametrize("wrong", ["unweighted", "twice", "nan"])
def test_another_penalty_is_noticed(wrong: Any) -> None:
    expected = expected_token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, WEIGHT, 0.1)
    assert check_token_rewards(expected.float(), expected, SCORES) < 1e-6
    other = {
        "unweighted": expected_token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, torch.ones(2), 0.1),
        "twice": expected_token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, WEIGHT, 0.2),
        "nan": torch.full_like(expected, torch.nan),
    }[wrong]
    with pytest.raises(RunError, match=r"differ from r − β·w·KL"):
        check_token_rewards(other, expected, SCORES)


def test_share_is_the_trainers() -> None:
    generator = torch.Generator().manual_seed(3)
    reward, ratio = torch.randn(12, generator=generator), torch.randn(12, generator=generator)
    weight, groups = torch.rand(12, generator=generator) + 0.1, torch.arange(12) // 4
    estimate = RewardEstimate(reward, groups=groups)
    surcharge = -0.3 * (weight - 1) * ratio
    shaped = ShapedRewards(estimate, reward, weight, ratio, surcharge, ratio)
    prompts = [f"prompt {i}" for i in groups.tolist()]
    assert batch_share(reward[:, None], ratio, weight, 0.3, prompts) == pytest.approx(penalty_share(shaped, 0.3))
    # With one completion of each prompt, over the batch.
    alone = replace(shaped, estimate=RewardEstimate(reward))
    ids = [str(i) for i in range(12)]
    assert batch_share(reward[:, None], ratio, weight, 0.3, ids) == pytest.approx(penalty_share(alone, 0.3))
    with pytest.raises(DataError, match="12 rows need"):
        batch_share(reward[:, None], ratio, weight, 0.3, ids[:-1])


def test_coefficient_is_a_column_for_one_batch() -> None:
    coefficient = RowCoefficient(0.5)
    with pytest.raises(RunError, match="outside a batch"):
        _ = coefficient.value
    coefficient.set_weights(WEIGHT)
    coefficient.update(current_kl=99.0, n_steps=8)
    assert coefficient.value.tolist() == [[1.0], [0.25]]
    coefficient.set_weights(None)
    with pytest.raises(RunError):
        _ = coefficient.value


def test_budget_goes_on_after_a_checkpoint() -> None:
    held, resumed = RowCoefficient(0.5, target_kl=4.0), RowCoefficient(0.5, target_kl=4.0)
    for kl in (7.0, 9.0):
        held.learn(kl, 1.0)
    resumed.load_state_dict(json.loads(json.dumps(held.state_dict())))
    assert resumed.beta == held.beta > 0.5
    for coefficient in (held, resumed):
        coefficient.learn(2.0, 0.9)
    assert resumed.beta == held.beta
    with pytest.raises(ConfigError, match=r"target_kl is 4\.0 and this run's is None"):
        RowCoefficient(0.5).load_state_dict(held.state_dict())
    with pytest.raises(ConfigError, match="positive"):
        RowCoefficient(0.0)
