"""Speed of a frozen trunk on a CPU: scoring against a plain loop, and features of pairs with and without sharing.

    python benchmarks/trunk_speed.py --model_name_or_path MODEL --dataset_name PAIRS --json FILE
    python benchmarks/trunk_speed.py --model_name_or_path MODEL --dataset_name PAIRS --parts whole --json FILE

Scoring: a linear source's `score` and `estimate`, in float32 and in bfloat16, against a loop over the same texts in
batches of 16 and of 8, sorted by length and padded, through the same `AutoModel` in the same precision to the hidden
state of the last token. Features: those that a fit makes of both sides of its pairs, with what the two sides of a pair
begin with computed once, against each side by itself. Whole: the same for all pairs of the data set, from a systematic
sample of the batches that each way divides them into, its time scaled by the number of batches. All in one process on
one thread, in turns whose order alternates; a first round is thrown away. The ratio of each round's CPU times goes
into the median and the range.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from reward_sources import cpu
from surefoot.data.preferences import load_preferences
from surefoot.files import write_json
from surefoot.quiet import quieten
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
from surefoot.rewards.trunk.batching import forward_tokens
from surefoot.rewards.trunk.feature_cache import FeatureCache
from surefoot.rewards.trunk.packed_rows import pack
from surefoot.rewards.trunk.text_encoder import encode_pairs

BATCHES = (16, 8)
"""Rows of a batch of the plain loop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_name", required=True, help="preference pairs")
    parser.add_argument("--pairs", type=int, default=24, help="read in each turn, both sides")
    parser.add_argument("--parts", nargs="+", default=["score", "features"], choices=["score", "features", "whole"])
    parser.add_argument("--every", type=int, default=100, help="which batches of the whole data set are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    data = load_preferences(options.dataset_name, bad_rows="drop")
    some = data.select(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: options.pairs].tolist())
    parts: dict[str, Callable[[LinearReward], dict[str, Any]]] = {
        "score": lambda source: score_turns(source, some, options.rounds),
        "features": lambda source: feature_turns(source, some, options.rounds),
        "whole": lambda source: whole_turns(source, data, options.every, options.rounds),
    }
    found: dict[str, Any] = {}
    for dtype in options.dtypes:
        config = LinearConfig(pooling="last", dtype=dtype, overlong="truncate")
        source = fit_linear(some, options.model_name_or_path, config, device="cpu")
        found[dtype] = {part: parts[part](source) for part in options.parts}
        show(dtype, found[dtype])
    if options.json is not None:
        settings = {"pairs": len(some), "rounds": options.rounds, "threads": 1, "torch": torch.__version__}
        write_json(options.json, settings | {"dtypes": found})


def score_turns(source: LinearReward, pairs: Dataset, rounds: int) -> dict[str, Any]:
    """`score` and `estimate` of both sides of the pairs, against the loops."""
    prompts = list(pairs["prompt"]) * 2
    completions = list(pairs["chosen"]) + list(pairs["rejected"])
    groups = torch.arange(len(pairs)).repeat(2)

    def ours() -> None:
        scores = source.score(prompts, completions)
        source.estimate(scores, group_anchors(scores, groups, "dataset"))

    ways = {"surefoot": ours}
    for size in BATCHES:
        ways[f"loop of {size}"] = lambda size=size: plain_loop(source, prompts, completions, size)  # type: ignore[misc]
    return in_turns(ways, len(prompts), rounds)


@torch.no_grad()
def plain_loop(source: LinearReward, prompts: list[Any], completions: list[Any], size: int) -> torch.Tensor:
    """Last token's hidden state of each row, float32, in batches of `size` rows sorted by length."""
    rows, pad = source.encoder(prompts, completions), source.encoder.tokenizer.pad_token_id
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    states = torch.empty(len(rows), source.trunk.config.hidden_size)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        longest = len(rows[batch[0]])
        ids = torch.tensor([rows[i] + [pad] * (longest - len(rows[i])) for i in batch])
        lengths = torch.tensor([len(rows[i]) for i in batch])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        out = source.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states[batch] = out[torch.arange(len(batch)), lengths - 1].float()
    return states


def feature_turns(source: LinearReward, pairs: Dataset, rounds: int) -> dict[str, Any]:
    """A fit's features of both sides, shared against alone."""
    encoded = encode_pairs(pairs, source.encoder, overlong="truncate")
    rows = list(encoded["chosen_ids"]) + list(encoded["rejected_ids"])
    features: dict[str, torch.Tensor] = {}

    def made(name: str, keys: list[int] | None) -> None:
        pad = source.encoder.tokenizer.pad_token_id
        features[name] = FeatureCache(None).get(
            source.trunk, rows, pooling=source.pooling, layer=source.layer, pad_token_id=pad, keys=keys
        )

    pairing = [*range(len(encoded))] * 2
    found = in_turns(
        {"shared": lambda: made("shared", pairing), "alone": lambda: made("alone", None)}, len(rows), rounds
    )
    gap = (features["shared"] - features["alone"]).abs().max() / features["alone"].abs().max()
    return found | {"largest_difference": float(gap), "tokens": sum(map(len, rows))}


def whole_turns(source: LinearReward, pairs: Dataset, every: int, rounds: int) -> dict[str, Any]:
    """A fit's features of all pairs that aren't too long, shared against alone, estimated from some of the batches."""
    encoded = encode_pairs(pairs, source.encoder, overlong="drop")
    rows, keys = list(encoded["chosen_ids"]) + list(encoded["rejected_ids"]), [*range(len(encoded))] * 2
    tokens = forward_tokens(torch.device("cpu"))
    packed, left = pack(rows, keys, tokens)
    shared = [[number for row in batch for number in row.numbers] for batch in packed]
    ways = {
        "shared": shared + sorted_batches(rows, left, tokens),
        "alone": sorted_batches(rows, range(len(rows)), tokens),
    }
    timed = {name: [number for batch in batches[every // 2 :: every] for number in batch]
             for name, batches in ways.items()}  # fmt: skip
    scale = {name: len(batches) / len(batches[every // 2 :: every]) for name, batches in ways.items()}

    def read(name: str) -> None:
        FeatureCache(None).get(
            source.trunk,
            [rows[i] for i in timed[name]],
            pooling=source.pooling,
            layer=source.layer,
            pad_token_id=source.encoder.tokenizer.pad_token_id,
            keys=[keys[i] for i in timed[name]] if name == "shared" else None,
        )

    computed = sum(len(row.ids) for batch in packed for row in batch) + sum(len(rows[i]) for i in left)
    found = in_turns({name: partial(read, name) for name in ways}, len(rows), rounds, scale)
    return found | {"tokens": sum(map(len, rows)), "tokens_computed_once": computed,
                    "rows_timed": {name: len(numbers) for name, numbers in timed.items()}}  # fmt: skip


def sorted_batches(rows: list[list[int]], numbers: Iterable[int], tokens: int) -> list[list[int]]:
    """The batches of `length_sorted_batches`, as numbers of rows."""
    order, batches = sorted(numbers, key=lambda i: -len(rows[i])), []
    while order:
        count = max(1, tokens // len(rows[order[0]]))
        batches.append(order[:count])
        order = order[count:]
    return batches


def in_turns(
    ways: dict[str, Callable[[], None]], rows: int, rounds: int, scale: dict[str, float] | None = None
) -> dict[str, Any]:
    """Rows a CPU-second of each way, and how many times as fast the first is as each other one, round by round.

    Args:
        rows: read by each way.
        scale: multiplies each way's seconds, where it reads a part of the rows.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            seconds[name].append(cpu(ways[name]) * (scale or {}).get(name, 1.0))
    kept = {name: np.array(values[1:]) for name, values in seconds.items()}
    first = next(iter(ways))
    speeds = {name: float(rows / np.median(values)) for name, values in kept.items()}
    ratios = {name: spread(values / kept[first]) for name, values in kept.items() if name != first}
    return {"rows": rows, "rounds": rounds, "rows_per_cpu_second": speeds, f"{first}_times_as_fast_as": ratios}


def spread(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": float(values.min()), "highest": float(values.max())}


def show(dtype: str, found: dict[str, Any]) -> None:
    for what, row in found.items():
        for name, speed in row["rows_per_cpu_second"].items():
            print(f"{dtype:<9} {what:<9} {name:<11} {speed:6.2f} rows a CPU-second")
        for key, ratios in row.items():
            if key.endswith("_times_as_fast_as"):
                for name, ratio in ratios.items():
                    low, high = ratio["lowest"], ratio["highest"]
                    print(
                        f"{dtype:<9} {what:<9} {ratio['median']:.2f} [{low:.2f}, {high:.2f}] times as fast as {name}"
                    )
        if "largest_difference" in row:
            print(f"{dtype:<9} {what:<9} largest difference, of the largest feature: {row['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
