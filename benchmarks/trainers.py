"""What a variance costs in training: our step against stock TRL's with one reward model, same policy, same tokens.

    python benchmarks/trainers.py --json docs/results/trainers.json

A random Llama of 12 million parameters (hidden 384, 6 layers) as the policy and as the reward backbone; heads K = 10,
or one linear head with its posterior, on one frozen trunk against one plain reward model. Every completion has the
same length. Both trainers take turns; CPU time of whole steps, first step of each turn left out. Memory is the peak
resident size of a process that runs one.

Anchors are read from a file ("prepared"), or drawn in every step, since no prompt comes twice ("drawn"): the dearest
case, `anchor_completions` beside each prompt's 8 completions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from reward_sources import MEMBERS, make_model, make_pairs, words
from surefoot import (
    VarianceAwareGRPOConfig,
    VarianceAwareGRPOTrainer,
    VarianceAwareRLOOConfig,
    VarianceAwareRLOOTrainer,
    load_source,
)
from surefoot.files import write_json
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear

STOCK: dict[str, Any] = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
OURS: dict[str, Any] = {
    "rloo": (VarianceAwareRLOOTrainer, VarianceAwareRLOOConfig),
    "grpo": (VarianceAwareGRPOTrainer, VarianceAwareGRPOConfig),
}
PROMPT, COMPLETION, BATCH, PROMPTS = 32, 32, 16, 64
ROWS = [
    ("rloo", "heads", "prepared"),
    ("grpo", "heads", "prepared"),
    ("rloo", "linear", "prepared"),
    ("grpo", "linear", "prepared"),
    ("rloo", "linear", "drawn"),
]
"""Trainer, source and where the anchors come from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="in each turn")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=4, metavar=("FOLDER", "WHO", "KIND", "ANCHORS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    if options.peak:
        folder, who, kind, anchors = options.peak
        step_seconds(Path(folder), who, kind, 1, options.steps, anchors=anchors)
        print(json.dumps({"peak": high_water_mark()}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name))
        found = {}
        for kind, source, anchors in ROWS:
            label = f"{kind}_{source}" + (f"_k{MEMBERS}" if source == "heads" else "") + f"_{anchors}"
            found[label] = compare(folder, kind, options.turns, options.steps, source, anchors)
        speeds = {count: tokens_per_second(folder, count, options.steps) for count in (1, 2, 4)}
    print(f"K = {MEMBERS}, {options.turns} turns of {options.steps} steps; ours over stock, median [quartiles]")
    for label, row in found.items():
        low, high = row["step_quartiles"]
        print(f"{label:<24} step {row['step_ratio']:.3f} [{low:.3f}, {high:.3f}]   memory {row['memory_ratio']:.3f}")
    for count, speed in speeds.items():
        print(f"rloo, ours, {count} accumulation steps: {speed:.0f} completion tokens per CPU second")
    if options.json is not None:
        write_json(options.json, found | {"tokens_per_cpu_second": {str(k): v for k, v in speeds.items()}})


def high_water_mark() -> float:
    """Peak resident size of this process in KiB; `getrusage` would count the parent's until the start."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1])


def prepare(folder: Path) -> Path:
    base = make_model(folder / "base")
    rewarder = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    rewarder.save_pretrained(folder / "reward")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.save_pretrained(folder / "reward")
    torch.manual_seed(1)
    LlamaForCausalLM(rewarder.config).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    pairs = make_pairs(16, np.random.default_rng(0))
    config = HeadsConfig(MEMBERS, pooling="last", epochs=1, bootstrap="exponential")
    train_heads(pairs, base, config, device="cpu").save(folder / "heads")
    fit_linear(pairs, base, LinearConfig(pooling="last"), device="cpu").save(folder / "linear")
    for name in ("heads", "linear"):
        prepare_anchors(folder, name)
    return folder


def prompts() -> list[str]:
    return [words(PROMPT, np.random.default_rng(i)) for i in range(PROMPTS)]


def prepare_anchors(folder: Path, name: str) -> None:
    """A file of anchors of made-up completions: what it costs to read doesn't depend on what was scored."""
    source = load_source(folder / name, "cpu")
    store = AnchorStore(source.name, 1)
    store.add(
        prompts(), source.score(prompts(), [words(COMPLETION, np.random.default_rng(i)) for i in range(PROMPTS)])
    )
    store.save(folder / f"{name}.safetensors")


def compare(folder: Path, kind: str, turns: int, steps: int, source: str, anchors: str) -> dict[str, Any]:
    ratios = []
    for _ in range(turns):
        ours = step_seconds(folder, source, kind, 1, steps, anchors=anchors)
        ratios.append(ours / step_seconds(folder, "stock", kind, 1, steps))
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    peaks = {who: peak(folder, who, kind, steps, anchors) for who in (source, "stock")}
    return {
        "step_ratio": middle,
        "step_quartiles": [low, high],
        "memory_ratio": peaks[source] / peaks["stock"],
        "turns": turns,
    }


def peak(folder: Path, who: str, kind: str, steps: int, anchors: str) -> float:
    command = [sys.executable, __file__, "--peak", str(folder), who, kind, anchors, "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def tokens_per_second(folder: Path, accumulation: int, steps: int) -> float:
    seconds = step_seconds(folder, "heads", "rloo", accumulation, steps)
    return BATCH * accumulation * COMPLETION / seconds


class Clock(TrainerCallback):
    """CPU time of each step."""

    def __init__(self) -> None:
        self.start, self.seconds = 0.0, list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def step_seconds(
    folder: Path, who: str, kind: str, accumulation: int, steps: int, *, anchors: str = "prepared"
) -> float:
    """Median CPU seconds of a step, generation and scoring included, the first step left out.

    Args:
        who: "stock", or the source of ours.
    """
    trainer_class, config_class = (STOCK if who == "stock" else OURS)[kind]
    reward: Any = str(folder / "reward") if who == "stock" else load_source(folder / who, "cpu")
    own: dict[str, Any] = {} if who == "stock" else {"calibration_prompts": 2}
    if who != "stock" and anchors == "prepared":
        own["anchor_file"] = str(folder / f"{who}.safetensors")
    with tempfile.TemporaryDirectory() as output:
        args = config_class(
            output_dir=output, per_device_train_batch_size=BATCH, gradient_accumulation_steps=accumulation,
            num_generations=8, max_completion_length=COMPLETION, max_steps=steps + 1, beta=0.05, bf16=False,
            generation_kwargs={"min_new_tokens": COMPLETION}, gradient_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=1000,
            **own,
        )  # fmt: skip
        trainer = trainer_class(
            str(folder / "policy"), reward, args, train_dataset=Dataset.from_dict({"prompt": prompts()}),
            processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    # A generation is used for `steps_per_generation` micro-batches, that is, in one step here.
    return float(np.median(clock.seconds[1:]))


if __name__ == "__main__":
    main()
