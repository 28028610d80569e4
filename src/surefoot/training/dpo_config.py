"""Settings of `VarianceAwareDPOTrainer`: TRL's DPOConfig and the weighting."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import DPOConfig

from surefoot.errors import ConfigError
from surefoot.training.secret_settings import SecretsStay

__all__ = ["VarianceAwareDPOConfig"]

_LINEAR = ("sigmoid", "hinge", "robust")


@dataclass
class VarianceAwareDPOConfig(SecretsStay, DPOConfig):
    """`DPOConfig` with `weights`, `objective`, `weight_floor`, `weight_ceiling` and `anchor_file`.

    Without an accelerator it trains in fp32 on the CPU.

    Raises:
        ConfigError: with weighting on, a loss or divergence that isn't a function of β (w_c ℓ_c − w_r ℓ_r); or values
            out of range.
    """

    weights: str = field(
        default="variance",
        metadata={"help": "'variance' weighs each side's log-ratio, 'none' not.", "choices": ("variance", "none")},
    )
    objective: str = field(
        default="generalized",
        metadata={
            "help": "Form of the penalty: 'generalized' is D_w, 'literal' the paper's, with its +1.",
            "choices": ("generalized", "literal"),
        },
    )
    weight_floor: float = field(default=0.1, metadata={"help": "Smallest weight; the mean weight is 1."})
    weight_ceiling: float = field(default=10.0, metadata={"help": "Largest weight."})
    anchor_file: str | None = field(
        default=None,
        metadata={
            "help": "Anchors made by `surefoot anchors`: variances are centred by the reference policy's completions; "
            "prompts that it lacks are centred by their own pairs."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 mixed precision; on by default where there is an accelerator."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False
        super().__post_init__()
        for name, allowed in (("weights", ("variance", "none")), ("objective", ("generalized", "literal"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if not 0 < self.weight_floor <= 1 <= self.weight_ceiling:
            raise ConfigError(
                "weights have mean 1, so 0 < weight_floor ≤ 1 ≤ weight_ceiling must hold; got "
                f"{self.weight_floor} and {self.weight_ceiling}"
            )
        if self.weights == "variance":
            self._check_loss()
        elif self.anchor_file is not None:
            raise ConfigError("anchor_file is for weights='variance', and weights is 'none'; leave one of them out")

    def _check_loss(self) -> None:
        kinds = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        foreign = [kind for kind in kinds if kind not in _LINEAR]
        if foreign:
            raise ConfigError(
                f"loss_type {', '.join(foreign)} can't be weighted: it isn't a function of β times the difference of "
                f"log-ratios; use one of {', '.join(_LINEAR)}, or weights='none'"
            )
        if str(getattr(self.f_divergence_type, "value", self.f_divergence_type)) != "reverse_kl":
            raise ConfigError(
                f"f_divergence_type {self.f_divergence_type} can't be weighted: the weighted optimum is that of the "
                "reverse KL; leave it at reverse_kl, or use weights='none'"
            )
        if self.ld_alpha is not None and self.objective == "literal":
            raise ConfigError("ld_alpha shortens the log-ratios and would cut the literal form's +1; leave it unset")
