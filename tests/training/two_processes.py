"""Run under torchrun by `test_two_processes.py`: a short run whose prompt groups are split between the processes."""

import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.distributed import end_training
from surefoot.training.preference_weights import add_variances
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer

PROMPTS = ["the cat", "a dog", "red and", "green"]
PAIRS = {
    "prompt": PROMPTS * 3,
    "chosen": [" cat", " dog dog", " cat and", " a cat", " runs", " and"] * 2,
    "rejected": [" dog", " red", " sleeps and", " a"] * 3,
}


def members(prompts: Any, completions: Any) -> list[list[float]]:
    counts = [(text.count("cat"), text.count("dog"), len(text)) for text in completions]
    return [
        [cat + 0.1 * size, cat + 2.0 * dog, cat - 2.0 * dog, cat + dog - 0.1 * size, cat - dog]
        for cat, dog, size in counts
    ]


def main(policy: str, output: str) -> None:
    trainer = VarianceAwareRLOOTrainer(
        policy,
        FunctionMembers(members, 5),
        VarianceAwareRLOOConfig(
            output_dir=output, per_device_train_batch_size=4, num_generations=8, max_completion_length=6, max_steps=16,
            beta=0.5, target_kl=3.0, learning_rate=1e-3, calibration_prompts=2, anchor_completions=3,
            report_to="none", use_cpu=True, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
    )  # fmt: skip
    assert trainer.anchors is not None
    draw, drawn = trainer.anchors._sample, list[list[str]]()

    def watched(prompts: Any, seed: int) -> Any:
        drawn.append(list(prompts))
        return draw(prompts, seed)

    trainer.anchors._sample = watched
    trainer.train()
    shaped, calibration = trainer.last_shaped, trainer.source.calibration
    assert shaped is not None
    assert calibration is not None
    found = {
        "beta": trainer.beta,
        "reference_variance": calibration.reference_variance,
        "rows": len(shaped.reward),
        "anchors": {prompt: trainer.anchors.store.of([prompt]).rows[0].tolist() for prompt in sorted(PROMPTS)},
        "weights": float(sum(p.detach().double().sum() for p in trainer.model.parameters())),
    }
    rank = trainer.accelerator.process_index
    scored: list[str] = []

    def counted(prompts: Any, completions: Any) -> list[list[float]]:
        scored.extend(prompts)
        return members(prompts, completions)

    pairs = add_variances(Dataset.from_dict(PAIRS), FunctionMembers(counted, 5), rows=3)
    found["pairs"] = pairs.to_dict()
    Path(output, f"scored{rank}.json").write_text(json.dumps(scored))
    Path(output, f"rank{rank}.json").write_text(json.dumps(found))
    Path(output, f"drawn{rank}.json").write_text(json.dumps(drawn))
    wrapped = weakref.ref(trainer.model_wrapped)
    assert isinstance(wrapped(), DistributedDataParallel)
    end_training(trainer)
    assert wrapped() is None  # whoever frees the reducer last, after the group was left, may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's own threads now and then abort the interpreter while it ends; all results are written
