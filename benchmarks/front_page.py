"""The picture and the table of the README, from the records of the study `uneven` and from docs/results/risk.json.

    surefoot study --config benchmarks/studies/uneven.yaml
    python benchmarks/front_page.py --records runs/risk/uneven

Keeps the picture's curves in docs/results/gain_curves.json, so that without `--records` both are made again from files
of the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.files import read_json, write_json, write_text
from surefoot.metrics.runs import frontier
from surefoot.reports.axes import padded
from surefoot.reports.drawing import style_of
from surefoot.reports.figures import frame
from surefoot.reports.paths import REACHED, paths_of
from surefoot.reports.records import read_study

ROOT = Path(__file__).parents[1]
CURVES = ROOT / "docs" / "results" / "gain_curves.json"
PICTURE = ROOT / "docs" / "figures" / "gain.svg"
RESULTS = ROOT / "docs" / "results" / "risk.json"
README = ROOT / "README.md"
BUDGET = 12.0
METHODS = {
    "vanilla": "plain",
    "variance_aware": "KL weighted by variance",
    "lcb": "pessimistic",
}
"""Of the picture and the table, and what the README calls them."""
_LEVELS = 49
_BEGIN, _END = "<!-- uneven -->", "<!-- /uneven -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="folder of the study; without it the kept curves are drawn")
    records = parser.parse_args().records
    if records is not None:
        write_json(CURVES, curves(records))
    write_text(PICTURE, picture(read_json(CURVES)))
    write_text(README, with_table(README.read_text(encoding="utf-8"), table(read_json(RESULTS))))


def curves(records: Path) -> dict[str, dict[str, list[float]]]:
    """Mean gain and its 95% interval at each KL, of each method; up to the KL that nine in ten of its runs reached."""
    groups = read_study(records).groups
    group = next(one for one in groups if one.source == "linear" and one.kl_budget == BUDGET)
    found = {}
    for method in METHODS:
        paths = list(paths_of(group, method).values())
        peaks = sorted((float(kl.max()) for kl, _ in paths), reverse=True)
        curve = frontier(paths, np.linspace(0, peaks[int(np.ceil(REACHED * len(peaks))) - 1], _LEVELS))
        found[method] = {
            name: np.round(getattr(curve, name), 4).tolist() for name in ("levels", "mean", "low", "high", "n")
        }
    return found


def picture(drawn: dict[str, Any]) -> str:
    """Gain against KL as an SVG file: each method's mean with its band."""
    edges = [value for curve in drawn.values() for name in ("low", "high") for value in curve[name]]
    legend = [(METHODS[method], *style_of(place)) for place, method in enumerate(drawn)]
    longest = 1.03 * max(curve["levels"][-1] for curve in drawn.values())
    axes = frame(
        (0.0, longest),
        padded(edges, include=0.0),
        "KL from the reference policy (nats per completion)",
        "true reward gained",
        legend,
    )
    axes.level(0.0)
    for place, curve in enumerate(drawn.values()):
        axes.band(curve["levels"], curve["low"], curve["high"], style_of(place), place)
    for place, curve in enumerate(drawn.values()):
        colour, dash = style_of(place)
        axes.curve(curve["levels"], curve["mean"], colour, 2.8, dash=dash)
    ends = [f"{METHODS[m]} {c['mean'][-1]:.2f} at {c['levels'][-1]:.1f} nats" for m, c in drawn.items()]
    axes.drawing.words = f"True reward gained over the reference policy against KL: {'; '.join(ends)}."
    return axes.drawing.svg(standalone=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The README's table: one row for each method, at the budget of the picture."""
    of = {
        row["method"]: row
        for row in rows
        if (row["study"], row["source"], row["kl_budget"]) == ("uneven", "linear", BUDGET)
    }
    lines = [
        f"| {BUDGET:g} nats | N | true reward gained | spread | runs worse than before | prompts made worse |",
        "|---|---|---|---|---|---|",
    ]
    for method, name in METHODS.items():
        row = of[method]
        cells = (name, row["n"], _interval(row, "gain"), f"{row['spread']:.2f}", _share(row, "risk"))
        lines.append(f"| {' | '.join(map(str, cells))} | {_share(row, 'prompt_risk')} |")
    return "\n".join(lines)


def with_table(readme: str, made: str) -> str:
    """The README with this table between its marks."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{made}\n{_END}{after}"


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (f"{row[key]:.2f}".replace("-", "−") for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]"


def _share(row: dict[str, Any], name: str) -> str:
    value, low, high = (f"{100 * row[key]:.0f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value}% [{low}, {high}]"


if __name__ == "__main__":
    main()
