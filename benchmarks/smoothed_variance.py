"""How well a variance follows the true sampling variance: raw, moderated and smoothed over features, of 5 to 50 heads.

    python benchmarks/smoothed_variance.py --json docs/results/smoothed_variance.json

A pipeline is a fresh draw of preferences of the offline world and heads trained on it. Rows are completions of the
reference policy, anchored by others of the same prompt. Prior and regression are fitted to rows of training prompts,
as a trainer does; then the log variance of each completion of test prompts is correlated with the log of the true
one, the variance over pipelines of the anchored mean of as many heads. Mean and standard deviation over pipelines. A
true variance of N pipelines has an error of its own: "at most" is the correlation that an exact variance would have
with it.

"smoothed" is the library's. Rows below it are the same regression on other functions of the features, which were
tried.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import polygamma
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.data.world import VARIANTS, World, build_world
from surefoot.files import write_json
from surefoot.maths import ensemble
from surefoot.maths.smoothing import PairScatter, fit_log_variance, smoothed_reliability
from surefoot.quiet import quieten
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import fit_heads
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_tokenizer, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.training.sampling import sample_completions

MEMBERS = (5, 10, 50)
SETUPS: dict[str, dict[str, Any]] = {
    "resampled pairs": {"bootstrap": "poisson", "prior_scale": 0.0},
    "Bayesian bootstrap and random priors": {"bootstrap": "exponential", "prior_scale": 1.0},
}
TRAINING = {"layer": 0, "learning_rate": 1e-2, "weight_decay": 1.0, "epochs": 60}
"""As in the demo's and the studies' heads."""
COMPONENTS = 16

Read = Callable[[list[str], list[str]], Tensor]


@dataclass(frozen=True)
class Rows:
    """Features of completions, (prompts, completions, features), and of their anchors, (prompts, M, features)."""

    features: Tensor
    anchors: Tensor

    def anchored(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(rows, columns) of a function of features, less its mean over the anchors; float64."""
        centre = function(self.anchors).double().mean(dim=1, keepdim=True)
        return (function(self.features).double() - centre).flatten(0, 1)


@dataclass(frozen=True)
class Pipeline:
    """Anchored scores of all heads, and what the regression reads, each of the (calibration, test) rows."""

    scores: tuple[Tensor, Tensor]
    functions: dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="uneven")
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--pipelines", type=int, default=24)
    parser.add_argument("--first_seed", type=int, default=7300)
    parser.add_argument("--anchors", type=int, default=4, help="reference completions of an anchor")
    parser.add_argument("--out", type=Path, help="keeps the world")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        world = build_world(options.out or temporary)
        read = reader(world)
        model = AutoModelForCausalLM.from_pretrained(world.policy_path)
        tokenizer = AutoTokenizer.from_pretrained(world.policy_path)
        calibration = draw(read, model, tokenizer, world.prompts("train")[:64], 8, options.anchors, 1)
        test = draw(read, model, tokenizer, world.prompts("test")[:24], 96, options.anchors, 2)
        rows = [row for setup in SETUPS for row in study(world, read, calibration, test, setup, options)]
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "json")}
        write_json(options.json, settings | {"rows": rows})


def reader(world: World) -> Read:
    trunk = load_trunk(world.policy_path, torch.device("cpu"))
    encoder = TextEncoder(load_tokenizer(world.policy_path), 512)

    def read(prompts: list[str], completions: list[str]) -> Tensor:
        pad = encoder.tokenizer.pad_token_id
        return compute_features(trunk, encoder(prompts, completions), pooling="mean", layer=0, pad_token_id=pad)

    return read


def draw(read: Read, model: Any, tokenizer: Any, prompts: list[str], count: int, anchors: int, seed: int) -> Rows:
    asked = [prompt for prompt in prompts for _ in range(count + anchors)]
    texts = sample_completions(model, tokenizer, asked, max_new_tokens=24, seed=seed)
    features = read(asked, texts).view(len(prompts), count + anchors, -1)
    return Rows(features[:, :count], features[:, count:])


def study(world: World, read: Read, calibration: Rows, test: Rows, setup: str, options: Any) -> list[dict[str, Any]]:
    seeds = range(options.first_seed, options.first_seed + options.pipelines)
    pipelines = [pipeline(world, read, calibration, test, SETUPS[setup], options, seed) for seed in seeds]
    print(f"\n{options.variant}, {options.pairs} pairs, {setup}, {len(pipelines)} pipelines, M = {options.anchors}")
    print("| K | at most | variance | correlation with the true log variance | reliability |\n|---|---|---|---|---|")
    found = []
    for members in MEMBERS:
        means = torch.stack([one.scores[1][:, :members].mean(dim=1) for one in pipelines])
        truth = means.var(dim=0, correction=1).log()
        noise = float(polygamma(1, (len(pipelines) - 1) / 2))
        most = math.sqrt(max(0.0, 1 - noise / float(truth.var(correction=1))))
        each = [variances(one, members) for one in pipelines]
        for name in each[0]:
            rho = [correlation(one[name][0].log(), truth) for one in each]
            reliable = [one[name][1] for one in each]
            row = {"setup": setup, "members": members, "variance": name, "n": len(pipelines), "at_most": most,
                   "correlation": float(np.mean(rho)), "sd": float(np.std(rho, ddof=1)),
                   "reliability": float(np.mean(reliable))}  # fmt: skip
            found.append({key: None if value != value else value for key, value in row.items()})
            shown = "" if found[-1]["reliability"] is None else f"{row['reliability']:.2f}"
            print(f"| {members} | {most:.2f} | {name} | {row['correlation']:.2f} ± {row['sd']:.2f} | {shown} |")
    return found


def pipeline(
    world: World, read: Read, calibration: Rows, test: Rows, setup: dict[str, Any], options: Any, seed: int
) -> Pipeline:
    table = world.draw_preferences(options.variant, options.pairs, seed)
    prompts = list(table["prompt"])
    chosen, rejected = (read(prompts, list(table[side])) for side in ("chosen", "rejected"))
    config = HeadsConfig(members=max(MEMBERS), seed=seed, **TRAINING, **setup)
    keys = [[prompt, table["chosen"][i], table["rejected"][i]] for i, prompt in enumerate(prompts)]
    weights = bootstrap_weights(keys, config.members, seed, config.bootstrap)
    heads = fit_heads(chosen, rejected, weights, torch.zeros(len(prompts)), config).requires_grad_(False)
    spread = torch.cat([chosen, rejected]).std(dim=0, correction=1).clamp(min=1e-6)
    scatter = PairScatter.of((chosen - rejected) / spread)
    both = (calibration, test)
    deltas = [rows.anchored(lambda x: x / spread) for rows in both]
    functions = {name: tuple(function(delta) for delta in deltas) for name, function in functions_of(scatter).items()}
    functions["the features themselves"] = tuple((rows.features / spread).flatten(0, 1).double() for rows in both)
    return Pipeline(tuple(rows.anchored(heads) for rows in both), functions)  # type: ignore[arg-type]


def functions_of(scatter: PairScatter) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of the anchored features δ; the first is the library's."""

    def squares(delta: Tensor) -> Tensor:
        return (delta @ scatter.basis[:, -COMPONENTS:]).square()

    def norm(delta: Tensor) -> Tensor:
        return delta.square().sum(dim=1, keepdim=True).log()

    return {
        "smoothed": scatter.lengths,
        "ln ‖δ‖²": norm,
        f"squares of δ's {COMPONENTS} leading components": squares,
        "ln ‖δ‖² and those squares": lambda delta: torch.cat([norm(delta), squares(delta)], dim=1),
        "ln ‖δ‖² and shares of those squares": lambda delta: torch.cat(
            [norm(delta), squares(delta) / norm(delta).exp()], dim=1
        ),
    }


def variances(one: Pipeline, members: int) -> dict[str, tuple[Tensor, float]]:
    """(variance of each test row, reliability over the calibration rows) by kind."""
    fitted_on, asked = (scores[:, :members] for scores in one.scores)
    known, raw, freedom = ensemble.sample_variance(fitted_on), ensemble.sample_variance(asked), members - 1.0
    reliability = ensemble.reliability(fitted_on)
    prior = ensemble.fit_prior(known, freedom)
    found = {
        "raw": (raw, reliability),
        "moderated": (ensemble.moderate(raw, freedom, prior), reliability),
    }
    for name, (before, after) in one.functions.items():
        smooth = fit_log_variance(before, known, freedom).of(after)
        reliable = smoothed_reliability(fitted_on, before) if name == "smoothed" else math.nan
        found[name] = (smooth, reliable)
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    """0 where a variance is the same throughout, as a moderated one is with an infinite prior."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) if float(a.std(correction=1)) > 1e-9 else 0.0


if __name__ == "__main__":
    main()
