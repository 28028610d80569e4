"""Fit a linear Bradley-Terry reward: weights, penalty and covariance (docs/method.md 4).

With r(y) = φ(y)·w and pairs δ = φ(chosen) − φ(rejected), the penalised negative log likelihood

    L(w) = Σ ln(1 + exp(−δ·w)) + τ‖w‖²/2

is strictly convex. Newton's method finds its minimum ŵ in a few steps; H = Σ p(1 − p) δδᵀ + τ1 at ŵ is the precision
of the Laplace posterior (MacKay 1992). Ties, several answers to a pair and flipped labels change the likelihood of a
pair (`surefoot.maths.label_noise`); H is then made of the Fisher information of its answers, and with a flip rate L
needn't be convex: the minimum is the one that is reached from w = 0. Everything is in float64 and deterministic;
variances are in reward².
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.maths.label_noise import LARGEST_FLIP_RATE, PreferenceLabels, preference_labels
from surefoot.maths.laplace import Covariance, posterior, sandwich

__all__ = ["LinearFit", "Penalty", "fit_bradley_terry", "log_evidence"]

Penalty = Literal["evidence", "held_out"]
_GRID = tuple(10.0 ** (k / 2) for k in range(-4, 10))
"""Penalties to choose from, for standardised features: 0.01 to 30,000."""
_EXACT = 4096
"""Most directions for which the posterior is computed exactly."""
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Weights of a linear reward, with their posterior.

    Args:
        weights: (features,) ŵ.
        penalty: τ, chosen or given.
        covariance: Σ of the weights.
        shrinkage: 1 − γ/d, d the number of directions that the pairs show and γ = Σ λ/(λ + τ) the
            number that they, and not the penalty, determine (MacKay 1992). Near 0: the weights are hardly shrunk.
            Near 1: intervals are about the penalised weights, and don't cover the truth.
        left_out: share of Σ‖δ‖² in directions that were left to the prior; 0 where the posterior is exact.
        loss: mean negative log likelihood of the answers that it was fitted to, in nats.
        flip_rate: ε, chosen or given.
    """

    weights: Float[Tensor, "features"]
    penalty: float
    covariance: Covariance
    shrinkage: float
    left_out: float
    loss: float
    flip_rate: float = 0.0


@dataclass(frozen=True, eq=False)
class _Pairs:
    """What the weights are fitted to: differences of features, offsets of the margins, and labels."""

    differences: Float[Tensor, "pairs features"]
    offsets: Float[Tensor, "pairs"]
    labels: PreferenceLabels

    def __len__(self) -> int:
        return len(self.differences)

    def margins(self, w: Float[Tensor, "features"]) -> Float[Tensor, "pairs"]:
        return self.differences @ w - self.offsets

    def curvature(self, w: Float[Tensor, "features"]) -> Float[Tensor, "features features"]:
        """Σ i δδᵀ, i the Fisher information of a pair's answers about its margin."""
        d = self.differences
        return d.T @ (d * self.labels.information(self.margins(w))[:, None])

    def scatter(self, w: Float[Tensor, "features"]) -> Float[Tensor, "features features"]:
        """Scatter of the pairs' gradients; the answers to one pair count as one observation."""
        d = self.differences
        return d.T @ (d * self.labels.slope(self.margins(w)).square()[:, None])

    def loss(self, w: Float[Tensor, "features"], tau: float) -> float:
        return float(self.labels.loss(self.margins(w)).sum() + 0.5 * tau * w.square().sum())

    def take(self, kept: Bool[Tensor, "pairs"]) -> _Pairs:
        return _Pairs(self.differences[kept], self.offsets[kept], self.labels.take(kept))

    def flipped(self, rate: float) -> _Pairs:
        return replace(self, labels=replace(self.labels, flip_rate=rate))


def fit_bradley_terry(
    differences: Float[Tensor, "pairs features"],
    offsets: Float[Tensor, "pairs"] | None = None,
    *,
    share: Float[Tensor, "pairs"] | None = None,
    count: Float[Tensor, "pairs"] | None = None,
    flip_rate: float | Literal["evidence"] = 0.0,
    penalty: float | Penalty = "evidence",
    covariance: Literal["laplace", "sandwich"] = "laplace",
) -> LinearFit:
    """Fit the weights ŵ by Newton's method, and their covariance.

    Up to 4,096 features, or pairs, everything is exact: with fewer pairs than features the weights lie in the span of
    the differences, and the posterior outside of it is the prior. With more of both, the 4,096 directions that the
    pairs differ most in are kept, and `left_out` says what share of the differences is not in them.

    Args:
        differences: δ, chosen minus rejected; the features should be of about one scale.
        offsets: margins that the rewards should differ by at least (TRL's `margin`), in reward; None for 0.
        share: of the answers to each pair that prefer its first side, in [0, 1], a tie counting as half an answer for
            each; None for 1.
        count: number of answers to each pair; None for 1.
        flip_rate: ε, the share of answers that are reversed whatever the texts say; or "evidence", the ε with the
            largest Laplace evidence times a prior density ∝ 1 − 2ε, each with its own weights and penalty. Where pairs
            say little, every ε is about as likely, and the prior keeps it near 0.
        penalty: τ > 0; or "evidence", the τ with the largest Laplace evidence; or "held_out", the one with the largest
            mean log likelihood over five folds.
        covariance: "laplace" is H⁻¹, "sandwich" H⁻¹GH⁻¹.

    Raises:
        ConfigError: a penalty that isn't positive, a flip rate out of range, or an unknown name. DataError: no pairs,
            a number that isn't finite or out of range, or pairs that don't differ.
    """
    d = _checked(differences)
    shift = torch.zeros(len(d), dtype=torch.float64, device=d.device) if offsets is None else offsets.to(d)
    if covariance not in ("laplace", "sandwich"):
        raise ConfigError(f"covariance must be laplace or sandwich, got '{covariance}'")
    rate = 0.0 if flip_rate == "evidence" else flip_rate
    labels = preference_labels(len(d), share=share, count=count, flip_rate=rate, device=d.device)
    basis, left_out = _directions(d)
    pairs = _Pairs(d if basis is None else d @ basis, shift, labels)
    if flip_rate == "evidence":
        pairs = pairs.flipped(_rate_by_evidence(pairs, penalty))
    tau, w = _weights(pairs, penalty)
    hessian = pairs.curvature(w)
    sigma = posterior(hessian, tau) if covariance == "laplace" else sandwich(hessian, pairs.scatter(w), tau)
    values = torch.linalg.eigvalsh(hessian).clamp(min=0.0)
    shown = int((values > values[-1] * 1e-12).sum())
    determined = float((values / (values + tau)).sum())
    loss = float(pairs.labels.loss(pairs.margins(w)).sum() / labels.count.sum())
    if basis is not None:
        w = basis @ w
        outside = sigma.scale.new_full((d.shape[1],), float(sigma.scale[0]))
        sigma = Covariance((basis @ sigma.basis).contiguous(), sigma.shift, outside)
    return LinearFit(w, tau, sigma, 1 - determined / shown, left_out, loss, pairs.labels.flip_rate)


def _checked(differences: Float[Tensor, "pairs features"]) -> Float[Tensor, "pairs features"]:
    d = differences.to(torch.float64)
    if d.ndim != 2 or 0 in d.shape:
        raise DataError(f"a linear reward is fitted to (pairs, features) differences, got {tuple(d.shape)}")
    if not bool(d.isfinite().all()):
        raise DataError(f"pair {int((~d.isfinite()).any(dim=1).nonzero()[0])} has a feature that isn't finite")
    if not bool((d != 0).any()):
        raise DataError("both sides of every pair have equal features: there is nothing to learn from")
    return d


def _directions(d: Float[Tensor, "pairs features"]) -> tuple[Float[Tensor, "features rank"] | None, float]:
    """(orthonormal basis of the span of the differences, None for all features; share of Σ‖δ‖² outside of it)."""
    pairs, features = d.shape
    if features <= min(pairs, _EXACT):
        return None, 0.0
    smaller = d @ d.T if pairs <= features else d.T @ d
    values, vectors = torch.linalg.eigh(smaller)
    kept = values > values[-1] * 1e-12
    kept[: max(0, len(values) - _EXACT)] = False
    left_out = float(values[~kept].clamp(min=0.0).sum() / values.clamp(min=0.0).sum())
    vectors = vectors[:, kept]
    basis = d.T @ (vectors / values[kept].sqrt()) if pairs <= features else vectors
    return torch.linalg.qr(basis).Q, left_out if left_out > 1e-9 else 0.0


def _weights(
    pairs: _Pairs, penalty: float | str, near: tuple[float, Float[Tensor, "features"]] | None = None
) -> tuple[float, Float[Tensor, "features"]]:
    """Penalty and weights.

    Args:
        near: those of a likelihood that is nearly the same, to start from.
    """
    tau, start = (1.0, pairs.differences.new_zeros(pairs.differences.shape[1])) if near is None else near
    if penalty == "evidence":
        return _by_evidence(pairs, tau, start)
    if penalty == "held_out":
        tau = _by_held_out(pairs)
        return tau, _newton(pairs, tau, start)
    if isinstance(penalty, str):
        raise ConfigError(f"penalty must be a positive number, evidence or held_out, got '{penalty}'")
    if not (penalty > 0 and math.isfinite(penalty)):
        raise ConfigError(f"penalty must be positive, got {penalty}")
    return float(penalty), _newton(pairs, float(penalty), start)


def _newton(
    pairs: _Pairs, tau: float, start: Float[Tensor, "features"], *, steps: int = 100
) -> Float[Tensor, "features"]:
    """Minimise L from `start`; a step that doesn't lower L enough is halved."""
    d = pairs.differences
    w, eye = start, torch.eye(d.shape[1], dtype=torch.float64, device=d.device)
    loss = pairs.loss(w, tau)
    for _ in range(steps):
        gradient = tau * w + d.T @ pairs.labels.slope(pairs.margins(w))
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(pairs.curvature(w) + tau * eye))[:, 0]
        decrease = float(gradient @ step)
        if decrease < 1e-12 * (1.0 + abs(loss)):
            return w - step
        size = 1.0
        while (lower := pairs.loss(w - size * step, tau)) > loss - 1e-4 * size * decrease and size > 1e-6:
            size /= 2
        w, loss = w - size * step, lower
    return w


def log_evidence(
    differences: Float[Tensor, "pairs features"],
    weights: Float[Tensor, "features"],
    penalty: float,
    offsets: Float[Tensor, "pairs"] | None = None,
    *,
    share: Float[Tensor, "pairs"] | None = None,
    count: Float[Tensor, "pairs"] | None = None,
    flip_rate: float = 0.0,
) -> float:
    """Laplace approximation of ln p(labels | τ, ε) at ŵ, −L(ŵ) + (d/2) ln τ − ½ ln|H|, in nats (MacKay 1992)."""
    d, w = differences.to(torch.float64), weights.to(torch.float64)
    shift = d.new_zeros(len(d)) if offsets is None else offsets.to(d)
    labels = preference_labels(len(d), share=share, count=count, flip_rate=flip_rate, device=d.device)
    return _log_evidence(_Pairs(d, shift, labels), w, penalty)


def _log_evidence(pairs: _Pairs, w: Float[Tensor, "features"], tau: float) -> float:
    values = torch.linalg.eigvalsh(pairs.curvature(w)).clamp(min=0.0)
    return -pairs.loss(w, tau) - 0.5 * float((values / tau).log1p().sum())


def _rate_by_evidence(pairs: _Pairs, penalty: float | str) -> float:
    """Most probable flip rate, by evidence and the prior 1 − 2ε, at weights and penalty of its own."""
    plain = near = _weights(pairs, penalty)

    def loss(rate: float) -> float:
        nonlocal near
        flipped = pairs.flipped(rate)
        near = _weights(flipped, penalty, near)
        return -_log_evidence(flipped, near[1], near[0]) - math.log(1 - 2 * rate)

    best = minimize_scalar(loss, bounds=(0.0, LARGEST_FLIP_RATE), method="bounded", options={"xatol": 5e-3})
    return float(best.x) if float(best.fun) < -_log_evidence(pairs, plain[1], plain[0]) else 0.0


def _by_evidence(pairs: _Pairs, tau: float, w: Float[Tensor, "features"]) -> tuple[float, Float[Tensor, "features"]]:
    """Penalty and weights by MacKay's fixed point τ = γ/‖ŵ‖², γ = Σ λ/(λ + τ); τ stays within the grid."""
    for _ in range(50):
        w = _newton(pairs, tau, w, steps=2)
        values = torch.linalg.eigvalsh(pairs.curvature(w)).clamp(min=0.0)
        norm = float(w.square().sum())
        # Where the gradient at 0 vanishes all weights are 0: then the strongest penalty is taken.
        new = float((values / (values + tau)).sum()) / norm if norm > 0 else _GRID[-1]
        new = min(max(new, _GRID[0]), _GRID[-1])
        settled = abs(math.log(new / tau)) < 1e-3
        tau = new
        if settled:
            break
    return tau, _newton(pairs, tau, w)


def _by_held_out(pairs: _Pairs) -> float:
    """Penalty of the grid with the largest held-out likelihood, over five folds of every fifth pair."""
    if len(pairs) < 2 * _FOLDS:
        raise DataError(f"penalty: held_out needs at least {2 * _FOLDS} pairs, got {len(pairs)}; give a number")
    fold = torch.arange(len(pairs), device=pairs.differences.device) % _FOLDS
    parts = [(pairs.take(fold != k), pairs.take(fold == k)) for k in range(_FOLDS)]
    weights = [pairs.differences.new_zeros(pairs.differences.shape[1])] * _FOLDS
    losses: dict[float, float] = {}
    for tau in reversed(_GRID):  # from the strongest: each fit starts near its end, and two steps take it there
        weights = [_newton(kept, tau, w, steps=2) for (kept, _), w in zip(parts, weights, strict=True)]
        losses[tau] = sum(aside.loss(w, 0.0) for (_, aside), w in zip(parts, weights, strict=True))
        if len(losses) > 2 and losses[tau] > min(losses.values()) * 1.01:
            break  # overfitting from here on
    return min(losses, key=lambda tau: losses[tau])
