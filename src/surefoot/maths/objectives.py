"""The objective: aggregates of members, variance weights, and the weighted KL penalty (docs/method.md 7).

    E_π[r̃] − β · D_w(π‖π₀),   D_w(π‖π₀) = Σ_y w(y) [π ln(π/π₀) − π + π₀] ≥ 0

An aggregate is one function from a `RewardEstimate` to (batch,) rewards. To add one, decorate the function with
`register_aggregate("name")` and name it by `CustomAggregate("name")`. Every function here is pure; higher reward is
better; variances are in reward².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NewType, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import ConfigError, VarianceError, did_you_mean
from surefoot.maths.shrinkage import group_reliability, in_groups
from surefoot.types import RewardEstimate

__all__ = [
    "AGGREGATES",
    "PRESETS",
    "Aggregate",
    "AggregateName",
    "CustomAggregate",
    "Form",
    "Objective",
    "Weighting",
    "aggregate",
    "effective_sample_size",
    "generalized_kl",
    "preset",
    "register_aggregate",
    "sequence_penalty",
    "weights",
]

Rewards = Float[Tensor, "batch"]
AggregateName = Literal[
    "mean", "one", "lcb", "uwo", "wco", "cvar", "kl_robust", "brme", "rvpo", "shrunken", "shrunken_scaled"
]
CustomAggregate = NewType("CustomAggregate", str)
"""Type of the name of an aggregate that was added to `AGGREGATES`; a plain str fails in mypy, as a typo should."""
Weighting = Literal["variance", "none"]
Form = Literal["generalized", "literal"]
if TYPE_CHECKING:
    _Weighting = Weighting
    _Form = Form
else:
    # `Objective` checks both at run time and names the nearest value; beartype, in the tests, would stop it before
    # that.
    _Weighting = _Form = str


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One way from an estimate to (batch,) rewards.

    Args:
        function: of the estimate, and of its parameter where it takes one.
        low, high: range of the parameter; None where it takes none.
        above_low: whether `low` itself is excluded.
        reads_variance: whether it reads the variance.
        compares_members: whether it compares members, which must then be centred first.
        within_groups: whether it reads which completions share a prompt.
    """

    function: Callable[..., Rewards]
    low: float | None = None
    high: float = math.inf
    above_low: bool = False
    reads_variance: bool = False
    compares_members: bool = False
    within_groups: bool = False


AGGREGATES: dict[str, Aggregate] = {}
Function = TypeVar("Function", bound=Callable[..., Rewards])


def register_aggregate(
    name: str,
    *,
    low: float | None = None,
    high: float = math.inf,
    above_low: bool = False,
    reads_variance: bool = False,
    compares_members: bool = False,
    within_groups: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as the aggregate of that name; an `Objective` then takes it, with its parameter.

    Args: see `Aggregate`.

    Raises:
        ConfigError: another function has that name.
    """

    def decorate(function: Function) -> Function:
        held = AGGREGATES.get(name)
        if held is not None and held.function.__qualname__ != function.__qualname__:
            raise ConfigError(f"aggregate '{name}' is {held.function.__qualname__} already; choose another name")
        AGGREGATES[name] = Aggregate(function, low, high, above_low, reads_variance, compares_members, within_groups)
        return function

    return decorate


@register_aggregate("mean")
def mean(estimate: RewardEstimate) -> Rewards:
    """μ: the members' mean."""
    return estimate.mean


@register_aggregate("one", low=0.0)
def one(estimate: RewardEstimate, member: float = 0) -> Rewards:
    """One member's reward; the other members are used for the variance alone."""
    members = _members(estimate)
    if not 0 <= int(member) < members.shape[1]:
        raise ConfigError(f"aggregate 'one' asks for member {int(member)}, but there are {members.shape[1]}")
    return members[:, int(member)]


@register_aggregate("lcb", low=0.0, reads_variance=True)
def lower_confidence_bound(estimate: RewardEstimate, kappa: float = 1.0) -> Rewards:
    """μ − κ s (UP-RLHF, arXiv:2401.00243)."""
    return estimate.mean - kappa * estimate.variance.sqrt()


@register_aggregate("uwo", low=0.0, reads_variance=True)
def uncertainty_weighted(estimate: RewardEstimate, lam: float = 0.5) -> Rewards:
    """UWO: μ − λ s² (Coste et al., arXiv:2310.02743, eq. 3)."""
    return estimate.mean - lam * estimate.variance


@register_aggregate("wco", compares_members=True)
def worst_case(estimate: RewardEstimate) -> Rewards:
    """WCO: min_k r_k over the members that scored (Coste et al., arXiv:2310.02743, eq. 2)."""
    members = _members(estimate)
    lowest = members.nan_to_num(nan=math.inf).min(dim=1).values  # an unscored member is never the minimum
    return torch.where(estimate.scored, lowest, torch.nan)


@register_aggregate("cvar", low=0.0, high=1.0, above_low=True, compares_members=True)
def conditional_value_at_risk(estimate: RewardEstimate, alpha: float = 0.5) -> Rewards:
    """CVaR: mean of the lowest share α of the K members, 0 < α ≤ 1; the member at the boundary counts by its fraction.

    α = 1 is the mean, α ≤ 1/K the minimum. Unscored members are left out.
    """
    ordered = _members(estimate).sort(dim=1).values  # NaN sorts last
    counts = (~ordered.isnan()).sum(dim=1, keepdim=True).to(ordered.dtype)
    take = (alpha * counts).clamp(min=1.0)
    position = torch.arange(ordered.shape[1], device=ordered.device)
    share = (take - position).clamp(min=0.0, max=1.0).to(ordered.dtype)
    total = (share * ordered.nan_to_num(0.0)).sum(dim=1) / take.squeeze(1)
    return torch.where(estimate.scored, total, torch.nan)


@register_aggregate("kl_robust", low=0.0, above_low=True, compares_members=True)
def kl_robust(estimate: RewardEstimate, tau: float = 1.0) -> Rewards:
    """−τ log mean_k exp(−r_k/τ): the worst mean over members within a KL ball (arXiv:2606.09073).

    Tends to μ − s²/2τ for large τ (s² with divisor K) and to the minimum for small τ.
    """
    members = _members(estimate)
    scored = ~members.isnan()
    logits = torch.where(scored, -members / tau, -math.inf)
    counts = scored.sum(dim=1).to(members.dtype)
    return torch.where(estimate.scored, -tau * (logits.logsumexp(dim=1) - counts.log()), torch.nan)


@register_aggregate("brme", low=0.0, high=1.0, compares_members=True)
def nominal_and_worst(estimate: RewardEstimate, lam: float = 0.5) -> Rewards:
    """BRME: λ · nominal + (1 − λ) · min_k r_k, the nominal being the members' mean (arXiv:2409.15360)."""
    return lam * estimate.mean + (1 - lam) * worst_case(estimate)


@register_aggregate("rvpo", low=0.0, above_low=True, within_groups=True)
def reward_variance_averse(estimate: RewardEstimate, kappa: float = 1.0) -> Rewards:
    """RVPO: −(1/κ) log mean_k exp(−κ Z_k), Z_k member k's advantage over its group's spread (arXiv:2605.05750).

    Z_k = (r_k − mean over the group) / (sample standard deviation over the group + 1e-4). Tends to the mean of the Z_k
    for small κ and to their minimum for large κ. Its unit is standard deviations, not reward.

    Raises:
        VarianceError: the estimate says nothing of groups.
    """
    members = _members(estimate)
    _, place = torch.unique(_groups(estimate, "rvpo"), return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    scored = ~members.isnan()
    known = members.nan_to_num(0.0)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count, values.shape[1]).index_add_(0, place, values)

    size = total(scored.to(members.dtype))
    centred = torch.where(scored, known - (total(known) / size)[place], 0.0)
    spread = (total(centred.square()) / (size - 1).clamp(min=1.0)).sqrt()
    advantage = centred / (spread[place] + 1e-4)
    logits = torch.where(scored, -kappa * advantage, -math.inf)
    counts = scored.sum(dim=1).to(members.dtype)
    return torch.where(estimate.scored, -(logits.logsumexp(dim=1) - counts.log()) / kappa, torch.nan)


@register_aggregate("shrunken", reads_variance=True, within_groups=True)
def shrunken(estimate: RewardEstimate) -> Rewards:
    """Each reward drawn to its group's mean by the group's reliability: m + ρ (r − m) (`maths/shrinkage.py`).

    The variance is taken for noise that is independent between a prompt's completions, as a judge's is. A group whose
    spread is noise alone teaches nothing.

    Raises:
        VarianceError: the estimate says nothing of groups.
    """
    groups = _groups(estimate, "shrunken")
    centred, _ = in_groups(estimate.mean, groups)
    reliability = group_reliability(estimate.mean, estimate.variance, groups)
    return estimate.mean - (1 - reliability) * centred


@register_aggregate("shrunken_scaled", reads_variance=True, within_groups=True)
def shrunken_scaled(estimate: RewardEstimate) -> Rewards:
    """GRPO's advantage times √ρ: √ρ (r − m) / (s + 1e-4), which is ρ (r − m) in units of the true spread τ = √ρ s.

    Its unit is standard deviations within a group, not reward. See `shrunken`.

    Raises:
        VarianceError: the estimate says nothing of groups.
    """
    groups = _groups(estimate, "shrunken_scaled")
    centred, variance = in_groups(estimate.mean, groups)
    reliability = group_reliability(estimate.mean, estimate.variance, groups)
    return reliability.sqrt() * centred / (variance.sqrt() + 1e-4)


def _groups(estimate: RewardEstimate, name: str) -> Int[Tensor, "batch"]:
    if estimate.groups is None:
        raise VarianceError(f"aggregate '{name}' works within a prompt's group; give the groups")
    return estimate.groups


def _members(estimate: RewardEstimate) -> Float[Tensor, "batch members"]:
    if estimate.members is None:
        raise VarianceError("this aggregate needs the members' scores, but the reward source has none; use 'mean'")
    return estimate.members


@dataclass(frozen=True, slots=True)
class Objective:
    """A complete objective: aggregate, weighting, and form of the penalty.

    Args:
        aggregate: a key of `AGGREGATES`.
        parameter: the aggregate's κ, λ, α, τ or member index; None takes its default.
        weights: "variance" weighs the penalty by w = s̃²/s̄²; "none" is the ordinary KL.
        form: "generalized" is D_w; "literal" is the paper's E_π[w ln(π/π₀)], which equals D_w with β·w taken from
            the reward.
        weight_floor, weight_ceiling: bounds of w.

    Raises:
        ConfigError: an unknown name (the nearest known one is given), or a value out of range.
    """

    aggregate: AggregateName | CustomAggregate = "mean"
    parameter: float | None = None
    weights: _Weighting = "variance"
    form: _Form = "generalized"
    weight_floor: float = 0.1
    weight_ceiling: float = 10.0

    def __post_init__(self) -> None:
        _known("aggregate", self.aggregate, AGGREGATES)
        _known("weights", self.weights, get_args(Weighting))
        _known("form", self.form, get_args(Form))
        if not 0 < self.weight_floor <= 1 <= self.weight_ceiling:
            raise ConfigError(
                f"weights have mean 1, so 0 < weight_floor ≤ 1 ≤ weight_ceiling must hold; got "
                f"{self.weight_floor} and {self.weight_ceiling}"
            )
        self._check_parameter()

    def _check_parameter(self) -> None:
        if self.parameter is None:
            return
        known = AGGREGATES[self.aggregate]
        if known.low is None:
            raise ConfigError(f"aggregate '{self.aggregate}' takes no parameter, got {self.parameter}")
        if not known.low <= self.parameter <= known.high or (known.above_low and self.parameter == known.low):
            said = f"{'(' if known.above_low else '['}{known.low:g}, {known.high:g}]"
            raise ConfigError(f"the parameter of '{self.aggregate}' must lie in {said}, got {self.parameter}")

    @property
    def needs_variance(self) -> bool:
        """Whether the aggregate or the weights read the variance, so that one member is not enough."""
        return self.weights == "variance" or AGGREGATES[self.aggregate].reads_variance

    @property
    def within_groups(self) -> bool:
        """Whether the aggregate reads which completions share a prompt."""
        return AGGREGATES[self.aggregate].within_groups

    @property
    def needs_anchor(self) -> bool:
        """Whether members are compared or their variance is read, so that they must be centred first."""
        return self.needs_variance or AGGREGATES[self.aggregate].compares_members


def _known(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise ConfigError(f"unknown {what} '{name}'{did_you_mean(name, names)} (known: {', '.join(names)})")


PRESETS: dict[str, Objective] = {
    "vanilla": Objective("one", weights="none"),
    "mean": Objective("mean", weights="none"),
    "lcb": Objective("lcb", weights="none"),
    "uwo": Objective("uwo", weights="none"),
    "wco": Objective("wco", weights="none"),
    "cvar": Objective("cvar", weights="none"),
    "kl_robust": Objective("kl_robust", weights="none"),
    "brme": Objective("brme", weights="none"),
    "rvpo": Objective("rvpo", weights="none"),
    "shrunken": Objective("shrunken", weights="none"),
    "shrunken_scaled": Objective("shrunken_scaled", weights="none"),
    "variance_aware": Objective("mean"),
    "variance_aware_lcb": Objective("lcb"),
    "variance_aware_one": Objective("one"),
    "literal": Objective("mean", form="literal"),
}
"""Objectives by the names that the literature uses; docs/papers.md maps each to its source."""


def preset(name: str, **changes: float | str | None) -> Objective:
    """The preset objective of that name, with any of its fields changed.

    >>> preset("uwo", parameter=0.2).parameter
    0.2

    Raises:
        ConfigError: unknown name.
    """
    _known("objective", name, PRESETS)
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def aggregate(estimate: RewardEstimate, objective: Objective) -> Rewards:
    """Reward r̃ that the objective maximises, (batch,); NaN where unscored.

    Raises:
        VarianceError: the aggregate needs a variance or members that the estimate lacks.
        ConfigError: "one" names a member that doesn't exist.
    """
    function = AGGREGATES[objective.aggregate].function
    return function(estimate) if objective.parameter is None else function(estimate, objective.parameter)


def weights(
    variance: Float[Tensor, "batch"],
    reference_variance: float,
    floor: float = 0.1,
    ceiling: float = 10.0,
) -> Float[Tensor, "batch"]:
    """Weights w = s̃²/s̄² within [floor, ceiling], dimensionless; NaN where the variance is unknown.

    Source: docs/method.md 7.2; arXiv:2507.15906, eq. 7.

    Args:
        variance: (batch,) s̃², in reward².
        reference_variance: s̄², mean variance of the reference policy's completions, so that E_π₀[w] = 1.

    Raises:
        VarianceError: s̄² is not positive.

    >>> weights(torch.tensor([0.5, 2.0, 400.0]), 1.0).tolist()
    [0.5, 2.0, 10.0]
    """
    if not (reference_variance > 0 and math.isfinite(reference_variance)):
        raise VarianceError(f"the mean reference variance must be positive and finite, got {reference_variance}")
    return (variance / reference_variance).clamp(min=floor, max=ceiling)


def sequence_penalty(
    log_ratio: Float[Tensor, "batch"],
    weight: Float[Tensor, "batch"],
    form: _Form = "generalized",
) -> Float[Tensor, "batch"]:
    """Per-sequence penalty, detached, whose score-function gradient is that of the objective (docs/method.md 8).

    Args:
        log_ratio: (batch,) ln π(y|x) − ln π₀(y|x), summed over the completion's tokens, in nats.
        weight: (batch,) w.
        form: "generalized" gives w ln(π/π₀): ∇D_w = E_π[w ln(π/π₀) ∇ln π]. "literal" gives w (ln(π/π₀) + 1), the
            gradient of E_π[w ln(π/π₀)]; its +1 does not vanish when w varies.

    >>> sequence_penalty(torch.tensor([0.5]), torch.tensor([2.0]), "literal").tolist()
    [3.0]
    """
    _known("form", form, get_args(Form))
    return weight * (log_ratio + 1) if form == "literal" else weight * log_ratio


def generalized_kl(
    policy: Float[Tensor, "*batch actions"],
    reference: Float[Tensor, "*batch actions"],
    weight: Float[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """Generalised KL D_w(π‖π₀) = Σ_y w [π ln(π/π₀) − π + π₀], in nats; positive but at π₀ (docs/method.md 7.3).

    Args:
        policy, reference: (..., actions) probabilities; the reference must be positive.
        weight: (..., actions) w ≥ 0.

    >>> p = torch.tensor([0.5, 0.5]); float(generalized_kl(p, p, torch.tensor([1.0, 9.0])))
    0.0
    """
    ratio_term = torch.xlogy(policy, policy) - torch.xlogy(policy, reference)
    return (weight * (ratio_term - policy + reference)).sum(dim=-1)


def effective_sample_size(weight: Float[Tensor, "batch"]) -> float:
    """Effective sample size (Σw)²/Σw² as a share of the scored rows, in (0, 1]; 1 if all weights are equal.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, float("nan")]))
    1.0
    """
    w = weight[~weight.isnan()]
    if len(w) == 0:
        return math.nan
    return float(w.sum().square() / w.square().sum() / len(w))
