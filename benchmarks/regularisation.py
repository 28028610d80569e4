"""Heads on the offline world with uneven coverage, by weight decay and size of the random priors.

    python benchmarks/regularisation.py --seeds 6 --json docs/results/regularisation.json

Held-out likelihood and accuracy on noisy labels; correlation with the true reward on 512 completions of the reference
policy, apart for the two styles that annotators saw (common) and the four that they hardly saw (rare); and how much
larger the members' variance is in the rare ones. The seeds (300, 301, …) serve for choosing settings and nothing else.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.data.world.language import STYLES
from surefoot.files import write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.studies.evaluation import reference_of
from surefoot.studies.settings import build_setting

COMMON = 2
"""Of the styles, plain and formal come first; annotators of the uneven world saw little else."""
DECAYS = (0.0, 0.1, 0.3, 1.0, 3.0)
KINDS: dict[str, dict[str, Any]] = {
    "one plain head": {"members": 1, "bootstrap": "none", "prior_scale": 0.0},
    "five, bootstrap": {"members": 5, "bootstrap": "exponential", "prior_scale": 0.0},
    "five, bootstrap, priors .3": {"members": 5, "bootstrap": "exponential", "prior_scale": 0.3},
    "five, bootstrap, priors 1": {"members": 5, "bootstrap": "exponential", "prior_scale": 1.0},
}
FIGURES = ("likelihood", "accuracy", "common", "rare", "spread", "variance_ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/regularisation"))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    setting = build_setting({"world": "uneven", "pairs": 3000}, options.out)
    reference = reference_of(setting, options.out, 512, 24)
    data = {seed: setting.preferences(seed) for seed in range(300, 300 + options.seeds)}
    head = ("heads", "weight decay", "held-out NLL", "accuracy", "correlation, common", "rare", "spread", "variance")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    rows = []
    for kind, changes in KINDS.items():
        for decay in DECAYS:
            found = []
            for seed, (train, held_out) in data.items():
                fit = {"layer": 0, "learning_rate": 1e-2, "epochs": 60, "weight_decay": decay}
                config = HeadsConfig(seed=seed, **fit, **changes)
                source = train_heads(train, setting.policy, config, cache_directory=options.out / "features")
                found.append(measure(source, held_out, reference))
            row = {"heads": kind, "weight_decay": decay, "n": len(found)}
            for name in FIGURES:
                values = [one[name] for one in found]
                row[name] = bootstrap_mean(values, np.random.default_rng(0)).to_dict()
            rows.append(row)
            print(f"| {kind} | {decay:g} | " + " | ".join(shown(row[name]) for name in FIGURES) + " |", flush=True)
    if options.json is not None:
        write_json(options.json, {"seeds": options.seeds, "rows": rows})


@torch.no_grad()
def measure(source: Any, held_out: Any, reference: dict[str, Any]) -> dict[str, float]:
    prompts = list(held_out["prompt"])
    chosen, rejected = (source.score(prompts, list(held_out[side])).mean(dim=1) for side in ("chosen", "rejected"))
    margin = (chosen - rejected).double().numpy()
    scores = source.score(reference["prompts"], reference["completions"]).double()
    mean, gold = scores.mean(dim=1).numpy(), np.array(reference["gold"])
    common = np.array([style_of(text) < COMMON for text in reference["completions"]])
    ratio = math.nan
    if scores.shape[1] > 1:
        variance = (scores - scores.mean(dim=0)).var(dim=1).numpy()
        ratio = float(np.median(variance[~common]) / np.median(variance[common]))
    return {
        "likelihood": float(np.logaddexp(0.0, -margin).mean()),
        "accuracy": float((margin > 0).mean()),
        "common": float(np.corrcoef(mean[common], gold[common])[0, 1]),
        "rare": float(np.corrcoef(mean[~common], gold[~common])[0, 1]),
        "spread": float(mean.std()),
        "variance_ratio": ratio,
    }


def style_of(completion: str) -> int:
    """The style that most of its words belong to."""
    words = set(completion.split())
    return int(np.argmax([len(words & {*s.openers, *s.adverbs, *s.adjectives, *s.remarks}) for s in STYLES]))


def shown(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return ""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
