"""How much of a group's spread is reward and not noise (docs/method.md 7.6).

A prompt's G completions have rewards rᵢ = tᵢ + eᵢ: true ones, and noise of known variance vᵢ, such as a judge's. Their
sample variance s² has the mean τ² + v̄, so noise alone has a spread, which GRPO divides by as if it were reward.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["group_reliability", "in_groups"]

FEWEST = 4
"""Scored completions of a prompt below which nothing is shrunk: no shrinkage is known to help then."""


class _Groups:
    """Sums over groups of rows.

    Args:
        values: (batch,) NaN where unknown.
        groups: (batch,) integers.
    """

    def __init__(self, values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"]) -> None:
        _, self.place = torch.unique(groups, return_inverse=True)
        self.count = int(self.place.max()) + 1 if len(self.place) else 0
        self.known = ~values.isnan()
        self.size = self.sum(self.known.to(values.dtype))

    def sum(self, values: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """(batch,) sum over the known rows of each row's group."""
        held = torch.where(self.known, values, 0.0)
        return held.new_zeros(self.count).index_add_(0, self.place, held)[self.place]

    def mean(self, values: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """(batch,) mean over the known rows of each row's group; NaN where there are none."""
        return self.sum(values) / self.size


def in_groups(
    reward: Float[Tensor, "batch"], groups: Int[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Each reward minus its group's mean, and the group's sample variance; NaN where unscored.

    The variance is 0 in a group of one.
    """
    group = _Groups(reward, groups)
    centred = reward - group.mean(reward)
    return centred, group.sum(centred.square()) / (group.size - 1).clamp(min=1.0)


def group_reliability(
    reward: Float[Tensor, "batch"], noise: Float[Tensor, "batch"], groups: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Reliability of each row's group, in [0, 1]: the share of its rewards' variance that isn't noise.

    ρ = max(0, 1 − (G − 3)/(G − 1) · v̄/s²), the factor of the positive-part James–Stein estimator about a group's own
    mean (Efron and Morris, JASA 68, 1973, section 1; Kelley's formula with an estimated reliability). With normal
    rewards and equal noise, ρ before it is cut at 0 is unbiased for τ²/(τ² + v).

    Args:
        reward: (batch,) NaN where unscored.
        noise: (batch,) variance vᵢ of each reward's noise, in reward²; a group with an unknown one isn't shrunk.
        groups: (batch,) prompt ids.

    Returns:
        (batch,) 1 in groups of fewer than four scored rows, and where a variance is unknown.

    >>> r, v = torch.tensor([0.0, 0.0, 2.0, 2.0, 1.0]), torch.tensor([0.5] * 5)
    >>> group_reliability(r, v, torch.zeros(5, dtype=torch.long)).tolist()  # s² = 1, and 1 − 2/4 · 0.5
    [0.75, 0.75, 0.75, 0.75, 0.75]
    """
    _, variance = in_groups(reward, groups)
    group = _Groups(reward, groups)
    unknown = group.sum(torch.where(noise.isnan(), 1.0, 0.0).to(reward.dtype)) > 0
    left = (group.size - 3) / (group.size - 1).clamp(min=1.0)
    mean_noise = group.mean(noise.to(reward.dtype).nan_to_num(0.0))
    share = (1 - left * mean_noise / variance).clamp(min=0.0)
    share = torch.where(variance > 0, share, torch.where(mean_noise > 0, 0.0, 1.0))
    return torch.where((group.size < FEWEST) | unknown, 1.0, share)
