"""Each aggregate by hand, in a limit, by invariance, against brute force, and with its gradient."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from surefoot.errors import ConfigError, VarianceError
from surefoot.maths import objectives
from surefoot.maths.objectives import AGGREGATES, PRESETS, Objective, aggregate, preset
from surefoot.types import RewardEstimate

DOUBLE = torch.float64
NAN = math.nan


def estimate_of(members: torch.Tensor) -> RewardEstimate:
    return RewardEstimate(
        mean=members.nanmean(dim=1),
        members=members,
        epistemic=members.var(dim=1, correction=1).clamp(min=0),
        groups=torch.zeros(len(members), dtype=torch.long),
    )


ROW = torch.tensor([[1.0, 2.0, 6.0, 3.0]], dtype=DOUBLE)  # mean 3, s² 14/3, sorted 1 2 3 6


@pytest.mark.parametrize(
    ("name", "parameter", "expected"),
    [
        ("mean", None, 3.0),
        ("one", 2.0, 6.0),
        ("one", None, 1.0),
        ("lcb", 0.5, 3.0 - 0.5 * math.sqrt(14 / 3)),
        ("lcb", None, 3.0 - math.sqrt(14 / 3)),
        ("uwo", 0.1, 3.0 - 0.1 * 14 / 3),
        ("wco", None, 1.0),
        ("cvar", 0.5, 1.5),
        ("cvar", 0.6, (1 + 2 + 0.4 * 3) / 2.4),
        ("cvar", 0.01, 1.0),
        ("cvar", 1.0, 3.0),
        ("kl_robust", 2.0, -2.0 * math.log(sum(math.exp(-r / 2) for r in (1, 2, 6, 3)) / 4)),
        ("brme", 0.25, 0.25 * 3 + 0.75 * 1),
    ],
)
def test_by_hand(name: str, parameter: float | None, expected: float) -> None:
    found = aggregate(estimate_of(ROW), Objective(name, parameter))
    assert found.tolist() == pytest.approx([expected], rel=1e-12)


WITHIN_GROUPS = {name for name, held in AGGREGATES.items() if held.within_groups}
"""Tested apart: they need groups, and the unit of some is not the reward's."""


@pytest.mark.parametrize("name", sorted(set(AGGREGATES) - WITHIN_GROUPS))
def test_members_that_agree_give_their_value(name: str) -> None:
    same = estimate_of(torch.full((3, 5), 2.5, dtype=DOUBLE))
    assert aggregate(same, Objective(name)).tolist() == pytest.approx([2.5] * 3, rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(AGGREGATES) - WITHIN_GROUPS - {"one"}))
def test_order_and_constants(name: str) -> None:
    members = torch.randn(6, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    base = aggregate(estimate_of(members), Objective(name))
    torch.testing.assert_close(aggregate(estimate_of(members[:, [3, 1, 0, 2]]), Objective(name)), base)
    torch.testing.assert_close(aggregate(estimate_of(members + 7.0), Objective(name)), base + 7.0)


@pytest.mark.parametrize("name", sorted(set(AGGREGATES) - WITHIN_GROUPS - {"one", "lcb", "uwo"}))
def test_missing_members_are_left_out_and_missing_rows_stay_nan(name: str) -> None:
    members = torch.tensor([[NAN, 4.0, 2.0], [NAN, NAN, NAN]], dtype=DOUBLE)
    whole = torch.tensor([[4.0, 2.0]], dtype=DOUBLE)
    found = aggregate(RewardEstimate(mean=members.nanmean(dim=1), members=members), Objective(name))
    expected = aggregate(RewardEstimate(mean=whole.mean(dim=1), members=whole), Objective(name))
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-12)
    assert math.isnan(float(found[1]))


def test_kl_robust_is_the_worst_mean_in_a_kl_ball() -> None:
    """min_q Σ q r + τ KL(q‖uniform), by a fine grid over two members' weights."""
    r, tau = torch.tensor([0.3, 1.7], dtype=DOUBLE), 0.8
    q = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=DOUBLE)
    both = torch.stack([q, 1 - q], dim=1)
    values = both @ r + tau * (both * (2 * both).log()).sum(dim=1)
    found = aggregate(estimate_of(r[None]), Objective("kl_robust", tau))
    assert float(found) == pytest.approx(float(values.min()), abs=1e-9)


def test_kl_robust_tends_to_mean_less_half_the_variance_over_tau() -> None:
    members = torch.randn(5, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    found = aggregate(estimate_of(members), Objective("kl_robust", 1000.0))
    second_order = members.mean(dim=1) - members.var(dim=1, correction=0) / 2000.0
    torch.testing.assert_close(found, second_order, rtol=0, atol=1e-5)
    small = aggregate(estimate_of(members), Objective("kl_robust", 1e-3))
    torch.testing.assert_close(small, members.min(dim=1).values, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_gradients(name: str) -> None:
    members = torch.randn(3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: aggregate(estimate_of(m), Objective(name)), (members,))


class TestWeights:
    def test_units_floor_and_ceiling(self) -> None:
        variance = torch.tensor([0.001, 1.0, 4.0, 1e6, NAN], dtype=DOUBLE)
        found = objectives.weights(variance, 2.0, floor=0.2, ceiling=5.0)
        assert found[:4].tolist() == [0.2, 0.5, 2.0, 5.0]
        assert math.isnan(float(found[4]))
        torch.testing.assert_close(objectives.weights(9 * variance, 18.0, 0.2, 5.0)[:4], found[:4])

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, NAN])
    def test_the_reference_variance_must_be_a_variance(self, bad: float) -> None:
        with pytest.raises(VarianceError, match="positive and finite"):
            objectives.weights(torch.ones(2), bad)

    def test_effective_sample_size(self) -> None:
        assert objectives.effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 10 / 2)
        assert math.isnan(objectives.effective_sample_size(torch.tensor([NAN])))


class TestGeneralisedKL:
    def policies(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        p, q = (torch.randn(2, 7, 5, generator=generator, dtype=DOUBLE)).softmax(-1)
        return p, q, torch.rand(7, 5, generator=generator, dtype=DOUBLE) + 0.1

    def test_zero_at_the_reference_and_positive_elsewhere(self) -> None:
        p, q, w = self.policies()
        torch.testing.assert_close(objectives.generalized_kl(q, q, w), torch.zeros(7, dtype=DOUBLE))
        assert bool((objectives.generalized_kl(p, q, w) > 0).all())

    def test_equal_weights_are_the_ordinary_kl(self) -> None:
        p, q, w = self.policies()
        kl = (p * (p / q).log()).sum(-1)
        torch.testing.assert_close(
            objectives.generalized_kl(p, q, torch.full_like(w, 2.0)), 2 * kl, rtol=1e-12, atol=0
        )

    def test_second_order_is_the_papers_quadratic_form(self) -> None:
        """½ Σ w (π − π₀)²/π₀."""
        p, q, w = self.policies()
        near = q + 1e-4 * (p - q)
        quadratic = 0.5 * (w * (near - q).square() / q).sum(-1)
        torch.testing.assert_close(objectives.generalized_kl(near, q, w), quadratic, rtol=1e-3, atol=0)

    def test_an_action_given_up_costs_its_reference_probability(self) -> None:
        p, q, w = torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.75]), torch.tensor([3.0, 0.0])
        assert float(objectives.generalized_kl(p, q, w)) == pytest.approx(0.75)

    @pytest.mark.parametrize("form", ["generalized", "literal"])
    def test_the_penalty_has_the_objectives_gradient(self, form: str) -> None:
        """Score function with the detached penalty against the derivative of the exact sum, float64."""
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(9, generator=generator, dtype=DOUBLE, requires_grad=True)
        q = torch.randn(9, generator=generator, dtype=DOUBLE).softmax(-1)
        w = torch.rand(9, generator=generator, dtype=DOUBLE) * 3
        p = logits.softmax(-1)
        penalty = objectives.sequence_penalty((p / q).log().detach(), w, form)  # type: ignore[arg-type]
        (estimated,) = torch.autograd.grad((p.detach() * penalty * p.log()).sum(), logits, retain_graph=True)
        exact = objectives.generalized_kl(p, q, w) if form == "generalized" else (p * w * (p / q).log()).sum()
        (true,) = torch.autograd.grad(exact, logits)
        torch.testing.assert_close(estimated, true, rtol=1e-10, atol=1e-12)


class TestSettings:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Objective("uwoo"), "unknown aggregate 'uwoo'; did you mean 'uwo'"),
            (lambda: Objective(weights="varance"), "unknown weights 'varance'; did you mean 'variance'"),
            (lambda: Objective(form="exact"), "unknown form 'exact'"),
            (lambda: Objective(weight_floor=2.0), "0 < weight_floor ≤ 1 ≤ weight_ceiling"),
            (lambda: Objective("cvar", 0.0), "must lie in"),
            (lambda: Objective("cvar", 1.5), "must lie in"),
            (lambda: Objective("mean", 1.0), "takes no parameter"),
            (lambda: preset("vanila"), "did you mean 'vanilla'"),
        ],
    )
    def test_mistakes(self, make: Callable[[], Objective], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make()

    def test_the_names_that_mypy_knows_are_those_of_the_table(self) -> None:
        assert set(get_args(objectives.AggregateName)) == set(AGGREGATES)

    def test_an_aggregate_of_ones_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objectives, "AGGREGATES", dict(AGGREGATES))

        @objectives.register_aggregate("times", low=0.0, high=5.0, reads_variance=True)
        def times(estimate: RewardEstimate, factor: float = 2.0) -> torch.Tensor:
            return factor * estimate.mean

        name = objectives.CustomAggregate("times")
        torch.testing.assert_close(aggregate(estimate_of(ROW), Objective(name)), 2 * estimate_of(ROW).mean)
        torch.testing.assert_close(aggregate(estimate_of(ROW), Objective(name, 3.0)), 3 * estimate_of(ROW).mean)
        assert Objective(name, weights="none").needs_variance
        with pytest.raises(ConfigError, match=r"the parameter of 'times' must lie in \[0, 5\], got 6.0"):
            Objective(name, 6.0)
        with pytest.raises(ConfigError, match=r"aggregate 'times' is .*times already"):
            objectives.register_aggregate("times")(lambda estimate: estimate.mean)

    def test_a_member_that_does_not_exist(self) -> None:
        with pytest.raises(ConfigError, match="asks for member 4, but there are 4"):
            aggregate(estimate_of(ROW), Objective("one", 4.0))

    def test_what_needs_a_variance_says_so(self) -> None:
        needing = {name for name, objective in PRESETS.items() if objective.needs_variance}
        assert needing == {
            *("lcb", "uwo", "variance_aware", "variance_aware_lcb", "variance_aware_one", "literal"),
            *("shrunken", "shrunken_scaled"),
        }
        single = RewardEstimate(mean=torch.zeros(2), members=torch.zeros(2, 1))
        with pytest.raises(VarianceError, match="at least two members"):
            aggregate(single, preset("lcb"))
        with pytest.raises(VarianceError, match="the reward source has none"):
            aggregate(RewardEstimate(mean=torch.zeros(2)), preset("wco"))


def test_rvpo_by_hand() -> None:
    """Two members, one group of two: advantages ±1/√2·… in units of spread, then a soft minimum over members."""
    members = torch.tensor([[0.0, 4.0], [2.0, 0.0], [7.0, 7.0]], dtype=torch.float64)
    groups = torch.tensor([5, 5, 9])
    estimate = RewardEstimate(members.mean(dim=1), members, groups=groups)
    kappa = 2.0
    z0 = torch.tensor([-1.0 / (2**0.5 + 1e-4), 2.0 / (8**0.5 + 1e-4)], dtype=torch.float64)
    expected = torch.stack([-(torch.exp(-kappa * z).mean()).log() / kappa for z in (z0, -z0, 0 * z0)])
    found = aggregate(estimate, Objective("rvpo", kappa, weights="none"))
    torch.testing.assert_close(found, expected)
    small = aggregate(estimate, Objective("rvpo", 1e-6, weights="none"))
    torch.testing.assert_close(small[:2], torch.stack([z0.mean(), -z0.mean()]), rtol=1e-4, atol=1e-5)
    with pytest.raises(VarianceError, match="give the groups"):
        aggregate(RewardEstimate(members.mean(dim=1), members), Objective("rvpo", weights="none"))


def test_rvpo_knows_no_order_and_no_units() -> None:
    """Members may be permuted, shifted and rescaled one by one (up to the 1e-4 beside the spread)."""
    members = torch.randn(6, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    base = aggregate(estimate_of(members), Objective("rvpo"))
    torch.testing.assert_close(aggregate(estimate_of(members[:, [3, 1, 0, 2]]), Objective("rvpo")), base)
    other = members * torch.tensor([1.0, 2.0, 5.0, 3.0], dtype=DOUBLE) + torch.tensor([9.0, 0, -4, 1], dtype=DOUBLE)
    torch.testing.assert_close(aggregate(estimate_of(other), Objective("rvpo")), base, rtol=1e-3, atol=1e-3)


def test_rvpo_leaves_unscored_members_out() -> None:
    nan = float("nan")
    members = torch.tensor([[0.0, nan], [2.0, nan], [1.0, nan], [nan, nan]], dtype=torch.float64)
    estimate = RewardEstimate(torch.tensor([0.0, 2.0, 1.0, nan]).double(), members, groups=torch.zeros(4).long())
    found = aggregate(estimate, Objective("rvpo", weights="none"))
    torch.testing.assert_close(found[:3], torch.tensor([-1.0, 1.0, 0.0]).double() / (1 + 1e-4))
    assert bool(found[3].isnan())
