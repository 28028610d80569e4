"""Reliabilities and weights: exact on covariances that one factor makes, close on samples, bounded on bad ones."""

import math

import pytest
import torch
from torch import Tensor

from surefoot.rewards.kinds.panel.estimate import membership
from surefoot.rewards.kinds.panel.reliability import LEAST_SHARE, loadings, weigh


def one_factor(found: Tensor, noise: float = 0.0) -> Tensor:
    """Covariance of judges that are scaled to a variance of 1 without their noise."""
    return torch.outer(found, found) + torch.diag(1 + noise - found.square())


@pytest.mark.parametrize("values", [[0.9, 0.5, 0.7], [0.8, 0.8, 0.3, 0.6, 0.95]])
def test_exact_on_one_factor(values: list[float]) -> None:
    true = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(loadings(one_factor(true)), true, rtol=0, atol=1e-9)
    found = weigh(one_factor(true, 0.25), membership([str(j) for j in range(len(true))]))
    torch.testing.assert_close(found.judges, true.square() / 1.25, rtol=0, atol=1e-9)
    raw = true / (1.25 - true.square())
    raw /= raw.sum()
    # Of five voices the weakest has less than the least weight; the others give of what they have above it.
    least = LEAST_SHARE / len(true)
    above = (raw - least).clamp(min=0)
    assert bool((raw < least).any()) == (len(true) == 5)
    torch.testing.assert_close(found.weights, least + above * (1 - LEAST_SHARE) / above.sum(), rtol=0, atol=1e-9)


def test_no_other_weights_follow_the_reward_better() -> None:
    """Correlation with t of the weighted mean, Σwλ/√(wᵀΣw), is largest at these weights."""
    true = torch.tensor([0.9, 0.6, 0.75], dtype=torch.float64)
    covariance = one_factor(true, 0.1)
    weights = weigh(covariance, membership("abc")).weights

    def correlation(w: Tensor) -> float:
        return float(w @ true / (w @ covariance @ w).sqrt())

    best = correlation(weights)
    for step in torch.eye(3, dtype=torch.float64):
        for size in (-0.02, 0.02):
            assert correlation(weights + size * step) < best


def test_weights_recover_known_reliabilities_in_a_sample() -> None:
    """Judges of own variances .2, 1 and 3 about a reward of variance 1, each on its own scale, 20,000 completions.

    Their reliabilities are 1/(1 + own variance); standard errors of these and of the weights are about .01.
    """
    stream = torch.Generator().manual_seed(0)
    own = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    reward = torch.randn(20_000, 1, generator=stream, dtype=torch.float64)
    rated = reward + own.sqrt() * torch.randn(20_000, 3, generator=stream, dtype=torch.float64)
    scaled = rated / rated.std(dim=0)
    found = weigh(torch.cov(scaled.T), membership("abc"))
    torch.testing.assert_close(found.judges, 1 / (1 + own), rtol=0, atol=0.03)
    # λ/ψ of a judge of variance 1 is √(1 + own)/own.
    raw = (1 + own).sqrt() / own
    torch.testing.assert_close(found.weights, raw / raw.sum(), rtol=0, atol=0.03)


def test_a_family_is_judged_by_other_families() -> None:
    """Two judges of family a share a bias of half their variance: it raises neither one's reliability.

    Reward variance .4 in all; judges of a: .5 bias, .1 own; b and c: .6 own.
    """
    covariance = torch.full((4, 4), 0.4, dtype=torch.float64)
    covariance[:2, :2] += 0.5
    covariance += torch.diag(torch.tensor([0.1, 0.1, 0.6, 0.6], dtype=torch.float64))
    found = weigh(covariance, membership("aabc"))
    torch.testing.assert_close(found.judges, torch.full((4,), 0.4, dtype=torch.float64), rtol=0, atol=1e-9)
    psi = torch.tensor([0.55, 0.6, 0.6], dtype=torch.float64)
    torch.testing.assert_close(found.weights, (1 / psi) / (1 / psi).sum(), rtol=0, atol=1e-9)
    apart = weigh(covariance, membership("abcd"))
    assert float(apart.judges[0]) > 0.8  # what the families are for


def test_two_families_are_equal_and_unknown() -> None:
    found = weigh(torch.tensor([[1.0, 0.2], [0.2, 3.0]], dtype=torch.float64), membership("ab"))
    assert found.weights.tolist() == [0.5, 0.5]
    assert bool(found.judges.isnan().all())


def test_nothing_shared_or_a_contrary_judge() -> None:
    """No weight is 0 or negative, and none is unknown."""
    none = weigh(torch.eye(3, dtype=torch.float64), membership("abc"))
    assert none.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert none.judges.tolist() == [0, 0, 0]
    contrary = torch.tensor([[1, 0.8, -0.5], [0.8, 1, -0.5], [-0.5, -0.5, 1]], dtype=torch.float64)
    assert float(loadings(contrary)[2]) == 0
    found = weigh(contrary, membership("abc"))
    assert float(found.weights[2]) == pytest.approx(LEAST_SHARE / 3)
    assert float(found.judges[2]) == 0
    perfect = weigh(torch.ones(3, 3, dtype=torch.float64), membership("abc"))
    assert not math.isnan(float(perfect.weights.sum()))
    assert perfect.judges.tolist() == pytest.approx([1, 1, 1])


def test_many_sets_at_once() -> None:
    sets = torch.stack([one_factor(torch.tensor(true).double(), 0.1) for true in ([0.9, 0.5, 0.7], [0.3, 0.6, 0.8])])
    together, families = weigh(sets, membership("abc")), membership("abc")
    for i, each in enumerate(sets):
        torch.testing.assert_close(together.weights[i], weigh(each, families).weights, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.judges[i], weigh(each, families).judges, rtol=0, atol=1e-9)
