"""Read a study's records into plain rows and sum them up; unknown figures stay None."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import RunError
from surefoot.files import read_json
from surefoot.maths.statistics import Interval, bootstrap_mean, brown_forsythe, lower_tail, risk, spread

__all__ = ["MethodSummary", "Study", "read_study", "summarise"]

BASELINE = "vanilla"
LABELS = {
    "vanilla": "one reward model",
    "mean": "mean of members",
    "variance_aware": "variance-aware",
    "variance_aware_lcb": "variance-aware + LCB",
    "variance_aware_one": "one model, variance-aware",
    "literal": "literal penalty",
    "lcb": "LCB",
    "uwo": "UWO",
    "wco": "WCO",
    "cvar": "CVaR",
    "kl_robust": "KL-robust",
    "brme": "BRME",
}


@dataclass(frozen=True, slots=True)
class Study:
    """Everything a study left on disk."""

    settings: dict[str, Any]
    cells: list[dict[str, Any]]
    disagreement: list[dict[str, Any]]

    @property
    def methods(self) -> list[str]:
        return list(self.settings["methods"])

    def of(self, method: str) -> list[dict[str, Any]]:
        """The method's cells by seed."""
        return sorted((c for c in self.cells if c["method"] == method), key=lambda c: int(c["seed"]))

    def metric(self, method: str, name: str) -> list[float]:
        """One figure of every cell of the method; None becomes NaN."""
        values = [cell["metrics"].get(name) for cell in self.of(method)]
        return [np.nan if value is None else float(value) for value in values]


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over its runs; gains are in true reward over the reference policy.

    `paired` is the mean difference of its gain to the baseline's at the same seed; unknown for the baseline itself.
    """

    method: str
    label: str
    runs: int
    risk: Interval
    gain: Interval
    paired: Interval
    spread: float
    spread_p: float
    worst: float
    kl: float


def read_study(directory: str | Path) -> Study:
    """Read `study.json`, `cells/` and `disagreement/`.

    Raises:
        RunError: there is no study in the directory, or none of its cells is finished.
    """
    folder = Path(directory)
    if not (folder / "study.json").exists():
        raise RunError(f"{folder} holds no finished study (no study.json); run it again to go on")
    settings = read_json(folder / "study.json")
    cells = [read_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    if not cells:
        raise RunError(f"{folder} holds a study without any finished cell")
    disagreement = [read_json(path) for path in sorted((folder / "disagreement").glob("*.json"))]
    return Study(settings, cells, disagreement)


def summarise(study: Study) -> list[MethodSummary]:
    """The methods in the study's order; bootstrap intervals are seeded, so a report is reproducible."""
    return [_summary(study, method) for method in study.methods if study.of(method)]


def _summary(study: Study, method: str) -> MethodSummary:
    gains = study.metric(method, "gold_gain")
    baseline = study.metric(BASELINE, "gold_gain") if method != BASELINE else gains
    return MethodSummary(
        method=method,
        label=LABELS.get(method, method),
        runs=len(gains),
        risk=risk(gains),
        gain=bootstrap_mean(gains, np.random.default_rng(0)),
        paired=bootstrap_mean(_differences(study, method), np.random.default_rng(0)),
        spread=spread(gains),
        spread_p=brown_forsythe(gains, baseline) if method != BASELINE else np.nan,
        worst=lower_tail(gains),
        kl=float(np.nanmean(study.metric(method, "kl_final"))),
    )


def _differences(study: Study, method: str) -> list[float]:
    """Gain over the baseline's at each seed that both have finished."""
    if method == BASELINE:
        return []
    baseline = dict(zip((c["seed"] for c in study.of(BASELINE)), study.metric(BASELINE, "gold_gain"), strict=True))
    gains = zip((c["seed"] for c in study.of(method)), study.metric(method, "gold_gain"), strict=True)
    return [gain - baseline[seed] for seed, gain in gains if seed in baseline]
