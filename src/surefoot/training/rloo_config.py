"""Settings of `VarianceAwareRLOOTrainer`: TRL's RLOOConfig and the objective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import RLOOConfig

from surefoot.errors import ConfigError
from surefoot.training.objective_config import ObjectiveArguments
from surefoot.training.secret_settings import SecretsStay

__all__ = ["VarianceAwareRLOOConfig"]


@dataclass
class VarianceAwareRLOOConfig(SecretsStay, ObjectiveArguments, RLOOConfig):
    """`RLOOConfig` with `preset`, `target_kl` and the rest of `ObjectiveArguments`.

    Its defaults are those of RLOOConfig, but that without an accelerator it trains in fp32 on the CPU.

    Raises:
        ConfigError: `normalize_advantages` or `reward_clip_range` is set, which would undo or clip the penalty; or a
            combination that `ObjectiveArguments.check_objective` refuses.
    """

    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 mixed precision; on by default where there is an accelerator."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False
        if self.normalize_advantages:
            raise ConfigError(
                "normalize_advantages=True rescales the advantages by their spread and so undoes an absolute penalty; "
                "leave it False"
            )
        if self.reward_clip_range is not None:
            raise ConfigError(
                "reward_clip_range clips the penalty together with the reward; leave it unset and bound the weights "
                "with weight_floor and weight_ceiling"
            )
        super().__post_init__()
        self.check_objective(beta=self.beta, num_generations=self.num_generations or 0)
