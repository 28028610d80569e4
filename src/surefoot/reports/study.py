"""Write the report of a study (HTML, JSON, CSV), and make the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.html import render
from surefoot.reports.records import Group, Study, label_of, read_study
from surefoot.reports.study_files import write_study_files
from surefoot.reports.study_page import page_values
from surefoot.reports.study_tables import name_of
from surefoot.reports.summary import MethodSummary, summarise_group
from surefoot.reports.wording import compact, number, percent

__all__ = ["FILES", "FORMATS", "build_report", "summary_table", "write_report"]


Groups = list[tuple[Group, list[MethodSummary]]]


PAGE = "report.html"
_WIDTH = 80
"""Columns of a terminal."""
FILES = {"html": (PAGE,), "json": ("summary.json",), "csv": ("summary.csv", "cells.csv")}
"""What each format writes."""
FORMATS = tuple(FILES)


def build_report(directory: str | Path) -> Path:
    """Write report.html, summary.json, summary.csv and cells.csv beside the records; returns the page's path.

    Raises:
        RunError: no study there, no finished cell, or a broken record.
    """
    write_report(directory)
    return Path(directory) / PAGE


def summary_table(directory: str | Path) -> Table:
    """One row for each method of each group, narrow enough for a terminal; the page has the rest.

    Raises:
        RunError: as `build_report`.
    """
    study = read_study(directory)
    return _table(study, _groups(study))


def write_report(directory: str | Path, formats: Collection[str] = FORMATS) -> Table:
    """Write the files of these formats, and give the terminal's table from the same reading of the records.

    Raises:
        RunError: as `build_report`.
    """
    study = read_study(directory)
    groups = _groups(study)
    write_study_files(directory, study, [summary for _, summaries in groups for summary in summaries], formats)
    if "html" in formats:
        write_text(Path(directory) / PAGE, render("study.html.j2", **page_values(study, groups)))
    return _table(study, groups)


def _groups(study: Study) -> Groups:
    return [(group, summarise_group(group)) for group in study.groups]


def _table(study: Study, groups: Groups) -> Table:
    """With the share of worse prompts if records tell and the table stays narrow enough."""
    if any(summary.prompt_risk.n for _, summaries in groups for summary in summaries):
        table = _made(study, groups, prompts=True)
        wide = Console(width=10 * _WIDTH)
        if Measurement.get(wide, wide.options, table).maximum <= _WIDTH:
            return table
    return _made(study, groups, prompts=False)


def _made(study: Study, groups: Groups, *, prompts: bool) -> Table:
    title = _title(study, groups)
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    worse = ["worse\nprompts"] if prompts else []
    for heading in ("", "risk of loss", *worse, "mean gain", f"over {_baseline(groups)}", "KL"):
        table.add_column(heading, justify="right" if heading else "left")
    for group, summaries in groups:
        if len(groups) > 1:
            table.add_section()
            table.add_row(name_of(group.place, study), style="bold")
        for summary in summaries:
            table.add_row(summary.label, *_figures(summary, prompts))
    return table


def _title(study: Study, groups: Groups) -> str:
    counts = [len(group.of(method)) for group, _ in groups for method in group.planned_methods]
    runs = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    missing = "" if len(study.cells) == study.planned else f", {len(study.cells)} of {study.planned} cells finished"
    return f"true reward over the reference, {runs} runs each{missing} (95% intervals)"


def _baseline(groups: Groups) -> str:
    methods = {group.baseline for group, _ in groups}
    if len(methods) > 1:
        return "the baseline"
    return "one model" if methods == {"vanilla"} else label_of(*methods)


def _figures(summary: MethodSummary, prompts: bool) -> list[str]:
    """Of the prompt risk the value alone, since a terminal has no room for its interval."""
    share = "–" if math.isnan(summary.prompt_risk.value) else percent(summary.prompt_risk.value)
    gains = (compact(summary.gain), compact(summary.paired.difference), number(summary.kl, 1))
    return [compact(summary.risk, percent=True), *([share] if prompts else []), *gains]
