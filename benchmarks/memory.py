"""Memory as planned against memory as measured, on small random models on the CPU.

    python benchmarks/memory.py --json docs/results/memory.json

Every allocation of torch's CPU allocator is recorded by its profiler (`profile_memory`), with those inside operators
and of the backward; what was there before is counted storage by storage. So the peak of each phase is exact, unlike a
process's resident size. The phases are the steps' own code: TRL's fused output head for log-probabilities and loss,
`generate` for sampling, the reward sources' own `score`.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from trl.trainer.utils import add_fused_lm_head

from surefoot.files import write_json
from surefoot.planning.memory import plan_memory
from surefoot.planning.model_shape import shape_of
from surefoot.planning.shapes import MemoryPlan, MemoryRun, Phase, RewardPlan
from surefoot.rewards.kinds.heads.source import Heads, HeadShape, SharedTrunkHeads
from surefoot.rewards.kinds.independent.source import IndependentMembers, Member
from surefoot.rewards.kinds.lora.layers import AdapterShape
from surefoot.rewards.kinds.lora.network import LoraNetwork
from surefoot.rewards.kinds.lora.source import LoraMembers
from surefoot.rewards.trunk.text_encoder import TextEncoder

CPU = MemoryRun(device="cpu", precision="fp32")


@dataclass(frozen=True)
class Case:
    """One model, one run and one reward source."""

    name: str
    config: Any
    run: MemoryRun = CPU
    reward: RewardPlan = field(default_factory=RewardPlan)


LLAMA = LlamaConfig(
    vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=6, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False,
)  # fmt: skip
QWEN = Qwen2Config(
    vocab_size=32000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
)  # fmt: skip
TINY = LlamaConfig(
    vocab_size=2000, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False,
)  # fmt: skip

_SMALL = replace(CPU, batch=8, prompt=192, completion=64, generations=4)
CASES = [
    Case("Llama 17M", LLAMA, replace(_SMALL, gradient_checkpointing=False), RewardPlan("heads", 5)),
    Case("Llama 17M, checkpointing", LLAMA, _SMALL, RewardPlan("independent", 3)),
    Case("Llama 17M, two accumulation steps", LLAMA, replace(_SMALL, batch=4, accumulation=2), RewardPlan("lora", 3)),
    Case("Qwen2 47M, tied", QWEN, replace(_SMALL, batch=4, gradient_checkpointing=False), RewardPlan("heads", 5)),
    Case("Qwen2 47M, tied, checkpointing", QWEN, replace(_SMALL, batch=4), RewardPlan("independent", 3)),
    Case("Llama 4M, eager", TINY, replace(_SMALL, gradient_checkpointing=False, attention="eager"), RewardPlan()),
    Case("Llama 4M, bf16", TINY, replace(_SMALL, gradient_checkpointing=False, precision="bf16"), RewardPlan()),
    Case("Llama 4M, autocast", TINY, replace(_SMALL, gradient_checkpointing=False, precision="bf16_mixed"),
         RewardPlan("independent", 3)),
    Case("Llama 4M, long completions", TINY, replace(_SMALL, batch=16, prompt=16, completion=200), RewardPlan()),
    Case("Llama 17M, LoRA 16", LLAMA, replace(_SMALL, gradient_checkpointing=False, lora_rank=16), RewardPlan()),
]  # fmt: skip
SMALL = [
    Case("Llama 4M", TINY, replace(_SMALL, gradient_checkpointing=False), RewardPlan("heads", 5)),
    Case("Llama 4M, checkpointing", TINY, _SMALL, RewardPlan("independent", 3)),
]


# --- measuring ---------------------------------------------------------------------------------------------


def peak_of(action: Callable[[], Any]) -> int:
    """Largest number of bytes that `action` had allocated at once, beyond what was there before."""
    return max(_live(action))


def live_after(action: Callable[[], Any]) -> int:
    """Bytes that `action` left allocated."""
    return _live(action)[-1]


def _live(action: Callable[[], Any]) -> list[int]:
    """Bytes allocated by `action` and not yet freed, after every event."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
            action()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [0, *accumulate(event.nbytes() for event in events)]


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of the storages, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class Step:
    """A policy with its reference, optimiser and reward source, as RLOO has them from the second step on."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.case, self.run = case, case.run
        self.policy, self.reference = self._policy(), None
        if self.run.separate_reference:
            self.reference = self._model().eval()
            add_fused_lm_head(self.reference)
        trained = [value for value in self.policy.parameters() if value.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.ids = torch.randint(2, case.config.vocab_size, (self.run.batch, self.run.length))
        self.mask = torch.ones_like(self.ids)
        self.mask[0, :3] = 0  # left padding, as every batch of real prompts has
        self.source = make_source(case)
        self.update()
        self.optimiser.zero_grad(set_to_none=True)

    def _model(self) -> Any:
        dtype = torch.bfloat16 if self.run.precision == "bf16" else torch.float32
        return AutoModelForCausalLM.from_config(self.case.config, dtype=dtype, attn_implementation=self.run.attention)

    def _policy(self) -> Any:
        model = self._model()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if self.run.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5; the old name works in both
                model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.run.lora_rank:
            dropout = 0.05 if self.run.lora_dropout else 0.0
            model = get_peft_model(model, LoraConfig(r=self.run.lora_rank, lora_dropout=dropout))
        return model.train()

    def held(self) -> int:
        """Weights, optimiser states, reference and reward source."""
        states = [v for state in self.optimiser.state.values() for v in state.values() if torch.is_tensor(v)]
        reference = [] if self.reference is None else list(self.reference.parameters())
        return bytes_of([*self.policy.parameters(), *states, *reference, *source_tensors(self.source)])

    def log_probs(self, model: Any, rows: slice = slice(None)) -> torch.Tensor:
        """As `_get_per_token_logps_and_entropies` of TRL's RLOO computes them."""
        labels = self.ids[rows].masked_fill(self.mask[rows] == 0, -100)
        labels[:, : self.run.prompt] = -100
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.run.precision == "bf16_mixed"):
            out = model(input_ids=self.ids[rows], attention_mask=self.mask[rows], labels=labels, fused_lm_head=True)
        return out.log_probs[:, -self.run.completion :].sum(1)

    @torch.no_grad()
    def score_tokens(self) -> None:
        self.log_probs(self.policy)
        if self.reference is not None:
            self.log_probs(self.reference)

    def update(self) -> None:
        for _ in range(self.run.accumulation):
            self.log_probs(self.policy).mean().backward()
        self.optimiser.step()

    @torch.no_grad()
    def generate(self) -> None:
        prompts = self.ids[:, : self.run.prompt].repeat(self.run.accumulation, 1)
        mask = self.mask[:, : self.run.prompt].repeat(self.run.accumulation, 1)
        settings = GenerationConfig(
            max_new_tokens=self.run.completion, min_new_tokens=self.run.completion, do_sample=True, top_k=0,
            top_p=1.0, temperature=1.0, pad_token_id=0, eos_token_id=1, disable_compile=True,
        )  # fmt: skip
        self.policy.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.run.precision == "bf16_mixed"):
            self.policy.generate(input_ids=prompts, attention_mask=mask, generation_config=settings)
        self.policy.train()

    def rewards(self) -> None:
        prompts = [text(self.run.prompt, i // self.run.generations) for i in range(self.run.samples)]
        completions = [text(self.run.completion - 1, 100 + i) for i in range(self.run.samples)]  # and the eos
        self.source.score(prompts, completions)

    def backbone(self) -> tuple[int, int]:
        """(bytes that the layers keep for the backward, largest number of bytes in forward and backward together).

        Without the output head, whose tile of logits would hide the rest.
        """
        model = self.policy.get_base_model() if self.run.lora_rank else self.policy
        inner, kept = model.base_model, dict[str, Any]()

        def forward() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.run.precision == "bf16_mixed"):
                kept["out"] = inner(input_ids=self.ids, attention_mask=self.mask, use_cache=False).last_hidden_state

        def both() -> None:
            forward()
            kept.pop("out").sum().backward()

        saved = live_after(forward)
        kept.clear()  # else its graph is freed while the next one is measured
        peak = peak_of(both)
        self.optimiser.zero_grad(set_to_none=True)
        return saved, peak

    def peaks(self) -> dict[str, int]:
        """Bytes of each phase, with all that is held throughout."""
        held = self.held()
        saved, layers = self.backbone()
        measured = {
            "generation": peak_of(self.generate),
            "log-probabilities": peak_of(self.score_tokens),
            "rewards": peak_of(self.rewards),
            "update": peak_of(self.update),
        }
        return {"held": held, "activations": saved, "layers": layers} | {
            name: held + size for name, size in measured.items()
        }


def text(count: int, seed: int) -> str:
    stream = torch.Generator().manual_seed(seed)
    return "".join(f"w{i} " for i in torch.randint(0, 500, (count,), generator=stream).tolist())


def make_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1} | {f"w{i}": i + 2 for i in range(500)}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def make_source(case: Case) -> Any:
    """A reward source of the policy's size, fp32 as on every CPU."""
    encoder, k = TextEncoder(make_tokenizer(), 4096), case.reward.members
    config = type(case.config)(**{**case.config.to_dict(), "num_labels": 1})
    if case.reward.kind == "heads":
        trunk = AutoModel.from_config(config, dtype=torch.float32)
        return SharedTrunkHeads(trunk, encoder, Heads(HeadShape(k, config.hidden_size), 0), "last")
    make = AutoModelForSequenceClassification.from_config
    if case.reward.kind == "lora":
        return LoraMembers(
            LoraNetwork(make(config, dtype=torch.float32), AdapterShape(k, rank=case.reward.rank)), encoder, "none"
        )
    return IndependentMembers([Member(make(config, dtype=torch.float32).eval(), encoder) for _ in range(k)])


def source_tensors(source: Any) -> list[torch.Tensor]:
    if isinstance(source, SharedTrunkHeads):
        return [*source.trunk.parameters(), source.heads.weight]
    if isinstance(source, LoraMembers):
        return list(source.network.parameters())
    return [value for member in source.members for value in member.model.parameters()]


# --- against the plan --------------------------------------------------------------------------------------


def planned(plan: MemoryPlan) -> dict[str, int]:
    """The plan's phases as they are measured: an update is one phase."""
    update = max(plan.phase(name).bytes for name in ("loss", "backward, first layer", "backward, last layer"))
    three = {name: plan.phase(name).bytes for name in ("generation", "log-probabilities", "rewards")}
    kept = ("policy: ", "reference: ", "reward: ")  # gradients aren't there before the update
    held = sum(line.bytes for line in plan.phases[0].lines if line.name.startswith(kept))
    saved = _activations(plan)
    layers = max(saved, *_layers(plan_memory(plan.shape, replace(plan.run, accumulation=1), plan.reward)))
    return {"held": held, "activations": saved, "layers": layers} | three | {"update": update}


def _layers(plan: MemoryPlan) -> tuple[int, int]:
    """First and last layer going backward, as `backbone` runs them: from no gradients, and without the output head."""
    first, last = plan.phase("backward, first layer"), plan.phase("backward, last layer")
    head = 0 if plan.run.lora_rank else plan.shape.matrix * (2 if plan.run.precision == "bf16" else 4)
    return _inside(first), _inside(last) - head


def _inside(phase: Phase) -> int:
    """What a phase adds to what is held throughout."""
    shown = ("activations", "gradients of act", "policy: gradients", "bf16 copies", "gradient of the embedding")
    return sum(line.bytes for line in phase.lines if line.name.startswith(shown))


def _activations(plan: MemoryPlan) -> int:
    """What layers and last norm keep; the copy of the last hidden states belongs to the output head."""
    lines = {line.name: line.bytes for line in plan.phase("loss").lines}
    size = plan.shape.hidden * plan.run.compute
    casts = lines.get("bf16 copies of the weights (autocast)", 0)
    return lines["activations"] + lines["last norm"] - plan.run.tokens * size + casts


def compare(case: Case) -> dict[str, Any]:
    """Planned and measured bytes of each phase; the error of the whole, and of what comes on top of what is held."""
    return against_plan(case, Step(case).peaks())


def against_plan(case: Case, measured: dict[str, int]) -> dict[str, Any]:
    """What `compare` gives, from measured bytes."""
    expected, rows = planned(plan_memory(shape_of(case.config, case.name), case.run, case.reward)), {}
    for name, size in measured.items():
        inner = name in ("held", "activations", "layers")
        above = None if inner else (expected[name] - expected["held"]) / (size - measured["held"]) - 1
        rows[name] = {"planned": expected[name], "measured": size, "error": expected[name] / size - 1, "above": above}
    return {"case": case.name, "phases": rows, "peak_error": max(expected.values()) / max(measured.values()) - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true", help="the two smallest cases alone")
    parser.add_argument("--only", help="cases whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = []
    for case in SMALL if options.small else CASES:
        if options.only is None or options.only in case.name:
            rows.append(compare(case))
            print(table_rows(rows[-1]), flush=True)
    if options.json is not None:
        write_json(options.json, {"torch": torch.__version__, "cases": rows})


def table_rows(row: dict[str, Any]) -> str:
    lines = []
    for name, found in row["phases"].items():
        above = "" if found["above"] is None else f"{found['above']:+.1%}"
        sizes = f"{found['planned'] / 1e6:,.1f} | {found['measured'] / 1e6:,.1f}"
        lines.append(f"| {row['case']} | {name} | {sizes} | {found['error']:+.1%} | {above} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
