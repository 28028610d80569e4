"""What weights can give at most, on the offline world: exact optima on candidates, no policy optimisation in the way.

    python benchmarks/variance_ceiling.py --json docs/results/variance_ceiling.json

Candidates are samples of the reference policy for the test prompts. A pipeline is a fresh draw of preferences and
the sources fitted to it. The optimum of each objective is exact on the candidates, with one β for all prompts so
that the mean KL is the budget. The true sampling variance is that of the linear head's anchored reward over the
pipelines, and the true squared error the mean of (reward − truth)² over them, the reward brought to the truth's
scale; for a pipeline both are taken over the *other* pipelines. Heads are fitted with the penalty that evidence
chooses, and with a weak one. rho: correlation of the log variance with the log of the true sampling variance at
the same penalty, mean over pipelines. Spread: standard deviation of the gain over pipelines. Prompt risk: share of
prompts and pipelines on which the policy's true reward is below the reference's. bias² and variance are of the
head's anchored reward, brought to the truth's scale, averaged over candidates.
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
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.data.world import VARIANTS, World, build_world
from surefoot.files import write_json
from surefoot.maths import ensemble, objectives
from surefoot.maths.linear import fit_bradley_terry
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import fit_heads
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_tokenizer, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.theory.exact import Optimum, divergence, optimum
from surefoot.training.sampling import sample_completions
from surefoot.types import RewardEstimate
from world import HEADS

ANCHOR_COMPLETIONS = 32
SAMPLES = 990_002
PENALTIES: dict[str, Any] = {"evidence": "evidence", "weak": 30.0}
"""Of the linear heads, by name: chosen by evidence (about 240 with 3,000 pairs), and one that overfits."""


@dataclass(frozen=True)
class Candidates:
    """(prompts, candidates) texts of the reference policy with their features, anchors' features and true rewards."""

    features: Tensor
    anchors: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Judged:
    """One source's view of the candidates: anchored reward and variance, (prompts, candidates) each."""

    reward: Tensor
    variance: Tensor | None
    members: Tensor | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="uneven")
    parser.add_argument("--pairs", type=int, nargs="+", default=[3000, 400])
    parser.add_argument("--pipelines", type=int, default=20)
    parser.add_argument("--first_seed", type=int, default=7000)
    parser.add_argument("--candidates", type=int, default=192)
    parser.add_argument("--budget", type=float, default=3.0)
    parser.add_argument("--penalties", type=float, nargs="*", default=[], help="further penalties of the plain head")
    parser.add_argument("--kappas", type=float, nargs="*", default=[2.0, 5.0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    if options.budget > math.log(options.candidates) - 1:
        raise SystemExit(f"{options.candidates} candidates carry a budget of at most ln n − 1 nats")
    with tempfile.TemporaryDirectory() as temporary:
        world = build_world(options.out or temporary)
        read = reader(world)
        candidates = draw_candidates(world, read, options.candidates)
        rows = [row for pairs in options.pairs for row in study(world, read, candidates, pairs, options)]
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "json")}
        write_json(options.json, settings | {"rows": rows})


def reader(world: World) -> Callable[[list[str], list[str]], Tensor]:
    """(prompts, completions) to (rows, features): mean of the word embeddings, as the studies' sources read them."""
    trunk = load_trunk(world.policy_path, torch.device("cpu"))
    encoder = TextEncoder(load_tokenizer(world.policy_path), 512)

    def read(prompts: list[str], completions: list[str]) -> Tensor:
        rows, pad = encoder(prompts, completions), encoder.tokenizer.pad_token_id
        return compute_features(trunk, rows, pooling="mean", layer=0, pad_token_id=pad)

    return read


def draw_candidates(world: World, read: Callable[[list[str], list[str]], Tensor], count: int) -> Candidates:
    model = AutoModelForCausalLM.from_pretrained(world.policy_path)
    tokenizer = AutoTokenizer.from_pretrained(world.policy_path)
    prompts = [prompt for prompt in world.prompts("test") for _ in range(count + ANCHOR_COMPLETIONS)]
    texts = sample_completions(model, tokenizer, prompts, max_new_tokens=24, seed=SAMPLES)
    features = read(prompts, texts).view(-1, count + ANCHOR_COMPLETIONS, model.config.hidden_size)
    truth = torch.tensor(world.true_reward(prompts, texts), dtype=torch.float64).view(features.shape[:2])
    return Candidates(features[:, :count], features[:, count:].mean(dim=1, keepdim=True), truth[:, :count])


def study(
    world: World, read: Callable[[list[str], list[str]], Tensor], candidates: Candidates, pairs: int, options: Any
) -> list[dict[str, Any]]:
    seeds = range(options.first_seed, options.first_seed + options.pipelines)
    pipelines = [sources(world, read, candidates, options, pairs, seed) for seed in seeds]
    print(f"\n{options.variant}, {pairs} pairs, {len(pipelines)} pipelines, {options.budget:g} nats")
    errors, heads = {}, {}
    for penalty in PENALTIES:
        heads[penalty] = torch.stack([found[f"{penalty}, laplace"].reward for found in pipelines])
        errors[penalty] = bias_and_variance(heads[penalty], candidates.truth)
        print(f"{penalty}: bias² {errors[penalty]['bias']:.2f}, variance {errors[penalty]['variance']:.2f}, "
              f"variance of the truth {errors[penalty]['truth']:.2f}")  # fmt: skip
        for k, found in enumerate(pipelines):
            others = torch.cat([heads[penalty][:k], heads[penalty][k + 1 :]])
            own = heads[penalty][k]
            found[f"{penalty}, true sampling variance"] = Judged(own, others.var(dim=0, correction=1))
            found[f"{penalty}, true squared error"] = Judged(own, squared_error(others, candidates.truth))
    rows = []
    for name, weights, kappa in methods(pipelines[0], options):
        judged = [found[name] for found in pipelines]
        gains = torch.stack([gain(one, weights, kappa, candidates.truth, options.budget) for one in judged])
        penalty = name.split(",")[0] if name.split(",")[0] in PENALTIES else "evidence"
        rows.append(row_of(name, weights, kappa, gains, judged, heads[penalty]) | {"pairs": pairs} | errors[penalty])
        show(rows[-1])
    return rows


def methods(found: dict[str, Judged], options: Any) -> list[tuple[str, bool, float]]:
    """(source, whether it weighs, κ of its lower confidence bound)."""
    plain = [(name, False, 0.0) for name in found if name.endswith((", laplace", ", moderated")) or "penalty" in name]
    weighted = [(name, True, 0.0) for name in found if "penalty" not in name]
    bounds = [("evidence, laplace", weigh, kappa) for kappa in options.kappas for weigh in (False, True)]
    return plain + weighted + bounds


def sources(
    world: World,
    read: Callable[[list[str], list[str]], Tensor],
    candidates: Candidates,
    options: Any,
    pairs: int,
    seed: int,
) -> dict[str, Judged]:
    table = world.draw_preferences(options.variant, pairs, seed)
    prompts = list(table["prompt"])
    chosen, rejected = (read(prompts, list(table[side])) for side in ("chosen", "rejected"))
    both = torch.cat([chosen, rejected])
    spread = both.std(dim=0, correction=1).clamp(min=1e-6)
    difference, delta = (chosen - rejected) / spread, ((candidates.features - candidates.anchors) / spread).double()
    found = {}
    for name, penalty in PENALTIES.items():
        for covariance in ("laplace", "sandwich"):
            fit = fit_bradley_terry(difference, penalty=penalty, covariance=covariance)  # type: ignore[arg-type]
            variance = fit.covariance.quadratic(delta.flatten(0, 1)).view(delta.shape[:2])
            found[f"{name}, {covariance}"] = Judged(delta @ fit.weights, variance)
    for penalty in options.penalties:
        fit = fit_bradley_terry(difference, penalty=penalty)
        found[f"penalty {penalty:g}"] = Judged(delta @ fit.weights, None)
    for members in (5, 50):
        config = HeadsConfig(**{name: value for name, value in HEADS.items() if name != "kind"} | {"members": members})
        rows = list(zip(map(list, enumerate(prompts)), prompts, strict=True))
        weights = bootstrap_weights(rows, members, seed, config.bootstrap)  # type: ignore[arg-type]
        heads = fit_heads(chosen, rejected, weights, torch.zeros(len(chosen)), config)
        with torch.no_grad():
            scores = (heads(candidates.features) - heads(candidates.anchors)).double()
        raw = ensemble.sample_variance(scores.flatten(0, 1))
        prior = ensemble.fit_prior(raw, members - 1.0)
        for kind, variance in (("raw", raw), ("moderated", ensemble.moderate(raw, members - 1.0, prior))):
            found[f"{members} heads, {kind}"] = Judged(scores.mean(dim=-1), variance.view(delta.shape[:2]), scores)
    return found


def gain(judged: Judged, weights: bool, kappa: float, truth: Tensor, budget: float) -> Tensor:
    """(prompts,) true reward of the exact policy over the reference's, at the budget."""
    estimate = RewardEstimate(mean=judged.reward.flatten(), epistemic=_flat(judged.variance))
    reward = judged.reward if kappa == 0 else objectives.lower_confidence_bound(estimate, kappa).view(truth.shape)
    w = None
    if weights and judged.variance is not None:
        w = objectives.weights(estimate.variance, float(judged.variance.mean())).view(truth.shape)
    policy = at_budget(reward, w, budget).policy
    return (policy * truth).sum(dim=1) - truth.mean(dim=1)


def at_budget(reward: Tensor, weight: Tensor | None, budget: float) -> Optimum:
    """The optimum with one β for all prompts, found by bisection of ln β so that the mean KL is the budget."""
    log_reference = torch.full_like(reward, -math.log(reward.shape[1]))
    low, high = -15.0, 10.0
    for _ in range(45):
        middle = (low + high) / 2
        found = optimum(reward, log_reference, weight, math.exp(middle))
        kl = float(divergence(found.log_ratio, log_reference).mean())
        low, high = (middle, high) if kl > budget else (low, middle)
    return optimum(reward, log_reference, weight, math.exp(high))


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.flatten()


def squared_error(heads: Tensor, truth: Tensor) -> Tensor:
    """(prompts, candidates) mean over pipelines of (reward − truth)², both centred by prompt, the reward scaled."""
    centred, true = (x - x.mean(dim=-1, keepdim=True) for x in (heads, truth))
    scale = (centred * true).sum() / centred.square().sum()
    return (scale * centred - true).square().mean(dim=0)


def bias_and_variance(heads: Tensor, truth: Tensor) -> dict[str, float]:
    """Squared bias and sampling variance of the anchored reward over pipelines, in true reward²."""
    centred, true = (x - x.mean(dim=-1, keepdim=True) for x in (heads, truth))
    mean = centred.mean(dim=0)
    scale = float((mean * true).sum() / mean.square().sum())
    variance = float(centred.var(dim=0, correction=1).mean())
    bias = float((scale * mean - true).square().mean()) - scale**2 * variance / len(heads)
    return {"bias": bias, "variance": scale**2 * variance, "truth": float(true.square().mean())}


def row_of(
    name: str, weights: bool, kappa: float, gains: Tensor, judged: list[Judged], heads: Tensor
) -> dict[str, Any]:
    means = gains.mean(dim=1)
    found = bootstrap_mean(means.tolist(), np.random.default_rng(0))
    true = heads.var(dim=0, correction=1).log().flatten()
    rho = [
        float(torch.corrcoef(torch.stack([one.variance.flatten().log(), true]))[0, 1])
        for one in judged
        if one.variance is not None
    ]
    return {
        "source": name,
        "weights": weights,
        "kappa": kappa,
        "n": len(means),
        "gain": found.value,
        "gain_low": found.low,
        "gain_high": found.high,
        "spread": float(means.std(correction=1)),
        "risk": float((means < 0).double().mean()),
        "prompt_risk": float((gains < 0).double().mean()),
        "rho": sum(rho) / len(rho) if rho else None,
    }


def show(row: dict[str, Any]) -> None:
    weights, bound = "weighted" if row["weights"] else "", f"κ = {row['kappa']:g}" if row["kappa"] else ""
    figures = [f"{row[name]:.2f}" for name in ("spread", "risk")] + [f"{row['prompt_risk']:.3f}"]
    interval = f"{row['gain']:.2f} [{row['gain_low']:.2f}, {row['gain_high']:.2f}]"
    cells = [row["source"], " ".join([weights, bound]).strip(), row["n"], number(row["rho"]), interval, *figures]
    print("| " + " | ".join(map(str, cells)) + " |")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
