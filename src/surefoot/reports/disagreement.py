"""How far the members of a study's reward sources disagree, over its seeds, as rows of text."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from surefoot.metrics.intervals import Interval
from surefoot.reports.records import Study
from surefoot.reports.wording import counted, interval, number, significant
from surefoot.run_records import DisagreementRecord, Figure, KnownErrorsRecord, known

__all__ = ["NOISY", "disagreement_rows", "disagreements_of", "interval_of", "mean_accuracy", "reliabilities_of"]

NOISY = 0.6
"""Weights made of a variance whose reliability is below this are mostly noise (docs/theory.md)."""

Records = list[DisagreementRecord]
Value = Figure | float | None
Text = Callable[[Records], str | None]
"""The text of a line for the records of all seeds; None if no seed knows the figure."""


def disagreements_of(study: Study) -> list[dict[str, Any]]:
    """One entry for each setting and source that has members: its place, rows, verdict and records by seed."""
    return [_describe(place, records) for place, records in _by_place(study).items()]


def reliabilities_of(study: Study) -> list[dict[str, Any]]:
    """`setting`, `source`, `seeds` and mean `reliability` of each source's variance; of those that have one."""
    by_place = {place: _reliabilities(records) for place, records in _by_place(study).items()}
    return [
        {"setting": place[0], "source": place[1], "seeds": len(values), "reliability": statistics.fmean(values)}
        for place, values in by_place.items()
        if values
    ]


def disagreement_rows(records: Records) -> list[tuple[str, str]]:
    """(what, figure) of each line that any seed knows: the figure with its interval for one seed, the median and the
    range over several."""
    lines = [(words, text(records)) for words, text in _LINES]
    return [(words, told) for words, told in lines if told is not None]


def mean_accuracy(record: DisagreementRecord) -> float:
    """Mean accuracy of one member."""
    return statistics.fmean(known(member.value) for member in record.accuracy_of_members)


def interval_of(figure: Figure) -> Interval:
    """The figure as numbers, NaN where it is unknown."""
    return Interval(known(figure.value), known(figure.low), known(figure.high), figure.n)


def _by_place(study: Study) -> dict[tuple[str, str], Records]:
    by_place: dict[tuple[str, str], Records] = {}
    for record in study.disagreement:
        by_place.setdefault((record.setting, record.source), []).append(record)
    return by_place


def _errors(records: Records) -> list[KnownErrorsRecord]:
    return [record.known_errors for record in records if record.known_errors is not None]


def _reliabilities(records: Records) -> list[float]:
    return [errors.reliability for errors in _errors(records) if errors.reliability is not None]


def _on_reliability(records: Records) -> str | None:
    values = _reliabilities(records)
    if not values:
        return None
    mean = statistics.fmean(values)
    over = f"mean over {counted(len(values), 'seed')}" if len(values) > 1 else "one seed"
    noisy = f" Weights made of a variance below {number(NOISY, 1)} are mostly noise." if mean < NOISY else ""
    return (
        f"The reliability of its variance is {number(mean)} ({over}): the correlation of ln s² between two halves of "
        f"the members on the reference policy's completions; 1 for a variance in closed form.{noisy}"
    )


def _describe(place: tuple[str, str], records: Records) -> dict[str, Any]:
    first = records[0]
    return {
        "place": place,
        "seeds": len(records),
        "members": first.members,
        "pairs": first.pairs,
        "rows": disagreement_rows(records),
        "reliability": _on_reliability(records),
        "verdict": first.verdict,
        "verdict_seed": first.seed,
        "records": records,
    }


def _of_pairs(value: Callable[[DisagreementRecord], Value], digits: int | None) -> Text:
    """A figure of the held-out pairs; to two significant digits if `digits` is None."""

    def text(records: Records) -> str | None:
        values = [value(record) for record in records]
        return None if all(each is None for each in values) else _over_seeds(values, digits)

    return text


def _of_errors(value: Callable[[KnownErrorsRecord], Value], digits: int | None) -> Text:
    """A figure of the reference's completions, whose true reward is known."""

    def text(records: Records) -> str | None:
        errors = _errors(records)
        return _over_seeds([value(each) for each in errors], digits) if errors else None

    return text


def _over_seeds(values: list[Value], digits: int | None) -> str:
    if len(values) == 1:
        return _alone(values[0], digits)
    plain = [known_value for value in values if (known_value := _value_of(value)) is not None]
    if not plain:
        return number(None)
    middle, low, high = (_shown(each, digits) for each in (statistics.median(plain), min(plain), max(plain)))
    return f"{middle} ({low} to {high})"


def _alone(value: Value, digits: int | None) -> str:
    if isinstance(value, Figure) and digits is not None:
        return interval(interval_of(value), digits)
    return _shown(_value_of(value), digits)


def _shown(value: float | None, digits: int | None) -> str:
    return significant(value) if digits is None else number(value, digits)


def _value_of(value: Value) -> float | None:
    return value.value if isinstance(value, Figure) else value


def _freedom(values: list[float | None]) -> str | None:
    """None among the values means infinite: no difference beyond chance."""
    if not values:
        return None
    finite = [value for value in values if value is not None]
    if not finite:
        return "infinite"
    text = number(statistics.median(finite), 1)
    missing = len(values) - len(finite)
    return f"{text}; infinite at {missing} of {len(values)} seeds" if missing else text


_LINES: tuple[tuple[str, Text], ...] = (
    ("accuracy of the members' mean", _of_pairs(lambda record: record.accuracy_of_mean, 3)),
    ("accuracy of one member (mean)", _of_pairs(mean_accuracy, 3)),
    ("share of pairs whose winner they don't agree on", _of_pairs(lambda record: record.split, 3)),
    ("members on the losing side of those", _of_pairs(lambda record: record.minority, 2)),
    ("agreement of two members", _of_pairs(lambda record: record.agreement, 3)),
    ("Kendall's τ of two members' margins", _of_pairs(lambda record: record.tau, 3)),
    (
        "share of the raw variance that is one offset per member",
        _of_pairs(lambda record: record.offset_overall, 2),
    ),
    ("share of the raw variance that is an offset per prompt", _of_pairs(lambda record: record.offset_per_prompt, 2)),
    ("median sd of the margin", _of_pairs(lambda record: record.margin_sd[1] if record.margin_sd else None, None)),
    (
        "prior degrees of freedom d₀ of the variance",
        lambda records: _freedom([record.prior_freedom for record in records]),
    ),
    ("coefficient of variation of the variance", _of_pairs(lambda record: record.variance_cv, 2)),
    ("AUROC for mistakes: variance", _of_pairs(lambda record: record.error_auroc.variance, 3)),
    ("AUROC for mistakes: sd over |margin|", _of_pairs(lambda record: record.error_auroc.sd_over_margin, 3)),
    ("AUROC for mistakes: −|margin|, the baseline", _of_pairs(lambda record: record.error_auroc.margin, 3)),
    (
        "reference's completions: correlation of the mean with the truth",
        _of_errors(lambda errors: errors.mean_correlation, 2),
    ),
    ("reference's completions: of one member", _of_errors(lambda errors: errors.member_correlation, 2)),
    (
        "reference's completions: coefficient of variation of the variance",
        _of_errors(lambda errors: errors.variance_cv, 2),
    ),
    (
        "reference's completions: d₀ of the variance",
        lambda records: _freedom([errors.prior_freedom for errors in _errors(records)]),
    ),
    (
        "reference's completions: variance against true squared error, ρ",
        _of_errors(lambda errors: errors.spearman, 2),
    ),
)
"""(what, its text over seeds) of each line, in order."""
