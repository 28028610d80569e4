"""Gaussian posteriors over a reward's last layer under the Bradley-Terry likelihood (docs/method.md 4).

With r(y) = φ(y)·w, pairs δ = φ(chosen) − φ(rejected) and p = σ(margin), the negative log posterior has the Hessian
H = Σ p(1 − p) δδᵀ + τ1; its inverse Σ is the covariance of w, and δᵀΣδ the variance of a margin (MacKay 1992;
Daxberger et al. 2021, arXiv:2106.14806). A constant feature cancels in δ: centring the features centres the reward.
Everything is in float64; variances are in reward².
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = [
    "Covariance",
    "curvature",
    "evidence_precision",
    "posterior",
    "random_features",
    "sandwich",
    "score_scatter",
]

_STRUCTURES = ("full", "low_rank", "diagonal")


@dataclass(frozen=True, eq=False)
class Covariance:
    """Σ of the weights, as Σ = s1 + B diag(c) Bᵀ (full and low_rank), or as its diagonal.

    Args:
        basis: (features, rank) orthonormal columns; (features, 0) for "diagonal".
        shift: (rank,) c ≥ −s: the variance of each direction of the basis, less the variance outside of it.
        scale: (features,) s, the variance outside the basis, the same throughout: 1/τ of a posterior, 0 of a sandwich;
            for "diagonal" the diagonal.
    """

    basis: Float[Tensor, "features rank"]
    shift: Float[Tensor, "rank"]
    scale: Float[Tensor, "features"]

    def quadratic(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows"]:
        """xᵀΣx of each row, in reward²; never negative."""
        x = x.to(torch.float64)
        variance = (x.square() * self.scale).sum(dim=1)
        if self.basis.shape[1]:
            variance = variance + (x @ self.basis).square() @ self.shift
        return variance.clamp(min=0.0)

    def sample(self, count: int, stream: torch.Generator) -> Float[Tensor, "features count"]:
        """Random draws of w − ŵ, one per column."""
        noise = torch.randn(len(self.scale), count, generator=stream, dtype=torch.float64)
        if not self.basis.shape[1]:
            return noise * self.scale.sqrt()[:, None]
        inside = self.basis.T @ noise
        within = (self.scale[0] + self.shift).clamp(min=0.0).sqrt()
        return self.scale[0].sqrt() * (noise - self.basis @ inside) + self.basis @ (within[:, None] * inside)


def curvature(
    differences: Float[Tensor, "pairs features"], margins: Float[Tensor, "pairs"]
) -> Float[Tensor, "features features"]:
    """Hessian of the negative log likelihood, Σ p(1 − p) δδᵀ with p = σ(margin).

    >>> float(curvature(torch.tensor([[2.0]]), torch.tensor([0.0])))
    1.0
    """
    d, p = differences.to(torch.float64), torch.sigmoid(margins.to(torch.float64))
    return d.T @ (d * (p * (1 - p))[:, None])


def posterior(
    hessian: Float[Tensor, "features features"], precision: float, structure: str = "full", rank: int = 64
) -> Covariance:
    """Laplace covariance Σ = (H + τ1)⁻¹, or an approximation of it.

    Args:
        hessian: of the likelihood alone.
        precision: τ of the prior, in 1/reward² per unit of feature².
        structure: "full"; "low_rank" keeps the `rank` largest eigenvalues of H and the prior elsewhere;
            "diagonal" inverts the diagonal (with one output, Kronecker factors give no more than "full").

    Raises:
        ConfigError: an unknown structure, or a precision that isn't positive.
    """
    if structure not in _STRUCTURES:
        raise ConfigError(f"structure must be one of {', '.join(_STRUCTURES)}, got '{structure}'")
    _check_precision(precision)
    h = hessian.to(torch.float64)
    size = len(h)
    if structure == "diagonal":
        return Covariance(h.new_zeros(size, 0), h.new_zeros(0), 1 / (h.diagonal() + precision))
    values, vectors = torch.linalg.eigh(h)
    kept = min(size, rank) if structure == "low_rank" else size
    # eigh sorts in ascending order: the last directions are those that the pairs say most about.
    values, vectors = values[size - kept :].clamp(min=0), vectors[:, size - kept :]
    shift = 1 / (values + precision) - 1 / precision
    return Covariance(vectors.contiguous(), shift, h.new_full((size,), 1 / precision))


def score_scatter(
    differences: Float[Tensor, "pairs features"], margins: Float[Tensor, "pairs"]
) -> Float[Tensor, "features features"]:
    """Scatter of the pairs' gradients, G = Σ (1 − p)² δδᵀ with p = σ(margin).

    Its expectation is the curvature where the model is right, so H⁻¹GH⁻¹ is then about H⁻¹ (White 1982).

    >>> float(score_scatter(torch.tensor([[2.0]]), torch.tensor([0.0])))
    1.0
    """
    d, p = differences.to(torch.float64), torch.sigmoid(margins.to(torch.float64))
    return d.T @ (d * (1 - p).square()[:, None])


def sandwich(
    hessian: Float[Tensor, "features features"], scatter: Float[Tensor, "features features"], precision: float
) -> Covariance:
    """Sandwich covariance Σ = (H + τ1)⁻¹ G (H + τ1)⁻¹ of the weights over fresh pairs and labels (White 1982).

    Unlike the posterior it doesn't assume that labels follow the model. In directions that no pair shows its variance
    is 0, since the penalised weights never move there.

    Args:
        hessian: H of the likelihood alone. scatter: G (`score_scatter`).
        precision: τ of the prior or penalty that the weights were fitted with.

    Raises:
        ConfigError: a precision that isn't positive.
    """
    _check_precision(precision)
    h, g = hessian.to(torch.float64), scatter.to(torch.float64)
    inverse = torch.linalg.inv(h + precision * torch.eye(len(h), dtype=torch.float64, device=h.device))
    product = inverse @ g @ inverse
    values, vectors = torch.linalg.eigh((product + product.T) / 2)
    return Covariance(vectors.contiguous(), values.clamp(min=0.0), h.new_zeros(len(h)))


def _check_precision(precision: float) -> None:
    if not (precision > 0 and math.isfinite(precision)):
        raise ConfigError(f"the prior's precision must be positive, got {precision}")


def evidence_precision(hessian: Float[Tensor, "features features"], weights: Float[Tensor, "features"]) -> float:
    """τ that maximises the Laplace evidence at the weights ŵ (MacKay 1992).

    The evidence is −τ‖ŵ‖²/2 + (d/2) ln τ − ½ Σ ln(λ + τ) (Daxberger et al. 2021, eq. 9) and a likelihood term that
    does not depend on τ while ŵ is held.
    """
    values = torch.linalg.eigvalsh(hessian.to(torch.float64)).clamp(min=0)
    norm, size = float(weights.to(torch.float64).square().sum()), len(values)

    def loss(log_tau: float) -> float:
        tau = math.exp(log_tau)
        return 0.5 * tau * norm - 0.5 * size * log_tau + 0.5 * float((values + tau).log().sum())

    centre = math.log(size / norm) if norm > 0 else 0.0
    best = minimize_scalar(loss, bounds=(centre - 20, centre + 20), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(best.x))


def random_features(
    x: Float[Tensor, "rows features"], frequencies: Float[Tensor, "features count"], phases: Float[Tensor, "count"]
) -> Float[Tensor, "rows count"]:
    """Random Fourier features √(2/D) cos(xW + b), whose inner products approximate a Gaussian kernel.

    Source: Rahimi and Recht (2007); used for distance-aware variance in SNGP (arXiv:2006.10108).
    """
    return (2 / frequencies.shape[1]) ** 0.5 * torch.cos(x @ frequencies + phases)
