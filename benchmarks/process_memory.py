"""Memory of whole training processes on a CPU: as planned, and as the system counts it.

    python examples/smollm2/prepare.py --output_dir runs/smollm2
    python benchmarks/process_memory.py --json docs/results/process_memory.json

Each case is `surefoot rloo` on SmolLM2-135M in a process of its own, two updates, with a linear reward on the model's
own hidden states; its peak is the system's largest resident size of that process (`ru_maxrss`), with imports, loading,
calibration and sampling. `libraries` is the peak of a process that imports what training imports, and does nothing.
The plan is that of `surefoot study --plan --model_size runs/smollm2/model --device cpu`, for the longest prompt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from surefoot.cli.plan import MemoryPlanArguments, memory_plan
from surefoot.files import write_json, write_text

PAIRS = 60
IMPORTS = "import surefoot.training.rloo_trainer, surefoot.training.rloo_config, datasets, peft"
LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": ["q_proj", "v_proj"]}
CASES: dict[str, dict[str, Any]] = {
    "LoRA, float32": {"dtype": "float32", **LORA},
    "full, float32": {"dtype": "float32"},
    "LoRA, float32, long completions, checkpointing": {
        "dtype": "float32", "max_completion_length": 128, "gradient_checkpointing": True,
        "per_device_train_batch_size": 8, **LORA,
    },
    "LoRA, bfloat16": {"dtype": "bfloat16", **LORA},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "preset": "variance_aware", "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 32,
    "max_steps": 2, "calibration_prompts": 8, "anchor_completions": 4, "gradient_checkpointing": False,
    "report_to": "none", "save_strategy": "no", "dataset_name": "runs/smollm2/prompts.jsonl",
    "model_name_or_path": "runs/smollm2/model",
}  # fmt: skip
FORKED = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/process_memory"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    libraries, _ = peak_of([sys.executable, "-c", IMPORTS])
    print(f"libraries: {libraries / 2**30:.2f} GiB", flush=True)
    reward = trained_reward(options.out)
    prompt = longest_prompt()
    rows = [{"case": "libraries", "measured": libraries}]
    for name, own in CASES.items():
        settings = COMMON | own | {"reward_source": str(reward), "output_dir": str(options.out / name)}
        measured, seconds = peak_of([*surefoot("rloo"), *flags(settings)])
        planned = plan_of(settings, prompt)
        row = {"case": name, "measured": measured, "planned": planned, "error": planned / measured - 1}
        rows.append(row | {"prompt_tokens": prompt, "seconds": seconds})
        sizes = f"{planned / 2**30:.2f} | {measured / 2**30:.2f}"
        print(f"| {name} | {sizes} | {row['error']:+.0%} | {seconds:.0f} |", flush=True)
    if options.json is not None:
        write_json(options.json, {"cases": rows})


def trained_reward(out: Path) -> Path:
    """A linear reward on hidden states of the chat model, of a few pairs: what its features are worth is no matter."""
    for split, count in (("train", PAIRS), ("test", 20)):
        lines = Path(f"runs/smollm2/preferences/{split}.jsonl").read_text().splitlines(keepends=True)
        write_text(out / "preferences" / f"{split}.jsonl", "".join(lines[:count]))
    settings = {
        "kind": "linear", "model_name_or_path": "runs/smollm2/model", "dataset_name": str(out / "preferences"),
        "dataset_train_split": "train", "dataset_test_split": "test", "layer": 20, "max_length": 256,
        "overlong": "truncate", "dtype": "float32", "output_dir": str(out / "linear"),
    }  # fmt: skip
    if not (out / "linear" / "source" / "calibration.json").exists():
        peak_of([*surefoot("reward"), *flags(settings)])
    return out / "linear" / "source"


def longest_prompt() -> int:
    """Tokens of the longest prompt, with the chat template."""
    tokenizer = AutoTokenizer.from_pretrained("runs/smollm2/model")
    prompts = [json.loads(line)["prompt"] for line in Path("runs/smollm2/prompts.jsonl").read_text().splitlines()]
    rendered = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    return max(len(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"])


def plan_of(settings: dict[str, Any], prompt: int) -> int:
    plan = memory_plan(
        settings["model_name_or_path"],
        MemoryPlanArguments(
            device="cpu",
            precision={"float32": "fp32", "bfloat16": "bf16"}[settings["dtype"]],
            per_device_train_batch_size=settings["per_device_train_batch_size"],
            gradient_accumulation_steps=1,
            num_generations=settings["num_generations"],
            prompt_tokens=prompt,
            max_completion_length=settings["max_completion_length"],
            gradient_checkpointing=settings["gradient_checkpointing"],
            adapter_rank=settings.get("lora_r", 0),
            reward_kind="heads",
            members=1,
        ),
    )
    return plan.peak.bytes


def surefoot(command: str) -> list[str]:
    return [sys.executable, "-m", "surefoot.cli.main", command]


def flags(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        words += [f"--{name}", *map(str, values)]
    return words


def peak_of(command: list[str]) -> tuple[int, float]:
    """Largest resident size of a process in bytes, and its seconds; through a small one, since a child begins as large
    as its parent is."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-S", "-c", FORKED, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    code, kilobytes = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return kilobytes * 1024, time.monotonic() - begun


if __name__ == "__main__":
    main()
