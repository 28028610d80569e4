"""Reward and variance from the scores of K members (docs/method.md 1 to 3, 5 and 6).

Bradley-Terry training fixes a member only up to a constant per prompt, so members are centred before they are
compared. A variance from few members is noisy, so it is moderated by an empirical-Bayes prior.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

from surefoot.errors import DataError, VarianceError
from surefoot.types import Calibration, MarginEstimate, RewardEstimate, VariancePrior

__all__ = [
    "calibrate",
    "centre",
    "degrees_of_freedom",
    "estimate",
    "fit_prior",
    "fit_priors",
    "fit_variance_factor",
    "group_anchors",
    "group_means",
    "margins",
    "moderate",
    "offset_share",
    "reliability",
    "sample_variance",
    "trigamma_inverse",
]

VarianceKind = Literal["moderated", "raw"]

_LOG_FLOOR = 1e-5
"""Sample variances below this share of their median are raised to it before taking logs, as limma does."""


def group_means(
    members: Float[Tensor, "batch members"], groups: Int[Tensor, "batch"]
) -> Float[Tensor, "batch members"]:
    """Each member's mean over the scored rows of its group, repeated to every row of the group.

    Args:
        members: (batch, members) raw scores; NaN is unscored and does not count.
        groups: (batch,) integers, the same for completions of one prompt.

    >>> group_means(torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 7])).flatten().tolist()
    [2.0, 2.0, 10.0]
    """
    _, index = torch.unique(groups, return_inverse=True)
    scored = ~members.isnan()
    rows = int(index.max()) + 1 if len(index) else 0
    zeros = members.new_zeros(rows, members.shape[1])
    totals = zeros.index_add(0, index, members.nan_to_num(0.0) * scored)
    counts = zeros.index_add(0, index, scored.to(members.dtype))
    return (totals / counts)[index]


def group_anchors(
    members: Float[Tensor, "batch members"], groups: Int[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch"]]:
    """Mean row of each row's own group, for use as its anchor, and how many completions it is the mean of.

    A member that scored fewer than two rows of a group has no anchor there (NaN): its centred score would always be 0.

    Args:
        members: (batch, members) raw scores; NaN is unscored.
        groups: (batch,) prompt ids.

    >>> rows, count = group_anchors(torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 7]))
    >>> rows.flatten().tolist(), count.tolist()
    ([2.0, 2.0, nan], [2.0, 2.0, 1.0])
    """
    scored = ~members.isnan()
    of_member = _per_group(scored.to(torch.float64), groups)
    of_row = _per_group(scored.any(dim=1).to(torch.float64)[:, None], groups)[:, 0]
    return torch.where(of_member < 2, torch.nan, group_means(members, groups)), of_row


def _per_group(values: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"]) -> Float[Tensor, "batch columns"]:
    """Sums over each row's group, repeated to its rows."""
    _, index = torch.unique(groups, return_inverse=True)
    rows = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(rows, values.shape[1]).index_add(0, index, values)[index]


def centre(
    members: Float[Tensor, "batch members"], anchors: Float[Tensor, "batch members"] | Float[Tensor, "members"]
) -> Float[Tensor, "batch members"]:
    """Centre each member by its anchor, r̃_k = r_k − b_k (docs/method.md 2.1).

    Args:
        members: (batch, members) raw scores, NaN where unscored.
        anchors: (batch, members) b_k(x) of each row's prompt, or (members,) for all rows alike; NaN where unknown.

    Raises:
        DataError: a score is infinite.

    >>> centre(torch.tensor([[1.0, 50.0], [3.0, 52.0]]), torch.tensor([2.0, 51.0])).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    infinite = members.isinf()
    if bool(infinite.any()):
        row, member = (int(i) for i in infinite.nonzero()[0])
        raise DataError(f"member {member} scored row {row} with {float(members[row, member])}; NaN means unscored")
    return members - anchors.to(members)


def degrees_of_freedom(members: Float[Tensor, "batch members"]) -> Float[Tensor, "batch"]:
    """Degrees of freedom of the sample variance, (batch,): scored members less one, never below 0."""
    scored = (~members.isnan()).sum(dim=1)
    return (scored - 1).clamp(min=0).to(members.dtype)


def sample_variance(members: Float[Tensor, "batch members"]) -> Float[Tensor, "batch"]:
    """Unbiased variance over the members of each row, in reward² (divisor: scored members − 1).

    Args:
        members: (batch, members) *centred* scores. NaN members are left out; a row with fewer than two is NaN.

    Raises:
        VarianceError: there is only one member.

    >>> sample_variance(torch.tensor([[1.0, 3.0], [2.0, float("nan")]])).tolist()
    [2.0, nan]
    """
    _require_two(members)
    freedom = degrees_of_freedom(members)
    deviations = members - members.nanmean(dim=1, keepdim=True)
    return deviations.square().nansum(dim=1) / torch.where(freedom > 0, freedom, torch.nan)


def _require_two(members: Float[Tensor, "batch members"]) -> None:
    if members.shape[1] < 2:
        raise VarianceError(
            f"a variance needs at least two members, got {members.shape[1]}; one member can't disagree with itself"
        )


def trigamma_inverse(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Solve ψ′(y) = values for y > 0 by Newton's method on 1/ψ′, which is convex and nearly linear.

    Source: Smyth (2004), "Linear models and empirical Bayes methods", appendix; works in float64.

    Raises:
        VarianceError: a value is not positive.

    >>> six_over = torch.tensor(math.pi**2 / 6, dtype=torch.float64)
    >>> round(float(trigamma_inverse(six_over)), 12)
    1.0
    """
    x = values.to(torch.float64)
    if bool((x <= 0).any()) or bool(x.isnan().any()):
        raise VarianceError("the inverse trigamma function needs positive values")
    three = x.new_tensor(3.0)
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = _trigamma(y)
        step = trigamma * (1 - trigamma / x) / (-2 * torch.special.zeta(three, y))
        y = y + step
        if bool((-step / y < 1e-12).all()):
            break
    # Outside this range the asymptotic forms are exact to rounding and Newton would lose digits.
    y = torch.where(x > 1e7, 1 / x.sqrt(), y)
    return torch.where(x < 1e-6, 1 / x, y)


def _trigamma(y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """ψ′(y) = ζ(2, y), to rounding; `torch.polygamma(1, y)` is right to nine digits only."""
    return torch.special.zeta(y.new_tensor(2.0), y)


def fit_prior(variances: Float[Tensor, "batch"], freedom: Float[Tensor, "batch"] | float) -> VariancePrior:
    """Fit (d₀, s₀²) by matching the mean and variance of log s² (Smyth 2004, section 6.2).

    s² ~ s₀² F(d, d₀). If the logs spread no more than χ²_d sampling explains, d₀ is infinite: the data show no
    difference in variance between completions.

    Args:
        variances: (batch,) sample variances in reward²; NaN rows are left out.
        freedom: their degrees of freedom d, one for all or one each.

    Raises:
        VarianceError: fewer than two usable rows, or all variances are zero.
    """
    s2 = variances.to(torch.float64)
    d = torch.as_tensor(freedom, dtype=torch.float64, device=s2.device).expand_as(s2)
    usable = ~s2.isnan() & (d > 0)
    s2, d = s2[usable], d[usable]
    if len(s2) < 2:
        raise VarianceError(f"fitting a variance prior needs at least two scored completions, got {len(s2)}")
    if not bool((s2 > 0).any()):
        raise VarianceError("the members agree exactly on every completion; are they copies of one model?")
    d0, s0 = fit_priors(s2[None], d[None])
    return VariancePrior(float(d0), float(s0))


def fit_priors(
    variances: Float[Tensor, "sets batch"], freedom: Float[Tensor, "sets batch"] | float
) -> tuple[Float[Tensor, "sets"], Float[Tensor, "sets"]]:
    """`fit_prior` for many sets at once, each row a set without NaN: (d₀, s₀²); d₀ may be infinite."""
    s2 = variances.to(torch.float64)
    d = torch.as_tensor(freedom, dtype=torch.float64, device=s2.device)
    # The median of the positive values keeps the floor meaningful when many variances are exactly zero.
    middle = torch.where(s2 > 0, s2, torch.nan).nanmedian(dim=1, keepdim=True).values
    s2 = torch.maximum(s2, _LOG_FLOOR * middle)
    logs = s2.log() - torch.digamma(d / 2) + (d / 2).log()
    level = logs.mean(dim=1)
    excess = logs.var(dim=1, correction=1) - _trigamma(d / 2).expand_as(s2).mean(dim=1)
    differ = excess > 0
    half = trigamma_inverse(torch.where(differ, excess, 1.0))
    shift = torch.where(differ, torch.digamma(half) - half.log(), 0.0)
    return torch.where(differ, 2 * half, torch.inf), (level + shift).exp()


def moderate(
    variances: Float[Tensor, "batch"],
    freedom: Float[Tensor, "batch"] | float,
    prior: VariancePrior,
) -> Float[Tensor, "batch"]:
    """Moderated variance s̃² = (d₀ s₀² + d s²)/(d₀ + d), in reward² (Smyth 2004, eq. 5; docs/method.md 3.2).

    A row whose own variance is unknown (d = 0, s² NaN) gets the prior's; so does every row when d₀ is infinite.

    >>> moderate(torch.tensor([1.0, 5.0]), 4.0, VariancePrior(4.0, 3.0)).tolist()
    [2.0, 4.0]
    """
    d0, s0 = prior.degrees_of_freedom, prior.variance
    if math.isinf(d0):
        return torch.full_like(variances, s0)
    d = torch.as_tensor(freedom, dtype=variances.dtype, device=variances.device).expand_as(variances)
    own = torch.where(d > 0, d * variances, torch.zeros_like(variances))
    total = d + d0
    return torch.where(total > 0, (own + d0 * s0) / total, torch.nan)


def calibrate(
    members: Float[Tensor, "batch members"],
    anchors: Float[Tensor, "batch members"] | None = None,
    *,
    scale: bool = False,
) -> Calibration:
    """Fit the members' offsets, scales and variance prior on completions of the reference policy (or held-out text).

    Args:
        members: (batch, members) raw scores.
        anchors: (batch, members) each row's; None takes each member's mean over these rows.
        scale: divide each member by its standard deviation after centring.

    Returns:
        A Calibration without `reference_variance`: the source sets it to the mean variance that it then estimates.

    Raises:
        DataError: a member scored nothing, or gives the same score throughout while `scale` is on.
        VarianceError: too few rows to fit the prior.
    """
    x = members.to(torch.float64)
    offsets = x.nanmean(dim=0)
    if bool(offsets.isnan().any()):
        raise DataError(f"member {int(offsets.isnan().nonzero()[0])} scored none of the {len(x)} calibration rows")
    centred = centre(x, offsets if anchors is None else anchors)
    scales = _standard_deviations(centred) if scale else torch.ones_like(offsets)
    if bool((scales == 0).any()):
        raise DataError(f"member {int((scales == 0).nonzero()[0])} gives one constant score; it can't be scaled")
    prior = None
    if x.shape[1] > 1:
        scaled = centred / scales
        prior = fit_prior(sample_variance(scaled), degrees_of_freedom(scaled))
    return Calibration(tuple(offsets.tolist()), tuple(scales.tolist()), prior, None, len(x))


def _standard_deviations(centred: Float[Tensor, "batch members"]) -> Float[Tensor, "members"]:
    counts = (~centred.isnan()).sum(dim=0)
    deviations = centred - centred.nanmean(dim=0)
    return (deviations.square().nansum(dim=0) / (counts - 1)).sqrt()


def estimate(
    members: Float[Tensor, "batch members"],
    anchors: Float[Tensor, "batch members"] | None = None,
    calibration: Calibration | None = None,
    *,
    variance: VarianceKind = "moderated",
) -> RewardEstimate:
    """Reward and variance of each row from the members' raw scores.

    Centres each member by its anchor, scales it if the calibration says so, takes the variance over members, and
    moderates it. The members' average anchor, one number per prompt, is then added again, so that `mean` reads like
    the members' own scores (docs/method.md 1.1).

    Args:
        members: (batch, members) raw scores; NaN is unscored.
        anchors: (batch, members) each row's anchor; None takes the calibration's offsets for all.
        calibration: from `calibrate`. Without one the prior is fitted on this batch.
        variance: "moderated" (default), or the "raw" sample variance, which can be riskier than none.

    Returns:
        A RewardEstimate of `batch` rows. It has a mean and no variance with one member, and with a calibration without
        a prior (all members agreed on its rows).

    Raises:
        DataError: the calibration is of another number of members, or there is neither an anchor nor a calibration.
    """
    x = members.to(torch.float64)
    offsets, scales = _constants(x, calibration)
    if x.shape[1] < 2:
        return RewardEstimate(mean=x[:, 0] / scales, members=x / scales)
    if anchors is None and offsets is None:
        raise DataError("centring needs anchors, or the offsets of a calibration; calibrate the source first")
    anchor = (offsets if anchors is None else anchors.to(x)).expand_as(x)  # type: ignore[union-attr]
    centred = centre(x, anchor) / scales
    # The anchor's offset, not the row's: otherwise a row gains reward when a low-scoring member is missing.
    shown = centred + (anchor / scales).nanmean(dim=1, keepdim=True)
    if calibration is not None and calibration.prior is None:
        return RewardEstimate(mean=shown.nanmean(dim=1), members=shown)
    d = degrees_of_freedom(centred)
    s2 = sample_variance(centred)
    if variance == "moderated":
        s2 = _moderated(s2, d, calibration)
    s2 = torch.where(centred.isnan().all(dim=1), torch.nan, s2)
    return RewardEstimate(mean=shown.nanmean(dim=1), members=shown, epistemic=s2, degrees_of_freedom=d)


def _constants(
    members: Float[Tensor, "batch members"], calibration: Calibration | None
) -> tuple[Float[Tensor, "members"] | None, Float[Tensor, "members"]]:
    count = members.shape[1]
    if calibration is None:
        return None, members.new_ones(count)
    if len(calibration.offsets) != count:
        raise DataError(f"the calibration is of {len(calibration.offsets)} members, but {count} gave scores")
    return members.new_tensor(calibration.offsets), members.new_tensor(calibration.scales)


def _moderated(
    s2: Float[Tensor, "batch"], d: Float[Tensor, "batch"], calibration: Calibration | None
) -> Float[Tensor, "batch"]:
    prior = calibration.prior if calibration is not None else None
    return moderate(s2, d, prior if prior is not None else fit_prior(s2, d))


def reliability(centred: Float[Tensor, "batch members"], splits: int = 32) -> float:
    """Reliability of the members' variance, in (−∞, 1]: its agreement with that of as many other members.

    Splits the members into two halves, correlates ln s² of the halves over the rows, averages over `splits` random
    splits, and steps the correlation up to the whole number of members: 2r/(1 + r) (Spearman and Brown 1910;
    docs/method.md 6). Near 1 the variance is precise. Below about .6 weights made of it are mostly noise.

    Args:
        centred: (batch, members) anchored scores of completions of the reference policy.
        splits: random splits, the same in every call.

    Returns:
        NaN for fewer than four members, whose halves have no variance, and for fewer than three rows.

    >>> round(reliability(torch.tensor([[1.0], [2.0], [4.0]]) * torch.tensor([[-2.0, 1.0, 3.0, -1.0]])), 6)
    1.0
    """
    x = centred.to(torch.float64)
    x = x[~x.isnan().any(dim=1)]
    count = x.shape[1]
    if count < 4 or len(x) < 3:
        return math.nan
    stream = torch.Generator().manual_seed(0)
    correlations = []
    for _ in range(splits):
        order = torch.randperm(count, generator=stream)
        halves = [sample_variance(x[:, part]) for part in (order[: count // 2], order[count // 2 :])]
        usable = (halves[0] > 0) & (halves[1] > 0)
        if int(usable.sum()) > 2:
            correlations.append(torch.corrcoef(torch.stack([half[usable].log() for half in halves]))[0, 1])
    r = float(torch.stack(correlations).nanmean()) if correlations else math.nan
    return 2 * r / (1 + r) if r > -1 else math.nan


def margins(
    chosen: Float[Tensor, "pairs members"],
    rejected: Float[Tensor, "pairs members"],
    prior: VariancePrior | None = None,
) -> MarginEstimate:
    """Margins of pairs and their variance, paired member by member before reducing (docs/method.md 1.2).

    A member's offset cancels inside its own margin, so no centring is needed.

    Args:
        chosen, rejected: (pairs, members) raw scores.
        prior: moderates the variance; it must have been fitted on margins.

    Raises:
        VarianceError: there is only one member.

    >>> margins(torch.tensor([[9.0, 1.0]]), torch.tensor([[8.0, 0.0]])).variance.tolist()
    [0.0]
    """
    x = (chosen - rejected).to(torch.float64)
    s2 = sample_variance(x)
    if prior is not None:
        s2 = torch.where(x.isnan().all(dim=1), torch.nan, moderate(s2, degrees_of_freedom(x), prior))
    return MarginEstimate(x.nanmean(dim=1), s2, x)


def fit_variance_factor(
    mean: Float[Tensor, "pairs"], variance: Float[Tensor, "pairs"], prior_scale: float = math.log(2)
) -> float:
    """Most likely factor c in [0.01, 100] by which the source's variances are to be multiplied (docs/method.md 5).

    Maximises Σ log E[σ(m + √(cv) z)] − (ln c)² / (2 prior_scale²), z standard normal, E[σ] ≈ σ(m/√(1 + πcv/8))
    (MacKay 1992). The prior says that a source usually knows its variance to a factor of two. Without it a few hundred
    labels leave c open: where the variance is small beside the margins the likelihood is flat, and its maximum is
    often one of the two bounds.

    Args:
        mean: (pairs,) margin of the side that was in fact preferred over the other, in reward.
        variance: (pairs,) its variance.
        prior_scale: standard deviation of ln c before the labels are seen; infinite for the likelihood alone.

    Raises:
        VarianceError: no pairs.

    >>> surprised = torch.tensor([8.0, -8.0]).double(), torch.tensor([1.0, 1.0]).double()
    >>> round(fit_variance_factor(*surprised, prior_scale=math.inf)), round(fit_variance_factor(*surprised), 1)
    (100, 1.8)
    """
    if len(mean) == 0:
        raise VarianceError("fitting a variance factor needs held-out pairs, got none")
    m, v = mean.to(torch.float64), variance.to(torch.float64)

    def loss(log_factor: float) -> float:
        scaled = m / (1 + math.pi / 8 * math.exp(log_factor) * v).sqrt()
        return float(torch.nn.functional.softplus(-scaled).sum()) + (log_factor / prior_scale) ** 2 / 2

    bounds = (math.log(0.01), math.log(100.0))
    inside = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)
    # The bounded search never returns its ends, where the optimum often is.
    return math.exp(min((*bounds, inside), key=loss))


def offset_share(members: Float[Tensor, "batch members"], groups: Int[Tensor, "batch"] | None = None) -> float:
    """Share of the members' raw variance that comes from their offsets, in [0, 1] up to sampling.

    1 − (mean variance after centring, corrected for the degree of freedom that centring takes) / (mean raw variance).
    Preferences can't see an offset; an uncentred variance counts it as disagreement.

    Args:
        members: (batch, members) raw scores with every row scored by every member.
        groups: (batch,) prompt ids, at least two rows each: the offsets of members on each prompt. None: the one
            offset that each member has over all rows, which is a part of them.

    >>> offset_share(torch.tensor([[0.0, 10.0], [1.0, 11.0]]))
    1.0
    """
    x = members.to(torch.float64)
    if groups is None:
        groups = torch.zeros(len(x), dtype=torch.long)
    raw = sample_variance(x).mean()
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    correction = (counts / (counts - 1).clamp(min=1)).to(x)[index]
    centred = (sample_variance(x - group_means(x, groups)) * correction).mean()
    return float(1 - centred / raw)
