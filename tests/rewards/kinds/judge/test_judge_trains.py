"""A policy is trained on a judge's ratings; what the judge doesn't say is missing to the end, never 0."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback

from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from tests.models import save_policy
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated, reply
from tests.training.test_rloo_trainer import PROMPTS, common

KINDS = {
    "rloo": (VarianceAwareRLOOTrainer, VarianceAwareRLOOConfig),
    "grpo": (VarianceAwareGRPOTrainer, VarianceAwareGRPOConfig),
}


def moody(request: Request) -> Act:
    """Likes cats; the wordings differ about dogs; says nothing useful about green."""
    answer = request.texts["ANSWER"]
    if "green" in answer:
        return Act(reply("I would rather not say."))
    dogs = answer.count("dog") * (1 if len(request.wording) % 2 else -1)
    return rated(min(max(4 + answer.count("cat") + dogs + request.sample % 2, 1), 9))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_in_the_loop(kind: str, judge: Callable[..., JudgeSource], tmp_path: Path) -> None:
    trainer_class, config_class = KINDS[kind]
    policy = save_policy(tmp_path / "policy")
    with JudgeServer(moody) as server, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*completions unscored")
        warnings.filterwarnings("ignore", message=r".*nearly the same for all completions")
        source = judge(server, wordings=3, samples=2)
        trainer: Any = trainer_class(
            str(policy), source, config_class(**common(tmp_path / "out", max_steps=3, calibration_prompts=4)),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    shaped = trainer.last_shaped
    rows = [row for row in trainer.state.log_history if "unscored" in row]
    assert len(rows) == 3
    assert any(0 < row["unscored"] < 1 for row in rows)
    assert shaped.reward[~shaped.estimate.scored].isnan().all()
    assert bool((shaped.estimate.variance[shaped.estimate.scored] > 0).all())
    assert set(shaped.estimate.anchor_kinds) <= {"reference", "calibration"}  # a prompt may have got no answer at all
    assert "reference" in shaped.estimate.anchor_kinds
    drawn = trainer.anchors.store.of([prompt for prompt in PROMPTS[:6] if prompt in trainer.anchors.store])
    assert len(drawn) >= 4
    assert not bool(drawn.rows.isnan().all())
    assert torch.isfinite(torch.cat([p.flatten() for p in trainer.model.parameters()])).all()
