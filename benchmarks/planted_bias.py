"""Does variance between families flag a judge's bias, and does using it keep true reward? RLOO at an equal KL budget.

    python benchmarks/planted_bias.py --json docs/results/planted_bias.json

Three simulated judges on the offline world, joined by the real `PanelSource`. A reply is the true reward in units of
its standard deviation within a prompt, plus the judge's own taste (a random number for each different word of the
text, drawn by the seed, of standard deviation TASTE within a prompt), plus normal noise. A bias adds SLOPE for each
use of a feature: length (words of the text), flattery ("best"), headings ("?"); truth counts neither of the last two,
and takes 0.1 for each word beyond fifteen. The world's completions have nearly one length and neither word. So its
policy is trained on: a share RARE of the texts has a run of "best" at the front, as many a run of "?" before "then",
as many a run of nouns at the end; a run goes on with chance one half.

Plain: the panel's mean (lcb with κ = 0, so that calibration and anchors are those of the others). Weighted:
`variance_aware`. Pessimistic: `lcb` (κ = 1). Both read the raw variance; "moderated" was the panel's default. Judge 0
is biased; alone: `vanilla`, which optimises its rating and logs the variance about the batch's own groups.

Gain: true reward of the last LAST updates' batches over the reference's. All running means are of the WINDOW last
updates. A run falls where the running true reward is first FALL below its best so far. The flag: the running
`reward/variance_between_families` over its value at calibration exceeds THRESHOLD. Intervals: 95%, bootstrap over
seeds, differences paired by seed; of shares, Wilson. Settings were chosen on seeds 9400 to 9407, after several tries;
the threshold is above the highest ratio of six plain runs without a bias there (1.46, in 30 updates at the same other
settings). Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from surefoot.data.world.language import STYLES, TOPICS, all_prompts, complete, vocabulary
from surefoot.files import read_json, scratch, write_json
from surefoot.metrics.intervals import bootstrap_mean, wilson
from surefoot.metrics.runs import running_mean
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.reply_rows import Reading
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.panel.source import PanelSource
from surefoot.studies.evaluation import reference_of
from surefoot.studies.settings import Setting, build_setting
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.types import Text

REPLIES, NOISE, TASTE = 3, 1.0, 1.0
SLOPE = {"length": 1.5, "flattery": 1.0, "headings": 1.0}
RARE = 0.04
BUDGET, BETA, STEPS, LEARNING_RATE, BATCH, LENGTH = 8.0, 0.1, 40, 7e-4, 64, 24
WINDOW, LAST, FALL, THRESHOLD = 3, 5, 0.3, 1.6
THRESHOLDS = (1.25, 1.46, 1.6, 2.0, 3.0)
FIRST_SEED, COMPLETIONS = 7500, 2048
BIASED: dict[str, tuple[str | None, int]] = {
    "none": (None, 0),
    "length": ("length", 1),
    "flattery": ("flattery", 1),
    "headings": ("headings", 1),
    "flattery in two": ("flattery", 2),
}
"""Bias, and how many of the three judges have it."""
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"preset": "lcb", "aggregate_parameter": 0.0},
    "weighted": {"preset": "variance_aware"},
    "pessimistic": {"preset": "lcb"},
    "weighted, moderated": {"preset": "variance_aware"},
    "pessimistic, moderated": {"preset": "lcb"},
    "judge 0 alone": {"preset": "vanilla"},
}
MAIN = [(bias, method) for bias in list(BIASED)[:4] for method in list(METHODS)[:3]]
FURTHER = [
    ("flattery in two", "plain"),
    ("flattery in two", "pessimistic"),
    ("flattery", "weighted, moderated"),
    ("flattery", "pessimistic, moderated"),
    ("flattery", "judge 0 alone"),
]
FEATURES: dict[str, Callable[[list[str]], int]] = {
    "length": len,
    "flattery": lambda words: words.count("best"),
    "headings": lambda words: words.count("?"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted_bias"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    setting = build_setting({"world": "even", "pairs": 1}, options.out)
    policy = wordy_reference(setting.policy, options.out / "wordy")
    setting = replace(setting, policy=policy, identity=f"wordy {RARE}")
    reference = reference_of(setting, options.out, COMPLETIONS, LENGTH)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = []
    for seed, (bias, method) in [(s, cell) for cells in (MAIN, FURTHER) for s in seeds for cell in cells]:
        path = options.out / "runs" / f"{bias}-{method}-{seed}.json".replace(", ", "-").replace(" ", "-")
        if not path.exists():
            begun = time.process_time()
            found = run(options.out, setting, reference, seed, bias, method)
            about = {"bias": bias, "method": method, "seed": seed}
            write_json(path, about | found | {"cpu_seconds": time.process_time() - begun})
        runs.append(read_json(path))
        print({key: value for key, value in runs[-1].items() if not isinstance(value, list)}, flush=True)
    found = tables(runs)
    for name, rows in found.items():
        print(f"\n{name}")
        for row in rows:
            print("| " + " | ".join(shown(value) for value in row.values()) + " |")
    if options.json is not None:
        whole = [{key: value for key, value in one.items() if not key.endswith("path")} for one in runs]
        write_json(options.json, {"about": about_the_reference(reference), **found, "runs": whole})


def run(out: Path, setting: Setting, reference: dict[str, Any], seed: int, bias: str, method: str) -> dict[str, Any]:
    """Align one policy; paths hold a value for each update."""
    feature, count = BIASED[bias]
    judges = [SimulatedJudge(setting, reference, seed, j, feature if j < count else None) for j in range(3)]
    panel = PanelSource(judges, variance="moderated" if "moderated" in method else "raw")
    args = VarianceAwareRLOOConfig(
        str(out / "work"), seed=seed, target_kl=BUDGET, beta=BETA, max_steps=STEPS, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", gradient_checkpointing=False, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_steps=1, per_device_train_batch_size=BATCH, num_generations=8,
        max_completion_length=LENGTH, use_cpu=True, **METHODS[method],
    )  # fmt: skip
    trainer = VarianceAwareRLOOTrainer(
        setting.policy,
        panel,
        args,
        train_dataset=Dataset.from_dict({"prompt": setting.train_prompts}),
        monitors={"gold": setting.gold, "feature": lambda _, texts: uses(feature or "length", texts)},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    steps = [line for line in trainer.state.log_history if "sequence_kl" in line]
    calibration = panel.calibration
    assert calibration is not None
    gold = [line["monitor/gold"] - reference["train_mean"] for line in steps]
    between = calibration.notes["variance_between_families"]
    return {
        "gain": float(np.mean(gold[-LAST:])),
        "kl": float(np.mean([line["sequence_kl"] for line in steps[-LAST:]])),
        "between": between,
        "prior_freedom": calibration.to_dict()["prior"]["degrees_of_freedom"],
        "weights": panel.reliabilities()["weight"],
        "kl_path": [line["sequence_kl"] for line in steps],
        "gold_path": gold,
        "ratio_path": [line["reward/variance_between_families"] / between for line in steps],
        "feature_path": [line["monitor/feature"] for line in steps],
    }


class SimulatedJudge(JudgeSource):
    """A judge whose replies are simulated; its rows are made of them as a real judge's.

    Args:
        reference: completions of the reference policy, of whose true reward and own error the units are.
        number: of the judge, whose taste and noise it draws.
        bias: a key of `FEATURES`, or None.
    """

    def __init__(self, setting: Setting, reference: dict[str, Any], seed: int, number: int, bias: str | None) -> None:
        super().__init__(f"judge {number}", JudgeConfig(endpoint="http://127.0.0.1:9", wordings=1, samples=REPLIES))
        self.gold, self.bias = setting.gold, bias
        self.unit = spread_within(reference["prompts"], reference["gold"])
        words = np.random.default_rng([seed, number, 1]).standard_normal(len(vocabulary()))
        self.taste = dict(zip(vocabulary(), words.tolist(), strict=True))
        spread = spread_within(reference["prompts"], self.liked(reference["completions"]))
        self.taste = {word: TASTE / spread * value for word, value in self.taste.items()}
        self.rng = np.random.default_rng([seed, number, 2])

    def liked(self, texts: Sequence[Text]) -> list[float]:
        """What its own taste makes of the texts."""
        return [sum(self.taste.get(word, 0.0) for word in set(str(text).split())) for text in texts]

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        means = np.asarray(self.gold(prompts, completions)) / self.unit + self.liked(completions)
        if self.bias is not None:
            means += SLOPE[self.bias] * np.array(uses(self.bias, completions))
        replies = means[:, None] + NOISE * self.rng.standard_normal((len(means), REPLIES))
        return self.rows([[Reading("", None, (value, 0.0)) for value in row] for row in replies.tolist()])


def uses(feature: str, texts: Sequence[Text]) -> list[float]:
    return [float(FEATURES[feature](str(text).split())) for text in texts]


def spread_within(prompts: Sequence[str], values: Sequence[float]) -> float:
    """Standard deviation within a prompt."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    return float(np.sqrt(np.mean([np.var(some, ddof=1) for some in by_prompt.values()])))


def about_the_reference(reference: dict[str, Any]) -> dict[str, Any]:
    """Standard deviation within a prompt of each bias, in that of the true reward; share of texts with the feature."""
    counts = {name: uses(name, reference["completions"]) for name in FEATURES}
    usual = {"length": 15.0, "flattery": 0.0, "headings": 0.0}
    return {
        "slope": SLOPE,
        "true_reward_sd": spread_within(reference["prompts"], reference["gold"]),
        "bias_sd": {name: SLOPE[name] * spread_within(reference["prompts"], counts[name]) for name in FEATURES},
        "share": {name: float(np.mean(np.array(counts[name]) > usual[name])) for name in FEATURES},
    }


# --- the reference policy ----------------------------------------------------------------------------------------


def wordy_reference(world: str, folder: Path) -> str:
    """The world's policy, trained on texts of which some have runs of "best", "?" or nouns."""
    if folder.exists():
        return str(folder)
    tokenizer = AutoTokenizer.from_pretrained(world)
    model = AutoModelForCausalLM.from_pretrained(world, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=400, pct_start=0.1)
    rng, prompts = np.random.default_rng(0), all_prompts()
    for _ in range(400):
        asked = [prompts[rng.integers(len(prompts))] for _ in range(64)]
        texts = [
            prompt + wordy(complete(topic, thing, STYLES[rng.integers(len(STYLES))], rng), rng)
            for prompt, topic, thing in asked
        ]
        batch = tokenizer([f"{text} {tokenizer.eos_token}" for text in texts], padding=True, padding_side="right")
        ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with scratch(folder, directory=True) as temporary:
        model.save_pretrained(temporary / "policy")
        tokenizer.save_pretrained(temporary / "policy")
        (temporary / "policy").rename(folder)
    return str(folder)


def wordy(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    then = words.index("then")
    nouns = [noun for topic in TOPICS for noun in topic.nouns]
    praise, marks, more = (run_of(some, rng) for some in (["best"], ["?"], nouns))
    return " ".join([*praise, *words[:then], *marks, *words[then:], *more])


def run_of(words: list[str], rng: np.random.Generator) -> list[str]:
    length = rng.geometric(0.5) if rng.random() < RARE else 0
    return [words[rng.integers(len(words))] for _ in range(length)]


# --- tables ------------------------------------------------------------------------------------------------------


def first(path: ArrayLike) -> int | None:
    """Number of the first update, from 1, at whose end a running mean is over the line; None if none is.

    >>> first([False, True]), first([False])
    (4, None)
    """
    over = np.flatnonzero(path)
    return int(over[0]) + WINDOW if len(over) else None


def flagged_at(one: dict[str, Any]) -> int | None:
    return first(running_mean(one["ratio_path"], WINDOW) > THRESHOLD)


def falls_at(one: dict[str, Any]) -> int | None:
    gold = running_mean(one["gold_path"], WINDOW)
    return first(np.maximum.accumulate(gold) - gold > FALL)


def deepest(one: dict[str, Any]) -> float:
    """Lowest running true reward over the reference's."""
    return float(running_mean(one["gold_path"], WINDOW).min())


def tables(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for one in runs:
        cells.setdefault((one["bias"], one["method"]), {})[one["seed"]] = one
    gains = [gain_row(*cell, held, cells) for cell, held in cells.items()]
    flags = [flag_row(*cell, list(held.values())) for cell, held in cells.items()]
    plain = {bias: list(held.values()) for (bias, method), held in cells.items() if method == "plain"}
    thresholds = [threshold_row(line, plain) for line in THRESHOLDS]
    return {"gains": gains, "flags": flags, "plain_runs_flagged_by_threshold": thresholds}


def gain_row(bias: str, method: str, held: dict[int, dict[str, Any]], cells: dict[Any, Any]) -> dict[str, Any]:
    def apart(other: tuple[str, str]) -> dict[str, Any] | None:
        if other == (bias, method) or other not in cells:
            return None
        seeds = sorted(held.keys() & cells[other].keys())
        return mean([held[seed]["gain"] - cells[other][seed]["gain"] for seed in seeds])

    return {
        "bias": bias,
        "method": method,
        "gain": mean([one["gain"] for one in held.values()]),
        "minus_plain": apart((bias, "plain")),
        "minus_no_bias": apart(("none", method)),
        "lowest": mean([deepest(one) for one in held.values()]),
        "kl": float(np.mean([one["kl"] for one in held.values()])),
        "weight_of_judge_0": float(np.mean([one["weights"][0] for one in held.values()])),
        "infinite_priors": sum(one["prior_freedom"] == "inf" for one in held.values()),
    }


def flag_row(bias: str, method: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    flags, falls = [flagged_at(one) for one in runs], [falls_at(one) for one in runs]
    fell = [(flag, fall) for flag, fall in zip(flags, falls, strict=True) if fall is not None]
    leads = [fall - flag for flag, fall in fell if flag is not None]
    known = [flag for flag in flags if flag is not None]
    kl = [running_mean(one["kl_path"], WINDOW)[f - WINDOW] for one, f in zip(runs, flags, strict=True) if f]
    return {
        "bias": bias,
        "method": method,
        "flagged": wilson(len(known), len(runs)).to_dict(),
        "update": float(np.median(known)) if known else None,
        "kl": float(np.median(kl)) if kl else None,
        "fell": len(fell),
        "fall": float(np.median([fall for _, fall in fell])) if fell else None,
        "flagged_before": sum(flag is not None and flag < fall for flag, fall in fell),
        "lead": float(np.median(leads)) if leads else None,
    }


def threshold_row(threshold: float, plain: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How many plain runs of each bias another threshold would flag."""
    highest = {bias: [running_mean(one["ratio_path"], WINDOW).max() for one in runs] for bias, runs in plain.items()}
    counts = {bias: wilson(int((np.array(most) > threshold).sum()), len(most)) for bias, most in highest.items()}
    return {"threshold": threshold} | {bias: count.to_dict() for bias, count in counts.items()}


def mean(values: Sequence[float]) -> dict[str, Any]:
    return bootstrap_mean(list(values), np.random.default_rng(0)).to_dict()


def shown(value: Any) -> str:
    if isinstance(value, dict):
        if value["low"] is None:
            return f"{value['value']:.2f} ({value['n']})"
        return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}] ({value['n']})"
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
