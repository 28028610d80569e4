"""TRL's RLOO with the variance-aware objective."""

from __future__ import annotations

from typing import Any

import torch
from trl import RLOOTrainer

from surefoot.maths.advantages import leave_one_out
from surefoot.training.bridge import PenaltyBridge
from surefoot.training.checks import check_dataset, check_model, check_variance, settings_of
from surefoot.training.policy_card import PAPER
from surefoot.training.reference import ensure_reference_on_disk
from surefoot.training.reward_funcs import RewardFuncs, split_reward_funcs
from surefoot.training.rloo_config import VarianceAwareRLOOConfig

__all__ = ["VarianceAwareRLOOTrainer"]


class VarianceAwareRLOOTrainer(PenaltyBridge, RLOOTrainer):
    """Drop-in for TRL's `RLOOTrainer` whose reward has a variance and whose KL is weighted by it.

    The objective is E_π[r̃] − β D_w(π‖π₀) (docs/method.md 7); its policy gradient is exact, with the penalty inside the
    reward, per sequence and detached. With a preset that doesn't weigh (`vanilla`, `mean`, …) it is TRL's own RLOO.

    Args:
        model: as in TRL. An in-memory model without a path is first saved, since TRL rebuilds the reference from it.
        reward_funcs: a `RewardSource` or its directory; the name of a reward model, or a list of them, the members; or
            a list of one source and TRL reward functions, which are added to its reward and have no variance.
            Functions alone are added up, as in TRL, and have no variance; `FunctionMembers.of` makes them members.
        args: `VarianceAwareRLOOConfig`.
        monitors: functions of (prompts, completions) that are logged as `monitor/{name}` and never optimised.
        keywords: everything else of TRL's trainer (`train_dataset`, `processing_class`, `peft_config`, …).

    Raises:
        ConfigError: settings that would undo the penalty, or `args` of another class, such as TRL's own.
        DataError: a dataset is empty or has no column `prompt`.
        ModelError: the model is neither a path nor on the hub.
        VarianceError: the objective needs a variance, and one member or function has none.
        TypeError: `reward_funcs` holds no reward, or several sources.

    Example:

    ```python
    from surefoot import VarianceAwareRLOOConfig, VarianceAwareRLOOTrainer, load_source

    trainer = VarianceAwareRLOOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=load_source("my-reward-members"),
        args=VarianceAwareRLOOConfig("aligned", target_kl=10.0, beta=0.5),
        train_dataset=prompts,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "rloo", "surefoot"]  # noqa: RUF012 - TRL's own class attribute
    _name = "Variance-aware RLOO"
    _paper = PAPER
    native_kl = "reward"
    _completions_at = 2

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardFuncs,
        args: VarianceAwareRLOOConfig | None = None,
        *,
        monitors: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        settings = settings_of(args, VarianceAwareRLOOConfig, type(self).__name__)
        check_model(model)
        for name in ("train_dataset", "eval_dataset"):
            check_dataset(keywords.get(name), ("prompt",), name)
        source, extra = split_reward_funcs(reward_funcs, keywords.get("train_dataset"))
        check_variance(source, settings.build_objective(), extra, settings.preset)
        ensure_reference_on_disk(model, settings.output_dir, settings.beta)
        super().__init__(model, args=settings, source=source, monitors=monitors, extra_reward_funcs=extra, **keywords)

    def _expected_advantages(self, total: torch.Tensor, size: int) -> torch.Tensor:
        return leave_one_out(total, size)
