"""Does a source's variance grow away from the preferences it was made from? AUROC of variance, far texts against near.

    python benchmarks/far_from_data.py --source runs/hh_harmless/source --dataset ../shared/data/hh_harmless.parquet \
        --json docs/results/far_from_data.json

Near: held-out replies of the same data. Far: stories, Python source, the same replies with their words shuffled, and
replies of random words. Each text is a reply to the same held-out prompts and is centred by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import surefoot
from surefoot.data.preferences import load_preferences
from surefoot.files import write_json
from surefoot.maths.statistics import auroc
from surefoot.rewards.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.source import RewardSource, load_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="an 'independent' source; its first member is the one model")
    parser.add_argument("--heads", help="a 'heads' source to compare with")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=1000, help="training pairs for the posteriors")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = load_preferences(options.dataset, split="train", bad_rows="drop")
    test = load_preferences(options.dataset, split="test", bad_rows="drop").select(range(options.count))
    train = train.select(range(min(options.pairs, len(train))))
    model = f"{options.source}/members/0"

    def laplace(**settings: float) -> Callable[[], RewardSource]:
        return lambda: fit_laplace(train, model, LaplaceConfig(max_length=128, overlong="truncate", **settings))  # type: ignore[arg-type]

    sources: dict[str, Callable[[], RewardSource]] = {
        "independent": lambda: load_source(options.source),
        "laplace": laplace(),
        "distance, layer -1": laplace(distance=1.0, distance_layer=-1),
        "distance, layer -2": laplace(distance=1.0, distance_layer=-2),
        "distance, layer 3": laplace(distance=1.0, distance_layer=3),
        "distance, layer 1": laplace(distance=1.0, distance_layer=1),
        "distance, layer 0": laplace(distance=1.0, distance_layer=0),
        "dropout": lambda: DropoutMembers.from_model(model, DropoutConfig(10, max_length=128)),
    }
    if options.heads:
        sources["heads"] = lambda: load_source(options.heads)
    prompts, near = list(test["prompt"]), list(test["chosen"])
    far = far_texts(near, np.random.default_rng(0))
    found = {name: measure(make(), prompts, near, far) for name, make in sources.items()}
    print(f"AUROC of the variance, far against {len(near)} held-out replies [95%]")
    print(f"{'':<20}" + "".join(f"{kind:>22}" for kind in far))
    for name, row in found.items():
        print(f"{name:<20}" + "".join(f"{x['value']:>8.2f} [{x['low']:.2f}, {x['high']:.2f}]" for x in row.values()))
    if options.json is not None:
        write_json(options.json, {"count": len(near), "pairs": len(train), "auroc": found})


def measure(
    source: RewardSource, prompts: list[str], near: list[str], far: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    rows = source.score(prompts, near)
    source.calibrate(rows)
    inside = source.estimate(rows).variance
    found = {}
    for kind, texts in far.items():
        outside = source.estimate(source.score(prompts, texts)).variance
        labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
        found[kind] = auroc(torch.cat([inside, outside]).numpy(), labels.numpy()).to_dict()
    return found


def far_texts(near: list[str], rng: np.random.Generator) -> dict[str, list[str]]:
    count = len(near)
    code = "\n".join(path.read_text() for path in sorted(Path(surefoot.__file__).parent.rglob("*.py")))
    starts = rng.integers(0, len(code) - 400, count)
    stories = [json.loads(line)["prompt"] for line in Path("examples/story_prompts.jsonl").read_text().splitlines()]
    vocabulary = sorted({word for text in near for word in text.split()})
    return {
        "stories": [stories[i % len(stories)] for i in range(count)],
        "code": [code[start : start + 400] for start in starts],
        "shuffled": [" ".join(rng.permutation(text.split()).tolist()) for text in near],
        "random words": [" ".join(rng.choice(vocabulary, len(text.split()) or 1).tolist()) for text in near],
    }


if __name__ == "__main__":
    main()
