"""What a variance costs, and what it brings, on one GPU and a chat model of 135 million parameters.

    python examples/smollm2/prepare.py --output_dir runs/smollm2
    python benchmarks/gpu.py --output_dir runs/gpu --json docs/results/gpu.json

Parts, each kept in OUTPUT_DIR/parts and not repeated (`--parts` names some):

sources: reward sources from real preferences, and the seconds that each takes to train.
score: rows a second of each source against one reward model in plain batches, same rows.
steps: a step of RLOO and GRPO with each source against stock TRL with one reward model: LoRA in bf16, same prompts,
    every completion of the same length. Trainers take turns; the first step of each turn is left out. MFU counts the
    multiplications of sampling, of all forwards and of the backward, against the card's dense bf16 peak.
    With one turn there is no spread; `Size.turns` asks for more.
log_ratio: error of a completion's ln π/π₀ in bf16 and under autocast, against float32, as the policy moves away.
fsdp2: `surefoot rloo` under FSDP2 with one process. vllm: with vLLM in the trainer's process, where it is installed.
members: ten LoRA reward models that differ in their seed alone, of the chat model and of MiniLM, and what
    `surefoot diagnose` says of them.
policies: benchmarks/studies/smollm2.yaml, by `surefoot study`: plain, weighted and pessimistic policies of paired
    seeds, as many rounds of seeds as fit into `--minutes`.

`--tiny` runs all of it on a random model of a million parameters, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gpu_steps import log_ratio_errors, score_speeds, step_times
from surefoot.files import read_json, write_json, write_text
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.records import versions
from surefoot.reports.records import read_study
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.run import run_reward

Part = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    pairs: int = 1851
    rows: int = 914
    completions: int = 64
    tokens: int = 64
    turns: int = 1
    members: int = 10
    workers: int = 12
    rounds: int = 8


TINY = Size(pairs=48, rows=24, completions=8, tokens=8, turns=1, members=2, workers=2, rounds=1)


@dataclass(frozen=True)
class Lane:
    """Where everything is."""

    folder: Path
    made: Path
    model: str
    size: Size
    tiny: bool
    until: float


SOURCES: dict[str, dict[str, Any]] = {
    "reward": {"kind": "independent", "members": 1, "bootstrap": "none", "learning_rate": 1e-4},
    "linear": {"kind": "linear"},
    "heads 50": {"kind": "heads", "members": 50},
    "lora 5": {"kind": "lora", "members": 5, "start": 0.67},
    "laplace": {"kind": "laplace"},
}
"""In the order of training; `laplace` is the posterior of `reward`, which is also stock TRL's one reward model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made", type=Path, default=Path("runs/smollm2"), help="by examples/smollm2/prepare.py")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no further round of policies begins")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    folder: Path = options.output_dir
    model = str(tiny_model(options.made, folder / "tiny") if options.tiny else options.made / "model")
    size = TINY if options.tiny else Size()
    lane = Lane(folder, options.made, model, size, options.tiny, time.monotonic() + 60 * options.minutes)
    failed = [name for name in options.parts if not run_part(name, lane)]
    found = {path.stem: read_json(path) for path in sorted((folder / "parts").glob("*.json"))}
    report = {"card": card(), "versions": versions(), "tiny": options.tiny, "parts": found}
    show(report)
    if options.json is not None:
        write_json(options.json, report)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see the messages above")


def run_part(name: str, lane: Lane) -> bool:
    """Run a part unless its result is there; whether it worked."""
    path = lane.folder / "parts" / f"{name}.json"
    if path.exists() and name != "policies":
        return True
    print(f"== {name}", flush=True)
    start = time.monotonic()
    try:
        result = PARTS[name](lane)
    except Exception:  # the other parts still run
        traceback.print_exc()
        return False
    write_json(path, {"seconds": time.monotonic() - start, **result})
    print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def card() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


def tiny_model(made: Path, target: Path) -> Path:
    """A random model of the same family with the same tokenizer."""
    if not (target / "model.safetensors").exists():
        config = AutoConfig.from_pretrained(made / "model")
        config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                       "num_key_value_heads": 2, "head_dim": 8})  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(target)
        AutoTokenizer.from_pretrained(made / "model").save_pretrained(target)
    return target


def sources(lane: Lane) -> Part:
    rows = []
    for name, settings in SOURCES.items():
        start = time.monotonic()
        train(lane, name, settings)
        rows.append({"source": name, "train_seconds": time.monotonic() - start})
    return {"rows": rows, "pairs": lane.size.pairs}


def train(lane: Lane, name: str, settings: dict[str, Any], base: str | None = None) -> Path:
    """Train a source as `surefoot reward` does; its directory."""
    target = lane.folder / "sources" / name.replace(" ", "_")
    if settings["kind"] == "laplace":
        base = next(str(path.parent) for path in (source_path(lane, "reward")).rglob("model.safetensors"))
    given = {
        "model_name_or_path": base or lane.model,
        "dataset_name": str(preferences(lane)),
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "max_length": 256,
        "overlong": "truncate",
        "output_dir": str(target),
        **settings,
    }
    run_reward(reward_arguments(**given), given)
    return target / "source"


def preferences(lane: Lane) -> Path:
    """The preferences, or at tiny size the first of them."""
    if not lane.tiny:
        return lane.made / "preferences"
    for split in ("train", "test"):
        lines = (lane.made / "preferences" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        write_text(lane.folder / "preferences" / f"{split}.jsonl", "".join(lines[: lane.size.pairs]))
    return lane.folder / "preferences"


def source_path(lane: Lane, name: str) -> Path:
    return lane.folder / "sources" / name.replace(" ", "_") / "source"


def score(lane: Lane) -> Part:
    rows = [json.loads(line) for line in (lane.made / "preferences/test.jsonl").read_text().splitlines()]
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")][: lane.size.rows]
    places = {name: source_path(lane, name) for name in SOURCES}
    return {"rows": score_speeds(places, texts, turns=5), "texts": len(texts)}


def steps(lane: Lane) -> Part:
    size = lane.size
    places = {name: source_path(lane, name) for name in SOURCES}
    found = step_times(lane.model, places, prompts(lane)[:64], lane.folder / "work", completions=size.completions,
                       tokens=size.tokens, turns=size.turns)  # fmt: skip
    return {"rows": found, "completions": size.completions, "tokens": size.tokens}


def log_ratio(lane: Lane) -> Part:
    found = log_ratio_errors(lane.model, prompts(lane)[: 2 * lane.size.completions], tokens=lane.size.tokens)
    return {"rows": found, "completions": 2 * lane.size.completions, "tokens": lane.size.tokens}


def prompts(lane: Lane) -> list[Any]:
    return [json.loads(line)["prompt"] for line in (lane.made / "prompts.jsonl").read_text().splitlines()]


def rloo_command(lane: Lane, name: str, *words: str, **more: Any) -> Part:
    """Three steps of `surefoot rloo` in a process of its own; `words` follow its config."""
    settings = {
        "model_name_or_path": lane.model,
        "dataset_name": str(lane.made / "prompts.jsonl"),
        "reward_source": str(source_path(lane, "linear")),
        "output_dir": str(lane.folder / name),
        "per_device_train_batch_size": lane.size.completions,
        "num_generations": 8,
        "max_completion_length": lane.size.tokens,
        "max_steps": 3,
        "calibration_prompts": 8,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        **more,
    }
    path = lane.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    start = time.monotonic()
    surefoot("rloo", "--config", str(path), *words)
    kept = read_json(lane.folder / name / "record.json")["metrics"]
    return {"command_seconds": time.monotonic() - start, "steps": kept["steps"], "end": kept["end"]}


def surefoot(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "surefoot.cli.main", *words], check=True, env=os.environ)


def fsdp2(lane: Lane) -> Part:
    if not torch.cuda.is_available():
        return {"skipped": "FSDP2 needs a GPU here"}
    path = lane.folder / "fsdp2_one.yaml"
    source = importlib.util.find_spec("trl.accelerate_configs")
    assert source is not None
    assert source.submodule_search_locations is not None
    config = yaml.safe_load((Path(source.submodule_search_locations[0]) / "fsdp2.yaml").read_text())
    path.write_text(yaml.safe_dump(config | {"num_processes": 1}), encoding="utf-8")
    return rloo_command(lane, "fsdp2", "--accelerate_config", str(path), bf16=True)


def vllm(lane: Lane) -> Part:
    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vLLM is not installed"}
    return rloo_command(lane, "vllm", use_vllm=True, vllm_mode="colocate", bf16=True)


def members(lane: Lane) -> Part:
    rows = []
    bases = {"SmolLM2-135M": lane.model, "MiniLM-L6": str(lane.made / "minilm")}
    for name, base in bases.items():
        # One after the other: ten that train together, 16 pairs a batch, don't fit into 80 GB.
        settings = {"kind": "independent", "rank": 8, "members": lane.size.members, "bootstrap": "none",
                    "learning_rate": 2e-4, "epochs": 1}  # fmt: skip
        start = time.monotonic()
        source = train(lane, f"{lane.size.members} {name}", settings, base)
        seconds = time.monotonic() - start
        place = lane.folder / "diagnosis" / name
        surefoot("diagnose", "--reward_source", str(source), "--dataset_name", str(preferences(lane)),
                 "--dataset_split", "test", "--output_dir", str(place), "--far_items", "0")  # fmt: skip
        rows.append({"model": name, "train_seconds": seconds, "diagnosis": read_json(place / "diagnose.json")})
    return {"rows": rows, "members": lane.size.members}


def policies(lane: Lane) -> Part:
    config = yaml.safe_load(Path("benchmarks/studies/smollm2.yaml").read_text())
    config["output_dir"] = str(lane.folder / "policies")
    config["settings"]["chat"] |= {"model": lane.model, "prompts": str(lane.made / "prompts.jsonl")}
    config["settings"]["chat"]["gold"] = {"source": str(gold(lane))}
    seeds, first = int(config["seeds"]), int(config["first_seed"])
    if lane.tiny:
        config["policy"] |= {"max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 8}
        config["settings"]["chat"]["draw"] |= {"pairs": 16, "held_out_pairs": 8, "max_new_tokens": 8}
        config |= {"evaluation_completions": 16, "kl_budgets": [1], "seeds": 2}
        seeds = 1
    if not torch.cuda.is_available():
        config["policy"] |= {"bf16": False, "use_cpu": True}
    done, longest = 0, 0.0
    for number in range(1, lane.size.rounds + 1):
        start = time.monotonic()
        if done and start + longest > lane.until:
            break
        config["seeds"] = [first + i for i in range(number * seeds)]
        config.pop("first_seed", None)
        path = lane.folder / "policies.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        surefoot("study", "--config", str(path), "--workers", str(lane.size.workers))
        done, longest = number * seeds, max(longest, time.monotonic() - start)
    return {"seeds": done, "rows": paired(lane.folder / "policies")}


def gold(lane: Lane) -> Path:
    """A reward model of another family, trained in full on the real preferences: no policy is trained against it."""
    settings = {"kind": "independent", "members": 1, "bootstrap": "none", "learning_rate": 1e-4, "seed": 20_000}
    return train(lane, "gold", settings, str(lane.made / "minilm"))


def paired(folder: Path) -> list[Part]:
    """Of each method: gain, KL, and the gain over plain of the same seeds, with a bootstrap interval over seeds."""
    (group,) = read_study(folder).groups
    groups = {method: {cell.place.seed: cell.metrics for cell in group.cells if cell.place.method == method}
              for method in group.methods}  # fmt: skip
    rng = np.random.default_rng(0)
    plain, rows = groups["vanilla"], []
    for method, cells in groups.items():
        seeds = sorted(set(cells) & set(plain))
        gains = np.array([cells[seed].gold_gain for seed in seeds])
        over = gains - np.array([plain[seed].gold_gain for seed in seeds])
        rows.append({
            "method": method, "n": len(seeds), "gain": bootstrap_mean(gains, rng).to_dict(),
            "over_plain": bootstrap_mean(over, rng).to_dict() if method != "vanilla" else None,
            "spread": float(gains.std(ddof=1)) if len(seeds) > 1 else None,
            "below_reference": int((gains < 0).sum()),
            "prompt_risk": float(np.mean([cells[seed].prompt_risk for seed in seeds])),
            "kl": float(np.mean([cells[seed].kl_final for seed in seeds])),
            "seconds": float(np.median([cells[seed].seconds for seed in seeds])),
        })  # fmt: skip
    return rows


def show(report: Part) -> None:
    """The tables, a line for each row."""
    print(f"\n{report['card']}")
    for name, part in report["parts"].items():
        print(f"\n{name} ({part['seconds']:.0f} s) {part.get('skipped', '')}")
        for row in part.get("rows", []):
            print("  " + "  ".join(f"{key} {said(value)}" for key, value in row.items() if key != "diagnosis"))


def said(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        return f"{said(value['value'])} [{said(value['low'])}, {said(value['high'])}]"
    if isinstance(value, list):
        return "[" + ", ".join(said(one) for one in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


PARTS: dict[str, Callable[[Lane], Part]] = {
    "sources": sources,
    "score": score,
    "steps": steps,
    "log_ratio": log_ratio,
    "fsdp2": fsdp2,
    "vllm": vllm,
    "members": members,
    "policies": policies,
}

if __name__ == "__main__":
    main()
