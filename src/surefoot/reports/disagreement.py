"""The disagreement of reward members as a table of the study's report."""

from __future__ import annotations

from typing import Any

from surefoot.maths.statistics import Interval
from surefoot.reports.wording import interval, number

__all__ = ["describe", "disagreement_rows"]


def disagreement_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, figure) for each line of the table.

    Args:
        found: `Disagreement.to_dict()`.
    """
    freedom = found["prior_freedom"]
    low, middle, high = found["margin_sd"]
    rows = [
        ("accuracy of the members' mean", _interval(found["accuracy_of_mean"])),
        ("accuracy of one member (mean)", number(_mean(found["accuracy_of_members"]), 3)),
        ("pairs whose winner they don't agree on", _interval(found["split"])),
        ("members on the losing side of those", number(found["minority"], 2)),
        ("agreement of two members", number(found["agreement"], 3)),
        ("Kendall's τ of two members' margins", number(found["tau"], 3)),
        ("raw variance that is one offset per member", _percent(found["offset_overall"])),
        ("raw variance that is an offset per prompt", _percent(found["offset_per_prompt"])),
        ("sd of the margin, 10 / 50 / 90%", f"{number(low)} / {number(middle)} / {number(high)}"),
        ("prior degrees of freedom d₀ of the variance", "infinite" if freedom is None else number(freedom, 1)),
        ("coefficient of variation of the variance", number(found["variance_cv"])),
        ("AUROC for mistakes: variance", _interval(found["error_auroc"]["variance"])),
        ("AUROC for mistakes: sd over |margin|", _interval(found["error_auroc"]["sd_over_margin"])),
        ("AUROC for mistakes: −|margin|, the baseline", _interval(found["error_auroc"]["margin"])),
    ]
    return rows + _known_rows(found["known_errors"]) if found.get("known_errors") else rows


def _known_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What can be said only where the truth is known, on completions of the reference policy."""
    freedom = found["prior_freedom"]
    return [
        ("reference completions: correlation of the mean with the truth", number(found["mean_correlation"])),
        ("reference completions: of one member", number(found["member_correlation"])),
        ("reference completions: variation of the variance", number(found["variance_cv"])),
        ("reference completions: d₀ of the variance", "infinite" if freedom is None else number(freedom, 1)),
        ("reference completions: variance against true squared error, ρ", _interval(found["spearman"])),
    ]


def _mean(found: list[dict[str, Any]]) -> float:
    return sum(one["value"] for one in found) / len(found)


def _percent(value: float | None) -> str:
    return number(value) if value is None else f"{value:.0%}"


def _interval(found: dict[str, Any]) -> str:
    known = {k: float("nan") if found[k] is None else found[k] for k in ("value", "low", "high")}
    return interval(Interval(known["value"], known["low"], known["high"], found["n"]), 3)


def describe(found: dict[str, Any]) -> dict[str, Any]:
    """What the templates need."""
    return {**found, "rows": disagreement_rows(found)}
