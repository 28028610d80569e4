"""A variance for a reward model you already have: Laplace on its last layer, and a term that grows with distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.files import whole_directory, write_json
from surefoot.maths.laplace import (
    Covariance,
    curvature,
    evidence_precision,
    posterior,
    random_features,
)
from surefoot.rewards.gaussian import GaussianSource, Term
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, read_source, read_tensors, save_calibration
from surefoot.rewards.source import FitJob, RewardSource
from surefoot.rewards.trunk.batching import forward_tokens, length_sorted_batches
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.hidden_states import read_states
from surefoot.rewards.trunk.loading import choose_device, load_classifier, load_encoder
from surefoot.rewards.trunk.reading import apply_head, decoder_head, head_in_float32, own_pad, read_places
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs, prompt_keys
from surefoot.types import Text

__all__ = ["LaplaceConfig", "LaplaceRewardModel", "RewardReader", "fit_laplace", "load_reader"]


@dataclass(slots=True)
class LaplaceConfig:
    """Settings of a Laplace source.

    Args:
        structure, rank: of the covariance; see `surefoot.maths.laplace.posterior`.
        precision: of the prior; None takes the one with the largest evidence.
        distance: how strongly the variance grows away from the training texts; 0 leaves the term out. It is the prior
            variance of the term, in units of the reward's own variance over the training texts.
        distance_layer: hidden state that distance is measured in, mean-pooled and standardised per feature; a last
            hidden state that a final norm has rescaled hides distance, so the default lies below it.
        distance_features: random Fourier features that stand for the kernel.
        dtype: precision that the model runs in, but for its head, which is float32.
    """

    structure: str = field(default="full", metadata={"help": "full, low_rank or diagonal."})
    rank: int = field(default=64, metadata={"help": "Of low_rank."})
    precision: float | None = field(default=None, metadata={"help": "Of the prior; by evidence if none."})
    distance: float = field(default=0.0, metadata={"help": "Size of the distance term; 0 leaves it out."})
    distance_layer: int = field(default=-2, metadata={"help": "Hidden state to measure the distance in."})
    distance_features: int = 1024
    max_length: int = 1024
    overlong: Literal["drop", "truncate"] = "drop"
    seed: int = 0
    dtype: Dtype = "auto"


class RewardReader:
    """Reads a reward model's output together with what its last layer sees.

    Args:
        model: any `AutoModelForSequenceClassification` with one output whose last linear layer gives the reward.

    Raises:
        ModelError: there is no linear layer with one output.
    """

    def __init__(self, model: Any) -> None:
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
        if not heads:
            raise ModelError(
                f"{type(model).__name__} has no linear layer with one output to put a posterior on; use kind: heads, "
                "lora or independent for this model"
            )
        self.model, self.head = model.eval(), heads[-1]
        self._checked = False
        self.trunk = getattr(model, model.base_model_prefix) if decoder_head(model) is self.head else None

    @property
    def weights(self) -> Float[Tensor, "features"]:
        return self.head.weight.detach()[0].double().cpu()

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, mask: Tensor, layer: int | None = None
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch features"], Float[Tensor, "batch hidden"] | None]:
        """(reward, last-layer features, mean-pooled hidden state of `layer`), float32 on the CPU.

        Raises:
            ModelError: the reward isn't the head's output at one position, so its features can't be told.
        """
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            with head_in_float32(self.model):
                out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=layer is not None)
        finally:
            handle.remove()
        rewards, features = out.logits[:, 0].float(), seen[-1]
        if features.ndim == 3:
            features = features[range(len(ids)), read_places(ids.tolist(), own_pad(self.model))]
        if not self._checked:
            self._check(features, rewards)
        hidden = None
        if layer is not None:
            states = out.hidden_states[layer].float()
            weight = mask[:, :, None].float()
            hidden = ((states * weight).sum(dim=1) / weight.sum(dim=1)).cpu()
        return rewards.cpu(), features.float().cpu(), hidden

    def _check(self, features: Tensor, rewards: Tensor) -> None:
        again = apply_head(self.head, features)[:, 0]
        if not torch.allclose(again, rewards, rtol=1e-2, atol=1e-2 * (1 + float(rewards.abs().max()))):
            raise ModelError(
                f"the reward of {type(self.model).__name__} is not its last linear layer's output at one position; "
                "use kind: heads, lora or independent for this model"
            )
        self._checked = True


@dataclass(frozen=True, eq=False)
class Distance:
    """What turns a hidden state into random features: standardisation, frequencies and phases."""

    layer: int
    mean: Tensor
    spread: Tensor
    frequencies: Tensor
    phases: Tensor

    def __call__(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows count"]:
        return random_features((hidden - self.mean) / self.spread, self.frequencies, self.phases)


@register("laplace")
class LaplaceRewardModel(GaussianSource):
    """One existing reward model with a variance.

    Args:
        reader: the model.
        encoder: its text encoder.
        terms: the last layer's posterior, and the distance term's if there is one.
        distance: None without a distance term.
        dtype: that the model was loaded in, to be saved.
    """

    settings = LaplaceConfig
    made_from = "reward model"

    def __init__(
        self,
        reader: RewardReader,
        encoder: TextEncoder,
        terms: Sequence[Term],
        distance: Distance | None = None,
        name: str = "laplace",
        dtype: Dtype = "auto",
    ) -> None:
        self.reader, self.encoder, self.terms, self.distance = reader, encoder, terms, distance
        self.name, self.dtype = name, dtype

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows = self.encoder(prompts, completions)
        return read_rows(self.reader, self.encoder, rows, self.distance, keys=prompt_keys(prompts))

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.reader.model.save_pretrained(folder / "model")
            self.encoder.tokenizer.save_pretrained(folder / "model")
            tensors: dict[str, Tensor] = {}
            for i, term in enumerate(self.terms):
                parts = {"origin": term.origin, **_fields(term.covariance)}
                tensors |= {f"{i}.{name}": value.contiguous() for name, value in parts.items()}
            if self.distance is not None:
                tensors |= {f"distance.{n}": v.contiguous() for n, v in _fields(self.distance).items() if n != "layer"}
            save_file(tensors, folder / "posterior.safetensors")
            held = {"kind": "laplace", "name": self.name, "max_length": self.encoder.max_length,
                    "terms": len(self.terms), "dtype": self.dtype,
                    "distance_layer": None if self.distance is None else self.distance.layer}  # fmt: skip
            write_json(folder / SOURCE, held)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return fit_laplace(job.pairs, job.model, job.settings, on_progress=job.report)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "LaplaceRewardModel":
        held = read_source(directory)
        tensors = read_tensors(directory / "posterior.safetensors")
        terms = []
        for i in range(held["terms"]):
            parts = {name: tensors[f"{i}.{name}"] for name in ("basis", "shift", "scale")}
            terms.append(Term(Covariance(**parts), tensors[f"{i}.origin"]))
        distance = None
        if held["distance_layer"] is not None:
            names = ("mean", "spread", "frequencies", "phases")
            distance = Distance(held["distance_layer"], **{name: tensors[f"distance.{name}"] for name in names})
        dtype = kept_dtype(held)
        reader, encoder = load_reader(directory / "model", held["max_length"], device, dtype)
        return cls(reader, encoder, terms, distance, held["name"], dtype)


def read_rows(
    reader: RewardReader,
    encoder: TextEncoder,
    rows: list[list[int]],
    distance: Distance | None = None,
    *,
    keys: Sequence[Any] | None = None,
    packed: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Float[Tensor, "rows columns"]:
    """(reward, features, distance features) of token rows, in their order.

    Args:
        keys: rows with equal keys share their prompt's computation, where the model is a decoder whose head reads one
            token.
        packed: how they share it (`read_states`).
    """
    pad = encoder.tokenizer.pad_token_id
    if reader.trunk is not None:
        states = read_states(
            reader.trunk,
            rows,
            pad_token_id=pad,
            tokens=forward_tokens(reader.model.device),
            read_at=read_places(rows, own_pad(reader.model)),
            keys=keys,
            packed=packed,
            mean_layer=None if distance is None else distance.layer,
            on_progress=on_progress,
        )[0]
        width = reader.head.in_features
        features, pooled = states[:, :width], states[:, width:]
        with torch.no_grad():
            parts = [apply_head(reader.head, features).cpu(), features.cpu()]
        return torch.cat(parts if distance is None else [*parts, distance(pooled.cpu())], dim=1)
    rows_read = torch.empty(0)
    layer = None if distance is None else distance.layer
    device, done = reader.model.device, 0
    for batch, ids, mask in length_sorted_batches(rows, pad_token_id=pad, device=device):
        rewards, features, hidden = reader(ids, mask, layer)
        parts = [rewards[:, None], features]
        if distance is not None and hidden is not None:
            parts.append(distance(hidden))
        read = torch.cat(parts, dim=1)
        if not len(rows_read):
            rows_read = read.new_empty(len(rows), read.shape[1])
        rows_read[batch] = read
        done += len(batch)
        if on_progress is not None:
            on_progress(done / len(rows))
    return rows_read


def fit_laplace(
    pairs: Dataset,
    model: str | Path,
    config: LaplaceConfig,
    *,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> LaplaceRewardModel:
    """Give an existing reward model a variance from a few thousand pairs; its weights and rewards stay as they are.

    Args:
        pairs: checked preference pairs, best those that the model was trained on, or ones like them.
        model: directory or hub name of a reward model with one output.

    Raises:
        DataError: all pairs are too long. ModelError: the model has no last linear layer, or can't be loaded.
    """
    if config.distance < 0:
        raise ConfigError(f"distance must not be negative, got {config.distance}")
    reader, encoder = load_reader(model, config.max_length, device, config.dtype)
    encoded = encode_pairs(pairs, encoder, overlong=config.overlong)
    rows = list(encoded["chosen_ids"]) + list(encoded["rejected_ids"])
    report = on_progress or (lambda what, share: None)
    distance = None
    if config.distance > 0:
        distance = _fit_distance(reader, encoder, rows, config)
    read = read_rows(
        reader,
        encoder,
        rows,
        distance,
        keys=[*range(len(encoded))] * 2,
        packed=True,
        on_progress=lambda share: report("features", share),
    ).double()
    if not bool(read.isfinite().all()):
        bad = int((~read.isfinite()).any(dim=1).nonzero()[0]) % len(encoded)
        raise DataError(f"the model gives a number that isn't finite on pair {bad}; check its weights")
    width = len(reader.weights)
    half = len(encoded)
    difference = read[:half] - read[half:]
    last = _last_layer_term(read[:, 1 : 1 + width], difference, reader.weights, config)
    terms = [last]
    if distance is not None:
        terms.append(_distance_term(read[:, 1 + width :], difference[:, 1 + width :], difference[:, 0], read, config))
    return LaplaceRewardModel(reader, encoder, terms, distance, dtype=config.dtype)


def _last_layer_term(features: Tensor, difference: Tensor, weights: Tensor, config: LaplaceConfig) -> Term:
    hessian = curvature(difference[:, 1 : 1 + len(weights)], difference[:, 0])
    precision = evidence_precision(hessian, weights) if config.precision is None else config.precision
    return Term(posterior(hessian, precision, config.structure, config.rank), features.mean(dim=0))


def _distance_term(features: Tensor, difference: Tensor, margins: Tensor, read: Tensor, config: LaplaceConfig) -> Term:
    """A Gaussian process that the model leaves at zero: its prior variance far off, what the pairs leave near."""
    size = config.distance * float(read[:, 0].var(correction=1))
    if size <= 0:
        raise DataError("the model gives every training text the same reward; a distance term has no scale")
    return Term(posterior(curvature(difference, margins), 1 / size, "full"), features.mean(dim=0))


def _fit_distance(
    reader: RewardReader, encoder: TextEncoder, rows: list[list[int]], config: LaplaceConfig
) -> Distance:
    """Standardisation of the hidden state over up to 2,000 training texts; a kernel of their median distance."""
    stream = torch.Generator().manual_seed(config.seed)
    some = torch.randperm(len(rows), generator=stream)[:2000].tolist()
    hidden = _hidden(reader, encoder, [rows[i] for i in some], config.distance_layer)
    mean, spread = hidden.mean(dim=0), hidden.std(dim=0, correction=1).clamp(min=1e-6)
    standard = (hidden - mean) / spread
    width = float(torch.pdist(standard[:500]).median())
    frequencies = torch.randn(hidden.shape[1], config.distance_features, generator=stream) / width
    phases = 2 * torch.pi * torch.rand(config.distance_features, generator=stream)
    return Distance(config.distance_layer, mean, spread, frequencies, phases)


def _hidden(reader: RewardReader, encoder: TextEncoder, rows: list[list[int]], layer: int) -> Tensor:
    states: list[Tensor] = []
    pad = encoder.tokenizer.pad_token_id
    if reader.trunk is not None:
        tokens = forward_tokens(reader.model.device)
        return read_states(reader.trunk, rows, pad_token_id=pad, tokens=tokens, layer=layer)[0].cpu()
    for _, ids, mask in length_sorted_batches(rows, pad_token_id=pad, device=reader.model.device):
        hidden = reader(ids, mask, layer)[2]
        assert hidden is not None
        states.append(hidden)
    return torch.cat(states)


def load_reader(
    model: str | Path, max_length: int, device: str | torch.device | None, dtype: str = "auto"
) -> tuple[RewardReader, TextEncoder]:
    """An existing reward model, and how its text is encoded; `max_length` in tokens, or the model's own limit.

    Raises:
        ModelError: it can't be loaded, or its reward isn't its last linear layer's output at one position.
    """
    loaded = load_classifier(model, choose_device(device), dtype)
    encoder = load_encoder(model, loaded, max_length)
    reader = RewardReader(loaded)
    some = next(i for i in range(3) if i != encoder.tokenizer.pad_token_id)
    ids = torch.full((1, 3), some, device=loaded.device)
    reader(ids, torch.ones_like(ids))  # says at once if the reward isn't the last linear layer's output
    return reader, encoder


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
