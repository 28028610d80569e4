"""TRL's RLOO with the variance-aware objective."""

from __future__ import annotations

import textwrap
from typing import Any

from trl import RLOOTrainer

from surefoot.rewards.source import RewardSource
from surefoot.training.bridge import PenaltyBridge, ensure_reference_on_disk
from surefoot.training.rloo_config import VarianceAwareRLOOConfig

__all__ = ["VarianceAwareRLOOTrainer"]


class VarianceAwareRLOOTrainer(PenaltyBridge, RLOOTrainer):
    """Drop-in for TRL's `RLOOTrainer` whose reward has a variance and whose KL is weighted by it.

    The objective is E_π[r̃] − β D_w(π‖π₀) (DESIGN 2.3); its policy gradient is exact, with the penalty inside the
    reward, per sequence and detached. With a preset that doesn't weigh (`vanilla`, `mean`, …) it is TRL's own RLOO.

    Args:
        model: as in TRL. An in-memory model without a path is first saved, since TRL rebuilds the reference from it.
        reward_funcs: a `RewardSource`, or a list of one source and TRL reward functions, which are added to its
            reward and have no variance.
        args: `VarianceAwareRLOOConfig`.
        monitors: functions of (prompts, completions) that are logged as `monitor/{name}` and never optimised.
        keywords: everything else of TRL's trainer (`train_dataset`, `processing_class`, `peft_config`, …).

    Raises:
        ConfigError: settings that would undo the penalty.
        VarianceError: the objective needs a variance and the source has one member.
        TypeError: no reward source among `reward_funcs`.

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
    _paper = {  # noqa: RUF012
        "title": "Towards Reliable, Uncertainty-Aware Alignment",
        "id": "2507.15906",
        "citation": textwrap.dedent("""\
            @article{gopalan2025towards,
                title   = {Towards Reliable, Uncertainty-Aware Alignment},
                author  = {Gopalan, Aditya and Banerjee, Debangshu and Saha, Aadirupa},
                year    = 2025,
                journal = {arXiv preprint arXiv:2507.15906}
            }"""),
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardSource | list[Any],
        args: VarianceAwareRLOOConfig | None = None,
        *,
        monitors: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        source, extra = split_reward_funcs(reward_funcs)
        settings = args if args is not None else VarianceAwareRLOOConfig()
        ensure_reference_on_disk(model, settings.output_dir, settings.beta)
        super().__init__(model, args=settings, source=source, monitors=monitors, extra_reward_funcs=extra, **keywords)


def split_reward_funcs(reward_funcs: RewardSource | list[Any]) -> tuple[RewardSource, list[Any]]:
    """The one reward source, and TRL's own kinds of reward function beside it.

    Raises:
        TypeError: none or several sources.
    """
    given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    sources = [item for item in given if isinstance(item, RewardSource)]
    if len(sources) != 1:
        raise TypeError(
            f"reward_funcs must hold exactly one RewardSource, got {len(sources)}; load one with "
            "surefoot.load_source(directory), or wrap your function in surefoot.FunctionMembers"
        )
    return sources[0], [item for item in given if not isinstance(item, RewardSource)]
