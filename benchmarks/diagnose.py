"""How long a diagnosis takes once everything is scored: 20,000 pairs, ten members, page and JSON included.

    python benchmarks/diagnose.py --json docs/results/diagnose_speed.json

Members are random numbers around a common truth; what is timed is everything but the forwards of the models. Wall time
of whole turns, median and quartiles. Wanted: under 30 s.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis import diagnose, score_comparisons
from surefoot.files import write_json
from surefoot.reports.diagnosis import build_diagnosis
from surefoot.rewards.kinds.function import FunctionMembers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparisons = make_comparisons(options.pairs)
    source = FunctionMembers(scores(options.members), options.members, "random")
    scored = score_comparisons(source, comparisons)
    seconds = []
    for _ in range(options.turns):
        start = time.perf_counter()
        found = diagnose(source, comparisons, scored)
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder, "diagnose.json"), found)
            page = build_diagnosis(Path(folder, "diagnose.html"), found, {})
            size = page.stat().st_size
        seconds.append(time.perf_counter() - start)
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    print(
        f"{options.pairs} pairs, K = {options.members}: {middle:.1f} s [{low:.1f}, {high:.1f}], "
        f"page {size / 1024:.0f} KiB"
    )
    if options.json is not None:
        figures = {"pairs": options.pairs, "members": options.members, "turns": options.turns}
        write_json(options.json, figures | {"seconds": middle, "quartiles": [low, high], "page_bytes": size})


def make_comparisons(pairs: int) -> Comparisons:
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(500)])
    texts = [" ".join(rng.choice(words, size).tolist()) for size in rng.integers(20, 120, 2 * pairs)]
    return Comparisons(
        name="random",
        format="pairs",
        prompts=[f"prompt {i}" for i in range(pairs) for _ in range(2)],
        completions=list(texts),
        items=np.repeat(np.arange(pairs), 2),
        correct=np.tile([True, False], pairs),
        subsets=[f"subset {i % 8}" for i in range(pairs)],
        ids=[str(i) for i in range(pairs)],
    )


def scores(members: int) -> Any:
    stream = torch.Generator().manual_seed(0)

    def function(prompts: Any, completions: Any) -> torch.Tensor:
        truth = torch.randn(len(prompts), 1, generator=stream)
        return truth + torch.rand(len(prompts), 1, generator=stream) * torch.randn(
            len(prompts), members, generator=stream
        )

    return function


if __name__ == "__main__":
    main()
