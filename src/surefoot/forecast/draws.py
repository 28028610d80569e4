"""Other rewards that the same preferences could have given: draws of a reward's error of estimation.

A closed-form posterior is sampled. An ensemble's members stand for draws: each deviates from their mean by about as
much as the mean of another ensemble, trained on another sample of preferences, would. Where there is nothing but a
variance, errors are drawn independently for each completion, as in the paper's Gaussian model (arXiv:2507.15906).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.rewards.gaussian import GaussianSource
from surefoot.rewards.source import RewardSource
from surefoot.types import RewardEstimate

__all__ = ["Draws", "draw_errors", "other_run", "own_member"]

Origin = Literal["posterior", "members", "independent"]
_FEWEST = 3
"""Members, with two others left to judge the policy of one."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of a reward's error, in units of reward.

    Args:
        errors: (rows, draws), mean zero over draws for members.
        origin: where they come from.
    """

    errors: Float[Tensor, "rows draws"]
    origin: Origin

    @property
    def count(self) -> int:
        return self.errors.shape[1]


def draw_errors(
    source: RewardSource, scores: Float[Tensor, "rows columns"], estimate: RewardEstimate, count: int, seed: int = 0
) -> Draws:
    """Draw `count` errors of the reward on every row; an ensemble gives as many as it has members, at most `count`.

    Args:
        scores: of `RewardSource.score`. estimate: of the same rows.

    Raises:
        VarianceError: the source has no variance, or two members.
    """
    if not estimate.has_variance:
        raise VarianceError(
            f"'{source.name}' has no variance, so a forecast has no way to tell how wrong it may be; give a source "
            "with a variance, or the true reward (gold)"
        )
    if isinstance(source, GaussianSource):
        samples = source.sample_members(scores, count, seed)
        return Draws(samples - estimate.mean[:, None], "posterior")
    if estimate.members is not None and estimate.members.shape[1] > 1:
        members = estimate.members[:, :count]
        if members.shape[1] < _FEWEST:
            raise VarianceError(f"'{source.name}' has {members.shape[1]} members; a forecast needs at least {_FEWEST}")
        k = estimate.members.shape[1]
        unbiased = math.sqrt(k / (k - 1) * source.variance_factor)
        # A member that didn't score a completion says nothing of its error.
        return Draws(unbiased * (members - estimate.mean[:, None]).nan_to_num(0.0), "members")
    stream = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(estimate), count, generator=stream, dtype=torch.float64)
    return Draws(noise * estimate.variance.sqrt()[:, None], "independent")


def other_run(estimate: RewardEstimate, draws: Draws, run: int) -> RewardEstimate:
    """What another sample of preferences would have given: rewards moved by draw `run`, with the variance kept.

    Another member takes the first place in each run, so that "one member" brings its own error too.
    """
    errors, members = draws.errors[:, run], estimate.members
    if members is not None:
        members = members.roll(-own_member(draws, run), dims=1) + errors[:, None]
    return replace(estimate, mean=estimate.mean + errors, members=members)


def own_member(draws: Draws, run: int) -> int:
    """The member that stands first in a run; its draw can't judge that run."""
    return (run + 1) % draws.count
