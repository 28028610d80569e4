"""Settings of independent members."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["IndependentConfig"]


@dataclass(slots=True)
class IndependentConfig:
    """Settings of independent members.

    Member k draws its reward head, its order of the data and its bootstrap sample from (seed, k).

    Args:
        bootstrap: "resample" draws as many pairs as there are, with replacement; "disjoint" gives every prompt to one
            member only.
        bf16: mixed precision in training; None means where there is an accelerator. A CPU with bf16 instructions
            trains about half again to twice as fast with it.
        rank, alpha, targets: train PEFT's LoRA adapters instead of all weights, merged into the member when it is
            saved; None trains all weights, and PEFT then chooses the layers if `targets` is None.
    """

    members: int = 5
    seed: int = 0
    bootstrap: Literal["none", "resample", "disjoint"] = field(
        default="resample",
        metadata={"help": "resample: a draw of the pairs, with replacement; disjoint: a share of the prompts."},
    )
    other_models: tuple[str, ...] = field(
        default=(), metadata={"help": "Further base models; members start from all of them in turn."}
    )
    rank: int | None = field(default=None, metadata={"help": "Of PEFT adapters; all weights are trained if none."})
    alpha: float = field(default=16.0, metadata={"help": "The update is alpha / rank times B A."})
    targets: tuple[str, ...] | None = field(default=None, metadata={"help": "Names of the adapted linear layers."})
    learning_rate: float = 2e-5
    epochs: float = 2.0
    batch_size: int = 16
    warmup_steps: float = 0.1
    max_length: int = 512
    overlong: Literal["drop", "truncate"] = "drop"
    bf16: bool | None = field(
        default=None, metadata={"help": "Mixed precision in training; on accelerators if not given."}
    )
