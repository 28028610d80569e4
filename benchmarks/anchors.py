"""How cheap may an anchor be? Exact optima on the offline world with anchors of several kinds, and their weights.

    python benchmarks/anchors.py --json docs/results/anchors.json

Of every prompt: the mean of M reference completions; a prediction of that mean from the prompt's own features, by
ridge regression on the training prompts' means; one mean for all prompts. Each is put in place of the mean of 128
completions and the weighted optimum at the budget is taken; gain and prompt risk as in variance_ceiling.py.

Two more need a policy: a group of 8 drawn from that optimum, centred by itself, and by its mean under self-
normalised importance weights π₀/π. Shown for all: the correlation of the log weights of such draws with those
under the mean of 128, and their mean over it (1 keeps the penalty as strong as it should be where the policy is).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.data.world import VARIANTS, World, build_world
from surefoot.files import write_json
from surefoot.maths import objectives
from surefoot.maths.linear import LinearFit, fit_bradley_terry
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.training.sampling import sample_completions
from variance_ceiling import SAMPLES, at_budget, reader

EXACT, GROUP, DRAWS = 128, 8, 32
KINDS = ("reference, M = 2", "reference, M = 4", "reference, M = 8", "reference, M = 32", "predicted", "one for all")
OF_POLICY = ("own group", "own group, importance-weighted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="uneven")
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--pipelines", type=int, default=12)
    parser.add_argument("--first_seed", type=int, default=7100)
    parser.add_argument("--candidates", type=int, default=192)
    parser.add_argument("--budget", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        world = build_world(options.out or temporary)
        read = reader(world)
        texts = {split: sampled(world, split, options.candidates + EXACT) for split in ("train", "test")}
        features = {split: read(*both).view(len(world.prompts(split)), -1, 128) for split, both in texts.items()}
        truth = torch.tensor(world.true_reward(*texts["test"]), dtype=torch.float64).view(features["test"].shape[:2])
        bare = {split: read(world.prompts(split), [""] * len(world.prompts(split))) for split in texts}
        found = [pipeline(world, read, features, bare, truth, options, k) for k in range(options.pipelines)]
    rows = [row_of(name, [one[name] for one in found]) for name in found[0]]
    print("| anchor | N | gain | prompt risk | correlation of log weights | mean weight over the right one |")
    for row in rows:
        print(
            "| "
            + " | ".join(str(value) if isinstance(value, str | int) else shown(value) for value in row.values())
            + " |"
        )
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "json")}
        write_json(options.json, settings | {"rows": rows})


def sampled(world: World, split: str, count: int) -> tuple[list[str], list[str]]:
    model = AutoModelForCausalLM.from_pretrained(world.policy_path)
    tokenizer = AutoTokenizer.from_pretrained(world.policy_path)
    prompts = [prompt for prompt in world.prompts(split) for _ in range(count)]
    return prompts, sample_completions(model, tokenizer, prompts, max_new_tokens=24, seed=SAMPLES)


def pipeline(
    world: World, read: Any, features: dict[str, Tensor], bare: dict[str, Tensor], truth: Tensor, options: Any, k: int
) -> dict[str, dict[str, float]]:
    table = world.draw_preferences(options.variant, options.pairs, options.first_seed + k)
    prompts = list(table["prompt"])
    chosen, rejected = (read(prompts, list(table[side])) for side in ("chosen", "rejected"))
    both = torch.cat([chosen, rejected])
    centre, spread = both.mean(dim=0), both.std(dim=0, correction=1).clamp(min=1e-6)
    fit = fit_bradley_terry((chosen - rejected) / spread)

    def standard(x: Tensor) -> Tensor:
        return ((x - centre) / spread).double()

    test = standard(features["test"])
    candidates, rest = test[:, : options.candidates], test[:, options.candidates :]
    exact = rest.mean(dim=1, keepdim=True)
    train = standard(features["train"]).mean(dim=1)
    anchors = {f"reference, M = {m}": rest[:, :m].mean(dim=1, keepdim=True) for m in (2, 4, 8, 32)}
    anchors["predicted"] = predicted(standard(bare["train"]), train, standard(bare["test"]))[:, None]
    anchors["one for all"] = train.mean(dim=0).expand_as(exact)
    values = truth[:, : options.candidates]
    right = weights(fit, candidates - exact)
    policy = at_budget(candidates @ fit.weights, right, options.budget).policy
    stream = torch.Generator().manual_seed(k)
    drawn = torch.stack([torch.multinomial(policy, GROUP, True, generator=stream) for _ in range(DRAWS)], dim=1)
    found = {}
    for name, anchor in {"reference, M = 128": exact, **anchors}.items():
        w = weights(fit, candidates - anchor)
        best = at_budget(candidates @ fit.weights, w, options.budget).policy
        gain = (best * values).sum(dim=1) - values.mean(dim=1)
        taken, wanted = (x.gather(1, drawn.flatten(1)) for x in (w, right))
        found[name] = {"gain": float(gain.mean()), "prompt_risk": float((gain < 0).double().mean())} | alike(
            taken, wanted
        )
    wanted = right.gather(1, drawn.flatten(1)).view(drawn.shape)
    group = candidates[torch.arange(len(candidates))[:, None, None], drawn]
    ratio = 1 / (policy.gather(1, drawn.flatten(1)).view(drawn.shape) * options.candidates)
    for name, share in zip(OF_POLICY, (torch.ones_like(ratio), ratio), strict=True):
        share = (share / share.sum(dim=-1, keepdim=True))[..., None]
        own = (group - (share * group).sum(dim=2, keepdim=True)).flatten(0, 2)
        w = objectives.weights(fit.covariance.quadratic(own), scale(fit, candidates - exact)).view(drawn.shape)
        found[name] = alike(w, wanted)
    return found


def predicted(prompts: Tensor, means: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression of the prompts' mean features on their own, its penalty by leave-one-out error."""
    centre, level = prompts.mean(dim=0), means.mean(dim=0)
    x, y = prompts - centre, means - level
    gram, best = x @ x.T, (float("inf"), torch.empty(0))
    for penalty in 10.0 ** torch.arange(-3, 5):
        inverse = torch.linalg.inv(gram + penalty * torch.eye(len(x), dtype=torch.float64))
        left_out = (inverse @ y) / inverse.diagonal()[:, None]
        error = float(left_out.square().mean())
        if error < best[0]:
            best = (error, x.T @ inverse @ y)
    return (asked - centre) @ best[1] + level


def scale(fit: LinearFit, delta: Tensor) -> float:
    return float(fit.covariance.quadratic(delta.flatten(0, 1)).mean())


def weights(fit: LinearFit, delta: Tensor) -> Tensor:
    variance = fit.covariance.quadratic(delta.flatten(0, 1))
    return objectives.weights(variance, float(variance.mean())).view(delta.shape[:2])


def alike(found: Tensor, wanted: Tensor) -> dict[str, float]:
    logs = torch.stack([found.flatten().log(), wanted.flatten().log()])
    return {"correlation": float(torch.corrcoef(logs)[0, 1]), "mean_weight": float(found.mean() / wanted.mean())}


def row_of(name: str, found: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"anchor": name, "n": len(found)}
    for key in ("gain", "prompt_risk", "correlation", "mean_weight"):
        if key in found[0]:
            value = bootstrap_mean([one[key] for one in found], np.random.default_rng(0))
            row[key] = [value.value, value.low, value.high]
        else:
            row[key] = None
    return row


def shown(value: list[float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


if __name__ == "__main__":
    main()
