"""The offline world's three variants: how much the members' variance differs, and whether it follows the true error.

    python benchmarks/world.py --out runs/world --seeds 8 --json world.json

Each seed draws preferences and trains members as the demo does, then looks at the reference policy's completions.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.cli.demo import demo_study
from surefoot.data.world import VARIANTS
from surefoot.files import write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.studies.config import Cell
from surefoot.studies.evaluation import reference_of
from surefoot.studies.reward_sources import prepare_source, source_key
from surefoot.studies.settings import build_setting

HEADS: dict[str, Any] = {
    "kind": "heads",
    "members": 5,
    "layer": 0,  # words, read from the embeddings
    "bootstrap": "exponential",
    "prior_scale": 1.0,
    "learning_rate": 1e-2,
    "weight_decay": 1.0,
    "epochs": 60,
}
INDEPENDENT = {"kind": "independent", "members": 5, "learning_rate": 1e-3, "epochs": 3, "batch_size": 32}
FIGURES = ("variance_cv", "spearman", "mean_correlation", "member_correlation")

UNREGULARISED = {"heads": HEADS | {"weight_decay": 0.0}}
"""What the published figures were measured with, before the demo's heads got a weight decay."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/world"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--source", default="heads", choices=["heads", "independent"])
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        config = demo_study(
            variant,
            options.pairs,
            range(2000, 2000 + options.seeds),
            sources=UNREGULARISED,
            methods={"mean": {"preset": "mean"}},
        )
        if options.source == "independent":
            config = replace(config, sources={"independent": INDEPENDENT})
        folder = options.out / f"{variant}-{options.source}-{options.pairs}"
        found = [known(cell, variant, folder) for cell in config.cells()]
        rows.append(summarise(variant, options.source, found))
    print(f"{options.source}, {options.pairs} pairs, N = {options.seeds} seeds; mean [95% bootstrap interval]")
    print(f"{'variant':<12} {'d0 (median)':>12} " + " ".join(f"{name:>24}" for name in FIGURES))
    for row in rows:
        cells = " ".join(f"{shown(row[name]):>24}" for name in FIGURES)
        print(f"{row['variant']:<12} {row['d0_median']:>12} {cells}")
    if options.json is not None:
        write_json(options.json, {"seeds": options.seeds, "pairs": options.pairs, "rows": rows})


def known(cell: Cell, variant: str, folder: Path) -> dict[str, Any]:
    """The members' errors against the truth; their source is trained if it isn't there yet."""
    setting = build_setting(cell.work["setting"], folder)
    reference = reference_of(setting, folder, cell.work["evaluation_completions"], 24)
    key = source_key(cell.work, "reward")
    return prepare_source(setting, cell.work["sources"]["reward"], key, cell.seed, folder, reference)["disagreement"][
        "known_errors"
    ]


def summarise(variant: str, source: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    freedom = [np.inf if one["prior_freedom"] is None else one["prior_freedom"] for one in found]
    middle = float(np.median(freedom))
    row: dict[str, Any] = {
        "variant": variant,
        "source": source,
        "n": len(found),
        "d0_median": "infinite" if np.isinf(middle) else round(middle, 1),
        "d0_infinite": int(np.isinf(freedom).sum()),
    }
    for name in FIGURES:
        values = [value(one[name]) for one in found]
        row[name] = bootstrap_mean(values, np.random.default_rng(0)).to_dict()
    return row


def value(figure: Any) -> float:
    """A figure that may be an interval or unknown, as a number."""
    inner = figure["value"] if isinstance(figure, dict) else figure
    return np.nan if inner is None else float(inner)


def shown(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "unknown"
    if figure["low"] is None:
        return f"{figure['value']:.2f} (n={figure['n']})"
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


if __name__ == "__main__":
    main()
