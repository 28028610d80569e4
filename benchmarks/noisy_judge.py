"""Does shrinking by reliability help against a judge's noise? GRPO and RLOO on the offline world, at equal KL.

    python benchmarks/noisy_judge.py --json docs/results/noisy_judge.json

The simulated judge gives each completion REPLIES replies, the true reward plus normal noise that is drawn anew at
every call, so there is no bias and nothing to over-optimise. On half of the prompts (drawn by the seed) the noise is
LOUD, on the others QUIET, in units of the true reward's standard deviation within a prompt. Its variance is estimated
as a judge's is: the sample variance of the replies, pooled over the prompt's completions in the call, over REPLIES.
Gain: true reward of the final policy over the reference's, on completions of prompts that no training saw. At KL: the
batches' true reward over the reference's where a run first reaches LEVEL nats (running means of 7 updates). Intervals:
95%, bootstrap over seeds; differences are paired by seed. Settings were fixed on seeds 9300 and 9301, and none but
these was tried. Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback

from surefoot.files import read_json, write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.metrics.runs import running_mean, values_at
from surefoot.quiet import quieten
from surefoot.reports.paths import WINDOW
from surefoot.rewards.kinds.function import FunctionReward
from surefoot.studies.evaluation import judge_policy, prompt_gains, prompt_risk, reference_of
from surefoot.studies.settings import Setting, build_setting
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.types import Text

REPLIES, QUIET, LOUD = 2, 0.5, 4.0
BUDGET, BETA, STEPS, LEARNING_RATE = 6.0, 0.12, 60, 1e-3
LEVEL = 2.5
FIRST_SEED, COMPLETIONS, LENGTH = 7100, 2048, 24
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {"trainer": "grpo", "preset": "mean"},
    "GRPO, unscaled": {"trainer": "grpo", "preset": "mean", "scale_rewards": "none"},
    "GRPO, shrunken and scaled": {"trainer": "grpo", "preset": "shrunken_scaled"},
    "RLOO": {"trainer": "rloo", "preset": "mean"},
    "RLOO, shrunken": {"trainer": "rloo", "preset": "shrunken"},
}
COMPARED = [
    ("GRPO, shrunken and scaled", "GRPO"),
    ("GRPO, shrunken and scaled", "GRPO, unscaled"),
    ("RLOO, shrunken", "RLOO"),
]
TRAINERS: dict[str, tuple[Any, Any]] = {
    "grpo": (VarianceAwareGRPOTrainer, VarianceAwareGRPOConfig),
    "rloo": (VarianceAwareRLOOTrainer, VarianceAwareRLOOConfig),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/noisy_judge"))
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    setting = build_setting({"world": "even", "pairs": 1}, options.out)
    reference = reference_of(setting, options.out, COMPLETIONS, LENGTH)
    unit = spread_within(reference)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = []
    for seed in seeds:
        for name, method in METHODS.items():
            path = options.out / "runs" / f"{name}-{seed}.json".replace(", ", "-").replace(" ", "-")
            if not path.exists():
                begun = time.process_time()
                found = run(options.out, setting, reference, unit, seed, dict(method))
                write_json(path, {"method": name, "seed": seed, **found, "cpu_seconds": time.process_time() - begun})
            runs.append(read_json(path))
            print({key: value for key, value in runs[-1].items() if not key.endswith("path")}, flush=True)
    rows = [summary(name, [one for one in runs if one["method"] == name]) for name in METHODS]
    rows += [difference(one, other, runs) for one, other in COMPARED]
    for row in rows:
        gain = row["gain"]
        rest = [f"{row[key]:.2f}" for key in ("spread", "kl") if key in row]
        print("| " + " | ".join([row["method"], f"{gain['n']}", shown(gain), shown(row["at_kl"]), *rest]) + " |")
    if options.json is not None:
        about = {"replies": REPLIES, "quiet": QUIET, "loud": LOUD, "unit": unit}
        whole = [{key: value for key, value in one.items() if not key.endswith("path")} for one in runs]
        write_json(options.json, {"about": about, "rows": rows, "runs": whole})


def run(
    out: Path, setting: Setting, reference: dict[str, Any], unit: float, seed: int, method: dict[str, Any]
) -> dict[str, Any]:
    """Align one policy and measure its true reward."""
    trainer_type, config = TRAINERS[method.pop("trainer")]
    args = config(
        str(out / "work"), seed=seed, target_kl=BUDGET, beta=BETA, max_steps=STEPS, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", gradient_checkpointing=False, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_steps=1, per_device_train_batch_size=64, num_generations=8,
        max_completion_length=LENGTH, use_cpu=True, anchor="group", **method,
    )  # fmt: skip
    trainer = trainer_type(
        setting.policy,
        FunctionReward(Judge(setting, unit, seed), "simulated judge"),
        args,
        train_dataset=Dataset.from_dict({"prompt": setting.train_prompts}),
        monitors={"gold": setting.gold},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    final = judge_policy(
        setting, trainer.model, trainer.processing_class, setting.evaluation_prompts, COMPLETIONS, LENGTH
    )
    steps = [line for line in trainer.state.log_history if "sequence_kl" in line]
    path = [line["sequence_kl"] for line in steps]
    gold = [line["monitor/gold"] - reference["train_mean"] for line in steps]
    smooth_kl, smooth_gold = (np.insert(running_mean(values, WINDOW), 0, 0.0) for values in (path, gold))
    return {
        "gain": final["mean"] - reference["mean"],
        "prompt_risk": prompt_risk(prompt_gains(reference, final)[0]),
        "kl": float(np.mean(path[-len(path) // 10 :])),
        "at_kl": None if np.isnan(reached := float(values_at(smooth_kl, smooth_gold, [LEVEL])[0])) else reached,
        "kl_path": path,
        "gold_path": gold,
    }


class Judge:
    """A simulated judge: replies about the true reward, with the variance of their mean.

    Args:
        unit: of the noise, in reward.
    """

    def __init__(self, setting: Setting, unit: float, seed: int) -> None:
        self.gold, self.rng = setting.gold, np.random.default_rng([seed, 1])
        loud = np.random.default_rng([seed, 2]).permutation(len(setting.train_prompts)) % 2
        self.noise = {
            str(prompt): unit * (LOUD if one else QUIET)
            for prompt, one in zip(setting.train_prompts, loud, strict=True)
        }

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> tuple[list[float], list[float]]:
        truth = np.asarray(self.gold(prompts, completions))
        spread = np.array([self.noise[str(prompt)] for prompt in prompts])
        replies = truth[:, None] + spread[:, None] * self.rng.standard_normal((len(truth), REPLIES))
        names, place = np.unique([str(prompt) for prompt in prompts], return_inverse=True)
        own = replies.var(axis=1, ddof=1)
        pooled = np.bincount(place, own, len(names)) / np.bincount(place, minlength=len(names))
        return replies.mean(axis=1).tolist(), (pooled[place] / REPLIES).tolist()


def spread_within(reference: dict[str, Any]) -> float:
    """Standard deviation of the true reward of the reference policy's completions within a prompt."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(reference["prompts"], reference["gold"], strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in by_prompt.values()])))


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    gains = [one["gain"] for one in runs]
    return {
        "method": name,
        "gain": bootstrap_mean(gains, np.random.default_rng(0)).to_dict(),
        "at_kl": bootstrap_mean([known(one["at_kl"]) for one in runs], np.random.default_rng(0)).to_dict(),
        "spread": float(np.std(gains, ddof=1)),
        "kl": float(np.mean([one["kl"] for one in runs])),
        "prompt_risk": float(np.mean([one["prompt_risk"] for one in runs])),
    }


def difference(one: str, other: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Paired by seed."""
    held = {(run["method"], run["seed"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    row: dict[str, Any] = {"method": f"{one} − {other}"}
    for figure in ("gain", "at_kl"):
        apart = [known(held[one, seed][figure]) - known(held[other, seed][figure]) for seed in seeds]
        row[figure] = bootstrap_mean(apart, np.random.default_rng(0)).to_dict()
    return row


def known(value: float | None) -> float:
    return float("nan") if value is None else value


def shown(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


if __name__ == "__main__":
    main()
