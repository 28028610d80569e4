"""Used by `test_resumed_epochs.py`, and run by it under torchrun: runs of four epochs, left alone and resumed."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.dpo_trainer import VarianceAwareDPOTrainer
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from tests.models import WORDS
from tests.training.two_processes import members

PROMPTS = [f"{first} {second}" for first in WORDS[:3] for second in WORDS[3:5]]
PAIRS = {"prompt": PROMPTS, "chosen": [" cat runs", " cat"] * 3, "rejected": [" dog", " a dog sleeps"] * 3}
EPOCHS = 4


def trainer_of(kind: str, policy: str, output: Path) -> Any:
    """Six prompts, two in a step over all processes: three steps an epoch, a checkpoint after every other."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    common: dict[str, Any] = {
        "output_dir": str(output), "num_train_epochs": EPOCHS, "learning_rate": 1e-3, "save_steps": 2,
        "report_to": "none", "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "bf16": False,
        "logging_strategy": "no",
    }  # fmt: skip
    if kind == "dpo":
        return VarianceAwareDPOTrainer(
            policy,
            VarianceAwareDPOConfig(**common, per_device_train_batch_size=2 // processes, weights="none"),
            train_dataset=Dataset.from_dict(PAIRS),
        )
    online: dict[str, Any] = common | {
        "per_device_train_batch_size": 8 // processes, "num_generations": 4, "max_completion_length": 6, "beta": 0.2,
        "calibration_prompts": 6, "anchor_completions": 2,
    }  # fmt: skip
    config, trainer = {
        "rloo": (VarianceAwareRLOOConfig, VarianceAwareRLOOTrainer),
        "grpo": (VarianceAwareGRPOConfig, VarianceAwareGRPOTrainer),
    }[kind]
    source = FunctionMembers(members, 5)
    return trainer(policy, source, config(**online), train_dataset=Dataset.from_dict({"prompt": PROMPTS}))  # type: ignore[arg-type]


def trained(kind: str, policy: str, output: Path, checkpoint: Path | None = None) -> torch.Tensor:
    trainer = trainer_of(kind, policy, output)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return torch.cat([p.detach().double().flatten() for p in trainer.model.parameters()])


RESUMED = {"first": 2, "second": 4, "between the second and the third": 6, "last": 10}
"""Steps of the checkpoints that are resumed, by the epoch that they are in; an epoch has three."""


def differences(kind: str, policy: str, folder: Path) -> dict[str, float]:
    """Largest difference of a weight between a run left alone and one resumed, by the epoch of the checkpoint."""
    whole = trained(kind, policy, folder / "whole")
    places = {epoch: folder / "whole" / f"checkpoint-{step}" for epoch, step in RESUMED.items()}
    return {
        epoch: float((trained(kind, policy, folder / place.name, place) - whole).abs().max())
        for epoch, place in places.items()
    }


def main(policy: str, output: str) -> None:
    found = differences("rloo", policy, Path(output))
    Path(output, f"found{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's own threads now and then abort the interpreter while it ends; all results are written
