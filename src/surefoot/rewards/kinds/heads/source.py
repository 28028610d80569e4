"""K reward heads on one frozen trunk: a variance for little more than the price of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from surefoot.errors import ConfigError, ModelError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, read_source, read_tensors, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.feature_cache import Pooling, compute_features
from surefoot.rewards.trunk.loading import choose_device, load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder, prompt_keys
from surefoot.types import Text

__all__ = ["HeadShape", "Heads", "SharedTrunkHeads", "load_heads"]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Size and kind of K heads.

    Args:
        members: K.
        features: width of the trunk's features.
        kind: "linear", or "mlp" with one hidden layer of `hidden` GELU units.
        prior_scale: size of the fixed random function added to each head (Osband et al., arXiv:1806.03335), as a
            standard deviation over standard-normal features; 0 adds none. It keeps heads apart away from the data.
    """

    members: int
    features: int
    kind: Literal["linear", "mlp"] = "linear"
    hidden: int = 64
    prior_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp"):
            raise ConfigError(f"head kind must be 'linear' or 'mlp', got '{self.kind}'")
        if self.members < 1:
            raise ConfigError(f"members must be at least 1, got {self.members}")


class Heads(torch.nn.Module):
    """All K heads at once, on standardised features.

    Each head's numbers are drawn from `seed` and the head's index alone, so head k is the same among 3 heads and
    among 10.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, shape: HeadShape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        for name, value in _draw(shape, seed, 0).items():
            self.register_parameter(name, torch.nn.Parameter(value))
        for name, value in _draw(shape, seed, 1).items():
            self.register_buffer(f"prior_{name}", value)
        self.register_buffer("centre", torch.zeros(shape.features))
        self.register_buffer("spread", torch.ones(shape.features))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch members"]:
        standard = (features - self.centre) / self.spread
        scores = _apply(standard, dict(self.named_parameters()))
        if self.shape.prior_scale:
            prior = {n.removeprefix("prior_"): b for n, b in self.named_buffers() if n.startswith("prior_")}
            scores = scores + self.shape.prior_scale * _apply(standard, prior)
        return scores

    def standardise(self, features: Float[Tensor, "rows features"]) -> None:
        """Fit the features' centre and spread (sample standard deviation)."""
        self.centre.copy_(features.mean(dim=0))
        self.spread.copy_(features.std(dim=0, correction=1).clamp(min=1e-6))


def _draw(shape: HeadShape, seed: int, stream: int) -> dict[str, Tensor]:
    """Weights of the trainable heads (stream 0, small) or of the prior functions (stream 1, unit-sized output)."""
    heads = []
    for k in range(shape.members):
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + k) * 2 + stream) % 2**63)
        size = 1.0 if stream else 0.1
        if shape.kind == "linear":
            heads.append({"weight": size * torch.randn(shape.features, generator=generator) / shape.features**0.5})
        else:
            inner = torch.randn(shape.features, shape.hidden, generator=generator) / shape.features**0.5
            outer = size * torch.randn(shape.hidden, generator=generator) * (2 / shape.hidden) ** 0.5
            heads.append({"inner": inner, "bias": torch.zeros(shape.hidden), "weight": outer})
    return {name: torch.stack([head[name] for head in heads]) for name in heads[0]}


def _apply(features: Float[Tensor, "batch features"], weights: dict[str, Tensor]) -> Float[Tensor, "batch members"]:
    if "inner" not in weights:
        return features @ weights["weight"].T
    hidden = torch.einsum("bf,kfh->bkh", features, weights["inner"]) + weights["bias"]
    return (torch.nn.functional.gelu(hidden) * weights["weight"]).sum(dim=-1)


def load_heads(directory: Path) -> tuple[dict[str, Any], Heads]:
    """What `source.json` says, and the heads, without the trunk.

    Raises:
        ModelError: the two don't fit each other, or aren't of this kind.
    """
    held, tensors = read_source(directory), read_tensors(directory / "heads.safetensors")
    shape = HeadShape(**held["shape"])
    if len(tensors["weight"]) != shape.members:  # before a number that may be huge is drawn for
        raise ModelError(f"{directory} says {shape.members} members and holds {len(tensors['weight'])} heads")
    heads = Heads(shape, seed=0)
    heads.load_state_dict(tensors)
    return held, heads


@register("heads")
class SharedTrunkHeads(MemberSource):
    """Members that share a frozen trunk.

    Args:
        trunk: an `AutoModel`, frozen.
        encoder: its text encoder.
        heads: the K heads.
        pooling, layer: which hidden states become features, and how.
        dtype: that the trunk was loaded in, to be saved.
    """

    settings = HeadsConfig

    def __init__(
        self,
        trunk: Any,
        encoder: TextEncoder,
        heads: Heads,
        pooling: Pooling,
        layer: int = -1,
        name: str = "heads",
        dtype: Dtype = "auto",
    ) -> None:
        self.trunk = trunk.eval()
        self.encoder = encoder
        self.heads = heads.eval()
        self.pooling = pooling
        self.layer = layer
        self.name = name
        self.dtype = dtype

    @property
    def num_members(self) -> int:
        return self.heads.shape.members

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        return self.heads(self.features(prompts, completions))

    def features(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch features"]:
        """What the heads read, not yet standardised."""
        rows, pad = self.encoder(prompts, completions), self.encoder.tokenizer.pad_token_id
        return compute_features(
            self.trunk, rows, pooling=self.pooling, layer=self.layer, pad_token_id=pad, keys=prompt_keys(prompts)
        )

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.trunk.save_pretrained(folder / "trunk")
            self.encoder.tokenizer.save_pretrained(folder / "trunk")
            save_file({n: v.contiguous() for n, v in self.heads.state_dict().items()}, folder / "heads.safetensors")
            write_json(
                folder / SOURCE,
                {
                    "kind": "heads",
                    "name": self.name,
                    "shape": asdict(self.heads.shape),
                    "pooling": self.pooling,
                    "layer": self.layer,
                    "dtype": self.dtype,
                    "max_length": self.encoder.max_length,
                },
            )
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        from surefoot.rewards.kinds.heads.fit import train_heads

        return train_heads(
            job.pairs,
            job.model,
            job.settings,
            cache_directory=job.work / "features",
            directory=job.work / "checkpoint",
            on_progress=job.report,
        )

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "SharedTrunkHeads":
        held, heads = load_heads(directory)
        dtype = kept_dtype(held)
        trunk = load_trunk(directory / "trunk", choose_device(device), dtype)
        encoder = load_encoder(directory / "trunk", trunk, held["max_length"])
        return cls(trunk, encoder, heads, held["pooling"], held["layer"], held["name"], dtype)
