"""Closed-form risks of the quadratic updates when the reward's error is Gaussian (docs/method.md 11.2).

Source: arXiv:2507.15906.

R ~ N(r*, Σ) is what the update is computed from, r* what it is judged by. An update is d ∝ M_D R, with M_D the
inverse of a diagonal metric D on directions that sum to zero: D = 1 vanilla, D = Σ variance-aware. Then r*·d is
Gaussian and

    risk = Pr(r*·d ≤ 0) = Φ(−z),   z = r*ᵀM_D r* / √(r*ᵀM_D Σ M_D r*),

which is ‖Pr*‖²/√(r*ᵀPΣPr*) for vanilla and √(r*ᵀMr*) for variance-aware with the true diagonal Σ. The size of the
update (ε or β) doesn't enter. Results are safety margins z, because Φ(−z) is 0 in float64 beyond z = 38.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError
from surefoot.theory.quadratic import project

__all__ = [
    "expected_gain",
    "expected_gap",
    "full_margin",
    "gain",
    "log_risk",
    "margin",
    "over_optimisation_gap",
    "risk",
    "vanilla_margin",
    "variance_aware_margin",
]

Diagonal = Float[Tensor, "problems actions"]
Full = Float[Tensor, "problems actions actions"]


def risk(margin: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Probability Φ(−z) that the update is no better than staying at the reference.

    >>> float(risk(torch.tensor(0.0, dtype=torch.float64)))
    0.5
    """
    return torch.special.ndtr(-margin)


def log_risk(margin: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log probability ln Φ(−z), finite where Φ(−z) is too small for float64."""
    return torch.special.log_ndtr(-margin)


def vanilla_margin(true_reward: Diagonal, variance: Diagonal) -> Float[Tensor, "problems"]:
    """Safety margin z = ‖Pr*‖²/√(r*ᵀPΣPr*) of the vanilla update; 0 where all true rewards are equal.

    Args:
        true_reward: (problems, actions) r*.
        variance: (problems, actions) diagonal of Σ > 0, in reward².

    >>> float(vanilla_margin(torch.tensor([[-1.0, 1.0]]).double(), torch.tensor([[2.0, 2.0]]).double()))
    1.0
    """
    return margin(true_reward, torch.ones_like(true_reward), variance)


def variance_aware_margin(true_reward: Diagonal, variance: Diagonal) -> Float[Tensor, "problems"]:
    """Safety margin z = √(r*ᵀMr*) of the variance-aware update; never below `vanilla_margin` (docs/method.md 11.3).

    Args: see `vanilla_margin`.
    """
    d = project(true_reward, variance)
    return (variance.to(d) * d.square()).sum(dim=1).sqrt()


def margin(true_reward: Diagonal, metric: Diagonal, covariance: Diagonal | Full) -> Float[Tensor, "problems"]:
    """Safety margin z of the update d ∝ M_D R, for any diagonal metric D and any covariance Σ of the errors.

    Args:
        true_reward: (problems, actions) r*.
        metric: (problems, actions) diagonal of D > 0: what the method takes the variances to be, up to a factor.
        covariance: (problems, actions) diagonal of Σ, or (problems, actions, actions) all of it, in reward².

    Returns:
        (problems,) z; infinite where the direction has no error, 0 where all true rewards are equal.
    """
    r = true_reward.to(torch.float64)
    d = project(r, metric)
    signal = (metric.to(d) * d.square()).sum(dim=1)  # r*ᵀM r* = (Mr*)ᵀ D (Mr*)
    sigma = covariance.to(d)
    if sigma.ndim == 2:
        noise = (sigma * d.square()).sum(dim=1)
    else:
        noise = torch.einsum("pi,pij,pj->p", d, sigma, d).clamp(min=0.0)
    return torch.where(signal > 0, signal / noise.sqrt(), 0.0)


def full_margin(true_reward: Diagonal, covariance: Full) -> Float[Tensor, "problems"]:
    """Safety margin z = √(r*ᵀMr*) with M from the full Σ: the largest that any linear update can have.

    Raises:
        DataError: a covariance isn't positive definite on directions that sum to zero.
    """
    r = true_reward.to(torch.float64)
    basis = _zero_sum_basis(r.shape[1]).to(r)
    inner = basis.T @ covariance.to(r) @ basis
    factor, failed = torch.linalg.cholesky_ex(inner)
    if bool((failed != 0).any()):
        problem = int((failed != 0).nonzero()[0])
        raise DataError(f"the covariance of problem {problem} isn't positive definite on updates that sum to zero")
    return torch.linalg.solve_triangular(factor, (r @ basis)[..., None], upper=False).squeeze(-1).norm(dim=1)


def _zero_sum_basis(actions: int) -> Float[Tensor, "actions free"]:
    """(actions, actions − 1) orthonormal columns that each sum to zero (Helmert)."""
    rows = torch.arange(1, actions, dtype=torch.float64)
    basis = torch.ones(actions, actions - 1, dtype=torch.float64).triu()
    basis[torch.arange(1, actions), torch.arange(actions - 1)] = -rows
    return basis / (rows * (rows + 1)).sqrt()


def expected_gain(true_reward: Diagonal, metric: Diagonal, beta: float) -> Float[Tensor, "problems"]:
    """Expected true gain E[r*·d] = r*ᵀM_D r*/β of the update d = M_D R/β, in reward; Σ doesn't enter."""
    d = project(true_reward, metric)
    return (metric.to(d) * d.square()).sum(dim=1) / beta


def expected_gap(metric: Diagonal, variance: Diagonal, beta: float) -> Float[Tensor, "problems"]:
    """Expected over-optimisation E[(R − r*)·d] = tr(M_D Σ)/β of the update d = M_D R/β, in reward.

    For D = Σ it is (actions − 1)/β.

    Args:
        metric, variance: (problems, actions) diagonals of D and of Σ.
    """
    precision = 1 / metric.to(torch.float64)
    share = precision / precision.sum(dim=1, keepdim=True)
    return (variance.to(precision) * precision * (1 - share)).sum(dim=1) / beta


def gain(reward: Diagonal, update: Diagonal) -> Float[Tensor, "problems"]:
    """Gain r·d of an update d = π − π₀ under a reward."""
    return torch.linalg.vecdot(reward, update)


def over_optimisation_gap(proxy: Diagonal, true_reward: Diagonal, update: Diagonal) -> Float[Tensor, "problems"]:
    """Proxy gain minus true gain of an update, (R − r*)·d."""
    return torch.linalg.vecdot(proxy - true_reward, update)
