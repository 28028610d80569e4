"""Is a KL budget reached, overshot and held? On the offline world over several seeds, and on a small real model.

    python benchmarks/kl_budget.py --json docs/results/kl_budget.json
    python benchmarks/kl_budget.py --config examples/stories260k.yaml --json docs/results/kl_budget_stories.json

KL is the mean over the last ten batches (one batch is noisy). Overshoot is its largest value over the budget, less 1;
held is its mean over the last quarter of the run, over the budget. Wanted: overshoot at most .20, held .90 to 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from surefoot.cli.demo import demo_study
from surefoot.cli.main import main as surefoot
from surefoot.files import read_json, write_json
from surefoot.studies.cell import cell_path
from surefoot.studies.config import method_settings
from surefoot.studies.risk import run_study
from surefoot.studies.runner import LocalRunner
from world import UNREGULARISED

WINDOW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/kl_budget"))
    parser.add_argument("--config", type=Path, help="a `surefoot rloo` config with target_kl, instead of the world")
    parser.add_argument("--methods", nargs="+", default=["variance_aware", "vanilla"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(410, 415)))
    parser.add_argument("--budget", type=float, default=6.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = stories(options) if options.config is not None else world(options)
    rows = [{"run": name, "budget": budget} | measure(kls, budget) for name, budget, kls in runs]
    print(f"{'run':<28} {'budget':>7} {'overshoot':>10} {'held':>6} {'reached at step':>16}")
    for row in rows:
        figures = f"{row['overshoot']:>10.2f} {row['held']:>6.2f} {row['reached']!s:>16}"
        print(f"{row['run']:<28} {row['budget']:>7.1f} {figures}")
    kept = sum(row["overshoot"] <= 0.20 and 0.90 <= row["held"] <= 1.10 for row in rows)
    print(f"{kept} of {len(rows)} runs within 20% overshoot and 10% of the budget")
    if options.json is not None:
        write_json(options.json, {"window": WINDOW, "kept": kept, "runs": rows})


def world(options: argparse.Namespace) -> list[tuple[str, float, list[float]]]:
    policy = {"beta": 1.0} | ({} if options.steps is None else {"max_steps": options.steps})
    config = demo_study(
        "uneven",
        3000,
        options.seeds,
        sources=UNREGULARISED,
        methods=method_settings(options.methods),
        kl_budgets=(options.budget,),
        policy=policy,
    )
    run_study(config, options.out, title="KL budget", runner=LocalRunner(options.workers))
    found = []
    for cell in sorted(config.cells(), key=lambda cell: (options.methods.index(cell.method), cell.seed)):
        path = read_json(cell_path(options.out, cell.key))["trajectory"]
        found.append((f"world, {cell.method}, seed {cell.seed}", options.budget, kls(path)))
    return found


def stories(options: argparse.Namespace) -> list[tuple[str, float, list[float]]]:
    settings = yaml.safe_load(options.config.read_text())
    found = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--output_dir", f"{folder}/out", "--seed", str(seed), "--logging_steps", "1"]
            words += [] if options.steps is None else ["--max_steps", str(options.steps)]
            if surefoot(["rloo", "--config", str(options.config), *words]):
                raise SystemExit(1)
            log = read_json(Path(folder, "out", "record.json"))["log"]
        rows = [{"kl": row["sequence_kl"]} for row in log if "sequence_kl" in row]
        found.append((f"{options.config.stem}, seed {seed}", float(settings["target_kl"]), kls(rows)))
    return found


def kls(rows: list[dict[str, Any]]) -> list[float]:
    return [row["kl"] for row in rows if row["kl"] is not None]


def measure(values: list[float], budget: float) -> dict[str, float | int | None]:
    smooth = [statistics.fmean(values[i - WINDOW : i]) for i in range(WINDOW, len(values) + 1)]
    reached = next((i + WINDOW for i, value in enumerate(smooth) if value >= 0.9 * budget), None)
    return {
        "overshoot": max(smooth) / budget - 1,
        "held": statistics.fmean(values[-max(1, len(values) // 4) :]) / budget,
        "reached": reached,
        "steps": len(values),
    }


if __name__ == "__main__":
    main()
