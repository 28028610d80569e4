"""Write a study's results for other programs: summary.json, summary.csv, and cells.csv with a line for each cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import asdict
from numbers import Number
from pathlib import Path
from typing import Any

from surefoot.files import write_json, write_text
from surefoot.reports.disagreement import reliabilities_of
from surefoot.reports.paths import REACHED, SETTLED, WINDOW
from surefoot.reports.records import Study
from surefoot.reports.summary import ALPHA, MethodSummary, summary_rows
from surefoot.run_records import CellRecord

__all__ = ["csv_text", "write_study_files"]


def write_study_files(
    directory: str | Path, study: Study, summaries: list[MethodSummary], formats: Collection[str]
) -> None:
    """Write summary.json ("json"), summary.csv and cells.csv ("csv") beside the records, each whole; an unknown figure
    is null, or an empty field."""
    folder, rows = Path(directory), summary_rows(summaries)
    if "json" in formats:
        write_json(folder / "summary.json", _head(study) | {"rows": rows})
    if "csv" in formats:
        write_text(folder / "summary.csv", csv_text(rows))
        write_text(folder / "cells.csv", csv_text([_cell_row(cell) for cell in study.cells]))


def _head(study: Study) -> dict[str, Any]:
    return {
        "kind": "study_summary",
        "title": study.grid.title,
        "baseline": study.baseline,
        "planned": study.planned,
        "finished": len(study.cells),
        "failed": len(study.failed),
        "alpha": ALPHA,
        "power": 0.8,
        "smoothing": WINDOW,
        "matched_kl_reached_by": REACHED,
        "settled_at_share_of_budget": SETTLED[0],
        "settled_within_share_of_budget": SETTLED[1],
        "reliability_of_variances": reliabilities_of(study),
        "commit": study.grid.commit,
        "versions": study.grid.versions,
    }


def _cell_row(cell: CellRecord) -> dict[str, Any]:
    place = asdict(cell.place)
    key = place.pop("key")  # last, since it tells a reader least
    return place | {"key": key} | asdict(cell.metrics)


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV under a line of all their names; None is an empty field.

    Text that a spreadsheet would run as a formula gets a quotation mark (') before it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_cell, names))
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, Number):
        return value
    text = str(value).replace("\r", " ")  # which Python's writer doesn't quote
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
