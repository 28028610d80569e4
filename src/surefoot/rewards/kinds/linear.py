"""A Bayesian linear reward head on frozen features: its reward and its variance, both in closed form.

For users with preference pairs and no reward model. The maths is in `surefoot.maths.linear`; a scored row is the
reward, followed by the standardised features that the posterior is about (`GaussianSource`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.files import whole_directory, write_json
from surefoot.maths.laplace import Covariance
from surefoot.maths.linear import LinearFit, fit_bradley_terry
from surefoot.rewards.gaussian import GaussianSource, Term
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, read_source, read_tensors, save_calibration
from surefoot.rewards.source import FitJob, RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.feature_cache import FeatureCache, Pooling, compute_features
from surefoot.rewards.trunk.loading import choose_device, load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs, prompt_keys
from surefoot.types import Text

__all__ = ["LinearConfig", "LinearReward", "fit_linear"]


@dataclass(slots=True)
class LinearConfig:
    """Settings of a linear source.

    Args:
        pooling, layer: which hidden states of the trunk become features, and how.
        dtype: precision that the trunk runs in; the features are float32.
        penalty: τ of ‖w‖²/2 on standardised features; None chooses it by `penalty_by`.
        penalty_by: "evidence" (Laplace's) or "held_out" (likelihood over five folds).
        covariance: "laplace" is the posterior H⁻¹; "sandwich" H⁻¹GH⁻¹ is how the weights vary over fresh pairs.
        flip_rate_by: whether a share of labels that are reversed whatever the texts say is estimated ("evidence"), or
            taken as 0 ("none").
    """

    pooling: Pooling = field(default="mean", metadata={"help": "last (decoders), mean, or cls (BERT-style)."})
    layer: int = field(
        default=-1,
        metadata={"help": "Hidden state to read: -1 the last. A causal model's last layer is about the next token."},
    )
    penalty: float | None = field(
        default=None, metadata={"help": "Of ‖w‖²/2 on standardised features; chosen by penalty_by if none."}
    )
    penalty_by: Literal["evidence", "held_out"] = field(
        default="evidence", metadata={"help": "evidence, or held_out: likelihood over five folds."}
    )
    covariance: Literal["laplace", "sandwich"] = field(
        default="laplace", metadata={"help": "laplace, the posterior's; sandwich, over fresh pairs and labels."}
    )
    max_length: int = 512
    overlong: Literal["drop", "truncate"] = "drop"
    flip_rate_by: Literal["none", "evidence"] = field(
        default="none",
        metadata={"help": "Share of labels that are reversed by mistake: none, or evidence's estimate."},
    )
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if self.penalty is not None and not self.penalty > 0:
            raise ConfigError(f"penalty must be positive, got {self.penalty}")


_CHOICES = {
    "penalty_by": ("evidence", "held_out"),
    "covariance": ("laplace", "sandwich"),
    "flip_rate_by": ("none", "evidence"),
}


@register("linear")
class LinearReward(GaussianSource):
    """One linear head on a frozen trunk, with the posterior of its weights.

    Args:
        trunk: an `AutoModel`, frozen.
        encoder: its text encoder.
        weights: (features,) of the head, on standardised features.
        term: the posterior.
        centre, spread: (features,) of the standardisation.
        pooling, layer: which hidden states become features, and how.
        figures: of the fit, shown on the card: penalty, covariance, shrinkage, left_out, loss, flip_rate.
        dtype: that the trunk was loaded in, to be saved.
    """

    settings = LinearConfig

    def __init__(
        self,
        trunk: Any,
        encoder: TextEncoder,
        weights: Float[Tensor, "features"],
        term: Term,
        centre: Float[Tensor, "features"],
        spread: Float[Tensor, "features"],
        pooling: Pooling,
        layer: int = -1,
        figures: dict[str, float | str] | None = None,
        name: str = "linear",
        dtype: Dtype = "auto",
    ) -> None:
        self.trunk, self.encoder = trunk.eval(), encoder
        self.weights, self.terms = weights.float(), [term]
        self.centre, self.spread = centre.float(), spread.float()
        self.pooling, self.layer, self.name, self.dtype = pooling, layer, name, dtype
        self.figures = dict(figures or {})

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows, pad = self.encoder(prompts, completions), self.encoder.tokenizer.pad_token_id
        features = compute_features(
            self.trunk, rows, pooling=self.pooling, layer=self.layer, pad_token_id=pad, keys=prompt_keys(prompts)
        )
        standard = (features - self.centre) / self.spread
        return torch.cat([(standard @ self.weights)[:, None], standard], dim=1)

    def save(self, directory: str | Path) -> None:
        covariance = self.terms[0].covariance
        tensors = {
            "weights": self.weights,
            "centre": self.centre,
            "spread": self.spread,
            "origin": self.terms[0].origin,
            "basis": covariance.basis,
            "shift": covariance.shift,
            "scale": covariance.scale,
        }
        with whole_directory(directory) as folder:
            self.trunk.save_pretrained(folder / "trunk")
            self.encoder.tokenizer.save_pretrained(folder / "trunk")
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "linear.safetensors")
            held = {"kind": "linear", "name": self.name, "pooling": self.pooling, "layer": self.layer,
                    "dtype": self.dtype, "max_length": self.encoder.max_length, "figures": self.figures}  # fmt: skip
            write_json(folder / SOURCE, held)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return fit_linear(
            job.pairs, job.model, job.settings, cache_directory=job.work / "features", on_progress=job.report
        )

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> LinearReward:
        held, tensors = read_source(directory), read_tensors(directory / "linear.safetensors")
        covariance = Covariance(tensors["basis"], tensors["shift"], tensors["scale"])
        dtype = kept_dtype(held)
        trunk = load_trunk(directory / "trunk", choose_device(device), dtype)
        return cls(
            trunk,
            load_encoder(directory / "trunk", trunk, held["max_length"]),
            tensors["weights"],
            Term(covariance, tensors["origin"]),
            tensors["centre"],
            tensors["spread"],
            held["pooling"],
            held["layer"],
            held["figures"],
            held["name"],
            dtype,
        )


def fit_linear(
    pairs: Dataset,
    trunk: str | Path,
    config: LinearConfig,
    *,
    cache_directory: str | Path | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> LinearReward:
    """Features of the frozen trunk once, then the head and its posterior in closed form.

    Args:
        pairs: `prompt`, `chosen`, `rejected` and perhaps `margin`, checked (`surefoot.data.preferences`). A column
            `chosen_share` in [0, 1] says which share of the `answers` to a pair prefers `chosen`, a tie counting half;
            1 of 1 if not given.
        trunk: directory or hub name of any model that `AutoModel` loads.
        cache_directory: keeps features between runs.
        on_progress: called with (what is being done, share done).

    Raises:
        DataError: all pairs are too long, or don't differ. ModelError: the trunk can't be loaded.
    """
    model = load_trunk(trunk, choose_device(device), config.dtype)
    encoder = load_encoder(trunk, model, config.max_length)
    encoded = encode_pairs(pairs, encoder, overlong=config.overlong)
    report = on_progress or (lambda what, share: None)
    features = FeatureCache(cache_directory).get(
        model,
        list(encoded["chosen_ids"]) + list(encoded["rejected_ids"]),
        pooling=config.pooling,
        layer=config.layer,
        pad_token_id=encoder.tokenizer.pad_token_id,
        keys=[*range(len(encoded))] * 2,
        on_progress=lambda share: report("features", share),
    )
    report("head", 0.0)
    centre, spread = features.mean(dim=0), features.std(dim=0, correction=1).clamp(min=1e-6)
    standard = ((features - centre) / spread).double()
    count = len(encoded)
    margins, share, answers = (
        torch.tensor([float(value) for value in encoded[name]]) if name in encoded.column_names else None
        for name in ("margin", "chosen_share", "answers")
    )
    fit = fit_bradley_terry(
        standard[:count] - standard[count:],
        margins,
        share=share,
        count=None if share is None else answers,
        flip_rate="evidence" if config.flip_rate_by == "evidence" else 0.0,
        penalty=config.penalty_by if config.penalty is None else config.penalty,
        covariance=config.covariance,
    )
    report("head", 1.0)
    term = Term(fit.covariance, standard.mean(dim=0))
    return LinearReward(
        model,
        encoder,
        fit.weights,
        term,
        centre,
        spread,
        config.pooling,
        config.layer,
        _figures(fit, config),
        dtype=config.dtype,
    )


def _figures(fit: LinearFit, config: LinearConfig) -> dict[str, float | str]:
    figures: dict[str, float | str] = {"covariance": config.covariance}
    for name in ("penalty", "shrinkage", "left_out", "loss", "flip_rate"):
        figures[name] = float(getattr(fit, name))
    return figures
