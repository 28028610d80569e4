"""Settings of heads on a shared trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surefoot.rewards.trunk.bootstrap import Bootstrap
from surefoot.rewards.trunk.dtypes import Dtype
from surefoot.rewards.trunk.feature_cache import Pooling

__all__ = ["HeadsConfig"]


@dataclass(slots=True)
class HeadsConfig:
    """Settings of shared-trunk heads.

    The defaults are for a few thousand pairs. `weight_decay` matters: without it linear heads on few pairs separate
    the data and grow without bound. `dtype` is the precision that the frozen trunk runs in; heads are
    float32, and so is a trunk while it is trained.
    """

    members: int = 50
    seed: int = 0
    head: Literal["linear", "mlp"] = field(
        default="linear", metadata={"help": "linear, or mlp with one hidden layer."}
    )
    hidden: int = 64
    pooling: Pooling = field(default="mean", metadata={"help": "last (decoders), mean, or cls (BERT-style)."})
    layer: int = field(
        default=-1,
        metadata={"help": "Hidden state to read: -1 the last. A causal model's last layer is about the next token."},
    )
    bootstrap: Bootstrap = field(default="poisson", metadata={"help": "none, poisson or exponential."})
    prior_scale: float = field(default=0.0, metadata={"help": "Size of the fixed random function in each head."})
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    epochs: int = 10
    batch_size: int = 64
    start_heads: str | None = field(
        default=None,
        metadata={"help": "Directory of an earlier heads source on the same trunk to start from."},
    )
    trunk_epochs: int = field(
        default=0, metadata={"help": "Epochs of trunk and heads together, after the heads alone; 0 freezes the trunk."}
    )
    trunk_learning_rate: float = 2e-5
    trunk_batch_size: int = 16
    max_length: int = 512
    overlong: Literal["drop", "truncate"] = "drop"
    dtype: Dtype = "auto"
