"""What runs that ended below the reference say, and what weight their completions have: did the variance see it?

    python benchmarks/lost_runs.py runs/risk/laplace

For each seed at which some method ended below the reference: every method's gain, the weights s̃²/s̄² of its kept
samples under the seed's own reward source (not clipped; 1 is the mean over the reference's completions), and a sample.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from surefoot.files import read_json
from surefoot.quiet import quieten
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.source import RewardSource
from surefoot.studies.evaluation import reference_anchors
from surefoot.studies.reward_sources import load_sources
from surefoot.studies.settings import prompt_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    quieten()
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((folder / "cells").glob("*.json")):
        cell = read_json(path)
        runs[cell["setting"], cell["source"], cell["kl_budget"], cell["seed"]].append(cell)
    for place, cells in sorted(runs.items(), key=str):
        if any(cell["metrics"]["gold_gain"] < 0 for cell in cells):
            print(*place)
            source, mean, reference = calibrated(cells, folder)
            for cell in cells:
                show(cell, source, mean, reference)


def calibrated(cells: list[dict[str, Any]], folder: Path) -> tuple[RewardSource, float, dict[str, Any]]:
    """The seed's source with its variance, s̄² on the reference's completions that the study judged, and these."""
    weighted = next((cell for cell in cells if cell["method"].startswith("variance_aware")), cells[0])
    source = load_sources(weighted["config"], folder)
    reference = read_json(next((folder / "reference").glob("*.json")))
    prompts = reference["prompts"]
    scores = source.score(prompts, reference["completions"])
    found = source.calibrate(scores, group_anchors(scores, torch.tensor(prompt_groups(prompts))))
    if found.reference_variance is None:
        raise SystemExit(f"'{source.name}' has no variance")
    return source, found.reference_variance, reference


def show(cell: dict[str, Any], source: RewardSource, mean: float, reference: dict[str, Any]) -> None:
    samples = cell["samples"]
    prompts, completions = ([one[name] for one in samples] for name in ("prompt", "completion"))
    anchors = reference_anchors(source, reference, prompts, len(reference["prompts"]))
    weights = (source.estimate(source.score(prompts, completions), anchors).variance / mean).tolist()
    strangest = completions[weights.index(max(weights))]
    print(
        f"  {cell['method']:<18} gain {cell['metrics']['gold_gain']:5.2f}  weights "
        f"{' '.join(f'{weight:.1f}' for weight in sorted(weights))}  most: {strangest[:60]!r}"
    )


if __name__ == "__main__":
    main()
