"""Run by `test_two_processes.py`, under torchrun or alone: a short run of one global batch size on any processes.

Which token a row gets depends on the row's place in the global batch, not on the process, so that runs on one process
and on two see the same completions as long as their policies agree.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from datasets import Dataset

from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.distributed import end_training
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer

ROWS, TOKENS = 8, 6


def members(prompts: Any, completions: Any) -> list[list[float]]:
    """Five members that like cats, and differ about dogs and length."""
    counts = [(text.count("cat"), text.count("dog"), len(text)) for text in completions]
    return [
        [cat + 0.1 * size, cat + 2.0 * dog, cat - 2.0 * dog, cat + dog - 0.1 * size, cat - dog]
        for cat, dog, size in counts
    ]


def shard_on_the_cpu() -> None:
    """accelerate turns FSDP on for accelerators only; do for gloo what it does for them."""
    original = AcceleratorState.__init__

    def start(self: Any, *positional: Any, **keywords: Any) -> None:
        original(self, *positional, **keywords)
        plugin = keywords.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = start  # type: ignore[method-assign]


class SharedNoise:
    """Instead of `torch.multinomial`: Gumbel noise of the whole global batch, of which a process takes its rows."""

    def __init__(self) -> None:
        self.calls = 0
        self.accelerator: Any = None

    def __call__(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1
        rows, words = probabilities.shape
        generator = torch.Generator().manual_seed(self.calls)
        self.calls += 1
        uniform = torch.rand(rows * self.accelerator.num_processes, words, generator=generator, dtype=torch.float64)
        mine = uniform[rows * self.accelerator.process_index :][:rows]
        return (probabilities.double().log() - (-mine.log()).log()).argmax(dim=1, keepdim=True)


def main(policy: str, output: str, sharded: str) -> None:
    fsdp: dict[str, Any] = {}
    if sharded == "yes":
        shard_on_the_cpu()
        fsdp = {
            "fsdp": True,
            "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
        }
    noise, processes = SharedNoise(), int(os.environ.get("WORLD_SIZE", "1"))
    trainer = VarianceAwareRLOOTrainer(
        policy,
        FunctionMembers(members, 5),
        VarianceAwareRLOOConfig(
            output_dir=output, per_device_train_batch_size=ROWS // processes, num_generations=ROWS,
            max_completion_length=TOKENS, generation_kwargs={"min_new_tokens": TOKENS}, max_steps=3, beta=0.5,
            learning_rate=1e-3, calibration_prompts=4, anchor_completions=ROWS, report_to="none", use_cpu=True,
            bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, seed=1, **fsdp,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["the cat", "a dog", "red and", "green"] * 4}),
    )  # fmt: skip
    noise.accelerator = trainer.accelerator
    torch.multinomial = noise  # type: ignore[assignment]
    found: dict[str, Any] = {}
    by_sampling = trainer.calibrate_on_reference

    def calibrate() -> Any:
        """As training does, on completions that depend on the processes; then the same constants for all."""
        found["sampled_variance"] = by_sampling().reference_variance
        noise.calls = 0
        assert trainer.anchors is not None
        trainer.anchors.store = AnchorStore(trainer.source.name, ROWS)
        texts = ["dog dog dog", "dog", "cat", "a", "cat dog", "dog red", "red", "the dog a"]
        return trainer.source.calibrate(torch.tensor(members([], texts)))

    trainer.calibrate_on_reference = calibrate  # type: ignore[method-assign]
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name] = float(whole.detach().double().square().sum())
    found["sharded"] = any(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters())
    assert trainer.last_shaped is not None
    assert trainer.anchors is not None
    store = trainer.anchors.store
    for prompt in sorted({text for text in trainer.train_dataset["prompt"] if text in store}):
        found[f"anchor of {prompt}"] = store.of([prompt]).rows[0].tolist()
    found["weight_spread"] = float(trainer.last_shaped.weight.std())
    found["log_ratio"] = sorted(trainer.last_shaped.log_ratio.tolist())
    if trainer.accelerator.is_main_process:
        Path(output, "found.json").write_text(json.dumps(found))
    end_training(trainer)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's own threads now and then abort the interpreter while it ends; all results are written
