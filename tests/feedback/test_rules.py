"""Rules by hand and against brute force: what they score, what they choose, and how ties fall."""

import itertools
import math

import pytest
import torch

from surefoot.errors import ConfigError, DataError
from surefoot.feedback import rules
from surefoot.maths.laplace import Covariance, posterior

MEAN = torch.tensor([0.0, 3.0, -1.0, 0.2], dtype=torch.float64)
VARIANCE = torch.tensor([1.0, 5.0, 2.0, 0.1], dtype=torch.float64)


def random_rows(count: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_det(rows: torch.Tensor) -> float:
    return float(torch.logdet(torch.eye(rows.shape[1], dtype=torch.float64) + rows.T @ rows))


def naive_greedy(rows: torch.Tensor, count: int) -> list[int]:
    """Every gain from a determinant, at every step."""
    chosen: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: log_det(rows[[*chosen, i]])))
    return chosen


def test_variance_information_and_upper_bound_by_hand() -> None:
    assert rules.margin_variance(VARIANCE, 4, seed=0).tolist() == [1, 2, 0, 3]
    # p(1 − p)v: .25, .0452·5 = .2259, .1966·2 = .3932, .0248
    expected = [0.25, 0.22588, 0.39322, 0.02475]
    torch.testing.assert_close(
        rules.label_information(MEAN, VARIANCE), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0
    )
    assert rules.expected_information(MEAN, VARIANCE, 4, seed=0).tolist() == [2, 0, 1, 3]
    # |m| + 2√v: 2, 7.47, 3.83, .83
    assert rules.upper_confidence_margin(MEAN, VARIANCE, 4, seed=0, kappa=2.0).tolist() == [1, 2, 0, 3]


def test_information_is_the_small_change_of_the_posterior_log_determinant() -> None:
    """½ ln(1 + p(1 − p)δᵀΣδ) is the change of ½ ln det of the precision by one label."""
    pairs, delta = random_rows(9, 4, seed=1), random_rows(1, 4, seed=2)[0]
    hessian = pairs.T @ pairs
    covariance = posterior(hessian, 0.7)
    information = rules.label_information(torch.tensor([0.4]), covariance.quadratic(delta[None]))
    p = 1 / (1 + math.exp(-0.4))
    before = hessian + 0.7 * torch.eye(4, dtype=torch.float64)
    after = before + p * (1 - p) * torch.outer(delta, delta)
    assert float(torch.logdet(after) - torch.logdet(before)) == pytest.approx(math.log1p(float(information)), abs=1e-7)


def test_delta_ucb_is_the_largest_upper_minus_lower_bound() -> None:
    mean, variance = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.01, 4.0, 1.0])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    upper, lower = mean + 1.5 * variance.sqrt(), mean - 1.5 * variance.sqrt()
    gaps = [max(float(upper[i] - lower[j]), float(upper[j] - lower[i])) for i, j in pairs.tolist()]
    order = sorted(range(3), key=lambda k: -gaps[k])
    assert rules.delta_ucb(mean, variance, pairs, 3, seed=0, kappa=1.5).tolist() == order == [2, 0, 1]


@pytest.mark.parametrize(("pairs", "features", "count"), [(30, 4, 12), (40, 12, 30), (7, 3, 7)])
def test_greedy_log_det_is_the_naive_greedy(pairs: int, features: int, count: int) -> None:
    rows = random_rows(pairs, features, seed=pairs)
    assert rules.greedy_log_det(rows, count, seed=3).tolist() == naive_greedy(rows, count)


def test_greedy_log_det_looks_at_blocks_and_still_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near copies: choosing one row makes many bounds stale at once, more than a block holds."""
    rows = (random_rows(6, 5)[:, None] + 0.01 * random_rows(60, 5, seed=4).view(6, 10, 5)).flatten(0, 1)
    expected = naive_greedy(rows, 10)
    monkeypatch.setattr(rules, "_BLOCK", 2)
    assert rules.greedy_log_det(rows, 10, seed=0).tolist() == expected
    assert len({i // 10 for i in expected[:5]}) == 5  # five different groups of copies come first


def test_greedy_log_det_reaches_its_share_of_the_best_batch() -> None:
    rows = random_rows(11, 4, seed=8)
    best = max(log_det(rows[list(batch)]) for batch in itertools.combinations(range(11), 4))
    greedy = log_det(rows[rules.greedy_log_det(rows, 4, seed=0)])
    assert (1 - 1 / math.e) * best <= greedy <= best + 1e-12


def test_d_optimal_maximises_the_determinant_of_the_posterior_precision() -> None:
    """Against determinants of Σ⁻¹ + Σ p(1 − p)δδᵀ, built without whitening."""
    differences, mean = random_rows(15, 4, seed=5), random_rows(15, 1, seed=6)[:, 0]
    hessian = random_rows(8, 4, seed=7).T @ random_rows(8, 4, seed=7)
    precision = hessian + 0.5 * torch.eye(4, dtype=torch.float64)
    weight = torch.sigmoid(mean) * (1 - torch.sigmoid(mean))
    chosen: list[int] = []
    for _ in range(6):
        added = precision + (differences[chosen].T * weight[chosen]) @ differences[chosen]
        gain = [
            -1.0 if i in chosen else float(torch.logdet(added + weight[i] * torch.outer(row, row)))
            for i, row in enumerate(differences)
        ]
        chosen.append(max(range(15), key=lambda i: gain[i]))
    rows = rules.whiten(differences, posterior(hessian, 0.5))
    assert rules.d_optimal(rows, mean, 6, seed=0).tolist() == chosen


@pytest.mark.parametrize("structure", ["full", "low_rank", "diagonal"])
def test_whitened_rows_have_the_margins_variance(structure: str) -> None:
    differences = random_rows(10, 6)
    covariance = posterior(random_rows(5, 6, seed=1).T @ random_rows(5, 6, seed=1), 0.3, structure, rank=3)
    rows = rules.whiten(differences, covariance)
    torch.testing.assert_close(rows.square().sum(dim=1), covariance.quadratic(differences), atol=1e-10, rtol=1e-9)
    whole = rules.whiten(torch.eye(6, dtype=torch.float64), covariance)
    torch.testing.assert_close(whole @ whole.T, _dense(covariance), atol=1e-10, rtol=1e-9)


def _dense(covariance: Covariance) -> torch.Tensor:
    return torch.diag(covariance.scale) + (covariance.basis * covariance.shift) @ covariance.basis.T


def test_thompson_duels_happen_as_often_as_the_posterior_says() -> None:
    """With draws that prefer 0, 1 and 2 with shares .5, .3, .2, the pair (0, 1) has .5·.3/(.15 + .1 + .06)."""
    rewards = torch.zeros(3, 10, dtype=torch.float64)
    for draw, best in enumerate([0] * 5 + [1] * 3 + [2] * 2):
        rewards[best, draw] = 1.0
    pairs, prompts = torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.zeros(3, dtype=torch.long)
    drawn = torch.bincount(
        torch.cat([rules.double_thompson(rewards, pairs, prompts, 1, seed) for seed in range(2000)]), minlength=3
    )
    expected = torch.tensor([0.15, 0.10, 0.06]) / 0.31
    # Four standard errors of a share from 2,000 seeds.
    assert ((drawn / 2000 - expected).abs() < 4 * (expected * (1 - expected) / 2000).sqrt()).all()


def test_thompson_takes_turns_between_prompts_and_never_repeats() -> None:
    rewards = random_rows(12, 16)
    prompts = torch.arange(12) // 4
    pairs = torch.tensor([[i, j] for i in range(12) for j in range(i + 1, 12) if i // 4 == j // 4])
    chosen = rules.double_thompson(rewards, pairs, prompts, 18, seed=1)
    assert sorted(chosen.tolist()) == list(range(18))  # all pairs there are
    assert sorted((prompts[pairs[chosen[:3], 0]]).tolist()) == [0, 1, 2]


def test_random_is_uniform_without_repetition() -> None:
    drawn = [rules.random_pairs(6, 2, seed).tolist() for seed in range(3000)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    share = torch.bincount(torch.tensor(drawn).flatten(), minlength=6) / 3000
    assert ((share - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / 3000)).all()


def test_ties_are_broken_by_the_seed_alone() -> None:
    scores = torch.tensor([1.0, 2.0] + [0.0] * 20)
    same = [rules.highest(scores, 10, seed=5).tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert same[0][:2] == [1, 0]
    assert len({tuple(rules.highest(scores, 10, seed=seed).tolist()) for seed in range(5)}) == 5
    copies = random_rows(1, 3).expand(20, 3)
    assert len({tuple(rules.greedy_log_det(copies, 3, seed=seed).tolist()) for seed in range(5)}) == 5


def test_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and the 4 candidate pairs"):
        rules.margin_variance(VARIANCE, 5, seed=0)
    with pytest.raises(DataError, match="NaN"):
        rules.margin_variance(torch.tensor([1.0, math.nan]), 1, seed=0)
    with pytest.raises(ConfigError, match="two posterior draws"):
        rules.double_thompson(torch.zeros(2, 1), torch.tensor([[0, 1]]), torch.zeros(2, dtype=torch.long), 1, seed=0)
