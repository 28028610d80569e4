"""Settings that the variance-aware RLOO and GRPO trainers add to TRL's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from surefoot.errors import ConfigError
from surefoot.maths.objectives import AGGREGATES, PRESETS, Objective, preset
from surefoot.types import ANCHOR_KINDS

__all__ = ["ObjectiveArguments"]


@dataclass
class ObjectiveArguments:
    """Objective, KL budget and calibration; mixed into TRL's config classes.

    A preset names the whole objective; the fields after it, where given, change parts of it.
    """

    preset: str = field(
        default="variance_aware",
        metadata={
            "help": "The whole objective by name; the settings below, where given, change parts of it.",
            "choices": PRESETS.keys(),
        },
    )
    aggregate: str | None = field(
        default=None,
        metadata={"help": "How members become one reward; the preset's if not given.", "choices": AGGREGATES.keys()},
    )
    aggregate_parameter: float | None = field(
        default=None, metadata={"help": "The aggregate's κ, λ, α, τ or member index; its usual value if not given."}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "'variance' weighs the KL by the reward's variance, 'none' does not; the preset's if not given.",
            "choices": ("variance", "none"),
        },
    )
    objective: str | None = field(
        default=None,
        metadata={
            "help": "Form of the penalty: 'generalized' is D_w, 'literal' the paper's, with its +1; the preset's if "
            "not given.",
            "choices": ("generalized", "literal"),
        },
    )
    weight_floor: float = field(default=0.1, metadata={"help": "Smallest weight; the mean weight is 1."})
    weight_ceiling: float = field(default=10.0, metadata={"help": "Largest weight."})
    target_kl: float | None = field(
        default=None,
        metadata={"help": "KL budget in nats per sequence: beta adapts to hold it, starting from `beta`, which should "
                  "be high. None keeps beta constant."},
    )  # fmt: skip
    calibration_prompts: int = field(
        default=64,
        metadata={
            "help": "Prompts on which the reference policy is sampled before training (num_generations each) to "
            "fit the variance prior and the mean variance."
        },
    )
    anchor: str = field(
        default="reference",
        metadata={
            "help": "What rewards are centred by before their variance is taken: reference (mean over completions of "
            "the reference policy for the prompt), dataset (mean over the prompt's own completion, or chosen and "
            "rejected), calibration (one mean for all prompts), group (the policy's own completions: the variance "
            "then vanishes as the policy concentrates).",
            "choices": ANCHOR_KINDS,
        },
    )
    anchor_completions: int = field(
        default=8,
        metadata={
            "help": "Reference completions of a prompt that make its anchor, drawn once when it first comes up."
        },
    )
    anchor_file: str | None = field(
        default=None, metadata={"help": "Anchors made by `surefoot anchors`; prompts that it lacks are drawn."}
    )

    float32_log_ratio: bool = field(
        default=True,
        metadata={
            "help": "In bf16 or fp16: compute the log-ratio behind KL and penalty in float32, with one forward more "
            "per batch than TRL. Otherwise rounding adds noise to it, to the penalty and to the KL that beta follows."
        },
    )

    def build_objective(self) -> Objective:
        """Build the objective that these settings name.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        changes: dict[str, Any] = {"weight_floor": self.weight_floor, "weight_ceiling": self.weight_ceiling}
        for name, value in (("weights", self.weights), ("form", self.objective), ("aggregate", self.aggregate)):
            if value is not None:
                changes[name] = value
        if self.aggregate is not None:
            changes["parameter"] = None
        if self.aggregate_parameter is not None:
            changes["parameter"] = float(self.aggregate_parameter)
        return replace(preset(self.preset), **changes)

    def check_objective(self, *, beta: float, num_generations: int) -> None:
        """Refuse combinations of settings that would change the objective.

        Raises:
            ConfigError: see the message.
        """
        objective = self.build_objective()
        if objective.weights == "variance" and beta == 0.0 and self.target_kl is None:
            raise ConfigError("weights='variance' weighs the KL penalty, but beta is 0; set beta > 0 or target_kl")
        if self.target_kl is not None and beta == 0.0:
            raise ConfigError("target_kl adapts beta from its starting value; set beta > 0 (high rather than low)")
        if self.anchor not in ANCHOR_KINDS:
            raise ConfigError(f"anchor must be one of {', '.join(ANCHOR_KINDS)}, got '{self.anchor}'")
        if self.anchor_completions < 1:
            raise ConfigError(f"anchor_completions must be at least 1, got {self.anchor_completions}")
        if self.anchor_file is not None and self.anchor != "reference":
            raise ConfigError(
                f"anchor_file holds reference anchors, but anchor is '{self.anchor}'; leave one of them out"
            )
        if self.calibration_prompts < 1:
            raise ConfigError(f"calibration_prompts must be at least 1, got {self.calibration_prompts}")
        if num_generations < 2:
            raise ConfigError(
                f"advantages compare a prompt's completions: num_generations must be at least 2, got {num_generations}"
            )
