"""The batched exact solver against a loop over SciPy's root finder, on the same problems, in one run.

    python benchmarks/exact.py --json docs/results/exact.json

Solves Σ π₀ exp((r − ν)/(βw)) = 1 for ν. Two loops over `scipy.optimize.brentq`, between the smallest and the largest
reward: "scipy" writes the equation with `scipy.special.logsumexp`, as one would; "tuned" with bare NumPy, arrays
prepared outside, which is several times faster. All are timed turn by turn; ratios are given with their spread.
The second part times table 1 of `surefoot theory` at 1,000 problems × 1,000 draws × 100 actions, with its peak memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp

from surefoot.files import write_json
from surefoot.theory.exact import weighted_optimum
from surefoot.theory.tables.closed_form import simulated_risks
from surefoot.theory.tables.problems import generator, normal, uneven_variances

BETA = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare(options.problems, actions, options.turns, name) for name in LOOPS for actions in (10, 50, 100)]
    print(f"{options.problems} problems, {options.threads} thread(s), {options.turns} turns")
    print(f"{'actions':>8} {'loop':>6} {'loop (s)':>9} {'batched (s)':>12} {'times faster':>15} {'differs by':>11}")
    for row in rows:
        spread = f"{row['speedup_median']:.0f} [{row['speedup_min']:.0f}, {row['speedup_max']:.0f}]"
        print(
            f"{row['actions']:>8} {row['loop']:>6} {row['loop_s']:>9.3f} {row['batched_s']:>12.5f} {spread:>15}"
            f" {row['largest_difference']:>11.1e}"
        )
    table = large_table()
    print(f"table 1 at 1,000 × 1,000 × 100: {table['seconds']:.1f} s, peak memory {table['peak_gib']:.2f} GiB")
    if options.json is not None:
        scipy, tuned = (statistics.median(r["speedup_median"] for r in rows if r["loop"] == name) for name in LOOPS)
        found = {"speedup_median": scipy, "speedup_median_tuned": tuned, "rows": rows, "table_1": table}
        write_json(options.json, found)


def compare(problems: int, actions: int, turns: int, name: str) -> dict[str, Any]:
    stream = generator(0, actions)
    reward, weight = normal(stream, problems, actions), uneven_variances(stream, problems, actions, 0.5)
    log_reference = normal(stream, problems, actions).log_softmax(dim=1)
    batched = weighted_optimum(reward, log_reference, weight, BETA)
    r, log_ref, w = (x.numpy() for x in (reward, log_reference, weight))
    log_sum = LOOPS[name]
    roots = loop(log_sum, r, log_ref, w)
    times = [
        (
            timed(lambda: loop(log_sum, r, log_ref, w)),
            timed(lambda: weighted_optimum(reward, log_reference, weight, BETA)),
        )
        for _ in range(turns)
    ]
    ratios = [slow / fast for slow, fast in times]
    return {
        "loop": name,
        "actions": actions,
        "problems": problems,
        "loop_s": statistics.median(slow for slow, _ in times),
        "batched_s": statistics.median(fast for _, fast in times),
        "speedup_median": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "largest_difference": float(np.abs(batched.nu.numpy() - roots).max()),
    }


LogSum = Callable[[np.ndarray, np.ndarray, np.ndarray], Callable[[float], float]]
"""(r, ln π₀, w) ↦ (ν ↦ ln Σ π₀ exp((r − ν)/(βw)))"""


def scipy_log_sum(r: np.ndarray, log_ref: np.ndarray, w: np.ndarray) -> Callable[[float], float]:
    return lambda nu: float(logsumexp(log_ref + (r - nu) / (BETA * w)))


def tuned_log_sum(r: np.ndarray, log_ref: np.ndarray, w: np.ndarray) -> Callable[[float], float]:
    slope = 1 / (BETA * w)
    height = log_ref + slope * r

    def log_sum(nu: float) -> float:
        x = height - slope * nu
        top = x.max()
        return float(top + np.log(np.exp(x - top).sum()))

    return log_sum


LOOPS: dict[str, LogSum] = {"scipy": scipy_log_sum, "tuned": tuned_log_sum}


def loop(log_sum: LogSum, reward: np.ndarray, log_reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """ν of each problem."""
    problems = zip(reward, log_reference, weight, strict=True)
    return np.array([brentq(log_sum(r, log_ref, w), r.min(), r.max(), xtol=1e-12) for r, log_ref, w in problems])


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def large_table() -> dict[str, float]:
    stream = generator(0, 0)
    rewards, variance = normal(stream, 1000, 100) / 10, uneven_variances(stream, 1000, 100, 0.5)
    seconds = timed(lambda: simulated_risks(rewards, variance, 1000, stream))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": peak}


if __name__ == "__main__":
    main()
