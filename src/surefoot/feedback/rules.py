"""Rules that choose which pairs to label: pure functions from margins, features or draws to indices of pairs.

Every rule takes a `count` and a `seed` and returns (count,) different indices, best first. Equal scores are ordered at
random by the seed. Means are in units of reward (higher is better), variances in reward². A NaN is refused: leave
pairs without a margin out before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.maths.laplace import Covariance

__all__ = [
    "d_optimal",
    "delta_ucb",
    "double_thompson",
    "expected_information",
    "greedy_log_det",
    "highest",
    "label_information",
    "margin_variance",
    "random_pairs",
    "upper_confidence_margin",
    "whiten",
]

_TRIES = 32
"""Attempts at two draws that prefer different completions, before the second is taken at random."""
_BLOCK = 256
"""Rows whose gain is brought up to date at a time; doubled while none of them can be chosen yet."""
_CHUNK = 8192


def random_pairs(pairs: int, count: int, seed: int) -> Int[Tensor, "count"]:
    """Choose uniformly, without repetition: the baseline of all rules."""
    _check_count(pairs, count)
    return torch.randperm(pairs, generator=_stream(seed))[:count]


def margin_variance(variance: Float[Tensor, "pairs"], count: int, seed: int) -> Int[Tensor, "count"]:
    """Choose the pairs whose margin has the largest variance (Gleave and Irving 2022, arXiv:2203.07472)."""
    return highest(variance, count, seed)


def label_information(mean: Float[Tensor, "pairs"], variance: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """p(1 − p)v of each pair, with p = σ(mean): what a label is expected to tell about the weights.

    For v = δᵀΣδ the Fisher information of the label is p(1 − p)δδᵀ, and ½ ln(1 + p(1 − p)δᵀΣδ) is the log-determinant
    that it adds to the posterior precision (Shen, Sun and Ton 2025, arXiv:2502.04354).

    >>> label_information(torch.tensor([0.0]), torch.tensor([2.0])).tolist()
    [0.5]
    """
    p = torch.sigmoid(mean.to(torch.float64))
    return p * (1 - p) * variance.to(torch.float64)


def expected_information(
    mean: Float[Tensor, "pairs"], variance: Float[Tensor, "pairs"], count: int, seed: int
) -> Int[Tensor, "count"]:
    """Choose the pairs with the largest `label_information`, each as if it were labelled alone."""
    return highest(label_information(mean, variance), count, seed)


def upper_confidence_margin(
    mean: Float[Tensor, "pairs"], variance: Float[Tensor, "pairs"], count: int, seed: int, kappa: float = 1.0
) -> Int[Tensor, "count"]:
    """Choose the pairs whose margin may be largest: |mean| + κ√variance, with the margin's own variance.

    The aim is that of `delta_ucb`; an error that both rewards share cancels here before it is counted.
    """
    return highest(mean.abs() + kappa * variance.sqrt(), count, seed)


def delta_ucb(
    mean: Float[Tensor, "completions"],
    variance: Float[Tensor, "completions"],
    pairs: Int[Tensor, "pairs 2"],
    count: int,
    seed: int,
    kappa: float = 1.0,
) -> Int[Tensor, "count"]:
    """Choose the pairs with the largest optimistic gap, max(UCB₁ − LCB₂, UCB₂ − LCB₁), with bounds mean ± κ√variance.

    DeltaUCB of ActiveUltraFeedback (arXiv:2603.09692), which takes the best pair of each prompt; here the best of all.

    Args:
        mean, variance: of the completions' rewards.
        pairs: the two completions of each pair.
    """
    spread = kappa * variance.sqrt()
    first, second = pairs.T
    return highest((mean[first] - mean[second]).abs() + spread[first] + spread[second], count, seed)


def double_thompson(
    rewards: Float[Tensor, "completions draws"],
    pairs: Int[Tensor, "pairs 2"],
    prompts: Int[Tensor, "completions"],
    count: int,
    seed: int,
) -> Int[Tensor, "count"]:
    """Choose pairs by double Thompson sampling: the best completion under one posterior draw against that of another.

    Prompts take turns in random order. A prompt's two draws are repeated until they prefer two completions whose pair
    is a candidate and not chosen yet; after 32 attempts one of the prompt's other pairs is taken at random.

    Source: Wu and Liu 2016 (arXiv:1604.07101), for prompts Dwaracherla et al. 2024 (arXiv:2402.00396).

    Args:
        rewards: of each completion under each draw; NaN where a draw doesn't know it.
        pairs: the two completions of each pair, which are of one prompt.
        prompts: number of each completion's prompt.

    Raises:
        ConfigError: there are fewer than two draws.
    """
    _check_count(len(pairs), count)
    if rewards.shape[1] < 2:
        raise ConfigError(f"double Thompson sampling needs at least two posterior draws, got {rewards.shape[1]}")
    best = _best_of_each_prompt(rewards, prompts)
    stream = _stream(seed)
    left: dict[int, dict[frozenset[int], int]] = {}
    for index, (first, second) in enumerate(pairs.tolist()):
        left.setdefault(int(prompts[first]), {})[frozenset((first, second))] = index
    chosen: list[int] = []
    for prompt in _turns(list(left), stream):
        if len(chosen) == count:
            break
        if left[prompt]:
            chosen.append(left[prompt].pop(_duel(best[prompt], left[prompt], stream)))
    return torch.tensor(chosen)


def _best_of_each_prompt(
    rewards: Float[Tensor, "completions draws"], prompts: Int[Tensor, "completions"]
) -> dict[int, list[int]]:
    """The completion that each draw likes best, by prompt."""
    known = torch.where(rewards.isnan(), -torch.inf, rewards)
    order = prompts.argsort(stable=True)
    numbers, sizes = prompts[order].unique_consecutive(return_counts=True)
    groups = order.split(sizes.tolist())
    return {
        int(number): group[known[group].argmax(dim=0)].tolist() for number, group in zip(numbers, groups, strict=True)
    }


def _turns(prompts: list[int], stream: torch.Generator) -> Iterator[int]:
    """The prompts in random order, again and again."""
    while True:
        for place in torch.randperm(len(prompts), generator=stream).tolist():
            yield prompts[place]


def _duel(best: list[int], left: dict[frozenset[int], int], stream: torch.Generator) -> frozenset[int]:
    """The pair of the favourites of two draws, or any of the pairs that are left."""
    for one, other in torch.randint(len(best), (_TRIES, 2), generator=stream).tolist():
        pair = frozenset((best[one], best[other]))
        if pair in left:
            return pair
    return list(left)[int(torch.randint(len(left), (1,), generator=stream))]


def whiten(differences: Float[Tensor, "pairs features"], covariance: Covariance) -> Float[Tensor, "pairs features"]:
    """Rows x = Σ^½δ, so that xᵀx = δᵀΣδ, float64."""
    x = differences.to(torch.float64)
    outside = covariance.scale.sqrt()
    if not covariance.basis.shape[1]:
        return x * outside
    inside = (covariance.scale[0] + covariance.shift).clamp(min=0.0).sqrt() - outside[0]
    return x * outside + ((x @ covariance.basis) * inside) @ covariance.basis.T


def d_optimal(
    rows: Float[Tensor, "pairs features"], mean: Float[Tensor, "pairs"], count: int, seed: int
) -> Int[Tensor, "count"]:
    """Choose a batch that together tells most: greedily the largest ln det(Σ⁻¹ + Σᵢ pᵢ(1 − pᵢ)δᵢδᵢᵀ).

    Pairs that resemble a chosen one gain little, so the batch is diverse. Greedy choice reaches at least 1 − 1/e of
    the best batch's gain, since the gain is submodular (Nemhauser, Wolsey and Fisher 1978). Labels of the batch are
    assumed not to move p.

    Source: Shen, Sun and Ton 2025 (arXiv:2502.04354); for regret Das et al. 2024 (arXiv:2402.10500).

    Args:
        rows: whitened differences (`whiten`), xᵀx = δᵀΣδ.
        mean: of the margins.
    """
    p = torch.sigmoid(mean.to(torch.float64))
    return greedy_log_det(rows.to(torch.float64) * (p * (1 - p)).sqrt()[:, None], count, seed)


def greedy_log_det(rows: Float[Tensor, "pairs features"], count: int, seed: int) -> Int[Tensor, "count"]:
    """Greedily add the row with the largest xᵀA⁻¹x, where A = 1 + Σ xxᵀ over the rows that were added.

    A row's gain only falls as others are added, so an old gain bounds it from above. Blocks of the highest bounds are
    brought up to date until an up-to-date row has the highest bound of all: exactly the greedy choice, with few rows
    looked at (Minoux 1978). A⁻¹ is kept by rank-one updates. Costs features² for each row looked at; keeps no matrix
    of pairs × pairs.
    """
    _check_count(len(rows), count)
    x = rows.to(torch.float64)
    _refuse_nan(x)
    order = torch.randperm(len(x), generator=_stream(seed))  # equal bounds: the first in this order wins
    inverse = torch.eye(x.shape[1], dtype=torch.float64)
    bounds = torch.cat([part.square().sum(dim=1) for part in x.split(_CHUNK)])[order]
    updated = torch.zeros(len(x), dtype=torch.long)
    chosen = []
    for step in range(count):
        place = _highest_gain(x, order, inverse, bounds, updated, step)
        row = x[order[place]]
        towards = inverse @ row
        inverse -= torch.outer(towards, towards / (1 + bounds[place]))
        bounds[place] = -torch.inf
        chosen.append(int(order[place]))
    return torch.tensor(chosen)


def _highest_gain(
    x: Float[Tensor, "pairs features"],
    order: Int[Tensor, "pairs"],
    inverse: Float[Tensor, "features features"],
    bounds: Float[Tensor, "pairs"],
    updated: Int[Tensor, "pairs"],
    step: int,
) -> int:
    """Place of the row with the largest gain; brings `bounds` up to date as far as that needs."""
    block = _BLOCK
    while True:
        first = int(bounds.argmax())
        if updated[first] == step:
            return first
        top = bounds.topk(min(block, len(bounds))).indices
        stale = top[(updated[top] < step) & (bounds[top] > -torch.inf)]
        for part in stale.split(_CHUNK):
            some = x[order[part]]
            bounds[part] = ((some @ inverse) * some).sum(dim=1)
        updated[stale] = step
        block *= 2


def highest(scores: Float[Tensor, "pairs"], count: int, seed: int) -> Int[Tensor, "count"]:
    """Indices of the highest scores, highest first; equal scores in an order that the seed draws.

    Raises:
        ConfigError: fewer scores than `count`. DataError: a score is NaN.
    """
    _check_count(len(scores), count)
    _refuse_nan(scores)
    order = torch.randperm(len(scores), generator=_stream(seed))
    return order[scores[order].argsort(descending=True, stable=True)][:count]


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check_count(pairs: int, count: int) -> None:
    if not 1 <= count <= pairs:
        raise ConfigError(f"count must be between 1 and the {pairs:,} candidate pairs, got {count:,}")


def _refuse_nan(values: Tensor) -> None:
    if math.isnan(float(values.sum())) and bool(values.isnan().any()):
        raise DataError("a pair's margin is unknown (NaN); leave such pairs out before choosing")
