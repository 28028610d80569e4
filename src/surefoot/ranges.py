"""Ranges of the settings that several commands share, by name: no NaN, and nothing infinite, negative or huge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["check_ranges"]

_LARGEST = 2**63 - 1
"""Of any whole number: what tensors, Arrow and C hold."""
_MOST = 2**31 - 1
"""Of counts, which tensors hold; and of seeds: NumPy's global generator takes 32 bits, and studies add to a seed."""
_SEEDS = ("seed", "data_seed", "first_seed")
_COUNTS = (
    *("members", "batch_size", "max_length", "rank", "n", "chunk_rows", "prompts_per_batch", "dataset_prompts"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_iterations"),
    *("num_generations", "max_completion_length", "anchor_completions", "calibration_prompts", "pairs", "test_pairs"),
    *("held_out_pairs", "evaluation_completions", "wordings", "samples", "max_tokens", "max_pairs", "concurrency"),
    *("max_new_tokens", "candidates", "draws", "runs", "gpus", "batch", "accumulation", "group", "prompt_tokens"),
    *("completion_tokens", "slurm"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "trunk_learning_rate", "weight_decay", "beta", "max_grad_norm", "warmup_ratio", "warmup_steps"),
    *("prior_scale", "distance", "trunk_epochs", "adapter_rank", "workers", "samples_kept", "retries", "num_cpus"),
    *("num_gpus", "far_items", "adam_epsilon", "label_smoothing"),
)
_POSITIVE = ("epochs", "num_train_epochs", "alpha", "target_kl", "penalty", "precision", "gpu_gib", "logging_steps")


def check_ranges(settings: Mapping[str, Any], what: str = "") -> None:
    """Refuse the first setting that is out of its range; None and what isn't a number are passed over.

    Args:
        what: put before the setting's name in the message, as in "policy.".

    Raises:
        ConfigError: its name, its range and its value.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        wanted = _wanted(name, value)
        if wanted is not None:
            raise ConfigError(f"{what}{name} must be {wanted}, got {value}")


def _wanted(name: str, value: float) -> str | None:
    """What the value should be and isn't."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if name in _SEEDS and not 0 <= value <= _MOST:
        return f"between 0 and {_MOST}"
    if name in _COUNTS and not 1 <= value <= _MOST:
        return "at least 1" if value < 1 else f"at most {_MOST}"
    if name in _NOT_NEGATIVE and value < 0:
        return "at least 0"
    if name in _POSITIVE and not value > 0:
        return "positive"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"between -{_LARGEST} and {_LARGEST}"
    return None
