"""Test whether a trunk gives the plain forward's hidden states where rows share the computation of their beginning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["shares"]

_FLOAT32 = 0.02
"""Largest difference of a feature, of itself and of the largest one."""
_HALF = 0.05
"""Largest length of the difference of a row's last hidden state, of its length, in bf16. In a model of thirty layers
(SmolLM2-135M) rounding alone gives .02 to .03, whether the row is shared or only batched otherwise; positions that
count on, or a mask that lets the second row see the first, give .07 and more."""


def shares(
    trunk: Any,
    row: list[int],
    expected: Float[Tensor, "copies rows features"],
    shared: Callable[[], Float[Tensor, "copies more features"]],
) -> bool:
    """Whether the shared forward is the plain one up to rounding; a bidirectional or recurrent trunk fails this.

    Args:
        row: token ids of one of the rows.
        expected: hidden states at the rows' last tokens, of the plain forward.
        shared: gives the shared forward's result, of the same rows first.
    """
    try:
        found = shared()[:, : expected.shape[1]].float()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # an architecture with another cache or mask
        return False
    expected = expected.float()
    if trunk.dtype == torch.float32:
        return torch.allclose(found, expected, rtol=_FLOAT32, atol=_FLOAT32 * float(expected.abs().max()))
    close = (found - expected).norm(dim=-1) <= _HALF * expected.norm(dim=-1)
    return bool(close.all()) and _looks_back_only(trunk, row)


def _looks_back_only(trunk: Any, row: list[int]) -> bool:
    """Whether no hidden state depends on a later token: exact in any precision, where `_HALF` is coarse."""
    ids = torch.tensor([row, [*row[:-1], 0 if row[-1] else 1]], device=trunk.device)
    first, second = (trunk(input_ids=one[None], use_cache=False).last_hidden_state[:, :-1].float() for one in ids)
    return float((first - second).norm()) <= 1e-3 * float(first.norm())
