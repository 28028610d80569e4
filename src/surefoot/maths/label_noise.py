"""Likelihood of preference labels with ties, several annotators, and a share of labels that are flipped.

An annotator prefers the first completion of a pair with probability p = ε + (1 − 2ε) σ(m), m the margin of its reward
over the second's and ε the flip rate: the share of labels that are reversed whatever the texts say (Christiano et al.
2017, arXiv:1706.03741, section 2.2.3, with ε = .05 there; docs/method.md 4.5). Of n answers the share t prefer the
first, a tie counting as half an answer for each side, and the pair's negative log likelihood is

    ℓ(m) = −n [t ln p + (1 − t) ln(1 − p)]

in nats. With t = 1, n = 1 and ε = 0 it is ln(1 + e^−m), Bradley and Terry's. Everything is in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from surefoot.errors import ConfigError, DataError

__all__ = ["LARGEST_FLIP_RATE", "PreferenceLabels", "preference_labels"]

LARGEST_FLIP_RATE = 0.45
"""At ½ labels say nothing."""


@dataclass(frozen=True, eq=False)
class PreferenceLabels:
    """Labels of pairs; made by `preference_labels`, which checks them.

    Args:
        share: (pairs,) t in [0, 1], share of the answers that prefer the first completion.
        count: (pairs,) n > 0, number of answers.
        flip_rate: ε in [0, ½).
    """

    share: Float[Tensor, "pairs"]
    count: Float[Tensor, "pairs"]
    flip_rate: float = 0.0

    def take(self, kept: Bool[Tensor, "pairs"]) -> PreferenceLabels:
        """The labels of some pairs."""
        return PreferenceLabels(self.share[kept], self.count[kept], self.flip_rate)

    def loss(self, margins: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """ℓ(m) of each pair, in nats.

        >>> preference_labels(1, share=torch.tensor([0.5])).loss(torch.tensor([0.0])).tolist()  # ln 2
        [0.6931471805599453]
        """
        m = margins.to(self.share)
        if self.flip_rate == 0:
            return self.count * (self.share * softplus(-m) + (1 - self.share) * softplus(m))
        p, q = self._probabilities(m)
        return -self.count * (self.share * p.log() + (1 - self.share) * q.log())

    def slope(self, margins: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """dℓ/dm of each pair."""
        m = margins.to(self.share)
        down, up = torch.sigmoid(-m), torch.sigmoid(m)
        if self.flip_rate > 0:
            p, q = self._probabilities(m)
            steep = (1 - 2 * self.flip_rate) * up * down
            down, up = steep / p, steep / q
        return self.count * ((1 - self.share) * up - self.share * down)

    def information(self, margins: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Fisher information of each pair's answers about its margin, n (dp/dm)²/(p(1 − p)); n p(1 − p) for ε = 0.

        It is the expected second derivative of ℓ. Unlike the second derivative it is never negative.
        """
        m = margins.to(self.share)
        s = torch.sigmoid(m)
        if self.flip_rate == 0:
            return self.count * (s * (1 - s))
        p, q = self._probabilities(m)
        return self.count * ((1 - 2 * self.flip_rate) * s * torch.sigmoid(-m)).square() / (p * q)

    def _probabilities(self, m: Float[Tensor, "pairs"]) -> tuple[Float[Tensor, "pairs"], Float[Tensor, "pairs"]]:
        rate = self.flip_rate
        return rate + (1 - 2 * rate) * torch.sigmoid(m), rate + (1 - 2 * rate) * torch.sigmoid(-m)


def preference_labels(
    pairs: int,
    *,
    share: Float[Tensor, "pairs"] | None = None,
    count: Float[Tensor, "pairs"] | None = None,
    flip_rate: float = 0.0,
    device: torch.device | None = None,
) -> PreferenceLabels:
    """Check labels; None stands for one answer each, which prefers the first completion.

    Args:
        device: of the margins that they will be compared with; None is the CPU.

    Raises:
        ConfigError: the flip rate isn't in [0, .45]. DataError: a share isn't in [0, 1], a count isn't positive, or
            there isn't one of each for every pair.
    """
    if not 0 <= flip_rate <= LARGEST_FLIP_RATE:
        raise ConfigError(f"flip_rate must be between 0 and {LARGEST_FLIP_RATE}, got {flip_rate}")
    one = torch.ones(pairs, dtype=torch.float64, device=device)
    t, n = (one if values is None else values.to(one) for values in (share, count))
    for name, values in (("share", t), ("count", n)):
        if values.shape != (pairs,):
            raise DataError(f"{name} of the labels must have one number for each of {pairs} pairs, got {len(values)}")
    _refuse(~((t >= 0) & (t <= 1)), t, "the share of answers for the first completion must be between 0 and 1")
    _refuse(~((n > 0) & (n < math.inf)), n, "the number of answers must be positive")
    return PreferenceLabels(t, n, flip_rate)


def _refuse(wrong: Bool[Tensor, "pairs"], values: Float[Tensor, "pairs"], problem: str) -> None:
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(f"pair {row}: {problem}, got {float(values[row])}")
