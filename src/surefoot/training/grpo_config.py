"""Settings of `VarianceAwareGRPOTrainer`: TRL's GRPOConfig and the objective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import GRPOConfig

from surefoot.errors import ConfigError
from surefoot.training.objective_config import ObjectiveArguments
from surefoot.training.secret_settings import SecretsStay

__all__ = ["VarianceAwareGRPOConfig"]


@dataclass
class VarianceAwareGRPOConfig(SecretsStay, ObjectiveArguments, GRPOConfig):
    """`GRPOConfig` with `preset`, `target_kl` and the rest of `ObjectiveArguments`.

    With weighting on, the penalty is in the reward, and `beta` is per sequence (in reward per nat), as in RLOO; TRL's
    own β in the loss is per token. With weighting off (`preset="mean"`, …) everything is TRL's, loss-side KL included.

    Differs from GRPOConfig in its defaults: `beta` is 0.05, since weighting needs a KL; `scale_rewards` is "none" with
    weighting on, since dividing by each group's spread would undo an absolute penalty, and with the shrunken
    aggregates, since it would undo the shrinking, and TRL's "group" otherwise;
    without an accelerator it trains in fp32 on the CPU.

    Raises:
        ConfigError: with weighting on or a shrunken aggregate, `scale_rewards="group"`; or a
            `multi_objective_aggregation` that normalises each reward by itself; or a combination that
            `ObjectiveArguments.check_objective` refuses.
    """

    beta: float = field(
        default=0.05,
        metadata={"help": "KL coefficient; per sequence with weighting on, per token (TRL's) with weighting off."},
    )
    scale_rewards: str | None = field(
        default=None,
        metadata={
            "help": "'none' or 'batch' with weighting on, also 'group' with weighting off; None: none or group."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 mixed precision; on by default where there is an accelerator."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False
        objective = self.build_objective()
        weighted = objective.weights != "none" or objective.form == "literal"
        shrunk = objective.aggregate in ("shrunken", "shrunken_scaled")
        if self.scale_rewards is None:
            self.scale_rewards = "none" if weighted or shrunk else "group"
        if shrunk and str(self.scale_rewards) in ("True", "group"):
            raise ConfigError(
                f"scale_rewards=\"group\" divides by a spread that '{objective.aggregate}' found to be noise; set "
                'scale_rewards="none" (aggregate "shrunken_scaled" is in units of the spread already)'
            )
        if weighted and str(self.scale_rewards) in ("True", "group"):
            raise ConfigError(
                'scale_rewards="group" divides each group by its own spread and so undoes an absolute penalty; set '
                'scale_rewards="none" (or "batch"), or switch weighting off with weights="none"'
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError(
                "multi_objective_aggregation must be 'sum_then_normalize': reward and penalty are two columns, and "
                f"'{self.multi_objective_aggregation}' would normalise each by itself"
            )
        super().__post_init__()
        self.check_objective(beta=self.beta, num_generations=self.num_generations or 0)
