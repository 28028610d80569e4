"""TRL's GRPO with the variance-aware objective."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

from surefoot.maths.advantages import group_relative
from surefoot.training.bridge import PenaltyBridge
from surefoot.training.checks import check_dataset, check_model, check_variance, settings_of
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.policy_card import PAPER
from surefoot.training.reference import ensure_reference_on_disk
from surefoot.training.reward_funcs import RewardFuncs, split_reward_funcs

__all__ = ["VarianceAwareGRPOTrainer"]


class VarianceAwareGRPOTrainer(PenaltyBridge, GRPOTrainer):
    """Drop-in for TRL's `GRPOTrainer` whose reward has a variance and whose KL is weighted by it.

    With weighting on, the objective is E_π[r̃] − β D_w(π‖π₀) (docs/method.md 7): the penalty is in the reward, per
    sequence and detached, and TRL's own KL in the loss is off. The policy's log-probabilities come from the sampling
    itself, or are TRL's where it computes them; vLLM, continuous batching, FSDP, DeepSpeed, tools and images take one
    more forward of the policy without a gradient. With a preset that doesn't weigh it is TRL's own GRPO.

    Args:
        model: as in TRL. An in-memory model without a path is first saved, since TRL rebuilds the reference from it.
        reward_funcs: a `RewardSource` or its directory; the name of a reward model, or a list of them, the members; or
            a list of one source and TRL reward functions, which are added to its reward and have no variance.
            Functions alone are added up, as in TRL, and have no variance; `FunctionMembers.of` makes them members.
        args: `VarianceAwareGRPOConfig`.
        monitors: functions of (prompts, completions) that are logged as `monitor/{name}` and never optimised.
        keywords: everything else of TRL's trainer (`train_dataset`, `processing_class`, `peft_config`, …).

    Raises:
        ConfigError: settings that would undo the penalty, or `args` of another class, such as TRL's own.
        DataError: a dataset is empty or has no column `prompt`.
        ModelError: the model is neither a path nor on the hub.
        VarianceError: the objective needs a variance, and one member or function has none.
        TypeError: `reward_funcs` holds no reward, or several sources.
    """

    _tag_names = ["trl", "grpo", "surefoot"]  # noqa: RUF012 - TRL's own class attribute
    _name = "Variance-aware GRPO"
    _paper = PAPER
    native_kl = "loss"
    _completions_at = 3

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardFuncs,
        args: VarianceAwareGRPOConfig | None = None,
        *,
        monitors: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        settings = settings_of(args, VarianceAwareGRPOConfig, type(self).__name__)
        check_model(model)
        for name in ("train_dataset", "eval_dataset"):
            check_dataset(keywords.get(name), ("prompt",), name)
        source, extra = split_reward_funcs(reward_funcs, keywords.get("train_dataset"))
        check_variance(source, settings.build_objective(), extra, settings.preset)
        ensure_reference_on_disk(model, settings.output_dir, settings.beta)
        super().__init__(model, args=settings, source=source, monitors=monitors, extra_reward_funcs=extra, **keywords)

    def _expected_advantages(self, total: torch.Tensor, size: int) -> torch.Tensor:
        return group_relative(total, size, str(self.scale_rewards))
