"""What the page of a study shows, group by group, ready for its template."""

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
from surefoot.reports.study_tables import (
    differences_table,
    ends_table,
    failures_table,
    groups_table,
    matched_table,
    name_of,
    price_table,
    prompts_table,
    settled_table,
)
from surefoot.reports.study_words import best_of, completeness, group_words, proof, study_words
from surefoot.reports.summary import MEAN, MethodSummary
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
        "words": study_words(study, [found for _, found in groups]),
        "completeness": completeness(study),
        "proof": proof([one for _, found in groups for one in found]),
        "overview": groups_table(study, groups) if len(groups) > 1 else None,
        "overview_figure": drawn(overview_figure(study, groups)) if len(groups) > 1 else None,
        "groups": [_group(study, group, found) for group, found in groups],
        "folded": len(groups) > _OPEN,
        "disagreements": [_disagreement(one) for one in disagreements_of(study)],
        "failures": failures_table(study),
        "window": WINDOW,
        "reached": f"{REACHED:.0%}",
        "config": yaml.safe_dump(study.grid.config, sort_keys=False, allow_unicode=True),
        "versions": sorted(study.grid.versions.items()),
        "commit": study.grid.commit,
        **script("sorting.js"),
    }


def _group(study: Study, group: Group, found: list[MethodSummary]) -> dict[str, Any]:
    best = best_of(found)
    name = best.method if best is not None else None
    seed, samples = samples_of(group, name)
    return {
        "name": name_of(group.place, study),
        "words": group_words(found),
        "level": found[0].level,
        "ends": ends_table(found),
        "prompts": prompts_table(found),
        "tables": _tables(found),
        "price": price_table(found),
        "figures": _figures(group, found, name),
        "paths": [(label, drawn(drawing)) for label, drawing in path_figures(group)],
        "samples": samples,
        "samples_seed": seed,
    }


def _tables(found: list[MethodSummary]) -> list[tuple[str, Any]]:
    mean = [] if any(one.method == MEAN and one.is_baseline for one in found) else ["to_mean"]
    makers = (differences_table, matched_table, settled_table)
    named = [(name, make(found, name)) for name in ("paired", *mean) for make in makers]
    return [(name, table) for name, table in named if table is not None]


def _figures(group: Group, found: list[MethodSummary], best: str | None) -> dict[str, Markup | None]:
    base = label_of(group.baseline)
    drawings = {
        "ends": ends_figure(group, found),
        "risk": risk_figure(group, found),
        "paired": differences_figure(group, found, lambda one: one.paired.difference, base),
        "to_mean": differences_figure(group, found, lambda one: one.to_mean.difference, label_of(MEAN)),
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
