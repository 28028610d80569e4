"""What a precise variance costs: a linear posterior and many heads against one plain reward model of the same trunk.

    python benchmarks/linear_and_heads.py --json docs/results/linear_and_heads.json

Scoring: a random Llama of 12 million parameters (hidden 384, 6 layers), texts of 128 to 254 tokens, fp32, one thread.
Each source takes turns with a plain model, a one-logit head on the same trunk at its fastest batch size, in one
process; which of the two comes first alternates. The ratio of CPU times of each pair of turns goes into the median and
quartiles.

Fitting: everything of `fit_linear` that comes after the features, for 3,000 pairs of 384 correlated features whose
labels are drawn from a linear truth and then turned round in one case of five; CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from reward_sources import cpu, fastest_batch, make_model, make_pairs, make_texts, plain_scores, shown
from surefoot.files import write_json
from surefoot.maths.linear import LinearFit, fit_bradley_terry
from surefoot.quiet import quieten
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.kinds.smoothed import smooth_variance
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.text_encoder import TextEncoder

LIMITS = {
    "linear": 1.02,
    "heads, K = 1": 1.02,
    "heads, K = 50": 1.05,
    "heads, K = 100": 1.05,
    "heads, K = 50, smoothed": 1.05,
}
"""Largest ratio to one plain model that is asked for."""
PAIRS, FEATURES, SECONDS = 3000, 384, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24, help="scored in each turn")
    parser.add_argument("--turns", type=int, default=25, help="pairs of turns of each source")
    parser.add_argument("--fits", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    fits = {name: fit_seconds(keywords, options.fits) for name, keywords in FITS.items()}
    print(f"fit after the features, {PAIRS} pairs × {FEATURES} features, CPU s (at most {SECONDS:.0f})")
    for name, row in fits.items():
        print(f"{name:<26} {shown(row):>22}   penalty {row['penalty']:.3g}, shrinkage {row['shrinkage']:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        scoring = score_ratios(Path(folder), options.texts, options.turns)
    print(f"scoring over one plain model, {options.texts} texts, {options.turns} turns; median [quartiles]")
    for name, row in scoring.items():
        print(f"{name:<26} {shown(row):>22}   at most {LIMITS.get(name, float('nan')):.2f}")
    if options.json is not None:
        write_json(options.json, {"pairs": PAIRS, "features": FEATURES, "texts": options.texts, "threads": 1,
                                  "fit_seconds": fits, "score_ratio": scoring})  # fmt: skip


FITS: dict[str, dict[str, Any]] = {
    "evidence, laplace": {"penalty": "evidence"},
    "evidence, sandwich": {"penalty": "evidence", "covariance": "sandwich"},
    "held out, laplace": {"penalty": "held_out"},
    "penalty given": {"penalty": 30.0},
}


def fit_seconds(keywords: dict[str, Any], fits: int) -> dict[str, float]:
    """Standardisation, differences, penalty, weights and posterior, as `fit_linear` makes them."""
    chosen, rejected = labelled_features(0)
    found: list[LinearFit] = []

    def fit() -> None:
        both = torch.cat([chosen, rejected])
        standard = ((both - both.mean(dim=0)) / both.std(dim=0, correction=1)).double()
        found.append(fit_bradley_terry(standard[:PAIRS] - standard[PAIRS:], **keywords))

    fit()
    seconds = [cpu(fit) for _ in range(fits)]
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high, "largest": max(seconds), "fits": fits,
            "penalty": found[0].penalty, "shrinkage": found[0].shrinkage}  # fmt: skip


def labelled_features(seed: int) -> tuple[Tensor, Tensor]:
    """(pairs, features) of the chosen and of the rejected sides, float32 with a spectrum that falls as 1/√k."""
    stream = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, FEATURES + 1).float().rsqrt()
    turn = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=stream)).Q
    sides = [torch.randn(PAIRS, FEATURES, generator=stream) * spectrum @ turn for _ in range(2)]
    truth = torch.randn(FEATURES, generator=stream)
    better = torch.rand(PAIRS, generator=stream) < torch.sigmoid((sides[0] - sides[1]) @ truth)
    first = better ^ (torch.rand(PAIRS, generator=stream) < 0.2)
    chosen, rejected = torch.where(first[:, None], sides[0], sides[1]), torch.where(first[:, None], sides[1], sides[0])
    return chosen, rejected


def score_ratios(folder: Path, texts: int, turns: int) -> dict[str, dict[str, float]]:
    base = make_model(folder / "base")
    data = make_pairs(32, np.random.default_rng(0))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    encoder = TextEncoder(PreTrainedTokenizerFast.from_pretrained(base), 512)
    prompts, completions = make_texts(texts)
    tokens = fastest_batch(model, encoder, prompts, completions)

    def heads(members: int) -> Any:
        return train_heads(data, base, HeadsConfig(members, pooling="last", epochs=1), device="cpu")

    kinds: dict[str, Callable[[], RewardSource]] = {
        "linear": lambda: fit_linear(data, base, LinearConfig(pooling="last"), device="cpu"),
        "heads, K = 1": lambda: heads(1),
        "heads, K = 50": lambda: heads(50),
        "heads, K = 100": lambda: heads(100),
        "heads, K = 50, smoothed": lambda: smooth_variance(heads(50), data, base, device="cpu"),
    }
    found = {}
    for name, make in kinds.items():
        source = make()
        found[name] = in_turns(
            lambda source=source: source.score(prompts, completions),  # type: ignore[misc]
            lambda: plain_scores(model, encoder, prompts, completions, tokens),
            turns,
        )
    return found


def in_turns(ours: Callable[[], Any], plain: Callable[[], Any], turns: int) -> dict[str, float]:
    """Ratio of CPU times, ours over plain, which of them comes first alternating; the first turn is thrown away."""
    ratios = []
    for turn in range(turns + 1):
        pair = (ours, plain) if turn % 2 else (plain, ours)
        seconds = [cpu(one) for one in pair]
        ratios.append(seconds[0] / seconds[1] if turn % 2 else seconds[1] / seconds[0])
    low, middle, high = np.quantile(ratios[1:], [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high, "turns": turns}


if __name__ == "__main__":
    main()
