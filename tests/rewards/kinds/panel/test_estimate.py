"""The arithmetic of a panel: by hand, unbiased over all outcomes, and blind to what must not matter."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from surefoot.rewards.kinds.panel.estimate import Judged, components, membership, voices
from surefoot.types import VariancePrior

NAN = math.nan


def row(rewards: list[float], noise: list[float] | None = None) -> Judged:
    """One row, its judges about an anchor of 0."""
    values = torch.tensor([rewards], dtype=torch.float64)
    noises = torch.zeros_like(values) if noise is None else torch.tensor([noise], dtype=torch.float64)
    return Judged(values, noises, torch.zeros_like(values))


def w(*weights: float) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64)


def test_two_families_by_hand() -> None:
    """Voices 1 and 3: B = 2, of which (0.2 + 0.4)/2 is noise; of the mean 2/2, of which 0.6/4 is noise."""
    found = components(row([1, 3], [0.2, 0.4]), membership("ab"), w(0.5, 0.5))
    given = (found.mean, found.spread, found.between, found.within, found.share, found.freedom, found.variance)
    assert [float(value) for value in given] == pytest.approx([2, 2, 1.7, 0.15, 0.5, 1, 1], abs=1e-12)


def test_unequal_weights_by_hand() -> None:
    """W = .75, .25: mean 1.5, Σ W (u − ū)² = .75, ΣW² = .625, B = 2; noise in B (.1875·.2 + .1875·.4)/.375."""
    found = components(row([1, 3], [0.2, 0.4]), membership("ab"), w(0.75, 0.25))
    assert float(found.mean) == pytest.approx(1.5)
    assert float(found.between) == pytest.approx(2 - 0.3)
    assert float(found.within) == pytest.approx(0.5625 * 0.2 + 0.0625 * 0.4)
    assert float(found.variance) == pytest.approx(0.625 * 1.7 + 0.1375)


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1)])
def test_between_and_the_variance_of_the_mean_are_unbiased(weights: tuple[float, ...]) -> None:
    """Over all outcomes of families at ±1 (variance 1) and of noise at ±√η, of known η per judge.

    Families a, b, c, of which a has two judges: its noise is (η₀ + η₁)/4.
    """
    families, noise = membership("aabc"), (0.5, 0.3, 0.8, 0.2)
    outcomes = list(itertools.product((-1.0, 1.0), repeat=7))
    signs = torch.tensor(outcomes, dtype=torch.float64)
    rewards = signs[:, :3] @ families + signs[:, 3:] * torch.tensor(noise).double().sqrt()
    noises = torch.tensor(noise).double().expand_as(rewards)
    found = components(Judged(rewards, noises, torch.zeros_like(rewards)), families, w(*weights))
    assert float(found.between.mean()) == pytest.approx(1, abs=1e-7)  # noise is given in float32
    true = found.mean.square().mean()
    raw = found.share * found.between + found.within
    assert float(raw.mean()) == pytest.approx(float(true), abs=1e-7)
    assert bool((found.between < 0).any())
    assert bool((found.variance >= found.within).all())


def test_judges_of_one_family_are_one_voice() -> None:
    """Copies of a judge in its family change nothing; as a family of their own they would."""
    alone = components(row([1, 4, 7]), membership("abc"), w(1, 1, 1))
    twice = components(row([1, 1, 1, 4, 7]), membership("aaabc"), w(1, 1, 1))
    for name in ("mean", "spread", "between", "freedom"):
        torch.testing.assert_close(getattr(twice, name), getattr(alone, name))
    said, noise = voices(row([1, 3, 5], [0.4, 0.8, 0.1]), membership("aab"))
    torch.testing.assert_close(said, w(2, 5)[None])
    torch.testing.assert_close(noise, w(1.2 / 4, 0.1)[None])


def test_missing_judges() -> None:
    """A family speaks through whoever scored; the others' weights make up for one that is silent."""
    families, weights = membership("aabc"), w(0.5, 0.25, 0.25)
    partly = components(row([1, NAN, 3, NAN], [0.2, NAN, 0.4, NAN]), families, weights)
    alone = components(row([1, 3], [0.2, 0.4]), membership("ab"), w(2 / 3, 1 / 3))
    for name in ("mean", "spread", "between", "within", "share", "freedom", "variance"):
        torch.testing.assert_close(getattr(partly, name), getattr(alone, name))
    for one in ([1, 2, NAN, NAN], [NAN] * 4):
        found = components(row(one, one), families, weights, VariancePrior(4.0, 1.0))
        assert [bool(each.isnan()) for each in (found.mean, found.spread, found.variance)] == [True] * 3


def test_unknown_noise_is_a_part_of_the_spread() -> None:
    found = components(row([1, 3, 5], [0.2, NAN, 0.1]), membership("abc"), w(1, 1, 1))
    assert bool(found.between.isnan())
    assert bool(found.within.isnan())
    assert float(found.variance) == pytest.approx(4 / 3)  # B/F
    missing = components(row([1, NAN, 5], [0.2, NAN, 0.1]), membership("abc"), w(1, 1, 1))
    assert float(missing.between) == pytest.approx(8 - 0.15)


def test_moderated() -> None:
    """B = 2 with d = 1, the prior 5 with d₀ = 3: 17/4. Where noise is more than B, that of the mean is left."""
    found = components(row([1, 3], [0.2, 0.4]), membership("ab"), w(1, 1), VariancePrior(3.0, 5.0))
    assert float(found.spread) == pytest.approx(4.25)
    assert float(found.variance) == pytest.approx(4.25 / 2)
    loud = components(row([1, 1], [2, 2]), membership("ab"), w(1, 1), VariancePrior(3.0, 1.0))
    assert float(loud.variance) == pytest.approx(1)


def test_order_scale_and_a_constant_don_t_matter() -> None:
    judged, families = row([1, 4, 2, 7], [0.2, 0.1, 0.4, 0.3]), membership("abca")
    found = components(judged, families, w(0.5, 0.3, 0.2))
    order = [3, 1, 0, 2]
    turned = Judged(*(values[:, order] for values in (judged.rewards, judged.noise, judged.anchors)))
    same = components(turned, families[:, order], w(0.5, 0.3, 0.2))
    torch.testing.assert_close(same.variance, found.variance)
    doubled = components(judged.scaled(torch.full((4,), 0.5).double()), families, w(0.5, 0.3, 0.2))
    torch.testing.assert_close(doubled.between, 4 * found.between)
    moved = Judged(judged.rewards + 3, judged.noise, judged.anchors)
    torch.testing.assert_close(components(moved, families, w(0.5, 0.3, 0.2)).between, found.between)
