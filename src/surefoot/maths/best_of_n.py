"""Best-of-n: expected true score of the best of n samples by a proxy, unbiased, for every n at once.

Source: docs/method.md 9.4; the estimator over all subsets of N samples (Nakano et al., arXiv:2112.09332, appendix I),
in the log domain.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import DataError

__all__ = ["best_of_n_curve", "best_of_n_kl", "rank_probabilities"]


def rank_probabilities(count: int, ns: Int[Tensor, "choices"]) -> Float[Tensor, "choices count"]:
    """Probability that the i-th lowest of `count` samples is the highest of n drawn from them without replacement.

    It is C(i−1, n−1) / C(count, n).

    Args:
        count: N.
        ns: (choices,) n, each from 1 to N.

    Returns:
        (choices, count), float64; rows sum to 1.

    >>> rank_probabilities(3, torch.tensor([2])).tolist()[0][1:]
    [0.33333333333333..., 0.66666666666666...]

    Raises:
        DataError: an n below 1 or above N.
    """
    if len(ns) and not 1 <= int(ns.min()) <= int(ns.max()) <= count:
        raise DataError(f"best of n needs 1 ≤ n ≤ {count}, the samples of a prompt; got n up to {int(ns.max())}")
    n = ns.to(torch.float64)[:, None]
    i = torch.arange(1, count + 1, dtype=torch.float64)[None, :]
    possible = i >= n
    below = _log_choose((i - 1).expand_as(possible), torch.where(possible, n - 1, 0.0))
    return torch.where(possible, (below - _log_choose(torch.full_like(n, count), n)).exp(), 0.0)


def best_of_n_curve(
    proxy: Float[Tensor, "prompts samples"], gold: Float[Tensor, "prompts samples"], ns: Int[Tensor, "choices"]
) -> Float[Tensor, "prompts choices"]:
    """Expected gold score of the best of n samples by the proxy, (prompts, choices).

    Unbiased for n fresh samples. Samples whose proxies are equal share their chances. A sample without a proxy (NaN)
    can't be chosen and is left out.

    Args:
        proxy: (prompts, samples) what is chosen by.
        gold: (prompts, samples) what is wanted; may be the proxy itself. Not NaN where the proxy isn't.
        ns: (choices,) n, each at most the smallest number of scored samples of a prompt.

    Raises:
        DataError: an n is too large.
    """
    counts = (~proxy.isnan()).sum(dim=1)
    curve = torch.empty(len(proxy), len(ns), dtype=torch.float64)
    for count in torch.unique(counts).tolist():
        rows = (counts == count).nonzero()[:, 0]
        order = proxy[rows].argsort(dim=1)[:, :count]  # NaN sorts last
        ordered = gold[rows].gather(1, order).to(torch.float64)
        levelled = _share_ties(proxy[rows].gather(1, order), ordered)
        curve[rows] = levelled @ rank_probabilities(count, ns).T
    return curve


def best_of_n_kl(ns: Int[Tensor, "choices"]) -> Float[Tensor, "choices"]:
    """KL of the best-of-n policy from the sampled one, ln n − (n − 1)/n in nats; an upper bound where scores tie.

    Source: Beirami et al., arXiv:2401.01879.

    >>> round(float(best_of_n_kl(torch.tensor([2]))), 4)
    0.1931
    """
    n = ns.to(torch.float64)
    return n.log() - (n - 1) / n


def _log_choose(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.lgamma(top + 1) - torch.lgamma(bottom + 1) - torch.lgamma((top - bottom).clamp(min=0) + 1)


def _share_ties(proxy: Tensor, gold: Tensor) -> Tensor:
    """Gold scores with each run of equal proxies (sorted) replaced by its mean."""
    if proxy.shape[1] == 0:
        return gold
    starts = torch.ones_like(proxy, dtype=torch.bool)
    starts[:, 1:] = proxy[:, 1:] != proxy[:, :-1]
    run = starts.long().cumsum(dim=1) - 1
    total = torch.zeros_like(gold).scatter_add_(1, run, gold)
    size = torch.zeros_like(gold).scatter_add_(1, run, torch.ones_like(gold))
    # There are fewer runs than columns where scores tie; the sizes of the others are 0, and are never gathered.
    return (total / size.clamp(min=math.ulp(1.0))).gather(1, run)
