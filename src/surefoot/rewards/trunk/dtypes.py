"""The precision that frozen models run in: the setting `dtype`, what a source keeps of it, what its loader says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, cast, get_args

import torch

from surefoot.errors import ConfigError

__all__ = ["DTYPES", "Dtype", "check_dtype", "dtype_given", "dtype_of", "kept_dtype"]

Dtype = Literal["auto", "float32", "bfloat16"]
"""`auto` is float32 on a CPU and bfloat16 elsewhere. Whatever it is, pooled features and heads are float32."""
DTYPES: tuple[str, ...] = get_args(Dtype)
_GIVEN: ContextVar[Dtype | None] = ContextVar("dtype", default=None)


def check_dtype(dtype: str) -> Dtype:
    """Refuse a precision that reward models aren't run in.

    Raises:
        ConfigError: float16, or no name of a precision.
    """
    if dtype in ("float16", "fp16", "half"):
        raise ConfigError(
            f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}': its largest number is 65,504, which hidden "
            "states of many models go beyond, and the reward is then NaN; take bfloat16"
        )
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    return cast(Dtype, dtype)


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """The precision that a setting stands for on a device.

    Raises:
        ConfigError: see `check_dtype`.
    """
    if check_dtype(dtype) == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if dtype == "float32" else torch.bfloat16


@contextmanager
def dtype_given(dtype: str | None) -> Iterator[None]:
    """Within this context, sources are loaded in this precision, also as parts of others; None changes nothing.

    Raises:
        ConfigError: see `check_dtype`.
    """
    token = _GIVEN.set(_GIVEN.get() if dtype is None else check_dtype(dtype))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def kept_dtype(held: Mapping[str, Any]) -> Dtype:
    """The precision to load a saved source in: from `dtype_given`, else what the source keeps, else `auto`.

    Args:
        held: of `source.json`; a source of an earlier version has no `dtype`.

    Raises:
        ConfigError: see `check_dtype`.
    """
    return _GIVEN.get() or check_dtype(held.get("dtype", "auto"))
