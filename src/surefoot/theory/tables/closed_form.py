"""Table 1: the closed-form risks against simulation, over problem sizes and degrees of unequal variance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.theory.gaussian_risk import risk, vanilla_margin, variance_aware_margin
from surefoot.theory.quadratic import project
from surefoot.theory.tables.problems import Row, generator, normal, standard_error, uneven_variances

__all__ = ["closed_form_table", "simulated_risks"]

ACTIONS = (3, 10, 30, 100)
HETERO = (0.0, 0.5, 1.0, 2.0)
_CHUNK = 500_000
"""Numbers per chunk of the simulation, 4 MB an array, so that memory does not grow with the size of the table."""


def closed_form_table(seed: int, problems: int = 25, draws: int = 4000) -> list[Row]:
    """Table of closed-form and simulated risk, with the simulation's standard error; a row per problem and method.

    Args:
        problems: problems for each of the 4 sizes and 4 degrees of unequal variance.
        draws: rewards R ~ N(r*, Σ) drawn for each problem; both methods see the same draws.
    """
    stream = generator(seed, 1)
    rows: list[Row] = []
    first = 0
    for actions in ACTIONS:
        for hetero in HETERO:
            rewards, variance = _problems(stream, problems, actions, hetero)
            simulated = simulated_risks(rewards, variance, draws, stream)
            margins = (vanilla_margin(rewards, variance), variance_aware_margin(rewards, variance))
            for method, margin, counted in zip(("vanilla", "variance_aware"), margins, simulated, strict=True):
                rows += _rows(first, method, actions, hetero, draws, risk(margin).tolist(), counted.tolist())
            first += problems
    return rows


def _problems(
    stream: torch.Generator, problems: int, actions: int, hetero: float
) -> tuple[Float[Tensor, "problems actions"], Float[Tensor, "problems actions"]]:
    """Rewards scaled so that the vanilla margin is about 0.3 to 2.4, whatever the number of actions."""
    scale = 0.3 + 2.1 * torch.rand(problems, 1, generator=stream, dtype=torch.float64)
    rewards = normal(stream, problems, actions) * scale / (actions - 1) ** 0.5
    return rewards, uneven_variances(stream, problems, actions, hetero)


def _rows(
    first: int, method: str, actions: int, hetero: float, draws: int, closed: list[float], simulated: list[float]
) -> list[Row]:
    return [
        {
            "problem": first + index,
            "actions": actions,
            "hetero": hetero,
            "method": method,
            "closed": exact,
            "simulated": counted,
            "error": standard_error(counted, draws),
            "draws": draws,
        }
        for index, (exact, counted) in enumerate(zip(closed, simulated, strict=True))
    ]


def simulated_risks(
    rewards: Float[Tensor, "problems actions"],
    variance: Float[Tensor, "problems actions"],
    draws: int,
    stream: torch.Generator,
) -> tuple[Float[Tensor, "problems"], Float[Tensor, "problems"]]:
    """Share of draws whose vanilla, and whose variance-aware, update is no better than staying.

    Draws R, forms both updates, and looks at the sign of r*·d; nothing of the closed form is used.
    """
    problems, actions = rewards.shape
    counts = torch.zeros(2, problems, dtype=torch.float64)
    per_chunk = max(1, _CHUNK // (draws * actions))
    batch = min(draws, max(1, _CHUNK // actions))
    for low in range(0, problems, per_chunk):
        true, sigma2 = rewards[low : low + per_chunk, None], variance[low : low + per_chunk, None]
        for start in range(0, draws, batch):
            size = min(batch, draws - start)
            noisy = normal(stream, len(true), size, actions).mul_(sigma2.sqrt()).add_(true)
            for method, metric in enumerate((torch.ones_like(sigma2), sigma2)):
                update = project(noisy.flatten(0, 1), metric.expand_as(noisy).flatten(0, 1)).view_as(noisy)
                counts[method, low : low + per_chunk] += (update.mul_(true).sum(dim=2) <= 0).sum(dim=1)
    return counts[0] / draws, counts[1] / draws
