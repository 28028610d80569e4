"""Does the gain of weighting carry over to PPO with a critic? The offline world, aligned by verl on a CPU.

    python benchmarks/verl_world.py --study runs/risk/uneven --json docs/results/verl_world.json

In the environment of `make engines`. Seeds, preferences, reward source (one linear head), learning rate, updates,
batch and budget are those of `studies/uneven.yaml` at 6 nats; verl's PPO with GAE and a critic, and its RLOO, take the
place of TRL's RLOO, whose runs are read from `--study`. CRITIC_RATE, the one setting of PPO's own, was fixed after a
run on seed 9300; no other value was tried.
Plain: the head's mean reward, every weight 1. Weighted: `variance_aware` with anchors of the reference policy. Gains
are in true reward over the reference policy on 2,048 completions of prompts that no training saw. Intervals: 95%,
bootstrap over seeds. Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.files import read_json, write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.run_records import read_cell
from surefoot.studies.evaluation import judge_policy, prompt_gains, prompt_risk, reference_of
from surefoot.studies.reward_sources import prepare_source
from surefoot.studies.settings import Setting, build_setting
from surefoot.training.prepare_anchors import AnchorArguments, prepare_anchors

EXAMPLE = Path(__file__).parents[1] / "examples" / "verl"
SETTING = {"world": "uneven", "pairs": 3000}
SOURCE = {"kind": "linear", "layer": 0}
BUDGET, BETA, RATE, STEPS = 6.0, 0.12, 1e-3, 60
PROMPTS, GROUP, LENGTH = 8, 8, 24
"""Prompts of a batch, completions of each, and their tokens."""
CRITIC_RATE = 1e-3
FIRST_SEED, COMPLETIONS = 6600, 2048
ALGORITHMS = {"ppo": "gae", "rloo": "rloo"}
METHODS = {"plain": "mean", "weighted": "variance_aware"}
TRL = {"plain": "vanilla", "weighted": "variance_aware"}
"""Names of the methods in the study."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/verl_world"))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--critic_rate", type=float, default=CRITIC_RATE)
    parser.add_argument("--study", type=Path, help="folder of studies/uneven.yaml, for TRL's runs of the same seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further run is begun")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    out, until = options.out.resolve(), time.monotonic() + 60 * options.minutes
    setting = build_setting(SETTING, out)
    reference = reference_of(setting, out, COMPLETIONS, LENGTH)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs: list[dict[str, Any]] = []
    for seed, algorithm, method in itertools.product(seeds, options.algorithms, METHODS):
        path = out / "runs" / f"{algorithm}-{method}-{seed}-{options.critic_rate:g}.json"
        if not path.exists() and time.monotonic() < until:
            begun = time.monotonic()
            found = run(out, setting, reference, seed, algorithm, method, options.critic_rate)
            write_json(path, found | {"seconds": time.monotonic() - begun})
            print(json.dumps(read_json(path)), flush=True)
        if path.exists():
            runs.append(read_json(path))
    if options.study is not None:
        runs += trl_runs(options.study, seeds)
    rows = [row for one in dict.fromkeys(held["algorithm"] for held in runs) for row in of_algorithm(one, runs)]
    for row in rows:
        show(row)
    if options.json is not None:
        write_json(options.json, {"rows": rows, "runs": runs})


def run(
    out: Path, setting: Setting, reference: dict[str, Any], seed: int, algorithm: str, method: str, critic_rate: float
) -> dict[str, Any]:
    """Align one policy by verl and measure its true reward."""
    source = Path(prepare_source(setting, SOURCE, str(seed), seed, out, reference)["path"])
    anchors = out / "anchors" / f"{seed}.safetensors"
    anchors.parent.mkdir(exist_ok=True)
    prompts = out / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in setting.train_prompts))
    about = AnchorArguments(
        str(anchors), setting.policy, str(prompts), str(source), max_completion_length=LENGTH, seed=seed
    )
    prepare_anchors(about)
    folder = out / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train(folder, setting, source, anchors, seed, algorithm, method, critic_rate)
    place = folder / "verl" / f"global_step_{STEPS}" / "actor" / "huggingface"
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    final = judge_policy(setting, model, tokenizer, setting.evaluation_prompts, COMPLETIONS, LENGTH)
    lines = [json.loads(line)["data"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    kl = [line["surefoot/sequence_kl"] for line in lines if "surefoot/sequence_kl" in line]
    return {
        "algorithm": f"verl {algorithm}",
        "method": method,
        "seed": seed,
        "gain": final["mean"] - reference["mean"],
        "prompt_risk": prompt_risk(prompt_gains(reference, final)[0]),
        "kl": float(np.mean(kl[-len(kl) // 10 :])),
        "kl_path": [round(value, 3) for value in kl],
        "largest_error": max(line.get("surefoot/check/max_error", 0.0) for line in lines),
    }


def train(
    folder: Path,
    setting: Setting,
    source: Path,
    anchors: Path,
    seed: int,
    algorithm: str,
    method: str,
    critic_rate: float,
) -> None:
    rows = [
        {
            "data_source": "world",
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {"index": i},
        }
        for i, prompt in enumerate(setting.train_prompts)
    ]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    rows_at_once = PROMPTS * GROUP
    settings = {
        "surefoot.source": source,
        "surefoot.anchor_file": anchors,
        "surefoot.preset": METHODS[method],
        "surefoot.target_kl": BUDGET,
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "train.parquet",
        "data.train_batch_size": PROMPTS,
        "data.seed": seed,
        "data.max_response_length": LENGTH,
        "algorithm.adv_estimator": ALGORITHMS[algorithm],
        "algorithm.kl_ctrl.kl_coef": BETA,
        "actor_rollout_ref.model.path": setting.policy,
        "actor_rollout_ref.rollout.n": GROUP,
        "actor_rollout_ref.rollout.seed": seed,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": rows_at_once,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": rows_at_once,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": rows_at_once,
        "actor_rollout_ref.actor.optim.lr": RATE,
        "actor_rollout_ref.actor.optim.weight_decay": 0.0,
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "critic.model.path": setting.policy,
        "critic.ppo_mini_batch_size": PROMPTS,
        "critic.ppo_micro_batch_size_per_gpu": rows_at_once,
        "critic.optim.lr": critic_rate,
        "trainer.logger": "[file]",
        "trainer.total_training_steps": STEPS,
        "trainer.total_epochs": STEPS,
        "trainer.save_freq": STEPS,
        "trainer.default_local_dir": folder / "verl",
    }
    words = [sys.executable, "-m", "surefoot.cli.main", "verl", "--config-path", str(EXAMPLE), "--config-name", "cpu"]
    environment = {
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
        "VERL_FILE_LOGGER_PATH": str(folder / "steps.jsonl"),
        "PYTHONPATH": os.pathsep.join([str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PWD": str(folder),
    }
    words += [f"++{name}={value}" for name, value in settings.items()]
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(words, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    if done.returncode != 0:
        raise SystemExit(f"verl stopped; see {folder / 'log.txt'}")


def trl_runs(study: Path, seeds: range) -> list[dict[str, Any]]:
    """The study's own runs of the same seeds, source and budget."""
    cells = [read_cell(path) for path in sorted((study / "cells").glob("*.json"))]
    return [
        {
            "algorithm": "TRL rloo",
            "method": method,
            "seed": cell.place.seed,
            "gain": cell.metrics.gold_gain,
            "prompt_risk": cell.metrics.prompt_risk,
            "kl": cell.metrics.kl_final,
        }
        for method, name in TRL.items()
        for cell in cells
        if (cell.place.source, cell.place.method, cell.place.kl_budget) == ("linear", name, BUDGET)
        and cell.place.seed in seeds
    ]


def of_algorithm(algorithm: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, and one for the difference, paired by seed."""
    held = {m: {r["seed"]: r for r in runs if (r["algorithm"], r["method"]) == (algorithm, m)} for m in METHODS}
    rows = []
    for method, by_seed in held.items():
        some = list(by_seed.values())
        if some:
            gain = bootstrap_mean([one["gain"] for one in some], np.random.default_rng(0)).to_dict()
            means = {name: float(np.mean([one[name] for one in some])) for name in ("prompt_risk", "kl")}
            below = sum(one["gain"] < 0 for one in some)
            spread = float(np.std([one["gain"] for one in some], ddof=1)) if len(some) > 1 else None
            rows.append(
                {"algorithm": algorithm, "method": method, "gain": gain, "spread": spread, "below": below} | means
            )
    both = sorted(set.intersection(*map(set, held.values())))
    if both:
        apart = [held["weighted"][seed]["gain"] - held["plain"][seed]["gain"] for seed in both]
        found = bootstrap_mean(apart, np.random.default_rng(0)).to_dict()
        rows.append({"algorithm": algorithm, "method": "weighted − plain", "gain": found})
    return rows


def show(row: dict[str, Any]) -> None:
    gain = row["gain"]
    cells = [
        row["algorithm"],
        row["method"],
        gain["n"],
        f"{gain['value']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]",
    ]
    if "kl" in row:
        spread = "" if row["spread"] is None else f"{row['spread']:.2f}"
        cells += [spread, row["below"], f"{row['prompt_risk']:.0%}", f"{row['kl']:.2f}"]
    print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
