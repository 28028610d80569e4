"""Slow, independent ways to the same answers: high precision, scipy, one problem at a time."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import torch
from scipy import optimize
from torch import Tensor

DIGITS = 60


def random_problem(
    seed: int, problems: int = 4, actions: int = 7, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(reward, ln π₀, weight), each (problems, actions), float64; ln w has the standard deviation `spread`."""
    stream = torch.Generator().manual_seed(seed)
    draws = torch.randn(3, problems, actions, generator=stream, dtype=torch.float64)
    return draws[0], torch.log_softmax(1.5 * draws[1], dim=1), (spread * draws[2]).exp()


def policy_by_brentq(reward: Tensor, log_reference: Tensor, weight: Tensor, beta: float) -> Tensor:
    """(actions,) the weighted optimum of one problem, ν by `scipy.optimize.brentq` on Σπ − 1."""
    r, log_ref, c = reward.numpy(), log_reference.numpy(), 1 / (beta * weight.numpy())
    nu = optimize.brentq(lambda x: np.exp(log_ref + (r - x) * c).sum() - 1, r.min(), r.max(), xtol=1e-15, rtol=1e-15)
    return torch.from_numpy(np.exp(log_ref + (r - nu) * c))


def policy_by_bisection(reward: Any, log_reference: Any, weight: Any, beta: float) -> list[Any]:
    """ln(π*/π₀) of one problem in 60 digits: ν by bisection on ln Σ π₀ exp((r − ν)/(βw)), nothing else shared."""
    with mpmath.workdps(DIGITS):
        r, ref, w = ([mpmath.mpf(float(v)) for v in row] for row in (reward, log_reference, weight))
        slopes = [1 / (mpmath.mpf(beta) * v) for v in w]
        raw = [mpmath.exp(v) for v in ref]
        shift = mpmath.log(mpmath.fsum(raw))  # float64 leaves a sum that is not quite 1
        low, high = min(r), max(r)
        for _ in range(240):
            nu = (low + high) / 2
            terms = (mpmath.exp(a - shift + s * (v - nu)) for a, s, v in zip(ref, slopes, r, strict=True))
            low, high = (nu, high) if mpmath.fsum(terms) > 1 else (low, nu)
        return [s * (v - nu) for s, v in zip(slopes, r, strict=True)]


def best_value_by_bfgs(reward: Tensor, reference: Tensor, penalty: Any) -> float:
    """The largest Σ π r − penalty(π) over the simplex, by scipy's general optimiser from several starts."""
    r, pi0 = reward.numpy(), reference.numpy()

    def loss(z: Any) -> float:
        policy = np.exp(z - np.logaddexp.reduce(z))
        return float(penalty(policy, pi0) - policy @ r)

    starts = [np.log(pi0), np.zeros_like(r), np.log(pi0) + r]
    found = [
        optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-10, "maxiter": 2000}) for start in starts
    ]
    return -min(one.fun for one in found)
