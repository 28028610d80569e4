"""Features of texts from a frozen trunk, cached by the content of weights and data, never by a path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.files import fingerprint, whole_directory
from surefoot.rewards.batching import length_sorted_batches

__all__ = ["FeatureCache", "Pooling", "compute_features", "weights_hash"]

Pooling = Literal["last", "mean", "cls"]


@torch.inference_mode()
def compute_features(
    trunk: Any,
    rows: list[list[int]],
    *,
    pooling: Pooling,
    layer: int,
    pad_token_id: int,
    on_progress: Callable[[float], None] | None = None,
) -> Float[Tensor, "rows features"]:
    """Pooled hidden states, float32 on the CPU, in the order of the rows.

    Args:
        trunk: an `AutoModel`.
        rows: token ids.
        pooling: "last" token (decoders), "mean" over tokens, or the "cls" token (BERT-style encoders).
        layer: index into the trunk's hidden states: −1 the last, 0 the embeddings.
        on_progress: called with the share of rows done.
    """
    features = torch.empty(len(rows), trunk.config.get_text_config().hidden_size)
    done = 0
    for batch, ids, mask in length_sorted_batches(rows, pad_token_id=pad_token_id, device=trunk.device):
        states = trunk(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
        features[batch] = _pool(states, mask, pooling).float().cpu()
        done += len(batch)
        if on_progress is not None:
            on_progress(done / len(rows))
    return features


def _pool(
    states: Float[Tensor, "batch length features"], mask: Int[Tensor, "batch length"], pooling: Pooling
) -> Float[Tensor, "batch features"]:
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def weights_hash(model: Any) -> str:
    """Sixteen hex digits of the SHA-256 of all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Features on disk; the key is made of the trunk's weights, the token ids, the layer and the pooling.

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
        on_progress: Callable[[float], None] | None = None,
    ) -> Float[Tensor, "rows features"]:
        """The features, computed if they aren't there."""
        compute = partial(
            compute_features,
            trunk,
            rows,
            pooling=pooling,
            layer=layer,
            pad_token_id=pad_token_id,
            on_progress=on_progress,
        )
        if self.directory is None:
            return compute()
        folder = self.directory / fingerprint([weights_hash(trunk), pooling, layer, rows])
        path = folder / "features.safetensors"
        if not path.exists():
            found = compute()
            with whole_directory(folder) as temporary:
                save_file({"features": found}, temporary / path.name)
        return load_file(path)["features"]
