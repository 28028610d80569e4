"""What the variance of a reward source saw, over the seeds of a study."""

from __future__ import annotations

import statistics
from typing import Any

from surefoot.metrics.intervals import Interval
from surefoot.reports.records import Study
from surefoot.reports.wording import counted, interval, number

__all__ = ["NOISY", "disagreement_rows", "disagreements_of", "reliabilities_of"]

NOISY = 0.6
"""Weights made of a variance whose reliability is below this are mostly noise (docs/theory.md)."""

Record = dict[str, Any]
_FIGURES = (
    ("accuracy of the members' mean", "accuracy_of_mean", 3),
    ("accuracy of one member (mean)", "accuracy_of_members", 3),
    ("share of pairs whose winner they don't agree on", "split", 3),
    ("members on the losing side of those", "minority", 2),
    ("agreement of two members", "agreement", 3),
    ("Kendall's τ of two members' margins", "tau", 3),
    ("share of the raw variance that is one offset per member", "offset_overall", 2),
    ("share of the raw variance that is an offset per prompt", "offset_per_prompt", 2),
    ("median sd of the margin", "margin_sd", 2),
    ("prior degrees of freedom d₀ of the variance", "prior_freedom", 1),
    ("coefficient of variation of the variance", "variance_cv", 2),
    ("AUROC for mistakes: variance", "error_auroc.variance", 3),
    ("AUROC for mistakes: sd over |margin|", "error_auroc.sd_over_margin", 3),
    ("AUROC for mistakes: −|margin|, the baseline", "error_auroc.margin", 3),
    ("reference's completions: correlation of the mean with the truth", "known_errors.mean_correlation", 2),
    ("reference's completions: of one member", "known_errors.member_correlation", 2),
    ("reference's completions: coefficient of variation of the variance", "known_errors.variance_cv", 2),
    ("reference's completions: d₀ of the variance", "known_errors.prior_freedom", 1),
    ("reference's completions: variance against true squared error, ρ", "known_errors.spearman", 2),
)
"""(what, where in the record, digits) of each line."""


def disagreements_of(study: Study) -> list[dict[str, Any]]:
    """One entry for each setting and source that has members: its place, rows, verdict and records by seed."""
    return [_describe(place, found) for place, found in _by_place(study).items()]


def reliabilities_of(study: Study) -> list[Record]:
    """`setting`, `source`, `seeds` and mean `reliability` of each source's variance; of those that have one."""
    found = {place: _reliabilities(records) for place, records in _by_place(study).items()}
    return [
        {"setting": place[0], "source": place[1], "seeds": len(values), "reliability": statistics.fmean(values)}
        for place, values in found.items()
        if values
    ]


def _by_place(study: Study) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for one in study.disagreement:
        found.setdefault((one["setting"], one["source"]), []).append(one)
    return found


def _reliabilities(found: list[Record]) -> list[float]:
    values = [(one.get("known_errors") or {}).get("reliability") for one in found]
    return [value for value in values if value is not None]


def _on_reliability(found: list[Record]) -> str | None:
    values = _reliabilities(found)
    if not values:
        return None
    mean = statistics.fmean(values)
    over = f"mean over {counted(len(values), 'seed')}" if len(values) > 1 else "one seed"
    noisy = f" Below {number(NOISY, 1)} the weights made of it are mostly noise." if mean < NOISY else ""
    return (
        f"Its reliability is {number(mean)} ({over}): how far the variances from two halves of the members agree on "
        f"the reference policy's completions; 1 for a variance in closed form.{noisy}"
    )


def _describe(place: tuple[str, str], found: list[Record]) -> dict[str, Any]:
    first = found[0]
    return {
        "place": place,
        "seeds": len(found),
        "members": first["members"],
        "pairs": first["pairs"],
        "rows": disagreement_rows(found),
        "reliability": _on_reliability(found),
        "verdict": first["verdict"],
        "verdict_seed": first["seed"],
        "records": found,
    }


def disagreement_rows(found: list[Record]) -> list[tuple[str, str]]:
    """(what, figure) of each line that any seed knows: the figure with its interval for one seed, the median and the
    range over several.

    Args:
        found: `Disagreement.to_dict()` of each seed, with `known_errors` or without.
    """
    return [
        (words, _over_seeds([_look_up(one, where) for one in found], where, digits))
        for words, where, digits in _FIGURES
        if any(_present(one, where) for one in found)
    ]


def _present(found: Record, where: str) -> bool:
    top = where.split(".", maxsplit=1)[0]
    return found.get(top) is not None or top == "prior_freedom"


def _look_up(found: Record, where: str) -> Any:
    value: Any = found
    for name in where.split("."):
        value = None if value is None else value.get(name)
    if where == "accuracy_of_members":
        return statistics.fmean(one["value"] for one in value)
    return value[1] if where == "margin_sd" else value


def _over_seeds(values: list[Any], where: str, digits: int) -> str:
    if where.endswith("prior_freedom"):
        return _freedom(values)
    if len(values) == 1:
        return _one(values[0], digits)
    plain = [value for one in values if (value := _plain(one)) is not None]
    if not plain:
        return number(None)
    return f"{number(statistics.median(plain), digits)} ({number(min(plain), digits)} to {number(max(plain), digits)})"


def _freedom(values: list[float | None]) -> str:
    """None means infinite here: no difference beyond chance."""
    finite = [value for value in values if value is not None]
    if not finite:
        return "infinite"
    text = number(statistics.median(finite), 1)
    missing = len(values) - len(finite)
    return f"{text}; infinite at {missing} of {len(values)} seeds" if missing else text


def _plain(one: Any) -> float | None:
    return one["value"] if isinstance(one, dict) else one


def _one(found: Any, digits: int) -> str:
    if not isinstance(found, dict):
        return number(found, digits)
    known = {name: float("nan") if found[name] is None else found[name] for name in ("value", "low", "high")}
    return interval(Interval(known["value"], known["low"], known["high"], found["n"]), digits)
