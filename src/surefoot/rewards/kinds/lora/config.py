"""Settings of LoRA members."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surefoot.rewards.trunk.bootstrap import Bootstrap

__all__ = ["LoraConfig"]


@dataclass(slots=True)
class LoraConfig:
    """Settings of LoRA members.

    Args:
        targets: last names of the adapted linear layers; None takes PEFT's choice for the architecture.
        start: share of the depth below which the members share everything; 0 adapts every layer, 2/3 the upper third.
    """

    members: int = 5
    seed: int = 0
    rank: int = field(default=8, metadata={"help": "Of each adapter."})
    alpha: float = field(default=16.0, metadata={"help": "The update is alpha / rank times B A."})
    targets: tuple[str, ...] | None = field(default=None, metadata={"help": "Names of the adapted linear layers."})
    start: float = field(default=0.0, metadata={"help": "Share of the depth below which nothing is adapted."})
    bootstrap: Bootstrap = field(default="poisson", metadata={"help": "none, poisson or exponential."})
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 2
    batch_size: int = 16
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    max_length: int = 512
    overlong: Literal["drop", "truncate"] = "drop"
    save_steps: int = field(default=50, metadata={"help": "Steps between checkpoints, from which a rerun goes on."})
