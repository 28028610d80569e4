"""Trajectories of a group as arrays of gain against KL: smoothed, and compared at equal KL."""

from __future__ import annotations

import math

import numpy as np

from surefoot.metrics.runs import (
    Path,
    matched_level,
    over_optimisation_gap,
    running_mean,
    settled_value,
    values_at,
)
from surefoot.reports.records import Group
from surefoot.run_records import CellRecord, known

__all__ = ["REACHED", "SETTLED", "WINDOW", "gains_at", "gaps", "level_of", "path_of", "paths_of", "settled_gains"]

WINDOW = 7
"""Updates that a running mean spans; one batch's true reward is too noisy to read."""
REACHED = 0.9
"""Share of each method's runs that must have reached the KL at which methods are compared."""
SETTLED = (0.8, 0.1)
"""Of the budget: the KL at which settled runs are compared, and how far from it counts as equal. A controller comes
from below, so that runs sit somewhat under their budget."""


def path_of(cell: CellRecord) -> Path:
    """(KL, gain) along one run: running means of both, from the reference (0, 0) on.

    The gain is the batches' true reward minus the reference's on the same training prompts. Empty where the true
    reward was not measured along the way.
    """
    kl, gain = (running_mean(values, WINDOW) for values in _steps(cell))
    return (np.insert(kl, 0, 0.0), np.insert(gain, 0, 0.0)) if len(kl) else (kl, gain)


def _steps(cell: CellRecord) -> Path:
    """(KL, gain) of every update of which both are known, as they were measured."""
    origin = known(cell.metrics.gold_reference_train)
    rows = [
        (row.kl, row.gold - origin)
        for row in cell.trajectory
        if row.kl is not None and row.gold is not None and not math.isnan(origin)
    ]
    return np.array([kl for kl, _ in rows]), np.array([gain for _, gain in rows])


def paths_of(group: Group, method: str) -> dict[int, Path]:
    """Seed to path, of the runs that have one."""
    paths = {cell.place.seed: path_of(cell) for cell in group.of(method)}
    return {seed: path for seed, path in paths.items() if len(path[0])}


def level_of(group: Group) -> float:
    """The KL at which the group's methods are compared: what nine in ten of each method's runs reached, rounded down.

    At most the budget. NaN where a method has no trajectory of the true reward.
    """
    peaks = [[float(kl.max()) for kl, _ in paths_of(group, m).values()] for m in group.finished_methods]
    level = min(matched_level(peaks, REACHED), math.inf if group.kl_budget is None else group.kl_budget)
    return math.floor(100 * level) / 100 if math.isfinite(level) and level > 0 else math.nan


def gains_at(group: Group, method: str, level: float) -> dict[int, float]:
    """Seed to gain where the run first reached that KL; NaN if it never did."""
    paths = {cell.place.seed: path_of(cell) for cell in group.of(method)}
    return {seed: float(values_at(kl, gain, [level])[0]) for seed, (kl, gain) in paths.items()}


def settled_gains(group: Group, method: str) -> dict[int, float]:
    """Seed to gain at `SETTLED` of the budget late in the run; NaN where it was not there, or without a budget."""
    level, within = (share * (group.kl_budget or math.nan) for share in SETTLED)
    return {cell.place.seed: settled_value(*_steps(cell), level, within, window=WINDOW) for cell in group.of(method)}


def gaps(group: Group, method: str) -> list[float]:
    """Over-optimisation gap of each of the method's runs."""
    return [over_optimisation_gap([known(row.gold) for row in cell.trajectory], WINDOW) for cell in group.of(method)]
