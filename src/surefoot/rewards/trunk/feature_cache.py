"""Compute features of texts from a frozen trunk, and cache them by the content of weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.files import fingerprint, whole_directory
from surefoot.rewards.trunk.batching import forward_tokens
from surefoot.rewards.trunk.hidden_states import last_token, read_states

__all__ = ["FeatureCache", "Pooling", "compute_features", "weights_hash"]

Pooling = Literal["last", "mean", "cls"]


def compute_features(
    trunk: Any,
    rows: list[list[int]],
    *,
    pooling: Pooling,
    layer: int,
    pad_token_id: int,
    keys: Sequence[Any] | None = None,
    packed: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Float[Tensor, "rows features"]:
    """Pooled hidden states, float32 on the CPU, in the order of the rows.

    Args:
        trunk: an `AutoModel`.
        rows: token ids.
        pooling: "last" token (decoders), "mean" over tokens, or the "cls" token (BERT-style encoders).
        layer: index into the trunk's hidden states: −1 the last, 0 the embeddings.
        keys: rows with equal keys answer the same prompt and share its computation; None shares nothing.
        packed: how they share it (`read_states`).
        on_progress: called with the share of rows done.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, got '{pooling}'")
    places: dict[str, list[int] | None] = {"last": last_token(rows), "mean": None, "cls": [0] * len(rows)}
    states = read_states(
        trunk,
        rows,
        pad_token_id=pad_token_id,
        tokens=forward_tokens(trunk.device),
        read_at=places[pooling],
        keys=keys,
        packed=packed,
        layer=layer,
        on_progress=on_progress,
    )
    return states[0].cpu()


def weights_hash(model: Any) -> str:
    """Hash of all weights and their names: sixteen hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Cache of features on disk, keyed by the trunk's weights and precision, the token ids, the layer and the pooling.

    Args:
        directory: None keeps nothing.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self.directory = None if directory is None else Path(directory)

    def get(
        self,
        trunk: Any,
        rows: list[list[int]],
        *,
        pooling: Pooling,
        layer: int,
        pad_token_id: int,
        keys: Sequence[Any] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Float[Tensor, "rows features"]:
        """Read the features, or compute and keep them; rows with equal keys share how they begin, packed."""
        compute = partial(
            compute_features,
            trunk,
            rows,
            pooling=pooling,
            layer=layer,
            pad_token_id=pad_token_id,
            keys=keys,
            packed=True,
            on_progress=on_progress,
        )
        if self.directory is None:
            return compute()
        folder = self.directory / fingerprint([weights_hash(trunk), str(trunk.dtype), pooling, layer, rows])
        path = folder / "features.safetensors"
        if not path.exists():
            features = compute()
            with whole_directory(folder) as temporary:
                save_file({"features": features}, temporary / path.name)
        return load_file(path)["features"]
