"""From members to a variance: by hand, in limits, by invariance, against simulation and dense arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from surefoot.errors import DataError, VarianceError
from surefoot.maths import ensemble
from surefoot.types import Calibration, VariancePrior

DOUBLE = torch.float64


def scores(seed: int, rows: int = 12, members: int = 4) -> torch.Tensor:
    return torch.randn(rows, members, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class TestCentring:
    def test_by_hand_with_groups_in_any_order(self) -> None:
        members = torch.tensor([[1.0, 10.0], [5.0, 0.0], [3.0, 20.0], [9.0, 4.0]], dtype=DOUBLE)
        centred = ensemble.centre(members, torch.tensor([7, 2, 7, 2]))
        assert centred.tolist() == [[-1.0, -5.0], [-2.0, -2.0], [1.0, 5.0], [2.0, 2.0]]

    def test_a_missing_score_is_left_out_of_the_mean(self) -> None:
        members = torch.tensor([[1.0], [math.nan], [3.0]], dtype=DOUBLE)
        centred = ensemble.centre(members, torch.zeros(3).long())
        assert centred[[0, 2], 0].tolist() == [-1.0, 1.0]
        assert math.isnan(float(centred[1, 0]))

    def test_a_lonely_row_is_not_certain(self) -> None:
        members = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 1.0]], dtype=DOUBLE)
        groups = torch.tensor([0, 0, 1])
        with pytest.raises(DataError, match="row 2 is the only scored completion of its prompt"):
            ensemble.centre(members, groups)
        offsets = torch.tensor([2.0, 3.0], dtype=DOUBLE)
        assert ensemble.centre(members, groups, offsets)[2].tolist() == [7.0, -2.0]
        with pytest.raises(DataError, match="needs the groups"):
            ensemble.centre(members)

    @given(seed=st.integers(0, 10_000), size=st.floats(0.0, 1e3))
    @settings(max_examples=40, deadline=None)
    def test_constants_per_member_and_prompt_vanish(self, seed: int, size: float) -> None:
        x, groups = scores(seed), torch.arange(12) // 3
        constants = size * scores(seed + 1, rows=4)[groups]
        plain = ensemble.estimate(x, groups, ensemble.calibrate(x, groups))
        moved = ensemble.estimate(x + constants, groups, ensemble.calibrate(x + constants, groups))
        torch.testing.assert_close(moved.variance, plain.variance, rtol=1e-8, atol=1e-9)

    @given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
    @settings(max_examples=40, deadline=None)
    def test_members_have_no_order(self, seed: int, order: list[int]) -> None:
        x, groups = scores(seed), torch.arange(12) // 3
        plain, swapped = (ensemble.estimate(y, groups) for y in (x, x[:, order]))
        torch.testing.assert_close(swapped.variance, plain.variance, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(swapped.mean, plain.mean, rtol=1e-10, atol=1e-12)


class TestVariance:
    def test_the_divisor_is_one_less(self) -> None:
        x = scores(0, rows=5, members=3)
        torch.testing.assert_close(ensemble.sample_variance(x), x.var(dim=1, correction=1), rtol=1e-12, atol=0)
        assert ensemble.sample_variance(torch.tensor([[0.0, 2.0]])).tolist() == [2.0]  # ddof 0 would give 1

    def test_missing_members_cost_degrees_of_freedom(self) -> None:
        x = torch.tensor([[1.0, 3.0, math.nan], [1.0, math.nan, math.nan]], dtype=DOUBLE)
        assert ensemble.degrees_of_freedom(x).tolist() == [1.0, 0.0]
        found = ensemble.sample_variance(x)
        assert float(found[0]) == 2.0
        assert math.isnan(float(found[1]))

    def test_one_member_is_an_error(self) -> None:
        with pytest.raises(VarianceError, match="at least two members, got 1"):
            ensemble.sample_variance(torch.zeros(3, 1))
        with pytest.raises(VarianceError, match="at least two members, got 1"):
            ensemble.margins(torch.zeros(3, 1), torch.zeros(3, 1))

    def test_a_margin_has_its_own_variance(self) -> None:
        """Members that share an offset on a prompt agree on its margin, however much they differ on the rewards."""
        x, offset = scores(1, rows=6, members=3), 50 * scores(2, rows=6, members=3)
        found = ensemble.margins(x + offset, offset)
        torch.testing.assert_close(found.variance, x.var(dim=1, correction=1), rtol=1e-9, atol=1e-10)
        both = ensemble.sample_variance(x + offset) + ensemble.sample_variance(offset)
        assert bool((found.variance < 0.5 * both).all())


class TestTrigamma:
    @pytest.mark.parametrize("y", [1e-5, 0.01, 0.3, 1.0, 7.0, 1e3, 1e8])
    def test_it_is_the_inverse(self, y: float) -> None:
        value = torch.tensor([float(special.polygamma(1, y))], dtype=DOUBLE)
        assert float(ensemble.trigamma_inverse(value)) == pytest.approx(y, rel=1e-6)

    @given(st.floats(1e-4, 1e4))
    @settings(max_examples=60, deadline=None)
    def test_against_a_bracketing_root_finder(self, x: float) -> None:
        root = optimize.brentq(lambda y: float(special.polygamma(1, y)) - x, 1e-4, 1e6, xtol=1e-14, rtol=1e-14)
        assert float(ensemble.trigamma_inverse(torch.tensor([x], dtype=DOUBLE))) == pytest.approx(root, rel=1e-8)

    def test_it_refuses_what_has_no_inverse(self) -> None:
        for bad in (0.0, -1.0, math.nan):
            with pytest.raises(VarianceError, match="positive"):
                ensemble.trigamma_inverse(torch.tensor([bad]))


def draw_variances(d0: float, s0: float, d: int, rows: int, seed: int) -> torch.Tensor:
    """s² as Smyth's model draws it: σ² = d₀ s₀²/χ²_d₀, then s² = σ² χ²_d/d."""
    torch.manual_seed(seed)
    true = torch.full((rows,), s0, dtype=DOUBLE)
    if not math.isinf(d0):
        true = d0 * s0 / torch.distributions.Chi2(torch.tensor(d0, dtype=DOUBLE)).sample((rows,))
    return true * torch.distributions.Chi2(torch.tensor(float(d), dtype=DOUBLE)).sample((rows,)) / d


class TestPrior:
    @pytest.mark.parametrize(("d0", "s0", "d"), [(4.0, 0.5, 4), (10.0, 3.0, 2), (2.0, 1.0, 9)])
    def test_it_finds_the_parameters_it_was_drawn_from(self, d0: float, s0: float, d: int) -> None:
        """100,000 draws; over seeds the fit's relative standard deviation is under 2% here, and 6% is allowed."""
        prior = ensemble.fit_prior(draw_variances(d0, s0, d, 100_000, seed=1), float(d))
        assert prior.degrees_of_freedom == pytest.approx(d0, rel=0.06)
        assert prior.variance == pytest.approx(s0, rel=0.03)

    def test_equal_variances_are_called_equal_about_half_the_time_and_nearly_so_always(self) -> None:
        """With no heterogeneity the excess is centred on zero: d₀ is infinite, or large."""
        found = [ensemble.fit_prior(draw_variances(math.inf, 2.0, 4, 2000, seed), 4.0) for seed in range(40)]
        infinite = sum(math.isinf(prior.degrees_of_freedom) for prior in found)
        assert 8 <= infinite <= 32  # binomial(40, 1/2): outside this once in 10,000
        assert min(prior.degrees_of_freedom for prior in found) > 20
        assert all(prior.variance == pytest.approx(2.0, rel=0.1) for prior in found)

    def test_scale(self) -> None:
        s2 = draw_variances(4.0, 1.0, 3, 500, seed=0)
        one, many = ensemble.fit_prior(s2, 3.0), ensemble.fit_prior(1e6 * s2, 3.0)
        assert many.degrees_of_freedom == pytest.approx(one.degrees_of_freedom, rel=1e-9)
        assert many.variance == pytest.approx(1e6 * one.variance, rel=1e-9)

    def test_rows_without_information_do_not_count(self) -> None:
        s2 = draw_variances(4.0, 1.0, 3, 50, seed=0)
        padded = torch.cat([s2, torch.tensor([math.nan, 5.0], dtype=DOUBLE)])
        freedom = torch.cat([torch.full((50,), 3.0), torch.tensor([3.0, 0.0])]).to(DOUBLE)
        assert ensemble.fit_prior(padded, freedom) == ensemble.fit_prior(s2, 3.0)

    def test_what_cannot_be_fitted(self) -> None:
        with pytest.raises(VarianceError, match="at least two scored completions, got 1"):
            ensemble.fit_prior(torch.tensor([1.0, math.nan]), 3.0)
        with pytest.raises(VarianceError, match="copies of one model"):
            ensemble.fit_prior(torch.zeros(5), 3.0)

    def test_one_exact_agreement_does_not_rule_the_fit(self) -> None:
        s2 = draw_variances(6.0, 1.0, 4, 400, seed=3)
        s2[0] = 0.0
        assert ensemble.fit_prior(s2, 4.0).degrees_of_freedom > 2


class TestModeration:
    def test_limits(self) -> None:
        s2 = torch.tensor([0.5, 4.0], dtype=DOUBLE)
        assert ensemble.moderate(s2, 4.0, VariancePrior(math.inf, 2.0)).tolist() == [2.0, 2.0]
        assert ensemble.moderate(s2, 4.0, VariancePrior(0.0, 2.0)).tolist() == [0.5, 4.0]
        big = ensemble.moderate(s2, 1e12, VariancePrior(4.0, 2.0))
        torch.testing.assert_close(big, s2, rtol=1e-10, atol=0)

    def test_a_row_with_one_member_gets_the_prior(self) -> None:
        s2 = torch.tensor([math.nan, 1.0], dtype=DOUBLE)
        found = ensemble.moderate(s2, torch.tensor([0.0, 2.0], dtype=DOUBLE), VariancePrior(2.0, 3.0))
        assert found.tolist() == [3.0, 2.0]

    def test_it_is_closer_to_the_truth_than_the_raw_variance(self) -> None:
        torch.manual_seed(0)
        true = 4.0 / torch.distributions.Chi2(torch.tensor(4.0, dtype=DOUBLE)).sample((5000,))
        s2 = true * torch.distributions.Chi2(torch.tensor(2.0, dtype=DOUBLE)).sample((5000,)) / 2
        moderated = ensemble.moderate(s2, 2.0, ensemble.fit_prior(s2, 2.0))
        raw_error, error = ((x.log() - true.log()).square().mean() for x in (s2, moderated))
        assert float(error) < 0.5 * float(raw_error)


class TestEstimate:
    def test_the_mean_reads_like_the_users_scores(self) -> None:
        x, groups = scores(3), torch.arange(12) // 4
        found = ensemble.estimate(x, groups)
        torch.testing.assert_close(found.mean, x.mean(dim=1), rtol=1e-12, atol=1e-12)
        assert found.members is not None
        torch.testing.assert_close(found.members.mean(dim=1), found.mean, rtol=1e-12, atol=1e-12)

    def test_raw_is_the_sample_variance_of_the_centred_scores(self) -> None:
        x, groups = scores(4), torch.arange(12) // 4
        found = ensemble.estimate(x, groups, variance="raw").variance
        expected = torch.stack([(x[g * 4 + i] - x[g * 4 : g * 4 + 4].mean(0)).var(correction=1)
                                for g in range(3) for i in range(4)])  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_unscored_rows_stay_nan(self) -> None:
        x = scores(5)
        x[2] = math.nan
        found = ensemble.estimate(x, torch.arange(12) // 4)
        assert found.variance.isnan().nonzero().flatten().tolist() == [2]
        assert found.scored.logical_not().nonzero().flatten().tolist() == [2]

    def test_another_number_of_members_is_refused(self) -> None:
        calibration = ensemble.calibrate(scores(0), torch.arange(12) // 4)
        with pytest.raises(DataError, match="calibration is of 4 members, but 3 gave scores"):
            ensemble.estimate(scores(0, members=3), torch.arange(12) // 4, calibration)

    def test_scaling_makes_units_vanish(self) -> None:
        x, groups = scores(6, rows=40), torch.arange(40) // 4
        units = torch.tensor([1.0, 10.0, 0.1, 5.0], dtype=DOUBLE)
        first, second = (
            ensemble.estimate(y, groups, ensemble.calibrate(y, groups, scale=True)) for y in (x, x * units)
        )
        torch.testing.assert_close(second.variance, first.variance, rtol=1e-9, atol=1e-12)

    def test_the_mean_weight_of_the_reference_is_one(self) -> None:
        x, groups = scores(7, rows=80), torch.arange(80) // 8
        calibration = ensemble.calibrate(x, groups)
        assert calibration.reference_variance is not None
        weights = ensemble.estimate(x, groups, calibration).variance / calibration.reference_variance
        assert float(weights.mean()) == pytest.approx(1.0, abs=1e-12)

    def test_calibration_errors(self) -> None:
        x = scores(8)
        x[:, 1] = math.nan
        with pytest.raises(DataError, match="member 1 scored none of the 12 calibration rows"):
            ensemble.calibrate(x, torch.arange(12) // 4)
        constant = scores(8)
        constant[:, 0] = 3.0
        with pytest.raises(DataError, match="member 0 gives one constant score"):
            ensemble.calibrate(constant, torch.arange(12) // 4, scale=True)

    def test_single_completions_use_the_calibrations_offsets(self) -> None:
        calibration = Calibration((1.0, 5.0), (1.0, 1.0), VariancePrior(0.0, 1.0), 1.0, 4)
        found = ensemble.estimate(torch.tensor([[2.0, 8.0]]), None, calibration)
        assert found.variance.tolist() == [2.0]  # centred scores 1 and 3


class TestOffsetShare:
    def test_by_construction(self) -> None:
        """Offsets of variance 3 per prompt and noise of variance 1: three quarters."""
        generator = torch.Generator().manual_seed(0)
        groups = torch.arange(20_000) // 2
        offset = math.sqrt(3) * torch.randn(10_000, 4, generator=generator, dtype=DOUBLE)[groups]
        noise = torch.randn(20_000, 4, generator=generator, dtype=DOUBLE)
        assert ensemble.offset_share(offset + noise, groups) == pytest.approx(0.75, abs=0.01)
        assert ensemble.offset_share(noise, groups) == pytest.approx(0.0, abs=0.02)
        assert ensemble.offset_share(offset + noise) == pytest.approx(0.0, abs=0.01)
