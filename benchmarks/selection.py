"""How long each rule of `surefoot select` takes, and how much memory it needs.

    python benchmarks/selection.py --json select.json

Synthetic scored completions with a posterior over their features: prompts with completions whose pairs make up the
candidates. Each rule runs in a process of its own, which chooses from scored rows (no text is scored). Measured are
its seconds (by the clock, and of the processor), the peak of its whole memory, and the peak before the rule began:
Python, torch and the scored rows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from surefoot.feedback.pairs import candidate_pairs
from surefoot.feedback.select import RULES, candidates_of, choose
from surefoot.files import write_json
from surefoot.maths.laplace import posterior
from surefoot.rewards.gaussian import GaussianSource, Term


class Synthetic(GaussianSource):
    """A posterior over given features; nothing is scored or saved."""

    name = "synthetic"

    def __init__(self, features: int, stream: torch.Generator) -> None:
        seen = torch.randn(2000, features, generator=stream, dtype=torch.float64)
        self.terms = [Term(posterior(0.2 * seen.T @ seen, 1.0), torch.zeros(features))]

    def score(self, prompts: Any, completions: Any) -> Any:
        raise NotImplementedError

    def save(self, directory: Any) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, directory: Any, device: Any = None) -> Any:
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--completions", type=int, default=8, help="of each prompt")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| rule | seconds | processor seconds | peak memory, GiB | of it before the rule, GiB |")
    print("|---|---|---|---|---|")
    rows = []
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # a new process for each rule
        for rule in options.rules:
            rows.append(pool.apply(measure, (options, rule)))
            figures = (f"{rows[-1][name]:.2f}" for name in ("seconds", "processor_seconds", "peak_gib", "before_gib"))
            print(f"| {rule} | {' | '.join(figures)} |", flush=True)
    if options.json is not None:
        settings = {name: getattr(options, name) for name in ("pairs", "features", "count", "completions")}
        machine = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "machine": platform.machine()}
        write_json(options.json, {**settings, **machine, "rules": rows})


def measure(options: argparse.Namespace, rule: str) -> dict[str, Any]:
    """Margins of all candidate pairs and one rule's choice, timed together."""
    stream = torch.Generator().manual_seed(0)
    source = Synthetic(options.features, stream)
    each = options.completions
    prompts = torch.arange(-(-options.pairs // (each * (each - 1) // 2))).repeat_interleave(each)
    rows = torch.randn(len(prompts), 1 + options.features, generator=stream)
    pairs, _ = candidate_pairs(prompts, [str(row) for row in range(len(prompts))], options.pairs, seed=0)
    before, began, began_processor = _peak_gib(), time.perf_counter(), time.process_time()
    candidates = candidates_of(source, rows, prompts, pairs)
    chosen = choose(rule, candidates, options.count, seed=0)
    seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
    assert len(set(chosen.tolist())) == options.count
    return {
        "rule": rule,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_gib": _peak_gib(),
        "before_gib": before,
    }


def _peak_gib() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main()
