"""Settings of rewards by criteria: which, how they are asked, and what may be run, beside those of the calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.judge.call_config import CallConfig

__all__ = ["CriteriaConfig"]


@dataclass(frozen=True)
class CriteriaConfig(CallConfig):
    """All settings of rewards by criteria but the judge's name; those of its calls are in `CallConfig`.

    `samples` are replies to each question, which is about one criterion or about all, as `asking` says. `min_valid`
    counts valid replies for each criterion; if None it is 2, or 1 where one is asked.

    Args:
        criteria: file or hub dataset of prompts and their criteria (docs/criteria.md).
        asking: "each" asks about each criterion by itself; "together" about all of a completion's in one request.
        most_missing: largest share of the weights that may have no answer; the reward is then that of the others. A
            required criterion is never among them.
        variance_from: "replies", how the same judge's replies differ; or "criteria", how the prompt's criteria do,
            as a sample of all that one could ask.
        functions: name to file.py:function or module:function, for criteria of kind: function.
        patterns: name to regular expression, for `extract` of criteria of kind: exact_match.
        run_code: run the completions' code, for criteria of kind: unit_tests. That is no sandbox.
        code_seconds, code_memory_mib: limits of one such run.

    Raises:
        ConfigError: a value out of range, a contradiction, or a secret in the endpoint or the parameters.
    """

    criteria: str | None = field(
        default=None,
        metadata={"help": "File or hub dataset of prompts and their criteria (docs/criteria.md)."},
    )
    asking: Literal["each", "together"] = field(
        default="each", metadata={"help": "One request for each criterion, or one for all of a completion's."}
    )
    most_missing: float = field(
        default=0.0, metadata={"help": "Share of the weights without an answer beyond which a completion is unscored."}
    )
    variance_from: Literal["replies", "criteria"] = field(
        default="replies", metadata={"help": "From how replies differ, or from how the prompt's criteria do."}
    )
    functions: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Name to file.py:function, for criteria of kind: function."}
    )
    patterns: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Name to regular expression, for `extract` of kind: exact_match."}
    )
    run_code: bool = field(
        default=False, metadata={"help": "Run the completions' code for criteria of kind: unit_tests. No sandbox."}
    )
    code_seconds: float = field(default=10.0, metadata={"help": "Limit of one run of such code."})
    code_memory_mib: int = field(default=1024, metadata={"help": "Limit of one run of such code."})

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **CallConfig.CHOICES,
        "asking": ("each", "together"),
        "variance_from": ("replies", "criteria"),
    }
    AT_LEAST: ClassVar[Mapping[str, float]] = {
        **CallConfig.AT_LEAST,
        "most_missing": 0,
        "code_seconds": 0.1,
        "code_memory_mib": 64,
    }
    LIMITS: ClassVar[frozenset[str]] = CallConfig.LIMITS | {
        *("criteria", "most_missing", "variance_from"),
        *("functions", "patterns", "run_code", "code_seconds", "code_memory_mib"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.most_missing < 1:
            raise ConfigError(f"most_missing is a share below 1, got {self.most_missing}")
        if self.min_valid is not None and self.min_valid > self.samples:
            raise ConfigError(f"min_valid is {self.min_valid}, but samples is {self.samples}")
        for name in ("functions", "patterns"):
            held = getattr(self, name)
            if not all(isinstance(key, str) and isinstance(value, str) for key, value in held.items()):
                raise ConfigError(f"{name} must be `name: text` lines, got {held!r:.80}")

    @property
    def valid(self) -> int:
        """Fewest valid replies for each criterion."""
        return self.min_valid or min(2, self.samples)
