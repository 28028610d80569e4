"""Table 2: the theorem, variance-aware risk ≤ vanilla risk, checked on random problems of several kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.theory.gaussian_risk import risk, vanilla_margin, variance_aware_margin
from surefoot.theory.tables.problems import Row, generator, normal, uneven_variances

__all__ = ["theorem_table"]

ACTIONS = (2, 3, 10, 50, 200)
HETERO = (0.0, 0.3, 1.0, 3.0)
ROUNDING = 1e-12
"""Relative rounding of two margins in float64, below which they count as equal."""

Draw = Callable[[torch.Generator, int, int], Tensor]
"""Function of (stream, problems, actions) that gives true rewards."""


def theorem_table(seed: int, problems: int = 20_000) -> tuple[Row, list[Row]]:
    """Totals ({problems, violations, …}) and one row for each kind of problem.

    Kinds: Gaussian rewards, heavy-tailed rewards, one good action among equals, and rewards that follow the noise
    (the better the action, the noisier, where caution might be expected to lose). "examples" are a few problems'
    risks, vanilla and variance-aware.
    """
    stream = generator(seed, 2)
    kinds: dict[str, Draw] = {"gaussian": normal, "heavy_tailed": _heavy_tailed, "one_good": _one_good}
    cells = len(ACTIONS) * len(HETERO) * (len(kinds) + 1)
    each = -(-problems // cells)
    rows = []
    for actions in ACTIONS:
        for hetero in HETERO:
            for kind, draw in kinds.items():
                variance = uneven_variances(stream, each, actions, hetero)
                rows.append(_row(kind, hetero, draw(stream, each, actions), variance))
            variance = uneven_variances(stream, each, actions, hetero)
            rows.append(_row("better_is_noisier", hetero, variance.sqrt(), variance))
    total = {name: sum(row[name] for row in rows) for name in ("problems", "violations")}
    worst = max(row["largest_excess"] for row in rows)
    return total | {"largest_excess": worst}, rows


def _row(kind: str, hetero: float, rewards: Tensor, variance: Tensor) -> Row:
    # Rewards are scaled to a vanilla margin between .1 and 3, where risks can be told apart; z is linear in r*.
    vanilla = vanilla_margin(rewards, variance)
    wanted = torch.linspace(0.1, 3.0, len(rewards), dtype=torch.float64)
    scale = torch.where(vanilla > 0, wanted / vanilla, 1.0)
    vanilla, aware = vanilla * scale, variance_aware_margin(rewards * scale[:, None], variance)
    risks = risk(vanilla), risk(aware)
    return {
        "kind": kind,
        "actions": rewards.shape[1],
        "hetero": hetero,
        "problems": len(rewards),
        "violations": int((aware < vanilla * (1 - ROUNDING)).sum()),
        "largest_excess": float((risks[1] - risks[0]).max()),
        "examples": [[float(method[i]) for method in risks] for i in range(2, len(rewards), len(rewards) // 5)],
        "median_vanilla_risk": float(risks[0].median()),
        "median_variance_aware_risk": float(risks[1].median()),
    }


def _heavy_tailed(stream: torch.Generator, problems: int, actions: int) -> Float[Tensor, "problems actions"]:
    return normal(stream, problems, actions) / normal(stream, problems, actions).abs().clamp(min=1e-3)


def _one_good(stream: torch.Generator, problems: int, actions: int) -> Float[Tensor, "problems actions"]:
    place = torch.randint(actions, (problems, 1), generator=stream)
    return torch.zeros(problems, actions, dtype=torch.float64).scatter(1, place, 1.0)
