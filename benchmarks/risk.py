"""The tables of docs/results/risk.md from our own studies' records, finished or not.

    surefoot study --config benchmarks/studies/uneven.yaml      # and the others of that folder
    python benchmarks/risk.py --json docs/results/risk.json --picture docs/figures/risk.svg

Writes one row for each setting, source, method and KL budget. Only seeds at which all methods of a group are finished
count, so that an unfinished study compares like with like. Of a study whose records aren't on this machine the rows
that are in the JSON already stay there. `--cells` writes a line for each run beside them.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regularisation import COMMON, style_of
from surefoot.files import read_json, write_json, write_text
from surefoot.maths.statistics import bootstrap_mean
from surefoot.reports.figures import svg
from surefoot.reports.paths import settled_gains
from surefoot.reports.records import Group, read_study
from surefoot.reports.study_figures import trajectory_figure
from surefoot.reports.summary import summarise_group, summary_rows

STUDIES = (
    "uneven",
    "uneven_first",
    "even_and_shared",
    "laplace",
    "laplace_again",
    "laplace_both",
    "stories",
    "stories_skewed",
    "members",
    "slow",
    "uneven_again",
)
TOGETHER = {"laplace_both": ("laplace", "laplace_again")}
PAIRS = {
    "variance_aware_one": "vanilla",
    "variance_aware": "mean",
    "literal": "mean",
    "variance_aware_lcb": "lcb",
}
"""Weighted methods, and the same without weights."""
SHOWN = ("vanilla", "variance_aware_one", "mean", "variance_aware")
"""Methods of the picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/risk"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cells", type=Path, help="a CSV with a line for each run")
    parser.add_argument("--picture", type=Path, help="true reward against KL in the first study, smallest budget")
    options = parser.parse_args()
    before = read_json(options.json) if options.json is not None and options.json.exists() else []
    found: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for name in STUDIES:
        folders = [options.runs / part for part in TOGETHER.get(name, (name,))]
        if not all((folder / "study.json").exists() for folder in folders):
            kept = [row for row in before if row["study"] == name]
            print(f"\n{name}: no records here; {len(kept)} rows kept")
            found += kept
            continue
        groups = groups_of(folders)
        for group in groups:
            rows = summary_rows(summarise_group(group)) if group.cells else []
            found += [{"study": name} | row | {"setting": setting_of(name, row["setting"])} for row in rows]
            show(name, group, rows)
            settled(group)
            losses(group)
            if name not in TOGETHER:
                runs += [run_row(name, cell) for cell in group.cells]
        seen = variances(folders)
        if len({group.source for group in groups}) > 1:
            by_source(groups, seen)
        if name == STUDIES[0] and options.picture is not None:
            shown = [cell for cell in groups[0].cells if cell["method"] in SHOWN]
            few = replace(groups[0], methods=list(SHOWN), cells=shown)
            write_text(options.picture, svg(trajectory_figure(few), "risk", standalone=True))
    if all((options.runs / name / "study.json").exists() for name in ("slow", "slow_before")):
        now, then = (groups_of([options.runs / name])[0] for name in ("slow", "slow_before"))
        by_controller(now, then)
        runs += [run_row("slow_before", cell) for cell in then.cells]
    if options.json is not None:
        write_json(options.json, found)
    if options.cells is not None:
        write_runs(options.cells, runs)


def groups_of(folders: list[Path]) -> list[Group]:
    """The groups of one study, or of several with the same grid but other seeds, at the seeds that are complete."""
    alike = zip(*(read_study(folder).groups for folder in folders), strict=True)
    together = [
        replace(same[0], cells=[cell for group in same for cell in group.cells], planned=sum(g.planned for g in same))
        for same in alike
    ]
    return [complete(group) for group in together]


def setting_of(study: str, setting: str) -> str:
    """Its name among all studies: "even" is a variant of the offline world, "slow" a policy on it."""
    if study.startswith("slow"):
        return f"{setting}_{study}"
    return f"stories260k_{setting}" if study.startswith("stories") else setting


def complete(group: Group) -> Group:
    """The group at the seeds that every method has finished."""
    seeds = set.intersection(*({cell["seed"] for cell in group.of(method)} for method in group.methods))
    return replace(group, cells=[cell for cell in group.cells if cell["seed"] in seeds])


def show(study: str, group: Group, rows: list[dict[str, Any]]) -> None:
    place = f"{group.setting}, {group.source}, budget {group.kl_budget}"
    print(f"\n{study}: {place}: {len(group.cells)} of {group.planned} cells\n")
    head = (
        "method",
        "N",
        "risk",
        "gain",
        "over one model",
        "over the mean",
        "spread",
        "worst tenth",
        "KL",
        "at KL",
        "least β",
        "rare",
        "CPU",
    )
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        cells = (
            f"`{row['method']}`",
            row["n"],
            interval(row, "risk", percent=True),
            interval(row, "gain"),
            interval(row, "paired_gain"),
            interval(row, "gain_over_mean"),
            number(row["spread"]),
            number(row["worst"]),
            number(row["kl"]),
            f"{interval(row, 'gain_at_matched_kl')} at {number(row['matched_kl'])}",
            f"{statistics.median(map(lowest_beta, group.of(row['method']))):.2f}",
            rare(group.of(row["method"])),
            number(row["cpu_ratio"]),
        )
        print("| " + " | ".join(map(str, cells)) + " |")


def settled(group: Group) -> None:
    """What weights add at equal KL once runs have settled (`surefoot.reports.paths.settled_gains`)."""
    for weighted, plain in PAIRS.items():
        if {weighted, plain} <= set(group.methods):
            ours, theirs = (settled_gains(group, method) for method in (weighted, plain))
            both = [s for s in ours if not math.isnan(ours[s] - theirs.get(s, math.nan))]
            found = bootstrap_mean([ours[s] - theirs[s] for s in both], np.random.default_rng(0)).to_dict()
            if found["value"] is not None:
                row = {"gain": found["value"], "gain_low": found["low"], "gain_high": found["high"]}
                print(f"settled, {weighted} over {plain}: {interval(row, 'gain')}, N = {len(both)}")


SEEN = {
    "coefficient of variation": "variance_cv",
    "Spearman's rho with the squared error": "spearman",
    "correlation of the mean with the truth": "mean_correlation",
}
Seen = dict[tuple[str, str], dict[str, dict[str, Any]]]


def variances(folders: list[Path]) -> Seen:
    """What the members' variance saw on the reference policy's completions, of every setting and source."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(path for folder in folders for path in (folder / "disagreement").glob("*.json")):
        one = read_json(path)
        found.setdefault((one["setting"], one["source"]), []).append(one["known_errors"])
    return {place: _seen(*place, rows) for place, rows in found.items()}


def _seen(setting: str, source: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    given = {what: [row[key] for row in rows] for what, key in SEEN.items()}
    rho = [one["value"] for one in given["Spearman's rho with the squared error"] if one["value"] is not None]
    given["Spearman's rho with the squared error"] = rho
    print(f"\nvariance of {source}, {setting}, N = {len(rows)} (rho is known of {len(rho)})")
    found = {}
    for what, values in given.items():
        row = bootstrap_mean(values, np.random.default_rng(0)).to_dict()
        found[what] = {"a": row["value"], "a_low": row["low"], "a_high": row["high"]}
        print(f"  {what}: {interval(found[what], 'a')}")
    return found


def by_source(groups: list[Group], seen: Seen) -> None:
    """One line for each source: its own methods compared, and what its variance saw."""
    head = ("source", "N", "one model", "mean", "variance-aware", "over one model", "over the mean", "settled",
            "below: one, mean, weighted", "variance: cv", "ρ", "correlation", "CPU")  # fmt: skip
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for group in groups:
        if not group.cells:
            continue
        rows = {row["method"]: row for row in summary_rows(summarise_group(group))}
        ours = rows["variance_aware"]
        methods = ("vanilla", "mean", "variance_aware")
        figures = seen.get((group.setting, group.source), {})
        cells = (
            f"`{group.source}`",
            ours["n"],
            *(interval(rows[method], "gain") for method in methods),
            interval(ours, "paired_gain"),
            interval(ours, "gain_over_mean"),
            interval(ours, "gain_over_mean_settled"),
            ", ".join(str(round(rows[method]["risk"] * rows[method]["n"])) for method in methods),
            *(interval(figures[what], "a") if figures else "" for what in SEEN),
            number(ours["cpu_ratio"]),
        )
        print("| " + " | ".join(map(str, cells)) + " |")


def losses(group: Group) -> None:
    """How many runs ended below the reference, and in how many of them every kept sample is in a rare style."""
    lost = [cell for cell in group.cells if cell["metrics"]["gold_gain"] < 0]
    kept = [cell for cell in group.cells if cell["metrics"]["gold_gain"] >= 0]
    there = [sum(rare([cell]) == "100%" for cell in cells) for cells in (lost, kept)]
    print(f"all samples rare: {there[0]} of {len(lost)} runs below the reference, {there[1]} of {len(kept)} others")


def by_controller(now: Group, before: Group) -> None:
    """The same seeds and sources with the present KL controller and with the one before it."""
    print("\n| method | N | gain, present over before | largest KL, before | present |\n|---|---|---|---|---|")
    for method in before.methods:
        ours, theirs = ({cell["seed"]: cell for cell in group.of(method)} for group in (now, before))
        both = sorted(ours.keys() & theirs.keys())
        gained = [ours[s]["metrics"]["gold_gain"] - theirs[s]["metrics"]["gold_gain"] for s in both]
        row = bootstrap_mean(gained, np.random.default_rng(0)).to_dict()
        shown = interval({"gain": row["value"], "gain_low": row["low"], "gain_high": row["high"]}, "gain")
        peaks = [[peak(cells[s]) for s in both] for cells in (theirs, ours)]
        spans = " | ".join(f"{min(some):.1f} to {max(some):.1f}" for some in peaks)
        print(f"| `{method}` | {len(both)} | {shown} | {spans} |")


def peak(cell: dict[str, Any]) -> float:
    """The largest mean KL of ten updates in a row."""
    kls = [row["kl"] for row in cell["trajectory"]]
    return max(statistics.fmean(kls[i : i + 10]) for i in range(len(kls) - 9))


RUN = ("setting", "source", "method", "kl_budget", "seed")
MEASURED = ("gold_gain", "kl_final", "beta_final", "cpu_seconds", "source_cpu_seconds")


def run_row(study: str, cell: dict[str, Any]) -> dict[str, Any]:
    """One run: its place, where it ended, how low β fell, and how much weights added on the way (median)."""
    effects = [row["effect"] for row in cell["trajectory"] if row.get("effect") is not None]
    measured = {name: round(cell["metrics"][name], 4) for name in MEASURED}
    place = {name: cell[name] for name in RUN} | {"setting": setting_of(study, cell["setting"])}
    return {"study": study} | place | measured | {
        "least_beta": round(lowest_beta(cell), 4),
        "weight_effect": round(statistics.median(effects), 4) if effects else "",
    }  # fmt: skip


def write_runs(path: Path, rows: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def lowest_beta(cell: dict[str, Any]) -> float:
    """The smallest β of a run over its last: well below 1, the penalty was off while the policy climbed."""
    path = [row["beta"] for row in cell["trajectory"]]
    last: float = path[-1]
    return min(path) / last


def rare(cells: list[dict[str, Any]]) -> str:
    """Share of the kept samples that are in styles which annotators of the uneven world hardly saw."""
    if any(cell["config"]["setting"].get("world") != "uneven" for cell in cells):
        return ""
    shares = [
        sum(style_of(one["completion"]) >= COMMON for one in cell["samples"]) / len(cell["samples"]) for cell in cells
    ]
    return f"{100 * statistics.mean(shares):.0f}%"


def interval(row: dict[str, Any], name: str, *, percent: bool = False) -> str:
    values = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
    if values[0] is None:
        return ""
    if percent:
        return f"{100 * values[0]:.0f}% [{100 * values[1]:.0f}, {100 * values[2]:.0f}]"
    return f"{number(values[0])} [{number(values[1])}, {number(values[2])}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
