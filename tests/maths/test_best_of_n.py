"""The best-of-n estimator against all subsets, against sampling, and in the thousands."""

import math
from itertools import combinations

import pytest
import torch
from scipy.stats import hypergeom

from surefoot.errors import DataError
from surefoot.maths.best_of_n import best_of_n_curve, best_of_n_kl, rank_probabilities

NAN = math.nan


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_against_all_subsets(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    found = best_of_n_curve(proxy, gold, torch.tensor([n]))
    for row in range(2):
        best = [gold[row, max(some, key=lambda i: float(proxy[row, i]))] for some in combinations(range(6), n)]
        assert float(found[row, 0]) == pytest.approx(float(torch.stack(best).mean()), rel=1e-6)


def test_ties_share_their_chances() -> None:
    """The mean over all orders in which ties may be broken."""
    proxy, gold = torch.tensor([[1.0, 1.0, 0.0, 1.0]]), torch.tensor([[3.0, 6.0, 100.0, 0.0]])
    assert best_of_n_curve(proxy, gold, torch.tensor([4])).tolist() == [[pytest.approx(3.0)]]
    pairs = [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]  # every two hold a tied sample: each of them wins alike
    assert best_of_n_curve(proxy, gold, torch.tensor([2])).tolist() == [[pytest.approx(sum(pairs) / 6)]]


def test_unscored_samples_cannot_be_chosen() -> None:
    proxy = torch.tensor([[NAN, 2.0, 1.0], [0.0, 2.0, 1.0]])
    gold = torch.tensor([[NAN, 5.0, 7.0], [1.0, 5.0, 7.0]])
    found = best_of_n_curve(proxy, gold, torch.tensor([1, 2]))
    assert found[0].tolist() == pytest.approx([6.0, 5.0])
    assert found[1].tolist() == pytest.approx([13 / 3, (5 * 2 + 7) / 3])
    with pytest.raises(DataError, match="n up to 3"):
        best_of_n_curve(proxy, gold, torch.tensor([3]))


def test_the_highest_ranks_against_scipy() -> None:
    """P(the best of n is among the lowest i) = P(no one of the N − i highest is drawn)."""
    found = rank_probabilities(500, torch.tensor([7])).cumsum(dim=1)[0]
    for i in (10, 250, 490):
        assert float(found[i - 1]) == pytest.approx(float(hypergeom(500, 500 - i, 7).pmf(0)), rel=1e-9)


def test_thousands() -> None:
    """Every n up to 4,000 of 4,000: rows are distributions, and the curve of the proxy never falls."""
    ns = torch.arange(1, 4001)
    chances = rank_probabilities(4000, ns)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(4000, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    proxy = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curve = best_of_n_curve(proxy, proxy, ns)[0]
    assert float(curve[0]) == pytest.approx(float(proxy.mean()), rel=1e-6)
    assert float(curve[-1]) == pytest.approx(float(proxy.max()), rel=1e-9)
    assert bool((curve.diff() > -1e-9).all())


def test_unbiased_for_fresh_samples() -> None:
    """Standard normal: the expected largest of 4 is 1.0294."""
    proxy = torch.randn(4000, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    curve = best_of_n_curve(proxy, proxy, torch.tensor([4]))[:, 0]
    assert float(curve.mean()) == pytest.approx(1.02938, abs=4.5 * float(curve.std()) / 4000**0.5)


def test_kl_and_bad_input() -> None:
    assert best_of_n_kl(torch.tensor([1, 4])).tolist() == pytest.approx([0.0, math.log(4) - 0.75])
    with pytest.raises(DataError, match="1 ≤ n ≤ 3"):
        rank_probabilities(3, torch.tensor([0]))
