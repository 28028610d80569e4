"""Time, memory and rounding of single steps, for `gpu.py`: scoring, steps of trainers, log-ratios."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)

from surefoot import load_source
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.trunk.loading import choose_device
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.training.float32 import in_float32
from surefoot.training.sampling import load_policy, prompt_ids, sample_completions
from trainers import OURS, STOCK

__all__ = ["log_ratio_errors", "score_speeds", "step_times"]

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 multiplications and additions a second, by the makers' data sheets."""
LORA = LoraConfig(
    r=32, lora_alpha=64, task_type="CAUSAL_LM",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)  # fmt: skip
STEPS = 2
"""Of each turn, after its first."""
HOWS = ("bf16", "autocast", "float32 layers", "float32")
"""bf16 weights; float32 weights under autocast; bf16 weights raised layer by layer, as the trainers do; float32."""
UPDATES = [0.0, *(1e-3 * 2**power for power in range(7))]
"""Standard deviations of LoRA's B."""
FARTHEST = 20.0
"""Nats, after which no larger update is tried."""
ROWS = [
    *[("rloo", name) for name in ("linear", "heads 50", "lora 5", "linear, bf16 log-ratio")],
    ("rloo", "linear, anchors drawn"),
    ("grpo", "linear"),
]
"""Trainers of ours that are compared with stock TRL."""


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def score_speeds(places: dict[str, Path], texts: Sequence[Any], turns: int) -> list[dict[str, Any]]:
    """Rows a second of each source and of one plain reward model; each turn runs both on all rows."""
    device = choose_device(None)
    prompts, completions = [row[0] for row in texts], [row[1] for row in texts]
    plain = next(path.parent for path in places["reward"].rglob("model.safetensors"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(plain, dtype=dtype).to(device).eval()
    encoder = TextEncoder(AutoTokenizer.from_pretrained(plain), 256)
    rows = []
    for name, place in places.items():
        source = load_source(place)
        seconds: dict[str, list[float]] = {"plain": [], name: []}
        for turn in range(turns + 1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = now()
                plain_scores(model, encoder, prompts, completions)
                middle = now()
                source.score(prompts, completions)
                end = now()
            if turn:
                seconds["plain"].append(middle - start)
                seconds[name].append(end - middle)
        ratios = np.array(seconds[name]) / np.array(seconds["plain"])
        rows.append({
            "source": name, "rows_per_second": len(texts) / float(np.median(seconds[name])),
            "plain_rows_per_second": len(texts) / float(np.median(seconds["plain"])),
            "time_over_plain": float(np.median(ratios)), "range": [float(ratios.min()), float(ratios.max())],
        })  # fmt: skip
    return rows


@torch.no_grad()
def plain_scores(model: Any, encoder: TextEncoder, prompts: list[Any], completions: list[Any]) -> Tensor:
    """What a user's own loop does: sorted by length, padded, 64 rows a batch."""
    ids = encoder(prompts, completions)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    parts = []
    for start in range(0, len(order), 64):
        batch = encoder.tokenizer.pad({"input_ids": [ids[i] for i in order[start : start + 64]]}, return_tensors="pt")
        parts.append(model(**batch.to(model.device)).logits[:, 0].float())
    return torch.cat(parts)


def step_times(
    model: str, places: dict[str, Path], prompts: list[Any], work: Path, *, completions: int, tokens: int, turns: int
) -> list[dict[str, Any]]:
    """Seconds of a step, peak memory, tokens a second and MFU of ours with each source, and of stock TRL."""
    for name in ("linear", "heads 50", "lora 5"):
        prepare_anchors(places[name], prompts, work / f"{name}.safetensors")
    ours: dict[str, dict[str, Any]] = {name: {"source": name} for name in ("linear", "heads 50", "lora 5")}
    ours["linear, bf16 log-ratio"] = {"source": "linear", "float32_log_ratio": False}
    ours["linear, anchors drawn"] = {"source": "linear", "drawn": True}
    rows = []
    for kind in ("rloo", "grpo"):
        held: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("stock", *(name for trainer, name in ROWS if trainer == kind))
        }
        for _ in range(turns):
            for name in held:
                own = ours.get(name)
                reward: Any = str(next(path.parent for path in places["reward"].rglob("model.safetensors")))
                given: dict[str, Any] = {}
                if own is not None:
                    reward = load_source(places[str(own["source"])])
                    given = {"calibration_prompts": 2, "float32_log_ratio": own.get("float32_log_ratio", True)}
                    if "drawn" not in own:
                        given["anchor_file"] = str(work / f"{own['source']}.safetensors")
                held[name].append(one_turn(kind, model, reward, prompts, completions, tokens, given))
        for name, turns_of in held.items():
            seconds = np.array([turn["seconds"] for turn in turns_of])
            over = seconds / np.array([turn["seconds"] for turn in held["stock"]])
            peak = next((value for key, value in PEAK.items() if key in turns_of[0].get("card", "")), None)
            flops = turns_of[0]["flops"]
            rows.append({
                "trainer": kind, "reward": name, "step_seconds": float(np.median(seconds)),
                "over_stock": float(np.median(over)), "range": [float(over.min()), float(over.max())],
                "tokens_per_second": completions * tokens / float(np.median(seconds)),
                "peak_gib": turns_of[-1]["peak"],
                "mfu": None if peak is None else flops / float(np.median(seconds)) / peak,
            })  # fmt: skip
    return rows


def one_turn(
    kind: str, model: str, reward: Any, prompts: list[Any], completions: int, tokens: int, own: dict[str, Any]
) -> dict[str, Any]:
    """Median seconds of a step and the peak of one trainer; `own` are the settings of ours, empty for stock TRL."""
    trainer_class, config_class = (OURS if own else STOCK)[kind]
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = config_class(
            output_dir=output, per_device_train_batch_size=completions, num_generations=8, max_steps=STEPS + 1,
            max_completion_length=tokens, beta=0.05, learning_rate=1e-5, bf16=cuda, gradient_checkpointing=False,
            generation_kwargs={"min_new_tokens": tokens}, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_steps=1000, model_init_kwargs={"dtype": "bfloat16" if cuda else "float32"}, **own,
        )  # fmt: skip
        trainer = trainer_class(
            model, reward, args, train_dataset=Dataset.from_dict({"prompt": prompts}), peft_config=LORA,
            processing_class=AutoTokenizer.from_pretrained(model),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    width = trainer.model.config.hidden_size
    count = sum(value.numel() for value in trainer.model.parameters())
    shared = trainer.model.config.vocab_size * width  # the embedding is looked up, not multiplied
    count -= 0 if trainer.model.config.tie_word_embeddings else shared
    read = completions * (
        tokens + float(np.mean([len(prompt_ids(trainer.processing_class, prompt)) for prompt in prompts]))
    )
    # Sampling, policy and reference of the log-ratio, the loss; LoRA's backward goes through all layers once.
    flops = 2 * count * read * (1 + 2 + 1 + 1)
    del trainer
    return {"seconds": float(np.median(clock.seconds[1:])), "flops": flops,
            "peak": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
            "card": torch.cuda.get_device_name(0) if cuda else ""}  # fmt: skip


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step."""

    def __init__(self) -> None:
        self.start, self.seconds = 0.0, list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.start)


def prepare_anchors(place: Path, prompts: list[Any], target: Path) -> None:
    """A file of anchors of one made-up reply: what it costs to read doesn't depend on what was scored."""
    source = load_source(place)
    store = AnchorStore(source.name, 1)
    store.add(prompts, source.score(prompts, [[{"role": "assistant", "content": "I can't say."}]] * len(prompts)))
    target.parent.mkdir(parents=True, exist_ok=True)
    store.save(target)


def log_ratio_errors(model: str, prompts: list[Any], *, tokens: int) -> list[dict[str, Any]]:
    """Error of ln π/π₀ of a completion, in nats, in bf16 weights and under autocast, against float32.

    The policy is the model with a random LoRA update of growing size; completions are its own.
    """
    device = choose_device(None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for size in UPDATES:
        torch.manual_seed(0)
        policy: Any = get_peft_model(load_policy(model, device), LORA).eval()
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.data.normal_(std=size)
        replies = sample_completions(policy, tokenizer, prompts, max_new_tokens=tokens, seed=1)
        batches = [*as_batches(tokenizer, prompts, replies, device)]
        ratios, seconds = {}, {}
        for how in HOWS:
            policy = policy.float() if how in ("autocast", "float32") else policy.bfloat16()
            start = now()
            ratios[how] = torch.cat([log_ratio(policy, how, *batch) for batch in batches])
            seconds[how] = now() - start
        exact = ratios["float32"]
        for how in HOWS:
            error = ratios[how] - exact
            rows.append({
                "update": size, "kl": float(exact.mean()), "how": how, "seconds": seconds[how],
                "rms_ratio": float(exact.square().mean().sqrt()), "rms_error": float(error.square().mean().sqrt()),
                "largest": float(error.abs().max()),
            })  # fmt: skip
        if exact.mean() > FARTHEST:
            break
    return rows


def as_batches(tokenizer: Any, prompts: list[Any], replies: list[Any], device: torch.device) -> Iterator[Any]:
    """(ids, attention mask, mask of the completion's tokens) of 32 rows each."""
    before = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    after = [tokenizer(reply[0]["content"])["input_ids"] for reply in replies]
    for start in range(0, len(before), 32):
        some = slice(start, start + 32)
        width = max(len(a) + len(b) for a, b in zip(before[some], after[some], strict=True))
        ids = torch.full((len(before[some]), width), tokenizer.pad_token_id)
        attended, completion = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (a, b) in enumerate(zip(before[some], after[some], strict=True)):
            ids[row, : len(a) + len(b)] = torch.tensor([*a, *b])
            attended[row, : len(a) + len(b)] = 1
            completion[row, len(a) : len(a) + len(b)] = 1
        yield ids.to(device), attended.to(device), completion.to(device)


@torch.no_grad()
def log_ratio(policy: Any, how: str, ids: Tensor, attended: Tensor, completion: Tensor) -> Tensor:
    """ln π/π₀ of each row's completion; π₀ is the policy without its adapter."""
    found = []
    for adapted in (True, False):
        with policy.disable_adapter() if not adapted else torch.inference_mode():
            found.append(log_probability(policy, how, ids, attended, completion))
    return found[0] - found[1]


def log_probability(policy: Any, how: str, ids: Tensor, attended: Tensor, completion: Tensor) -> Tensor:
    if how == "float32 layers":
        with in_float32(policy, Accelerator()):
            logits = policy(input_ids=ids, attention_mask=attended).logits
    elif how == "autocast":
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            logits = policy(input_ids=ids, attention_mask=attended).logits
    else:
        logits = policy(input_ids=ids, attention_mask=attended).logits
    each = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
    return (each * completion[:, 1:]).sum(dim=1)
