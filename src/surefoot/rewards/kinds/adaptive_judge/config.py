"""Settings of adaptive reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surefoot.errors import ConfigError

__all__ = ["AdaptiveJudgeConfig", "Comparison"]

Comparison = Literal["others", "best"]


@dataclass(frozen=True)
class AdaptiveJudgeConfig:
    """What `surefoot reward --kind adaptive_judge` can set.

    Raises:
        ConfigError: a value out of range.
    """

    mean_samples: float = field(
        default=2.0,
        metadata={"help": "Readings of a completion on average, at most. One reading is a reply in each wording."},
    )
    compare: Comparison = field(
        default="others",
        metadata={
            "help": "What must be told apart: a completion and the mean of its prompt's others (the order of a pair), "
            "or the best one and the rest, for best-of-n."
        },
    )
    sure: float = field(
        default=0.99,
        metadata={"help": "No further reading once a comparison is decided with this probability."},
    )

    def __post_init__(self) -> None:
        if not self.mean_samples >= 1:
            raise ConfigError(f"mean_samples must be at least 1, got {self.mean_samples}")
        if self.compare not in ("others", "best"):
            raise ConfigError(f"compare must be one of others, best, got '{self.compare}'")
        if not 0.5 < self.sure <= 1:
            raise ConfigError(f"sure must be above 0.5 and at most 1, got {self.sure}")
