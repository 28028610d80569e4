"""The report of a risk study: one HTML file, and a table for the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.disagreement import describe
from surefoot.reports.figures import disagreement_figure, final_figure, trajectory_figure
from surefoot.reports.html import picture, render
from surefoot.reports.records import LABELS, MethodSummary, Study, read_study, summarise
from surefoot.reports.wording import headline, interval, number, percent_interval, proof

__all__ = ["build_report", "summary_table"]

_SHOWN_METHODS = ("vanilla", "mean", "variance_aware")
_SHOWN_SAMPLES = 4


def summary_table(directory: str | Path) -> Table:
    """One row for each method, narrow enough for a terminal; the report has the spread and the tail as well."""
    summaries = summarise(read_study(directory))
    runs = min(one.runs for one in summaries)
    title = f"true reward over the reference, {runs} runs each (95% intervals)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for heading in ("", "risk of loss", "mean gain", "over one model", "KL"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in summaries:
        row = (percent_interval(one.risk), interval(one.gain), _paired(one), number(one.kl, 1))
        table.add_row(one.label, *row)
    return table


def build_report(directory: str | Path) -> Path:
    """Write `report.html` beside the records it is made of, and return its path.

    Raises:
        RunError: there is no finished study in the directory.
    """
    study = read_study(directory)
    return write_text(Path(directory) / "report.html", render("study.html.j2", **_values(study)))


def _row(one: MethodSummary) -> list[str]:
    return [
        one.label,
        str(one.runs),
        percent_interval(one.risk),
        interval(one.gain),
        _paired(one),
        number(one.spread),
        number(one.worst),
        number(one.kl, 1),
    ]


def _paired(one: MethodSummary) -> str:
    return "" if math.isnan(one.paired.value) else interval(one.paired)


def _values(study: Study) -> dict[str, Any]:
    summaries = summarise(study)
    words = "; ".join(
        f"{one.label}: mean gain {number(one.gain.value)} at {number(one.kl, 1)} nats" for one in summaries
    )
    found = study.disagreement[0] if study.disagreement else None
    seed, samples = _samples(study)
    budget = study.settings["kl_budget"]
    return {
        "title": study.settings["title"],
        "runs": min(one.runs for one in summaries),
        "budget": None if budget is None else number(budget, 1),
        "headlines": headline(summaries),
        "proof": proof(summaries),
        "rows": [_row(one) for one in summaries],
        "trajectories": picture(trajectory_figure(study), "path", f"True reward against KL. {words}."),
        "finals": picture(final_figure(study), "final", f"True reward of the final policies. {words}."),
        "disagreement": None if found is None else describe(found),
        "disagreement_figure": None if found is None else _disagreement(found),
        "samples": samples,
        "samples_seed": seed,
        "seeds": study.settings["seeds"],
        "commit": study.settings["commit"],
        "settings": [*study.settings["config"].items(), *study.settings["versions"].items()],
    }


def _disagreement(found: dict[str, Any]) -> Any:
    words = "Accuracy of the members and their mean, and AUROC of variance and margin for the mean's mistakes."
    return picture(disagreement_figure(found), "disagreement", words)


def _samples(study: Study) -> tuple[int | None, list[dict[str, Any]]]:
    """The same prompts answered by the reference and by the methods of one seed."""
    methods = [method for method in _SHOWN_METHODS if method in study.methods] or study.methods[:3]
    for seed in study.settings["seeds"]:
        cells = {cell["method"]: cell for cell in study.cells if cell["seed"] == seed}
        if all(method in cells for method in methods):
            count = min(_SHOWN_SAMPLES, *(len(cells[method]["samples"]) for method in methods))
            return seed, [_sample([(m, cells[m]["samples"][i]) for m in methods]) for i in range(count)]
    return None, []


def _sample(answers: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    first = answers[0][1]
    reference = {
        "label": "reference",
        "text": first["reference"],
        "figures": f"true reward {number(first['gold_reference'])}",
    }
    return {"prompt": first["prompt"], "entries": [reference, *(_entry(method, one) for method, one in answers)]}


def _entry(method: str, one: dict[str, Any]) -> dict[str, str]:
    variance = "unknown" if one["variance"] is None else number(one["variance"])
    figures = f"true reward {number(one['gold'])}, reward {number(one['proxy'])}, variance {variance}"
    return {"label": LABELS.get(method, method), "text": one["completion"], "figures": figures}
