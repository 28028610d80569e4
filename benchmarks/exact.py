"""The batched exact solver against a loop over SciPy's root finder, on the same problems, in one run.

    python benchmarks/exact.py --json docs/results/exact.json

Solves Σ π₀ exp((r − ν)/(βw)) = 1 for ν. The loop is what one would write with SciPy: `brentq` between the smallest and the
largest reward, its function in NumPy. The two are timed turn by turn; the ratio is given with its spread over turns.
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

from surefoot.files import write_json
from surefoot.maths.exact import weighted_optimum
from surefoot.studies.theory.closed_form import simulated_risks
from surefoot.studies.theory.problems import generator, normal, uneven_variances

BETA = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare(options.problems, actions, options.turns) for actions in (10, 50, 100)]
    print(f"{options.problems} problems, {options.threads} thread(s), {options.turns} turns")
    print(
        f"{'actions':>8} {'loop (s)':>10} {'batched (s)':>12} {'times faster':>13} {'[min, max]':>16} {'differs by':>11}"
    )
    for row in rows:
        spread = f"[{row['speedup_min']:.0f}, {row['speedup_max']:.0f}]"
        print(
            f"{row['actions']:>8} {row['loop_s']:>10.3f} {row['batched_s']:>12.5f} {row['speedup_median']:>13.0f}"
            f" {spread:>16} {row['largest_difference']:>11.1e}"
        )
    table = large_table()
    print(f"table 1 at 1,000 × 1,000 × 100: {table['seconds']:.1f} s, peak memory {table['peak_gib']:.2f} GiB")
    if options.json is not None:
        median = statistics.median(row["speedup_median"] for row in rows)
        write_json(options.json, {"speedup_median": median, "rows": rows, "table_1": table})


def compare(problems: int, actions: int, turns: int) -> dict[str, Any]:
    stream = generator(0, actions)
    reward, weight = normal(stream, problems, actions), uneven_variances(stream, problems, actions, 0.5)
    log_reference = normal(stream, problems, actions).log_softmax(dim=1)
    batched = weighted_optimum(reward, log_reference, weight, BETA)
    r, log_ref, w = (x.numpy() for x in (reward, log_reference, weight))
    roots = loop(r, log_ref, w)
    times = [(timed(lambda: loop(r, log_ref, w)), timed(lambda: weighted_optimum(reward, log_reference, weight, BETA)))
             for _ in range(turns)]  # fmt: skip
    ratios = [slow / fast for slow, fast in times]
    return {
        "actions": actions,
        "problems": problems,
        "loop_s": statistics.median(slow for slow, _ in times),
        "batched_s": statistics.median(fast for _, fast in times),
        "speedup_median": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "largest_difference": float(np.abs(batched.nu.numpy() - roots).max()),
    }


def loop(reward: np.ndarray, log_reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    def root(r: np.ndarray, log_ref: np.ndarray, w: np.ndarray) -> float:
        slope = 1 / (BETA * w)
        height = log_ref + slope * r

        def log_sum(nu: float) -> float:
            # Plain NumPy: scipy.special.logsumexp would make the loop several times slower.
            x = height - slope * nu
            top = x.max()
            return float(top + np.log(np.exp(x - top).sum()))

        return float(brentq(log_sum, r.min(), r.max(), xtol=1e-12))

    return np.array([root(*problem) for problem in zip(reward, log_reference, weight, strict=True)])


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
