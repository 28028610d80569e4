"""What a variance costs: every source against one plain reward model of the same backbone, on the same texts.

    python benchmarks/reward_sources.py --json docs/results/reward_costs.json

A random Llama of 12 million parameters (hidden 384, 6 layers), texts of 128 to 254 tokens, fp32, one thread, K = 10.
CPU time; source and plain model take turns, and the ratio of each turn goes into the median and quartiles. The plain
model is scored at the fastest of several batch sizes, and fine-tuned by a bare AdamW loop: nothing cheaper would do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from surefoot.files import write_json
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.batching import length_sorted_batches, padded
from surefoot.rewards.trunk.text_encoder import TextEncoder

MEMBERS, WORDS = 10, 2000
LIMITS = {"heads": (1.02, 0.40), "laplace": (1.02, 0.35), "lora_top": (4.3, 3.8), "lora": (11.0, 10.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64, help="scored in each turn")
    parser.add_argument("--pairs", type=int, default=32, help="trained on in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rewarduq", help="Python of an environment that holds RewardUQ, to run it beside ours")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.texts, options.pairs, options.turns)
        if options.rewarduq:
            found["peers"] = rewarduq(options.rewarduq, Path(folder), options.texts, options.turns)
    print(f"K = {MEMBERS}, {options.texts} texts, {options.pairs} pairs, {options.turns} turns; median [quartiles]")
    print(f"{'source':<10} {'scoring':>22} {'at most':>8} {'training':>22} {'at most':>8}")
    for name, row in found["sources"].items():
        score, train = (shown(row[key]) for key in ("score", "train"))
        most = [f"{limit:.2f}" for limit in LIMITS.get(name, ())] or ["", ""]
        print(f"{name:<10} {score:>22} {most[0]:>8} {train:>22} {most[1]:>8}")
    for name, row in found.get("peers", {}).items():
        print(f"{name:<14} {shown(row):>18}   (its own environment, the same texts and batches)")
    print(f"a further epoch of heads: {found['heads_epoch']:.4f} of a fine-tuning epoch")
    for name, row in found["prefix"].items():
        print(f"shared prompts, {name:<10} {shown(row)} times faster (G = 8)")
    print(f"computed tokens per real token: {found['tokens_per_real_token']:.4f}")
    if options.json is not None:
        flat = {name: {f"{key}_ratio": row[key]["median"] for key in ("score", "train")} | row
                for name, row in found["sources"].items()}  # fmt: skip
        slowest = min(row["median"] for row in found["prefix"].values())
        write_json(
            options.json, flat | {"prefix_speedup": slowest, **{k: v for k, v in found.items() if k != "sources"}}
        )


def measure(folder: Path, texts: int, pairs: int, turns: int) -> dict[str, Any]:
    base = make_model(folder / "base")
    data = make_pairs(pairs, np.random.default_rng(0))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    encoder = TextEncoder(PreTrainedTokenizerFast.from_pretrained(base), 512)
    prompts, completions = make_texts(texts)
    tokens = fastest_batch(model, encoder, prompts, completions)
    kinds: dict[str, Callable[[], RewardSource]] = {
        "heads": lambda: train_heads(data, base, HeadsConfig(MEMBERS, pooling="last", epochs=1), device="cpu"),
        "laplace": lambda: fit_laplace(data, base, LaplaceConfig(), device="cpu"),
        "lora_top": lambda: train_lora(data, base, LoraConfig(MEMBERS, start=2 / 3, epochs=1), device="cpu"),
        "lora": lambda: train_lora(data, base, LoraConfig(MEMBERS, epochs=1), device="cpu"),
        "dropout": lambda: DropoutMembers.from_model(base, DropoutConfig(MEMBERS), device="cpu"),
    }
    sources, prefix = {}, {}
    for name, make in kinds.items():
        count = turns if name in ("heads", "laplace") else max(2, turns // 2)
        train = ratios(make, lambda: fine_tune(base, data, encoder), count)
        source = make()
        score = ratios(
            lambda source=source: source.score(prompts, completions),
            lambda: plain_scores(model, encoder, prompts, completions, tokens),
            count if name.startswith(("lora", "drop")) else 3 * turns,
        )
        sources[name] = {"score": score, "train": train}
        prefix[name] = prefix_speedup(source, max(2, turns // 2))
    rows = encoder(prompts, completions)
    batches = [ids.numel() for _, ids, _ in length_sorted_batches(rows, pad_token_id=0, device=torch.device("cpu"))]
    return {
        "sources": sources,
        "prefix": prefix,
        "heads_epoch": further_epoch(data, base, encoder),
        "plain_batch_tokens": tokens,
        "tokens_per_real_token": padding(np.random.default_rng(2)),
        "tokens_per_real_token_here": sum(batches) / sum(len(row) for row in rows),
    }


def make_texts(count: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(1)
    prompts = [words(64, rng) for _ in range(count)]
    return prompts, [words(int(n), rng) for n in rng.integers(64, 190, count)]


def rewarduq(python: str, folder: Path, texts: int, turns: int) -> dict[str, dict[str, float]]:
    """RewardUQ's heads and LoRA ensemble against a plain model in their own environment, on our batches."""
    rows = TextEncoder(PreTrainedTokenizerFast.from_pretrained(folder / "base"), 512)(*make_texts(texts))
    batches = length_sorted_batches(rows, pad_token_id=0, tokens=1024, device=torch.device("cpu"))
    path = folder / "batches.json"
    path.write_text(json.dumps([ids.tolist() for _, ids, _ in batches]))
    script = Path(__file__).with_name("rewarduq_peer.py")
    options = {"base": folder / "base", "batches": path, "members": MEMBERS, "turns": turns}
    command = [python, str(script), *(word for key, value in options.items() for word in (f"--{key}", str(value)))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"RewardUQ could not be run:\n{done.stderr[-2000:]}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_model(folder: Path) -> Path:
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i + 2 for i in range(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 2, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, pad_token_id=0, eos_token_id=1, bos_token_id=None, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def words(count: int, rng: np.random.Generator) -> str:
    return "".join(f"w{i} " for i in rng.integers(0, WORDS, count))


def make_pairs(count: int, rng: np.random.Generator) -> Dataset:
    lengths = rng.integers(64, 190, (count, 2))
    rows = [(words(64, rng), words(int(a), rng), words(int(b), rng)) for a, b in lengths]
    return Dataset.from_dict(
        dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*rows, strict=True)), strict=True))
    )


@torch.no_grad()
def plain_scores(model: Any, encoder: TextEncoder, prompts: list[str], completions: list[str], tokens: int) -> None:
    rows = encoder(prompts, completions)
    for _, ids, mask in length_sorted_batches(rows, pad_token_id=0, tokens=tokens, device=model.device):
        model(input_ids=ids, attention_mask=mask, use_cache=False)


def fastest_batch(model: Any, encoder: TextEncoder, prompts: list[str], completions: list[str]) -> int:
    """Computed tokens of a batch at which the plain model scores fastest."""
    choices = (256, 1024, 2048, 4096, 8192)
    return min(
        choices, key=lambda t: min(cpu(lambda: plain_scores(model, encoder, prompts, completions, t)) for _ in "123")
    )


def fine_tune(base: Path, data: Dataset, encoder: TextEncoder, batch: int = 16) -> None:
    """One epoch of all weights."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    chosen, rejected = (encoder(data["prompt"], data[side]) for side in ("chosen", "rejected"))
    for start in range(0, len(chosen), batch):
        part = slice(start, start + batch)
        ids, mask = padded(chosen[part] + rejected[part], 0, model.device)
        scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        half = len(scores) // 2
        torch.nn.functional.softplus(scores[half:] - scores[:half]).mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def further_epoch(data: Dataset, base: Path, encoder: TextEncoder) -> float:
    """CPU time that an epoch more of heads takes, over that of a fine-tuning epoch."""
    many = [
        cpu(lambda n=n: train_heads(data, base, HeadsConfig(MEMBERS, pooling="last", epochs=n), device="cpu"))
        for n in (1, 101)
    ]
    return max(0.0, (many[1] - many[0]) / 100) / cpu(lambda: fine_tune(base, data, encoder))


def prefix_speedup(source: RewardSource, turns: int, group: int = 8, length: int = 96) -> dict[str, float]:
    """8 completions of each of 4 prompts, prompts as long as completions, against 32 different prompts."""
    rng = np.random.default_rng(3)
    prompts = [words(length, rng) for _ in range(4)]
    shared = [prompt for prompt in prompts for _ in range(group)]
    completions = [words(length, rng) for _ in shared]
    apart = [words(length, rng) for _ in shared]
    source.score(shared, completions)
    return ratios(lambda: source.score(apart, completions), lambda: source.score(shared, completions), turns)


def padding(rng: np.random.Generator) -> float:
    """Computed over real tokens when 2,048 texts of 128 to 254 tokens are scored in length-sorted batches."""
    rows = [[5] * int(n) for n in rng.integers(128, 255, 2048)]
    batches = length_sorted_batches(rows, pad_token_id=0, device=torch.device("cpu"))
    return sum(ids.numel() for _, ids, _ in batches) / sum(len(row) for row in rows)


def ratios(ours: Callable[[], Any], plain: Callable[[], Any], turns: int) -> dict[str, float]:
    found = [cpu(ours) / cpu(plain) for _ in range(turns)]
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high, "turns": turns}


def cpu(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def shown(row: dict[str, float]) -> str:
    return f"{row['median']:.3f} [{row['q25']:.3f}, {row['q75']:.3f}]"


if __name__ == "__main__":
    main()
