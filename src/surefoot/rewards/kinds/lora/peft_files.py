"""LoRA members as PEFT's ordinary adapter directories, written and read."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from surefoot.errors import ModelError
from surefoot.files import read_json, write_json
from surefoot.rewards.kinds.lora.layers import PEFT_SAVES, AdapterShape
from surefoot.rewards.kinds.lora.network import LoraNetwork
from surefoot.rewards.saved import read_tensors
from surefoot.rewards.trunk.replicated_layers import layers_of

__all__ = ["read_adapters", "take_base", "write_adapter"]

_ADAPTER = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_A = ".lora_A."
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq")
"""Starts of PEFT's `init_lora_weights` that take the adapter's beginning out of the base's own weights."""


def write_adapter(folder: Path, network: LoraNetwork, k: int, base: str) -> None:
    """Member k as an ordinary PEFT adapter directory."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = network.shape
    save_file(network.member(k), folder / _ADAPTER)
    write_json(
        folder / _ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": base,
            "r": shape.rank,
            "lora_alpha": shape.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": list(network.targets),
            "layers_to_transform": list(range(shape.start, len(layers_of(network.trunk)))),
            "modules_to_save": list(network.modules_to_save),
        },
    )


def take_base(base: Path, target: Path) -> Path:
    """Put a base model's config and weights into a source: hard links where the disk allows it, else copies."""
    target.mkdir(parents=True)
    for path in (*base.glob("*.json"), *base.glob("*.safetensors")):
        if not path.name.startswith("tokenizer"):  # the source has its own
            _link_or_copy(path.resolve(), target / path.name)
    return target


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, target)


def read_adapters(
    folders: Sequence[Path],
) -> tuple[AdapterShape, tuple[str, ...], list[tuple[dict[str, Tensor], float]]]:
    """(shape that fits all adapters, ends of the modules that they save whole, each one's weights and α/r).

    Which layers are adapted is read from the weights: `target_modules` may be a regular expression or "all-linear".

    Raises:
        ModelError: an adapter is of a kind that can't be batched (DoRA, biases, a changed base).
    """
    configs = [_config(folder) for folder in folders]
    weights = [read_tensors(folder / _ADAPTER) for folder in folders]
    rank = max(config["r"] for config in configs)
    shape = AdapterShape(
        members=len(configs),
        rank=rank,
        alpha=float(rank),
        targets=tuple(sorted({_target(key) for one in weights for key in one if _A in key})),
        start=_lowest_layer(weights),
    )
    saved = dict.fromkeys([*PEFT_SAVES, *(end for config in configs for end in config.get("modules_to_save") or ())])
    scales = [_scale(config) for config in configs]
    return shape, tuple(saved), list(zip(weights, scales, strict=True))


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / _ADAPTER_CONFIG).exists() or not (folder / _ADAPTER).exists():
        raise ModelError(f"{folder} is not a PEFT adapter: it needs {_ADAPTER_CONFIG} and {_ADAPTER}")
    config: dict[str, Any] = read_json(folder / _ADAPTER_CONFIG)
    foreign = [name for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if config.get(name)]
    if str(config.get("init_lora_weights")).startswith(_CHANGE_BASE):
        foreign.append(f"init_lora_weights {config['init_lora_weights']}")  # the base that it belongs to isn't saved
    if config.get("peft_type") != "LORA" or foreign or config.get("bias", "none") != "none":
        raise ModelError(
            f"{folder} is a {config.get('peft_type')} adapter with {', '.join(foreign) or 'biases'}, which can't be "
            "batched with others; merge it into its base and use kind: independent"
        )
    return config


def _scale(config: dict[str, Any]) -> float:
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return float(config["lora_alpha"] / root)


def _target(key: str) -> str:
    return key.split(_A)[0].rpartition(".")[2]


def _lowest_layer(weights: list[dict[str, Tensor]]) -> int:
    keys = [key for one in weights for key in one if _A in key]
    return min((int(part) for key in keys for part in key.split(".") if part.isdigit()), default=0)
