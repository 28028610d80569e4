"""Bootstrap weights per pair and member, drawn from the pair's content so that shuffling doesn't change them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["Bootstrap", "bootstrap_weights"]

Bootstrap = Literal["none", "poisson", "exponential"]


def bootstrap_weights(rows: list[Any], members: int, seed: int, kind: Bootstrap) -> Float[Tensor, "rows members"]:
    """Bootstrap weight of each pair for each member, with a mean of 1.

    Args:
        rows: anything JSON can write, such as (chosen ids, rejected ids); equal rows get equal weights.
        members: K.
        kind: "poisson" counts (the classic bootstrap), "exponential" (the Bayesian one: no pair is ever lost), or
            "none" (all 1, so members differ by their start alone).
    """
    if kind == "none":
        return torch.ones(len(rows), members)
    if kind not in ("poisson", "exponential"):
        raise ConfigError(f"bootstrap must be 'none', 'poisson' or 'exponential', got '{kind}'")
    return torch.from_numpy(np.stack([_draw(row, members, seed, kind) for row in rows])).float()


def _draw(row: Any, members: int, seed: int, kind: Bootstrap) -> np.ndarray[Any, Any]:
    digest = hashlib.sha256(json.dumps([seed, row]).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    if kind == "poisson":
        return generator.poisson(1.0, members).astype(np.float64)
    return generator.exponential(1.0, members)
