"""Is a KL budget reached, overshot and held? On the offline world over several seeds, and on a small real model.

    python benchmarks/kl_budget.py --steps 160 --budgets 6 12 --json docs/results/kl_budget.json
    python benchmarks/kl_budget.py --config examples/stories260k.yaml --json docs/results/kl_budget_stories.json

KL is the mean over the last ten batches (one batch is noisy). Overshoot is its largest value over the budget, less 1;
held is its mean over the last quarter of the run, over the budget. Wanted: overshoot at most .20, held .90 to 1.10.
On the way is of the batches before 90% of the budget is reached: the smallest β over the last quarter's mean, and the
mean of weight/effect; a penalty that is switched off there protects nobody. Gain is the true reward's, at the end.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from surefoot.cli.demo import LINEAR, demo_study
from surefoot.cli.main import main as surefoot
from surefoot.files import read_json, write_json
from surefoot.run_records import cell_path
from surefoot.studies.config import method_settings
from surefoot.studies.run import run_study
from surefoot.studies.runners.local import LocalRunner
from world import UNREGULARISED

WINDOW = 10
SOURCES: dict[str, dict[str, Any]] = {"linear": {"linear": LINEAR}, "heads": UNREGULARISED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/kl_budget"))
    parser.add_argument("--config", type=Path, help="a `surefoot rloo` config with target_kl, instead of the world")
    parser.add_argument("--methods", nargs="+", default=["variance_aware", "vanilla"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(440, 445)))
    parser.add_argument("--source", choices=sorted(SOURCES), default="linear")
    parser.add_argument("--budgets", type=float, nargs="+", default=[6.0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--beta", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = stories(options) if options.config is not None else world(options)
    rows = [{"run": name, "budget": budget, "gain": gain} | measure(path, budget) for name, budget, path, gain in runs]
    head = ("overshoot", "held", "reached at", "least beta", "effect", "gain")
    print(f"{'run':<34} {'budget':>7} " + " ".join(f"{name:>10}" for name in head))
    for row in rows:
        figures = [f"{row['overshoot']:.2f}", f"{row['held']:.2f}", str(row["reached"]), f"{row['least_beta']:.2f}"]
        figures += ["" if row[name] is None else f"{row[name]:.2f}" for name in ("effect", "gain")]
        print(f"{row['run']:<34} {row['budget']:>7.1f} " + " ".join(f"{figure:>10}" for figure in figures))
    kept = sum(row["overshoot"] <= 0.20 and 0.90 <= row["held"] <= 1.10 for row in rows)
    print(f"{kept} of {len(rows)} runs within 20% overshoot and 10% of the budget")
    if options.json is not None:
        write_json(options.json, {"window": WINDOW, "kept": kept, "runs": rows})


Batches = list[dict[str, float | None]]
"""A run's batches: kl, beta and effect."""
Run = tuple[str, float, Batches, float | None]
"""Its name, budget and batches, and what it gained in true reward where that is known."""


def policy_settings(options: argparse.Namespace) -> dict[str, float | int]:
    given = {"max_steps": options.steps, "learning_rate": options.learning_rate, "beta": options.beta}
    return {name: value for name, value in given.items() if value is not None}


def world(options: argparse.Namespace) -> list[Run]:
    config = demo_study(
        "uneven",
        3000,
        options.seeds,
        sources=SOURCES[options.source],
        methods=method_settings(options.methods),
        kl_budgets=tuple(options.budgets),
        policy={"beta": 1.0} | policy_settings(options),
    )
    run_study(config, options.out, title="KL budget", runner=LocalRunner(options.workers))
    found: list[Run] = []
    for cell in sorted(
        config.cells(), key=lambda cell: (cell.kl_budget, options.methods.index(cell.method), cell.seed)
    ):
        record = read_json(cell_path(options.out, cell.key))
        name = f"{options.source}, {cell.method}, seed {cell.seed}"
        found.append((name, float(cell.kl_budget or 0.0), record["trajectory"], record["metrics"]["gold_gain"]))
    return found


def stories(options: argparse.Namespace) -> list[Run]:
    settings = yaml.safe_load(options.config.read_text())
    found: list[Run] = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--output_dir", f"{folder}/out", "--seed", str(seed), "--logging_steps", "1"]
            words += [word for name, value in policy_settings(options).items() for word in (f"--{name}", str(value))]
            if surefoot(["rloo", "--config", str(options.config), *words]):
                raise SystemExit(1)
            log = read_json(Path(folder, "out", "record.json"))["log"]
        names = {"kl": "sequence_kl", "beta": "beta", "effect": "weight/effect"}
        path = [{name: row.get(key) for name, key in names.items()} for row in log if "sequence_kl" in row]
        found.append((f"{options.config.stem}, seed {seed}", float(settings["target_kl"]), path, None))
    return found


def measure(path: Batches, budget: float) -> dict[str, Any]:
    path = [row for row in path if row["kl"] is not None]
    values, betas = ([float(row[name] or 0.0) for row in path] for name in ("kl", "beta"))
    smooth = [statistics.fmean(values[i - WINDOW : i]) for i in range(WINDOW, len(values) + 1)]
    reached = next((i + WINDOW for i, value in enumerate(smooth) if value >= 0.9 * budget), None)
    quarter, climb = max(1, len(path) // 4), reached or len(path)
    effects = [float(row["effect"]) for row in path[:climb] if row.get("effect") is not None]
    return {
        "overshoot": max(smooth) / budget - 1,
        "held": statistics.fmean(values[-quarter:]) / budget,
        "least_beta": min(betas[:climb]) / statistics.fmean(betas[-quarter:]),
        "effect": statistics.fmean(effects) if effects else None,
        "reached": reached,
        "steps": len(values),
    }


if __name__ == "__main__":
    main()
