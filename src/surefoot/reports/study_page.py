"""Collect the values that the template of a study's page names."""

from __future__ import annotations

import math
from typing import Any

import yaml
from markupsafe import Markup

from surefoot.metrics.intervals import Interval
from surefoot.reports.disagreement import disagreements_of, interval_of, mean_accuracy
from surefoot.reports.figures import drawn
from surefoot.reports.html import script
from surefoot.reports.paths import REACHED, WINDOW
from surefoot.reports.records import Group, Study, label_of
from surefoot.reports.samples import samples_of
from surefoot.reports.study_figures import (
    differences_figure,
    disagreement_figure,
    ends_figure,
    frontier_figure,
    overview_figure,
    path_figures,
    risk_figure,
)
from surefoot.reports.study_tables import comparison_table, ends_table, failures_table, name_of, price_table
from surefoot.reports.study_words import (
    VERDICTS,
    best_of,
    completeness,
    group_words,
    proof,
    study_words,
    verdicts,
)
from surefoot.reports.summary import MEAN, MethodSummary
from surefoot.reports.wording import percent
from surefoot.run_records import DisagreementRecord

__all__ = ["page_values"]

_OPEN = 3
"""Up to so many groups are shown unfolded."""

Groups = list[tuple[Group, list[MethodSummary]]]


def page_values(study: Study, groups: Groups) -> dict[str, Any]:
    """Everything that `study.html.j2` names."""
    return {
        "title": study.grid.title,
        "baseline": label_of(study.baseline),
        "seeds": list(study.grid.seeds),
        "methods": [label_of(method) for method in study.methods],
        "verdicts": verdicts(study, [summaries for _, summaries in groups]),
        "verdict_rule": VERDICTS,
        "words": study_words(study, [summaries for _, summaries in groups]),
        "completeness": completeness(study),
        "proof": proof([summary for _, summaries in groups for summary in summaries]),
        "comparison": comparison_table(study, groups),
        "overview_figure": drawn(overview_figure(study, groups)) if len(groups) > 1 else None,
        "groups": [_group(study, group, summaries) for group, summaries in groups],
        "folded": len(groups) > _OPEN,
        "disagreements": [_disagreement(summary) for summary in disagreements_of(study)],
        "failures": failures_table(study),
        "window": WINDOW,
        "reached": percent(REACHED),
        "config": yaml.safe_dump(study.grid.config, sort_keys=False, allow_unicode=True),
        "versions": sorted(study.grid.versions.items()),
        "commit": study.grid.commit,
        **script("sorting.js"),
    }


def _group(study: Study, group: Group, summaries: list[MethodSummary]) -> dict[str, Any]:
    best = best_of(summaries)
    name = best.method if best is not None else None
    seed, samples = samples_of(group, name)
    return {
        "name": name_of(group.place, study),
        "words": group_words(summaries),
        "ends": ends_table(summaries),
        "price": price_table(summaries),
        "figures": _figures(group, summaries, name),
        "paths": [(label, drawn(drawing)) for label, drawing in path_figures(group)],
        "samples": samples,
        "samples_seed": seed,
    }


def _figures(group: Group, summaries: list[MethodSummary], best: str | None) -> dict[str, Markup | None]:
    base = label_of(group.baseline)
    drawings = {
        "ends": ends_figure(group, summaries),
        "risk": risk_figure(group, summaries),
        "paired": differences_figure(group, summaries, lambda summary: summary.paired.difference, base),
        "to_mean": differences_figure(group, summaries, lambda summary: summary.to_mean.difference, label_of(MEAN)),
        "frontier": frontier_figure(group, best),
    }
    if group.baseline == MEAN:
        drawings["to_mean"] = None
    return {name: None if drawing is None else drawn(drawing) for name, drawing in drawings.items()}


def _disagreement(described: dict[str, Any]) -> dict[str, Any]:
    records: list[DisagreementRecord] = described["records"]
    rankings = [record.error_auroc for record in records]
    accuracy = [
        ("one member", [_mean_accuracy(record) for record in records]),
        ("their mean", [interval_of(record.accuracy_of_mean) for record in records]),
    ]
    errors = [
        ("variance", [interval_of(each.variance) for each in rankings]),
        ("sd / |margin|", [interval_of(each.sd_over_margin) for each in rankings]),
        ("−|margin|, the baseline", [interval_of(each.margin) for each in rankings]),
    ]
    return described | {
        "accuracy": drawn(disagreement_figure(accuracy, "accuracy on held-out pairs", None)),
        "errors": drawn(disagreement_figure(errors, "AUROC for the mean's mistakes", 0.5)),
    }


def _mean_accuracy(record: DisagreementRecord) -> Interval:
    """The members' average, which has no interval."""
    return Interval(mean_accuracy(record), math.nan, math.nan, record.members)
