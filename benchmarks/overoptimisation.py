"""Optimise one proxy reward without care, and watch the true reward rise and then fall.

    python benchmarks/overoptimisation.py --out runs/overoptimisation --seeds 5 --json overoptimisation.json

Each seed draws its own preferences, trains its own members and runs RLOO against member 0 alone with a small constant
KL coefficient. The table gives the true reward at growing distance from the reference policy.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from surefoot.cli.demo import demo_study
from surefoot.files import read_json, write_json
from surefoot.run_records import cell_path
from surefoot.studies.config import method_settings
from surefoot.studies.run import run_study
from surefoot.studies.runners.local import LocalRunner
from world import UNREGULARISED

LEVELS = (0, 2, 4, 6, 8, 10, 15, 20, 25, 30, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--variant", default="even")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = demo_study(
        options.variant,
        3000,
        range(1000, 1000 + options.seeds),
        sources=UNREGULARISED,
        methods=method_settings(["vanilla"]),
        kl_budgets=(None,),
        policy={"beta": options.beta, "max_steps": options.steps, "learning_rate": options.learning_rate},
    )
    run_study(config, options.out, title="over-optimisation", runner=LocalRunner(options.workers))
    cells = [read_json(cell_path(options.out, cell.key)) for cell in config.cells()]
    rows = [row for level in LEVELS if (row := at_level(cells, level)) is not None]
    print(f"variant {options.variant}, one proxy, β = {options.beta}, N = {len(cells)} seeds")
    print(f"{'KL (nats)':>10} {'true reward':>12} {'± s.e.':>8} {'proxy':>8} {'seeds':>6}")
    for row in rows:
        error = "unknown" if row["standard_error"] is None else f"{row['standard_error']:.2f}"
        print(f"{row['kl']:>10} {row['gold']:>12.2f} {error:>8} {row['proxy']:>8.2f} {row['seeds']:>6}")
    if options.json is not None:
        write_json(options.json, {"variant": options.variant, "beta": options.beta, "rows": rows})


def at_level(cells: list[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """True reward and proxy where each run first comes to this KL, interpolated on smoothed trajectories."""
    pairs = [found for cell in cells if (found := crossing(cell["trajectory"], level)) is not None]
    if not pairs:
        return None
    gold = [pair[0] for pair in pairs]
    error = statistics.stdev(gold) / math.sqrt(len(gold)) if len(gold) > 1 else None
    proxy = statistics.fmean(pair[1] for pair in pairs)
    return {"kl": level, "gold": statistics.fmean(gold), "standard_error": error, "proxy": proxy, "seeds": len(pairs)}


def crossing(trajectory: list[dict[str, Any]], level: float, window: int = 5) -> tuple[float, float] | None:
    """(true reward, proxy) at the first window of steps whose mean KL reaches the level; None if it never does."""
    for start in range(len(trajectory) - window + 1):
        rows = trajectory[start : start + window]
        if level == 0 or statistics.fmean(row["kl"] for row in rows) >= level:
            return statistics.fmean(row["gold"] for row in rows), statistics.fmean(row["proxy"] for row in rows)
    return None


if __name__ == "__main__":
    main()
