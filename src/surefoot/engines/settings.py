"""Settings of an engine's run: the section `surefoot` of its own configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surefoot.errors import ConfigError, did_you_mean
from surefoot.maths.objectives import Objective, preset
from surefoot.ranges import check_ranges
from surefoot.setting_types import check_nested

__all__ = ["EngineSettings"]

_ANCHORS = ("file", "calibration")
_TEXTS = ("messages", "text")
_HALF = ("warn", "refuse")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What is optimised, and where the rewards come from.

    Args:
        source: folder of a saved source; None for the server's.
        url: address of `surefoot serve`, as http://127.0.0.1:8000, instead of `source`.
        key_variable: environment variable that holds the server's key.
        device: of a source in this process; None takes the first accelerator.
        preset: objective by name (docs/method.md 7).
        aggregate_parameter: the aggregate's κ, λ, α, τ or member index; None takes its usual value.
        weight_floor, weight_ceiling: bounds of w.
        reference_variance: s̄², in reward²; None takes the mean over the run's first batch, which the reference policy
            draws.
        anchor: "file" centres variances by `anchor_file`, "calibration" by the calibration set's mean.
        anchor_file: of `surefoot anchors`, with every prompt of training and validation.
        target_kl: budget in nats per sequence, to which β adapts; None keeps β constant.
        texts: "messages" gives the source chat messages, "text" the plain text of a prompt of one message.
        batch_rows: most rows that are scored together.
        half_precision: "warn" or "refuse", where the log-probabilities are bf16 or fp16.

    Raises:
        ConfigError: a value out of range, or two that contradict each other.
    """

    source: str | None = None
    url: str | None = None
    key_variable: str | None = None
    device: str | None = None
    preset: str = "variance_aware"
    aggregate_parameter: float | None = None
    weight_floor: float = 0.1
    weight_ceiling: float = 10.0
    reference_variance: float | None = None
    anchor: str = "file"
    anchor_file: str | None = None
    target_kl: float | None = None
    texts: str = "messages"
    batch_rows: int = 64
    half_precision: str = "warn"

    def __post_init__(self) -> None:
        check_ranges(dataclasses.asdict(self), "surefoot.")
        for name, known in (("anchor", _ANCHORS), ("texts", _TEXTS), ("half_precision", _HALF)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"surefoot.{name} must be {' or '.join(known)}, got '{value}'")
        if self.batch_rows < 1:
            raise ConfigError(f"surefoot.batch_rows must be at least 1, got {self.batch_rows}")
        if self.reference_variance is not None and not self.reference_variance > 0:
            raise ConfigError(f"surefoot.reference_variance must be positive, got {self.reference_variance}")
        if self.source is not None and self.url is not None:
            raise ConfigError("surefoot.source and surefoot.url are both given; the rewards come from one of them")
        self._check_objective()

    def _check_objective(self) -> None:
        objective = self.objective
        if objective.form == "literal":
            raise ConfigError(
                f"surefoot.preset: {self.preset} takes β·w from the reward besides the KL, for which the engine's "
                "penalty has no place; use variance_aware"
            )
        if objective.within_groups:
            raise ConfigError(
                f"surefoot.preset: {self.preset} needs a prompt's whole group, but an engine sends single rows"
            )

    @property
    def objective(self) -> Objective:
        """The objective that is optimised."""
        return preset(
            self.preset,
            parameter=self.aggregate_parameter,
            weight_floor=self.weight_floor,
            weight_ceiling=self.weight_ceiling,
        )

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> EngineSettings:
        """Read the section of a configuration.

        Raises:
            ConfigError: an unknown key (the nearest known one is given), or a value of the wrong kind.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        given = dict(section or {})
        for key in given:
            if key not in names:
                raise ConfigError(f"unknown setting 'surefoot.{key}'{did_you_mean(key, names)}")
        check_nested(given, (cls,), "surefoot")
        return cls(**given)

    @property
    def fixed(self) -> dict[str, Any]:
        """What must stay the same when a run is resumed, as JSON values."""
        names = ("preset", "aggregate_parameter", "weight_floor", "weight_ceiling", "reference_variance", "anchor")
        return {name: getattr(self, name) for name in names}

    def check_resumed(self, held: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another objective.

        Raises:
            ConfigError: names the first setting that differs.
        """
        for name, value in self.fixed.items():
            if held.get(name) != value:
                raise ConfigError(
                    f"the checkpoint was made with surefoot.{name}: {held.get(name)}, and this run has {value}; set "
                    "it back to go on, or start a new run in another folder"
                )
