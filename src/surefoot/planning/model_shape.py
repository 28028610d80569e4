"""Read a model's sizes from its config, on the meta device, without weights, memory or network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError, ModelError, nearest
from surefoot.planning.shapes import ModelShape

__all__ = ["NAMED", "model_shape", "shape_of"]

NAMED: dict[str, dict[str, Any]] = {
    "7B": {
        "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "32B": {
        "model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "intermediate_size": 27648, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "70B": {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Configs of Qwen2.5-7B, Qwen2.5-32B and Llama-3-70B, as published."""


def model_shape(name: str) -> ModelShape:
    """Shape of "7B", "32B" or "70B", or of a model's directory or its config.json.

    Raises:
        ConfigError: no such size and no such path; the nearest size is named.
        ModelError: the config can't be read, or isn't that of a Llama-like decoder.
    """
    from transformers import AutoConfig

    upper = name.upper()
    if upper in NAMED:
        settings = dict(NAMED[upper])
        return shape_of(AutoConfig.for_model(settings.pop("model_type"), **settings), upper)
    path = Path(name)
    if not path.exists():
        raise ConfigError(
            f"unknown model size '{name}'; the nearest known one is {_nearest(upper)} of {', '.join(NAMED)}, or give "
            "the directory or config.json of a model"
        )
    return shape_of(_read(path), path.parent.name if path.is_file() else path.name)


def _read(path: Path) -> Any:
    from transformers import AutoConfig

    file = path if path.is_file() else path / "config.json"
    if not file.exists():
        raise ModelError(f"{path} is not a model directory: it has no config.json")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (json.JSONDecodeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{file} is not a config that transformers knows: {error!r}") from error


def _nearest(name: str) -> str:
    """Nearest known name, by size if it looks like one, else by spelling."""
    try:
        size = float(name.rstrip("B"))
    except ValueError:
        return nearest(name, NAMED, likeness=0.0) or next(iter(NAMED))
    return min(NAMED, key=lambda known: abs(float(known.rstrip("B")) - size))


def shape_of(config: Any, name: str) -> ModelShape:
    """Shape of a config whose causal language model is a Llama-like decoder.

    Parameters are counted on the meta model, tied ones once; the rest is read from the config.

    Raises:
        ModelError: it is no causal language model, or no decoder with a gated MLP.
    """
    import torch
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # not every version of transformers ties them on the meta device
        layers = model.base_model.layers
        _refuse_others(layers[0])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"'{name}' ({config.model_type}) is not a Llama-like decoder, whose memory this plan knows: {error}"
        ) from error
    total = sum(value.numel() for value in model.parameters())
    each = [sum(value.numel() for value in layer.parameters()) for layer in layers]
    return ModelShape(
        name=name,
        parameters=total,
        layer_parameters=max(each),
        root_parameters=total - sum(each),
        hidden=text.hidden_size,
        layers=len(layers),
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )


def _refuse_others(layer: Any) -> None:
    mlp = layer.mlp
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")):
        raise ValueError(f"its MLP is a {type(mlp).__name__}, without gate, up and down projections")
