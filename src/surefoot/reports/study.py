"""The report of a risk study: one HTML file with its tables as JSON and CSV, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.html import render
from surefoot.reports.records import Group, Study, label_of, read_study
from surefoot.reports.study_files import write_study_files
from surefoot.reports.study_page import page_values
from surefoot.reports.study_tables import name_of
from surefoot.reports.summary import MethodSummary, summarise_group
from surefoot.reports.wording import compact, number

__all__ = ["FILES", "FORMATS", "build_report", "summary_table", "write_report"]


Groups = list[tuple[Group, list[MethodSummary]]]


PAGE = "report.html"
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
    write_study_files(directory, study, [one for _, found in groups for one in found], formats)
    if "html" in formats:
        write_text(Path(directory) / PAGE, render("study.html.j2", **page_values(study, groups)))
    return _table(study, groups)


def _groups(study: Study) -> Groups:
    return [(group, summarise_group(group)) for group in study.groups]


def _table(study: Study, groups: Groups) -> Table:
    title = _title(study, groups)
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for heading in ("", "risk of loss", "mean gain", f"over {_short(study.baseline)}", "KL"):
        table.add_column(heading, justify="right" if heading else "left")
    for group, found in groups:
        if len(groups) > 1:
            table.add_section()
            table.add_row(name_of(group.place, study), style="bold")
        for one in found:
            table.add_row(one.label, *_figures(one))
    return table


def _title(study: Study, groups: Groups) -> str:
    counts = [len(group.of(method)) for group, _ in groups for method in group.methods]
    runs = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    missing = "" if len(study.cells) == study.planned else f", {len(study.cells)} of {study.planned} cells finished"
    return f"true reward over the reference, {runs} runs each{missing} (95% intervals)"


def _short(method: str) -> str:
    return "one model" if method == "vanilla" else label_of(method)


def _figures(one: MethodSummary) -> tuple[str, ...]:
    return compact(one.risk, percent=True), compact(one.gain), compact(one.paired.difference), number(one.kl, 1)
