"""Members' scores to a variance: hand-worked values, SciPy and NumPy as oracles, invariances, a simulated prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats

from surefoot.errors import DataError, VarianceError
from surefoot.maths.ensemble import (
    calibrate,
    centre,
    degrees_of_freedom,
    estimate,
    fit_prior,
    fit_priors,
    group_anchors,
    margins,
    moderate,
    offset_share,
    reliability,
    sample_variance,
    trigamma_inverse,
)
from surefoot.types import Calibration, RewardEstimate, VariancePrior

SEEDS = st.integers(0, 10_000)
NAN = math.nan
GROUPS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def scores(seed: int, rows: int = 10, members: int = 4) -> torch.Tensor:
    return torch.randn(rows, members, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(raw: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Each group's own mean as its anchor."""
    return group_anchors(raw, groups)[0]


def by_group(raw: torch.Tensor, groups: torch.Tensor, calibration: Calibration | None = None) -> RewardEstimate:
    return estimate(raw, own(raw, groups), calibration)


# Centring


def test_centring_by_hand_with_unscored_members() -> None:
    """The mean is over scored rows; a member's only score in a group is left out, not made 0."""
    raw = torch.tensor([[1.0, 5.0, NAN], [3.0, NAN, 2.0], [5.0, 9.0, NAN]], dtype=torch.float64)
    found = centre(raw, own(raw, torch.tensor([4, 4, 4])))
    close(found, torch.tensor([[-2.0, -2.0, NAN], [0.0, NAN, NAN], [2.0, 2.0, NAN]], dtype=torch.float64))


@given(SEEDS, st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=12))
def test_offsets_per_member_and_prompt_change_no_variance(seed: int, constants: list[float]) -> None:
    raw = scores(seed)
    offset = torch.tensor(constants, dtype=torch.float64).reshape(3, 4)
    before, after = by_group(raw, GROUPS), by_group(raw + offset[GROUPS], GROUPS)
    close(after.variance, before.variance, rtol=1e-8, atol=1e-10)
    close(*(x.mean - torch.stack([x.mean[g == GROUPS].mean() for g in GROUPS]) for x in (after, before)), atol=1e-9)


def test_a_lone_completion_is_no_anchor_of_its_own() -> None:
    """Its centred scores would all be 0, as if its variance were; it is told by NaN and by a count of 1."""
    raw, groups = scores(1, rows=3), torch.tensor([0, 0, 1])
    rows, count = group_anchors(raw, groups)
    assert count.tolist() == [2.0, 2.0, 1.0]
    assert bool(rows[2].isnan().all())
    close(centre(raw, rows)[:2].mean(dim=0), torch.zeros(4, dtype=torch.float64))
    offsets = torch.arange(4.0, dtype=torch.float64)
    close(centre(raw, offsets), torch.stack([row - offsets for row in raw]))


@given(SEEDS, st.integers(0, 9), st.floats(-1e3, 1e3))
def test_with_given_anchors_siblings_do_not_matter(seed: int, row: int, value: float) -> None:
    raw, anchors = scores(seed), scores(seed + 1)
    calibration = calibrate(scores(seed + 2, 50))
    others = torch.arange(10) != row
    changed = raw.clone()
    changed[others] = value
    whole, alone = estimate(raw, anchors, calibration), estimate(raw[[row]], anchors[[row]], calibration)
    among = estimate(changed, anchors, calibration)
    for found in (alone.variance, among.variance[[row]]):
        close(found, whole.variance[[row]], rtol=1e-12)
    close(among.mean[row], whole.mean[row], rtol=1e-12)


@given(SEEDS, st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_a_constant_of_a_member_and_its_anchor_changes_nothing(seed: int, constants: list[float]) -> None:
    raw, anchors, constant = scores(seed), scores(seed + 1), torch.tensor(constants, dtype=torch.float64)
    calibration = calibrate(scores(seed + 2, 50))
    before, after = estimate(raw, anchors, calibration), estimate(raw + constant, anchors + constant, calibration)
    close(after.variance, before.variance, rtol=1e-9, atol=1e-10)
    close(after.mean - constant.mean(), before.mean, rtol=1e-9, atol=1e-9)


def test_an_anchored_estimate_by_hand() -> None:
    """Members 1 and 5 less anchors 0 and 2 are 1 and 3: s² = 2; their mean 2, plus the anchors' mean of 1."""
    found = estimate(
        torch.tensor([[1.0, 5.0]], dtype=torch.float64),
        torch.tensor([[0.0, 2.0]], dtype=torch.float64),
        variance="raw",
    )
    assert found.variance.tolist() == [2.0]
    assert found.mean.tolist() == [3.0]
    assert found.members is not None
    assert found.members.tolist() == [[2.0, 4.0]]


def test_infinite_scores_are_refused_by_row_and_member() -> None:
    raw = scores(2)
    raw[3, 1] = math.inf
    with pytest.raises(DataError, match="member 1 scored row 3 with inf"):
        centre(raw, torch.zeros(4))


def test_centring_needs_anchors_or_a_calibration() -> None:
    with pytest.raises(DataError, match="centring needs anchors, or the offsets of a calibration"):
        estimate(scores(3))
    calibration = calibrate(scores(3))
    close(
        estimate(scores(3), None, calibration).variance,
        estimate(scores(3), torch.tensor(calibration.offsets).expand(10, 4), calibration).variance,
    )


# Sample variance


def test_sample_variance_is_numpy_with_ddof_1() -> None:
    raw = scores(4, rows=50, members=5)
    raw[::3, 0], raw[::5, 3], raw[7, 1:] = NAN, NAN, NAN
    raw[8] = NAN
    want = [np.nanvar(row, ddof=1) if np.isfinite(row).sum() > 1 else NAN for row in raw.numpy()]
    close(sample_variance(raw), torch.tensor(want, dtype=torch.float64))
    close(degrees_of_freedom(raw)[7:9], torch.zeros(2, dtype=torch.float64))


def test_sample_variance_is_unbiased() -> None:
    """Mean over 400,000 sets of two draws of variance 4: within 4.5 standard errors (the divisor K would give 2)."""
    s2 = sample_variance(2 * scores(5, rows=400_000, members=2))
    error = float(s2.std(correction=1)) / math.sqrt(len(s2))
    assert abs(float(s2.mean()) - 4.0) < 4.5 * error < 0.1


def test_one_member_has_no_variance() -> None:
    with pytest.raises(VarianceError, match="at least two members, got 1"):
        sample_variance(scores(6, members=1))
    with pytest.raises(VarianceError, match="comes from one member"):
        _ = estimate(scores(6, members=1)).variance


@given(SEEDS, st.permutations(range(4)), st.permutations(range(10)))
def test_the_order_of_members_and_rows(seed: int, members: list[int], rows: list[int]) -> None:
    raw = scores(seed)
    before, after = by_group(raw, GROUPS), by_group(raw[rows][:, members], GROUPS[rows])
    close(after.variance, before.variance[rows], rtol=1e-8)
    close(after.mean, before.mean[rows], rtol=1e-8)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_scaling_the_scores_scales_the_variance(seed: int, factor: float) -> None:
    raw = scores(seed)
    close(by_group(raw * factor, GROUPS).variance, by_group(raw, GROUPS).variance * factor**2, rtol=1e-8, atol=0)


# The inverse trigamma function


def test_trigamma_inverse_against_brentq() -> None:
    x = torch.logspace(-9, 9, 73, dtype=torch.float64)
    found = trigamma_inverse(x)
    for value, y in zip(x.tolist(), found.tolist(), strict=True):
        near = math.log(y)
        root = optimize.brentq(
            lambda u, v=value: math.log(special.polygamma(1, math.exp(u)) / v), near - 1, near + 1, xtol=1e-14
        )
        # The asymptotic forms 1/x and 1/√x are within 1e-6 where they are used.
        assert y == pytest.approx(math.exp(root), rel=1e-6 if value > 1e7 or value < 1e-6 else 1e-10)


@given(st.floats(1e-3, 1e4))
def test_trigamma_inverse_inverts(y: float) -> None:
    value = torch.tensor(float(special.polygamma(1, y)), dtype=torch.float64)
    assert float(trigamma_inverse(value)) == pytest.approx(y, rel=1e-8)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_trigamma_inverse_refuses(value: float) -> None:
    with pytest.raises(VarianceError, match="positive values"):
        trigamma_inverse(torch.tensor([1.0, value], dtype=torch.float64))


# The prior


def limma(s2: np.ndarray, d: float) -> tuple[float, float]:
    """fitFDist of limma, written out from Smyth (2004), section 6.2, with scipy; the inverse by bracketing."""
    e = np.log(s2) - special.digamma(d / 2) + math.log(d / 2)
    excess = e.var(ddof=1) - float(special.polygamma(1, d / 2))
    if excess <= 0:
        return math.inf, math.exp(e.mean())
    half = optimize.brentq(lambda y: float(special.polygamma(1, y)) - excess, 1e-6, 1e9, xtol=1e-14, rtol=1e-14)
    return 2 * half, math.exp(e.mean() + float(special.digamma(half)) - math.log(half))


@pytest.mark.parametrize("freedom", [1.0, 2.0, 4.0, 29.0])
def test_fit_prior_against_the_published_formula(freedom: float) -> None:
    rng = np.random.default_rng(int(freedom))
    s2 = 0.7 * stats.f.rvs(freedom, 5.0, size=500, random_state=rng)
    prior = fit_prior(torch.from_numpy(s2), freedom)
    d0, s0 = limma(s2, freedom)
    assert prior.degrees_of_freedom == pytest.approx(d0, rel=1e-8)
    assert prior.variance == pytest.approx(s0, rel=1e-8)


@pytest.mark.parametrize(("members", "d0", "s0"), [(3, 4.0, 1.0), (5, 4.0, 0.25), (5, 12.0, 9.0), (11, 2.0, 1.0)])
def test_fit_prior_finds_the_prior_that_made_the_data(members: int, d0: float, s0: float) -> None:
    """limma's model: σ² = d₀s₀²/χ²(d₀), scores N(0, σ²). 40 sets of 2,000 rows; means within 4.5 standard errors.

    1/d₀ is compared, since an estimate of d₀ itself may be infinite; a bias of a tenth is allowed for the
    nonlinearity.
    """
    stream = torch.Generator().manual_seed(members)
    rng = np.random.default_rng(members)
    sigma2 = torch.from_numpy(d0 * s0 / rng.chisquare(d0, size=(40, 2000, 1)))
    draws = torch.randn(40, 2000, members, generator=stream, dtype=torch.float64) * sigma2.sqrt()
    s2 = sample_variance(draws.flatten(0, 1)).view(40, 2000)
    freedom, level = fit_priors(s2, float(members - 1))
    for found, true in ((1 / freedom, 1 / d0), (level.log(), math.log(s0))):
        error = float(found.std(correction=1)) / math.sqrt(40)
        assert abs(float(found.mean()) - true) < 4.5 * error + 0.02 * abs(true)
        assert error < 0.03


def test_moderation_lowers_the_error_of_the_variance() -> None:
    """Under limma's model the moderated variance is nearer to the true one than raw and than pooled, in log."""
    rng = np.random.default_rng(0)
    sigma2 = torch.from_numpy(4.0 / rng.chisquare(4.0, size=5000))
    s2 = sample_variance(scores(7, 5000, 3) * sigma2.sqrt()[:, None])
    moderated = moderate(s2, 2.0, fit_prior(s2, 2.0))
    raw, mine, pooled = (
        float((x.log() - sigma2.log()).square().mean()) for x in (s2, moderated, s2.mean().expand_as(s2))
    )
    assert mine < 0.5 * raw
    assert mine < 0.8 * pooled


def test_equal_variances_give_an_infinite_prior_about_half_the_time() -> None:
    """d₀ is infinite when the logs spread no more than chance explains; otherwise it is large: weights nearly 1."""
    s2 = sample_variance(scores(8, 200 * 500, 5)).view(200, 500)
    freedom, level = fit_priors(s2, 4.0)
    infinite = float(freedom.isinf().double().mean())
    assert abs(infinite - 0.5) < 4.5 * 0.5 / math.sqrt(200)
    # The variance of 500 logs of χ²₄ / 4 errs by .052 (a simulation); 4.5 times that is ψ′ of 4.7 = 9.4 / 2.
    assert float(freedom.min()) > 9.4
    assert abs(float(level.mean()) - 1) < 0.02
    exact = VariancePrior(math.inf, 0.3)
    close(moderate(s2[0], 4.0, exact), torch.full((500,), 0.3, dtype=torch.float64))


def test_fit_priors_is_fit_prior_set_by_set() -> None:
    s2 = sample_variance(scores(9, 300, 4)).view(3, 100) * torch.linspace(0.1, 10, 100, dtype=torch.float64)
    freedom, level = fit_priors(s2, 3.0)
    for i in range(3):
        one = fit_prior(s2[i], 3.0)
        assert (one.degrees_of_freedom, one.variance) == pytest.approx((float(freedom[i]), float(level[i])))


@given(SEEDS, st.floats(1e-3, 1e3))
def test_the_prior_scales_with_the_rewards(seed: int, factor: float) -> None:
    s2 = sample_variance(scores(seed, 60)) * torch.linspace(0.05, 20, 60, dtype=torch.float64)
    one, other = fit_prior(s2, 3.0), fit_prior(s2 * factor, 3.0)
    assert other.degrees_of_freedom == pytest.approx(one.degrees_of_freedom, rel=1e-6)
    assert other.variance == pytest.approx(one.variance * factor, rel=1e-8)


def test_zero_variances_are_floored_and_copies_are_refused() -> None:
    s2 = sample_variance(scores(10, 100))
    s2[:3] = 0.0
    assert fit_prior(s2, 3.0).variance > 0.1
    with pytest.raises(VarianceError, match="copies of one model"):
        fit_prior(torch.zeros(5, dtype=torch.float64), 3.0)
    with pytest.raises(VarianceError, match="at least two scored completions, got 1"):
        fit_prior(torch.tensor([1.0, NAN], dtype=torch.float64), 3.0)


# Moderation


def test_moderate_by_hand() -> None:
    """(d₀s₀² + d s²)/(d₀ + d) = (6·0.5 + 2·3)/8; unknown rows get s₀²; d₀ = 0 gives s² back."""
    s2 = torch.tensor([3.0, NAN], dtype=torch.float64)
    freedom = torch.tensor([2.0, 0.0], dtype=torch.float64)
    close(moderate(s2, freedom, VariancePrior(6.0, 0.5)), torch.tensor([1.125, 0.5], dtype=torch.float64))
    close(moderate(s2, freedom, VariancePrior(0.0, 0.5)), torch.tensor([3.0, NAN], dtype=torch.float64))


@given(SEEDS, st.floats(0.0, 1e6), st.floats(1e-3, 1e3))
def test_a_moderated_variance_lies_between(seed: int, d0: float, s0: float) -> None:
    s2 = sample_variance(scores(seed))
    found = moderate(s2, 3.0, VariancePrior(d0, s0))
    assert bool((found >= torch.minimum(s2, torch.tensor(s0)) * (1 - 1e-12)).all())
    assert bool((found <= torch.maximum(s2, torch.tensor(s0)) * (1 + 1e-12)).all())


# Calibration and estimates


def test_calibration_by_hand() -> None:
    """Two rows a group: centred scores are ±(difference)/2, and the constants of the members don't matter."""
    raw = torch.tensor([[10.0, 0.0], [12.0, 4.0], [10.0, 0.0], [14.0, 0.0]], dtype=torch.float64)
    found = calibrate(raw, own(raw, torch.tensor([0, 0, 1, 1])), scale=True)
    assert found.offsets == (11.5, 1.0)
    assert found.scales == pytest.approx((math.sqrt(10 / 3), math.sqrt(8 / 3)))
    assert found.rows == 4


def test_scaling_makes_members_of_any_scale_alike() -> None:
    raw, groups = scores(12, 40), torch.arange(40) // 4
    factor = torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    plain, scaled = (by_group(x, groups, calibrate(x, own(x, groups), scale=True)) for x in (raw, raw * factor))
    close(scaled.variance, plain.variance, rtol=1e-9)


def test_a_constant_member_cannot_be_scaled() -> None:
    raw = scores(13)
    raw[:, 2] = 4.0
    with pytest.raises(DataError, match="member 2 gives one constant score"):
        calibrate(raw, own(raw, GROUPS), scale=True)
    raw[:, 1] = NAN
    with pytest.raises(DataError, match="member 1 scored none of the 10"):
        calibrate(raw, own(raw, GROUPS))


def test_members_average_to_the_mean_and_unscored_rows_stay_unknown() -> None:
    raw = scores(14)
    raw[4] = NAN
    raw[0, 2] = NAN
    others = GROUPS != 1
    found = by_group(raw, GROUPS, calibrate(raw[others], own(raw[others], GROUPS[others])))
    assert found.members is not None
    close(found.members.nanmean(dim=1), found.mean)
    assert math.isnan(float(found.mean[4]))
    assert math.isnan(float(found.variance[4]))
    assert bool(found.variance[:3].isfinite().all())


def test_raw_variance_is_the_sample_variance_of_the_centred_scores() -> None:
    raw = scores(15)
    anchors = own(raw, GROUPS)
    close(estimate(raw, anchors, variance="raw").variance, sample_variance(centre(raw, anchors)))


def test_a_calibration_of_other_members_is_refused() -> None:
    with pytest.raises(DataError, match="calibration is of 4 members, but 3 gave scores"):
        by_group(scores(16, members=3), GROUPS, calibrate(scores(16), own(scores(16), GROUPS)))


# Margins


def test_margins_are_paired_by_member() -> None:
    """A shared error of both completions cancels: the variance isn't the sum of two variances."""
    rng = torch.Generator().manual_seed(17)
    shared = 5 * torch.randn(20, 6, generator=rng, dtype=torch.float64)
    a, b = scores(17, 20, 6), scores(18, 20, 6)
    found = margins(shared + a, shared + b)
    close(found.mean, (a - b).mean(dim=1), rtol=1e-8)
    close(found.variance, torch.from_numpy(np.var((a - b).numpy(), axis=1, ddof=1)), rtol=1e-8)
    assert float(found.variance.mean()) < 0.2 * float(sample_variance(shared + a).mean())


def test_margin_variance_is_moderated_where_known() -> None:
    a, b = scores(19), scores(20)
    a[3] = NAN
    found = margins(a, b, VariancePrior(3.0, 2.0))
    assert math.isnan(float(found.variance[3]))
    close(found.variance[:3], (3.0 * 2.0 + 3.0 * sample_variance(a - b)[:3]) / 6.0)


@given(SEEDS)
def test_swapping_a_pair_flips_the_mean_alone(seed: int) -> None:
    a, b = scores(seed), scores(seed + 1)
    close(margins(a, b).mean, -margins(b, a).mean)
    close(margins(a, b).variance, margins(b, a).variance)


def test_offset_share_of_known_parts() -> None:
    """Offsets of variance 3 on errors of variance 1: about 3/4 of the raw variance is offset (sampling: ±0.02)."""
    rng = torch.Generator().manual_seed(21)
    groups = torch.arange(4000) // 4
    offsets = math.sqrt(3) * torch.randn(1000, 5, generator=rng, dtype=torch.float64)
    assert offset_share(offsets[groups] + scores(22, 4000, 5), groups) == pytest.approx(0.75, abs=0.02)
    assert offset_share(scores(23, 4000, 5), groups) == pytest.approx(0.0, abs=0.02)


def test_a_members_silence_is_no_gift() -> None:
    """Two members with offsets of 0 and −10 agree on three completions; leaving one score out changes no reward."""
    worth = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    members = torch.stack([worth, worth - 10], dim=1)
    groups = torch.tensor([4, 4, 4])
    whole = estimate(members, own(members, groups), None, variance="raw").mean
    members[2, 1] = torch.nan  # the harsh one is silent about the best
    lacking = estimate(members, own(members, groups), None, variance="raw").mean
    torch.testing.assert_close(whole, worth - 5)
    assert float(lacking[1] - lacking[0]) == pytest.approx(1.0)
    # The silent member is centred on the two that it scored; what is left is its centring, not its offset of −5.
    assert float(lacking[2] - lacking[1]) == pytest.approx(0.75)
    lone = estimate(
        torch.tensor([[1.0, -9.0], [1.0, torch.nan]], dtype=torch.float64),
        None,
        Calibration((0.0, -10.0), (1.0, 1.0), VariancePrior(4.0, 1.0), 1.0, 2),
    )
    assert lone.mean.tolist() == [-4.0, -4.0]


# Reliability


def test_reliability_of_a_precise_variance_is_about_one() -> None:
    """Variances from 0.0025 to 400 under 100 members: halves of 50 agree on them all but for .01 of ln s²'s spread."""
    size = torch.logspace(-1.3, 1.3, 200, dtype=torch.float64)[:, None]
    assert reliability(scores(30, 200, 100) * size) == pytest.approx(1.0, abs=0.01)


def test_reliability_of_noise_is_about_zero() -> None:
    """Equal variances: 40 sets of 400 rows, each mean within 4.5 standard errors of 0."""
    for members in (5, 20):
        found = [reliability(scores(40 + i, 400, members), splits=8) for i in range(40)]
        error = np.std(found, ddof=1) / math.sqrt(40)
        assert abs(float(np.mean(found))) < 4.5 * error + 0.01  # 2r/(1 + r) is not linear: −.006 at sd .05
        assert error < 0.02


def test_reliability_is_the_square_of_the_correlation_with_the_truth() -> None:
    """ln s² is ln σ² plus noise of variance ψ′(d/2): half the members tell var ln σ² / (var ln σ² + ψ′) of it."""
    members, spread = 20, 0.6
    truth = spread * scores(50, 4000, 1)
    noise = float(special.polygamma(1, (members / 2 - 1) / 2))
    half = spread**2 / (spread**2 + noise)
    found = reliability(scores(51, 4000, members) * (truth / 2).exp())
    assert found == pytest.approx(2 * half / (1 + half), abs=0.03)


def test_reliability_needs_four_members_and_three_rows() -> None:
    assert math.isnan(reliability(scores(60, 50, 3)))
    assert math.isnan(reliability(scores(60, 2, 8)))
    assert not math.isnan(reliability(scores(60, 50, 4)))
    whole, lacking = scores(61, 50, 6), scores(61, 50, 6)
    lacking = torch.cat([lacking, torch.full((20, 6), NAN, dtype=torch.float64)])
    assert reliability(lacking) == reliability(whole)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_reliability_knows_no_scale_and_no_shared_reward(seed: int, factor: float) -> None:
    raw, shared = scores(seed, 30, 6), scores(seed + 1, 30, 1)
    assert reliability(factor * raw + shared) == pytest.approx(reliability(raw), rel=1e-6, abs=1e-6)
