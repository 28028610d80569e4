"""surefoot: align language models on preferences when the reward model can't be fully trusted.

Importing this package loads nothing heavy; each name below is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from surefoot.forecast import forecast_source
    from surefoot.maths.objectives import Objective, preset
    from surefoot.rewards.anchors import AnchorStore, group_anchors
    from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
    from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
    from surefoot.rewards.kinds.smoothed import SmoothedVariance
    from surefoot.rewards.registry import load_source
    from surefoot.rewards.score_dataset import score_dataset
    from surefoot.rewards.source import RewardSource
    from surefoot.studies.config import StudyConfig
    from surefoot.studies.run import run_study
    from surefoot.training.dpo_config import VarianceAwareDPOConfig
    from surefoot.training.dpo_trainer import VarianceAwareDPOTrainer
    from surefoot.training.grpo_config import VarianceAwareGRPOConfig
    from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
    from surefoot.training.rloo_config import VarianceAwareRLOOConfig
    from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
    from surefoot.types import Anchors, Calibration, MarginEstimate, PreferencePair, RewardEstimate
    from surefoot.workflow import diagnose_source, train_source

_HOMES = {
    "AnchorStore": "surefoot.rewards.anchors",
    "Anchors": "surefoot.types",
    "Calibration": "surefoot.types",
    "FunctionMembers": "surefoot.rewards.kinds.function",
    "FunctionReward": "surefoot.rewards.kinds.function",
    "LinearConfig": "surefoot.rewards.kinds.linear",
    "LinearReward": "surefoot.rewards.kinds.linear",
    "MarginEstimate": "surefoot.types",
    "Objective": "surefoot.maths.objectives",
    "PreferencePair": "surefoot.types",
    "RewardEstimate": "surefoot.types",
    "RewardSource": "surefoot.rewards.source",
    "SmoothedVariance": "surefoot.rewards.kinds.smoothed",
    "StudyConfig": "surefoot.studies.config",
    "VarianceAwareDPOConfig": "surefoot.training.dpo_config",
    "VarianceAwareDPOTrainer": "surefoot.training.dpo_trainer",
    "VarianceAwareGRPOConfig": "surefoot.training.grpo_config",
    "VarianceAwareGRPOTrainer": "surefoot.training.grpo_trainer",
    "VarianceAwareRLOOConfig": "surefoot.training.rloo_config",
    "VarianceAwareRLOOTrainer": "surefoot.training.rloo_trainer",
    "diagnose_source": "surefoot.workflow",
    "fit_linear": "surefoot.rewards.kinds.linear",
    "forecast_source": "surefoot.forecast",
    "group_anchors": "surefoot.rewards.anchors",
    "load_source": "surefoot.rewards.registry",
    "preset": "surefoot.maths.objectives",
    "run_study": "surefoot.studies.run",
    "score_dataset": "surefoot.rewards.score_dataset",
    "train_source": "surefoot.workflow",
}

__all__ = [
    "AnchorStore",
    "Anchors",
    "Calibration",
    "FunctionMembers",
    "FunctionReward",
    "LinearConfig",
    "LinearReward",
    "MarginEstimate",
    "Objective",
    "PreferencePair",
    "RewardEstimate",
    "RewardSource",
    "SmoothedVariance",
    "StudyConfig",
    "VarianceAwareDPOConfig",
    "VarianceAwareDPOTrainer",
    "VarianceAwareGRPOConfig",
    "VarianceAwareGRPOTrainer",
    "VarianceAwareRLOOConfig",
    "VarianceAwareRLOOTrainer",
    "diagnose_source",
    "fit_linear",
    "forecast_source",
    "group_anchors",
    "load_source",
    "preset",
    "run_study",
    "score_dataset",
    "train_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
