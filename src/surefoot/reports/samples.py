"""Completions of one seed side by side, of the reference and of each shown method, with their rewards."""

from __future__ import annotations

from typing import Any

from surefoot.reports.records import Group, label_of
from surefoot.reports.wording import number, significant
from surefoot.run_records import Sample

__all__ = ["samples_of"]

_SHOWN_METHODS = ("vanilla", "variance_aware_one", "mean", "variance_aware")
_SHOWN_SAMPLES = 4
_SHOWN_TEXT = 900
"""Characters of a text that the page shows; the record has the rest."""


def samples_of(group: Group, best: str | None) -> tuple[int | None, list[dict[str, Any]]]:
    """The first seed that all shown methods finished, and its answers to the same prompts.

    Args:
        best: a method to show besides the usual ones.
    """
    methods = _methods(group, best)
    cells = {method: {cell.place.seed: cell for cell in group.of(method)} for method in methods}
    shared = set.intersection(*(set(by_seed) for by_seed in cells.values())) if cells else set()
    for seed in sorted(shared):
        answers = [(method, cells[method][seed].samples) for method in methods]
        count = min(_SHOWN_SAMPLES, *(len(samples) for _, samples in answers))
        if count:
            return seed, [_sample([(method, samples[i]) for method, samples in answers]) for i in range(count)]
    return None, []


def _methods(group: Group, best: str | None) -> list[str]:
    usual = [method for method in group.finished_methods if method in _SHOWN_METHODS]
    shown = usual if len(usual) > 1 else group.finished_methods[:3]
    return [method for method in group.finished_methods if method in {*shown, best}]


def _sample(answers: list[tuple[str, Sample]]) -> dict[str, Any]:
    first = answers[0][1]
    reference = {
        "label": "reference",
        "text": _cut(first.reference),
        "figures": f"true reward {number(first.gold_reference)}",
    }
    entries = [reference, *(_entry(method, sample) for method, sample in answers)]
    return {"prompt": _cut(first.prompt), "entries": entries}


def _entry(method: str, sample: Sample) -> dict[str, str]:
    variance = "unknown" if sample.variance is None else significant(sample.variance)
    figures = f"true reward {number(sample.gold)}, reward {number(sample.proxy)}, variance {variance}"
    return {"label": label_of(method), "text": _cut(sample.completion), "figures": figures}


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]} … ({len(text) - _SHOWN_TEXT} more characters)"
