"""Compute the prompt risk of a method from its records, and read the anchors of its variances."""

from __future__ import annotations

import math
from statistics import median

import numpy as np

from surefoot.metrics.intervals import Floats, Interval
from surefoot.metrics.runs import prompt_risk, prompt_risk_difference
from surefoot.reports.records import Group
from surefoot.run_records import CellRecord, known

__all__ = ["MIXED", "anchor_of", "completions_of_a_prompt", "gains_by_prompt", "paired_prompt_risk", "risk_of_prompts"]

MIXED = "mixed"
"""The anchor of a method whose runs had different ones."""


def gains_by_prompt(group: Group, method: str) -> dict[int, Floats]:
    """Seed to (prompts,) mean gains of the evaluation prompts in their order, NaN where unknown.

    Runs whose records don't hold them (made by an earlier version) are left out.
    """
    return {
        cell.place.seed: np.array([known(gain) for gain in cell.prompt_gains])
        for cell in group.of(method)
        if cell.prompt_gains
    }


def risk_of_prompts(group: Group, method: str) -> Interval:
    """The method's prompt risk over its runs and prompts; NaN throughout if no record holds the prompts' gains."""
    return prompt_risk(_stacked(list(gains_by_prompt(group, method).values())), np.random.default_rng(0))


def paired_prompt_risk(group: Group, method: str) -> Interval:
    """The method's prompt risk minus the baseline's at the same seeds and prompts; unknown for the baseline itself."""
    mine, theirs = gains_by_prompt(group, method), gains_by_prompt(group, group.baseline)
    seeds = [] if method == group.baseline else [seed for seed in mine if seed in theirs]
    together = _stacked([mine[seed] for seed in seeds] + [theirs[seed] for seed in seeds])
    return prompt_risk_difference(together[: len(seeds)], together[len(seeds) :], np.random.default_rng(0))


def _stacked(rows: list[Floats]) -> Floats:
    """(runs, prompts); a prompt that a run doesn't hold is unknown there."""
    stacked = np.full((len(rows), max((len(row) for row in rows), default=0)), math.nan)
    for place, row in enumerate(rows):
        stacked[place, : len(row)] = row
    return stacked


def completions_of_a_prompt(group: Group) -> int | None:
    """How many completions of the final policy stand behind a prompt's gain, in the median; None if unknown."""
    counts = [count for cell in group.cells for count in cell.prompt_completions or ()]
    return round(median(counts)) if counts else None


def anchor_of(group: Group, method: str) -> tuple[str | None, int | None]:
    """(kind, reference completions of a prompt) of the anchors of the method's runs.

    (None, None) where records don't tell, ("mixed", None) where runs differ.
    """
    anchors = list(dict.fromkeys(_anchor(cell) for cell in group.of(method)))
    if len(anchors) > 1:
        return MIXED, None
    return anchors[0] if anchors else (None, None)


def _anchor(cell: CellRecord) -> tuple[str | None, int | None]:
    return cell.anchor, cell.anchor_completions if cell.anchor == "reference" else None
