"""A distilled variance: one forward gives what an expensive source took K forwards to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.errors import ConfigError, DataError
from surefoot.files import whole_directory, write_json
from surefoot.metrics.intervals import spearman
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import SOURCE, read_source, read_tensors, save_calibration
from surefoot.rewards.source import FitJob, RewardSource, given_estimate, plain_constants
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.feature_cache import Pooling, compute_features
from surefoot.rewards.trunk.loading import choose_device, load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder, prompt_keys
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["DistilledConfig", "DistilledReward", "distil"]


@dataclass(slots=True)
class DistilledConfig:
    """Settings of a distilled source: a two-output network of one hidden layer on a frozen trunk's features."""

    seed: int = 0
    pooling: Pooling = field(default="mean", metadata={"help": "last (decoders), mean, or cls (BERT-style)."})
    layer: int = -1
    hidden: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    epochs: int = 50
    batch_size: int = 64
    max_length: int = 512
    dtype: Dtype = "auto"


@dataclass(slots=True)
class DistilledArguments(DistilledConfig):
    """The same for `surefoot reward`, which must be told the teacher."""

    teacher: str | None = field(default=None, metadata={"help": "The source whose variance is learnt."})

    def __post_init__(self) -> None:
        if self.teacher is None:
            raise ConfigError("kind: distilled needs teacher, the directory of the source whose variance is learnt")


class _Network(nn.Module):
    centre: Tensor
    spread: Tensor
    units: Tensor

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.outer = nn.Linear(hidden, 2)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("units", torch.tensor([[0.0, 0.0], [1.0, 1.0]]))

    def forward(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows two"]:
        """(reward, log variance) of each row."""
        standard = (features - self.centre) / self.spread
        return self.units[0] + self.units[1] * self.outer(torch.nn.functional.gelu(self.inner(standard)))


@register("distilled")
class DistilledReward(RewardSource):
    """Reward and log variance, both learnt from another source.

    The variance is that of the anchored reward, as the teacher gave it; it can't be anchored anew elsewhere, and a
    margin's variance is twice the sum of its sides' (exact where the teacher saw pairs, since a centred pair has
    ±half the margin).
    """

    settings = DistilledArguments
    made_from = "reward model"

    centred = False

    def __init__(
        self,
        trunk: Any,
        encoder: TextEncoder,
        network: _Network,
        pooling: Pooling,
        layer: int,
        name: str = "distilled",
        dtype: Dtype = "auto",
    ) -> None:
        self.trunk, self.encoder, self.network = trunk.eval(), encoder, network.eval()
        self.pooling, self.layer, self.name, self.dtype = pooling, layer, name, dtype

    @property
    def num_columns(self) -> int:
        return 2

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        return self.network(_features(self.trunk, self.encoder, prompts, completions, self.pooling, self.layer))

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        return given_estimate(scores[:, 0], scores[:, 1].exp())

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        variance = 2 * (chosen[:, 1].exp() + rejected[:, 1].exp())
        return MarginEstimate(chosen[:, 0] - rejected[:, 0], variance)

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        return plain_constants(scores[:, 0])

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.trunk.save_pretrained(folder / "trunk")
            self.encoder.tokenizer.save_pretrained(folder / "trunk")
            save_file(
                {n: v.contiguous() for n, v in self.network.state_dict().items()}, folder / "network.safetensors"
            )
            held = {"kind": "distilled", "name": self.name, "pooling": self.pooling, "layer": self.layer,
                    "features": self.network.inner.in_features, "hidden": self.network.inner.out_features,
                    "max_length": self.encoder.max_length, "dtype": self.dtype}  # fmt: skip
            write_json(folder / SOURCE, held)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return distil(job.pairs, load_source(job.settings.teacher), job.model, job.settings, on_progress=job.report)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "DistilledReward":
        held = read_source(directory)
        network = _Network(held["features"], held["hidden"])
        network.load_state_dict(read_tensors(directory / "network.safetensors"))
        dtype = kept_dtype(held)
        trunk = load_trunk(directory / "trunk", choose_device(device), dtype)
        encoder = load_encoder(directory / "trunk", trunk, held["max_length"])
        return cls(trunk, encoder, network, held["pooling"], held["layer"], held["name"], dtype)


def distil(
    pairs: Dataset,
    teacher: RewardSource,
    trunk: str | Path,
    config: DistilledConfig,
    *,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> DistilledReward:
    """Learn the teacher's reward and log variance on the pairs' texts, each pair a group.

    A tenth of the pairs is held out; `calibration.notes` of the result says how well the variance was learnt there
    (`distilled_spearman`).

    Args:
        pairs: `prompt`, `chosen`, `rejected`; labels aren't used.
        trunk: directory or hub name of any model that `AutoModel` loads.

    Raises:
        VarianceError: the teacher has one member. DataError: fewer than 20 pairs.
    """
    if len(pairs) < 20:
        raise DataError(f"distilling a variance needs at least 20 pairs, got {len(pairs)}")
    report = on_progress or (lambda what, share: None)
    prompts = list(pairs["prompt"]) * 2
    completions = list(pairs["chosen"]) + list(pairs["rejected"])
    report("teacher", 0.0)
    scores = teacher.score(prompts, completions)
    taught = teacher.estimate(scores, group_anchors(scores, torch.arange(len(pairs)).repeat(2), "dataset"))
    report("teacher", 1.0)
    targets = torch.stack([taught.mean, taught.variance.clamp(min=1e-12).log()], dim=1).float()
    model = load_trunk(trunk, choose_device(device), config.dtype)
    encoder = load_encoder(trunk, model, config.max_length)
    features = _features(model, encoder, prompts, completions, config.pooling, config.layer)
    stream = torch.Generator().manual_seed(config.seed)
    usable = targets.isfinite().all(dim=1)
    held = torch.zeros(len(pairs), dtype=torch.bool)
    held[torch.randperm(len(pairs), generator=stream)[: len(pairs) // 10]] = True
    held = held.repeat(2)
    network = _fit(features[usable & ~held], targets[usable & ~held], config, report)
    source = DistilledReward(model, encoder, network, config.pooling, config.layer, dtype=config.dtype)
    with torch.no_grad():
        rows = network(features)
    calibration = source.calibrate(rows[usable])
    test = usable & held
    rank = spearman(rows[test, 1].numpy(), targets[test, 1].numpy()).value
    if math.isfinite(rank):  # unknown where one side hardly varies
        calibration.notes["distilled_spearman"] = rank
    return source


def _fit(
    features: Float[Tensor, "rows features"],
    targets: Float[Tensor, "rows two"],
    config: DistilledConfig,
    report: Callable[[str, float], None],
) -> _Network:
    """Least squares of standardised reward and log variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _Network(features.shape[1], config.hidden)
    network.centre.copy_(features.mean(dim=0))
    network.spread.copy_(features.std(dim=0, correction=1).clamp(min=1e-6))
    network.units.copy_(torch.stack([targets.mean(dim=0), targets.std(dim=0, correction=1).clamp(min=1e-6)]))
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(features) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    stream = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for batch in torch.randperm(len(features), generator=stream).split(config.batch_size):
            error = (network(features[batch]) - targets[batch]) / network.units[1]
            optimiser.zero_grad()
            error.square().mean().backward()
            optimiser.step()
            schedule.step()
        report("variance head", (epoch + 1) / config.epochs)
    return network.eval()


def _features(
    trunk: Any,
    encoder: TextEncoder,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    pooling: Pooling,
    layer: int,
) -> Float[Tensor, "rows features"]:
    pad = encoder.tokenizer.pad_token_id
    rows, keys = encoder(prompts, completions), prompt_keys(prompts)
    return compute_features(trunk, rows, pooling=pooling, layer=layer, pad_token_id=pad, keys=keys)
