"""The tables of docs/results/risk.md from the records of our own risk studies, finished or not.

    surefoot study --config benchmarks/studies/uneven.yaml      # and the others of that folder
    python benchmarks/risk.py runs/risk/* --json docs/results/risk.json --cells docs/results/risk_runs.csv \
        --picture docs/figures/risk.svg

Writes one row for each setting, source, method and KL budget. Only seeds at which all methods of a table are finished
count, so that an unfinished study compares like with like. Rows of studies that aren't given stay in the JSON as they
are. `risk_earlier.json` has the rows of the study before anchors, as they were measured then.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.files import read_json, write_json, write_text
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.reports.prompts import anchor_of
from surefoot.reports.records import BASELINE, Group, read_study
from surefoot.reports.study_figures import trajectory_figure
from surefoot.reports.study_files import csv_text
from surefoot.reports.summary import MEAN, summarise_group, summary_rows
from surefoot.run_records import CellRecord
from surefoot.studies.config import objective_of

Record = dict[str, Any]

STUDIES = ("uneven", "uneven_400", "even_and_shared", "stories", "slow", "laplace", "corrections")
"""The order of the rows; others come last."""
SETTINGS = {"uneven": "uneven", "uneven_400": "uneven_400", "stories": "stories", "slow": "slow", "laplace": "uneven",
            "corrections": "uneven"}  # fmt: skip
"""Setting of a study, by its folder; others, as `even_and_shared`, keep the names that they gave themselves."""
BEST_PLAIN = "linear_plain"
"""Source whose one model others are compared with, where a study has it: the plain head at its own best penalty."""
SHOWN = ("vanilla", "variance_aware", "lcb", "variance_aware_lcb")
"""Methods of the picture."""
SEEN = {
    "coefficient of variation": "variance_cv",
    "reliability": "reliability",
    "Spearman's rho with the squared error": "spearman",
    "correlation of the mean with the truth": "mean_correlation",
}
"""What is known of a source's variance on the reference policy's completions, and its name in the records."""
HEADINGS = ("method", "source", "anchor", "N", "risk", "prompt risk", "gain", "over one model", "over the mean",
            "spread", "worst tenth", "KL", "at KL", "CPU")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of studies, such as runs/risk/uneven")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cells", type=Path, help="a CSV with a line for each run")
    parser.add_argument("--picture", type=Path, help="true reward against KL: `linear` of `uneven`, smallest budget")
    options = parser.parse_args()
    rows: list[Record] = []
    runs: list[Record] = []
    for folder in sorted(options.folders, key=lambda one: order(one.name)):
        groups = [replace(one, setting=setting_of(folder.name, one.setting)) for one in read_study(folder).groups]
        for table in tables(groups):
            rows += show(folder.name, table)
        show_variances(folder)
        runs += [run_row(folder.name, group, cell) for group in groups for cell in group.cells]
        if folder.name == "uneven" and options.picture is not None:
            write_text(options.picture, picture(groups))
    if options.json is not None:
        everything = kept(options.json, options.folders) + rows
        write_json(options.json, sorted(everything, key=lambda row: order(row["study"])))
    if options.cells is not None:
        write_runs(options.cells, runs)


def order(study: str) -> int:
    return STUDIES.index(study) if study in STUDIES else len(STUDIES)


def setting_of(study: str, setting: str) -> str:
    return SETTINGS.get(study, setting)


def kept(path: Path, folders: list[Path]) -> list[Record]:
    """The rows of other studies that the file already has."""
    before = read_json(path) if path.exists() else []
    return [row for row in before if row["study"] not in {folder.name for folder in folders}]


# --- what is compared with what --------------------------------------------------------------------------------------


def tables(groups: list[Group]) -> list[list[Group]]:
    """Groups that are compared with each other: of one setting and budget, if a source there has no one model.

    Such a source, as an ensemble of heads, is compared with the one model of another at the same seeds.
    """
    places = dict.fromkeys((group.setting, group.kl_budget) for group in groups)
    alike = [[one for one in groups if (one.setting, one.kl_budget) == place] for place in places]
    return [
        part
        for found in alike
        for part in ([found] if any(one.baseline != BASELINE for one in found) else [[one] for one in found])
    ]


def joined(groups: list[Group]) -> tuple[Group, dict[str, tuple[str, str]]]:
    """One group of all their runs, each method under a name of its own, and (source, method) of each name."""
    mean = next((group.source for group in groups if MEAN in group.planned_methods), None)
    places = {
        (MEAN if (group.source, method) == (mean, MEAN) else f"{group.source} {method}"): (group.source, method)
        for group in groups
        for method in group.planned_methods
    }
    names = {place: name for name, place in places.items()}
    cells = [
        replace(cell, place=replace(cell.place, method=names[group.source, cell.place.method]))
        for group in groups
        for cell in group.cells
    ]
    whole = replace(
        groups[0],
        methods=list(places),
        planned_methods=list(places),
        baseline=names[one_model(groups)],
        cells=cells,
        planned=sum(group.planned for group in groups),
    )
    return complete(whole), places


def one_model(groups: list[Group]) -> tuple[str, str]:
    """(source, method) that the others are compared with."""
    having = [group.source for group in groups if group.baseline == BASELINE]
    if not having:
        return groups[0].source, groups[0].baseline
    return BEST_PLAIN if BEST_PLAIN in having else having[0], BASELINE


def complete(group: Group) -> Group:
    """The group at the seeds that every method has finished."""
    seeds = set.intersection(*({cell.place.seed for cell in group.of(method)} for method in group.planned_methods))
    return replace(group, cells=[cell for cell in group.cells if cell.place.seed in seeds])


# --- the tables ------------------------------------------------------------------------------------------------------


def show(study: str, groups: list[Group]) -> list[Record]:
    """Print one table as Markdown; returns its rows for the JSON."""
    group, places = joined(groups)
    print(f"\n{study}: {group.setting}, budget {group.kl_budget}: {len(group.cells)} of {group.planned} cells count\n")
    if not group.cells:
        return []
    baseline = " ".join(places[group.baseline])
    rows = [
        {"study": study} | row | named(places[row["method"]]) | anchor(group, row["method"]) | {"baseline": baseline}
        for row in summary_rows(summarise_group(group))
    ]
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, line(row))) + " |")
    return rows


def named(place: tuple[str, str]) -> Record:
    return {"source": place[0], "method": place[1]}


def anchor(group: Group, name: str) -> Record:
    """What its variances were centred by: as recorded, or as the method's settings have it in the first records.

    None for a method that reads no variance.
    """
    kind, completions = anchor_of(group, name)
    first = group.of(name)[0]
    config = first.config or {}
    method = config.get("method", {})
    if kind is None and first.prompt_gains is not None and objective_of(method).needs_anchor:
        given = config["policy"] | method
        kind, completions = given.get("anchor", "reference"), given.get("anchor_completions")
    return {"anchor": kind, "anchor_completions": completions}


def line(row: Record) -> tuple[Any, ...]:
    return (
        f"`{row['method']}`",
        f"`{row['source']}`",
        anchored(row),
        row["n"],
        interval(row, "risk", percent=True),
        interval(row, "prompt_risk", percent=True),
        interval(row, "gain"),
        interval(row, "paired_gain"),
        interval(row, "gain_over_mean"),
        number(row["spread"]),
        number(row["worst"]),
        number(row["kl"]),
        f"{interval(row, 'gain_at_matched_kl')} at {number(row['matched_kl'])}",
        number(row["cpu_ratio"]),
    )


def anchored(row: Record) -> str:
    count = row["anchor_completions"]
    return "–" if row["anchor"] is None else row["anchor"] if count is None else f"{row['anchor']}, {count}"


def show_variances(folder: Path) -> None:
    """Print what the variance of every setting and source saw on the reference policy's completions."""
    found: dict[tuple[str, str], list[Record]] = {}
    for path in sorted((folder / "disagreement").glob("*.json")):
        one = read_json(path)
        found.setdefault((setting_of(folder.name, one["setting"]), one["source"]), []).append(one["known_errors"])
    for (setting, source), records in found.items():
        print(f"\nvariance of {source}, {setting}")
        for what, name in SEEN.items():
            values = [value for one in records if (value := plain(one.get(name))) is not None]
            shown = bootstrap_mean(values, np.random.default_rng(0)).to_dict()
            row = {"a": shown["value"], "a_low": shown["low"], "a_high": shown["high"]}
            print(f"  {what}: {interval(row, 'a')}, N = {len(values)}")


def plain(figure: Any) -> float | None:
    return figure["value"] if isinstance(figure, dict) else figure


def picture(groups: list[Group]) -> str:
    linear = [group for group in groups if group.source == "linear"]
    group = min(linear, key=lambda one: one.kl_budget or 0.0)
    shown = [method for method in SHOWN if method in group.finished_methods]
    few = replace(group, methods=shown, cells=[cell for cell in group.cells if cell.place.method in shown])
    return trajectory_figure(few).svg(standalone=True)


def interval(row: Record, name: str, *, percent: bool = False) -> str:
    values = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
    if values[0] is None:
        return ""
    shown = [f"{100 * value:.0f}" if percent else number(value) for value in values if value is not None]
    value = f"{shown[0]}%" if percent else shown[0]
    return value if len(shown) == 1 else f"{value} [{', '.join(shown[1:])}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


# --- the runs --------------------------------------------------------------------------------------------------------

MEASURED = ("gold_gain", "prompt_risk", "kl_final", "beta_final", "cpu_seconds", "source_cpu_seconds")


def run_row(study: str, group: Group, cell: CellRecord) -> Record:
    """One run: its place, where it ended, its largest KL, and how much weights added on the way (median)."""
    effects = [row.effect for row in cell.trajectory if row.effect is not None]
    place = {"study": study, "setting": group.setting} | {
        name: getattr(cell.place, name) for name in ("source", "method", "kl_budget", "seed")
    }
    return place | {name: rounded(getattr(cell.metrics, name)) for name in MEASURED} | {
        "kl_peak": rounded(peak(cell)),
        "weight_effect": rounded(statistics.median(effects) if effects else None),
    }  # fmt: skip


def peak(cell: CellRecord) -> float:
    """The largest mean KL of ten updates in a row."""
    kl = [row.kl for row in cell.trajectory if row.kl is not None]
    width = min(10, len(kl))
    return max(statistics.fmean(kl[i : i + width]) for i in range(len(kl) - width + 1))


def rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def write_runs(path: Path, rows: list[Record]) -> None:
    write_text(path, csv_text(rows))


if __name__ == "__main__":
    main()
