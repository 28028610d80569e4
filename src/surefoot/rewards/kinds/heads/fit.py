"""Train all heads of a shared trunk in one pass over cached features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from surefoot.data.preferences import data_hash
from surefoot.errors import ConfigError, ModelError
from surefoot.files import fingerprint
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.source import Heads, HeadShape, SharedTrunkHeads, load_heads
from surefoot.rewards.kinds.heads.trunk_training import train_trunk
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.bradley_terry_loop import Plan
from surefoot.rewards.trunk.feature_cache import FeatureCache, weights_hash
from surefoot.rewards.trunk.loading import choose_device, load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import encode_pairs

__all__ = ["fit_heads", "train_heads"]


def train_heads(
    pairs: Dataset,
    trunk: str | Path,
    config: HeadsConfig,
    *,
    cache_directory: str | Path | None = None,
    directory: str | Path | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> SharedTrunkHeads:
    """Features of the frozen trunk once, then K heads together, then the trunk with them if `trunk_epochs` says so.

    Args:
        pairs: `prompt`, `chosen`, `rejected` and perhaps `margin`, checked (`surefoot.data.preferences`).
        trunk: directory or hub name of any model that `AutoModel` loads.
        cache_directory: keeps features between runs.
        directory: keeps a checkpoint of the trunk's training, from which the same call goes on.
        on_progress: called with (what is being done, share done).

    Raises:
        ConfigError: settings that don't go together. DataError: all pairs are too long. ModelError: the trunk can't be
            loaded, its tokenizer can't pad, or `start_heads` doesn't fit it.
    """
    if config.trunk_epochs < 0 or config.trunk_batch_size < 1:
        raise ConfigError(
            "trunk_epochs must not be negative and trunk_batch_size must be at least 1, got "
            f"{config.trunk_epochs} and {config.trunk_batch_size}"
        )
    if config.start_heads is not None and config.trunk_epochs > 0:
        raise ConfigError("start_heads needs a frozen trunk: earlier heads read another one; set trunk_epochs: 0")
    model = load_trunk(trunk, choose_device(device), config.dtype)
    start = None if config.start_heads is None else _start(Path(config.start_heads), config, model)
    encoder = load_encoder(trunk, model, config.max_length)
    encoded = encode_pairs(pairs, encoder, overlong=config.overlong)
    chosen_ids, rejected_ids = list(encoded["chosen_ids"]), list(encoded["rejected_ids"])
    cache = FeatureCache(cache_directory)
    pad = encoder.tokenizer.pad_token_id
    report = on_progress or (lambda what, share: None)
    features = cache.get(
        model,
        chosen_ids + rejected_ids,
        pooling=config.pooling,
        layer=config.layer,
        pad_token_id=pad,
        keys=[*range(len(chosen_ids))] * 2,
        on_progress=lambda share: report("features", share),
    )
    rows = list(zip(chosen_ids, rejected_ids, strict=True))
    weights = bootstrap_weights(rows, config.members, config.seed, config.bootstrap)
    margins = torch.tensor(encoded["margin"]) if "margin" in encoded.column_names else torch.zeros(len(rows))
    heads = fit_heads(features[: len(rows)], features[len(rows) :], weights, margins, config, report, start)
    if config.trunk_epochs > 0:
        train_trunk(
            model,
            heads,
            rows,
            weights,
            margins,
            Plan(len(rows), config.trunk_epochs, config.trunk_batch_size, config.seed),
            learning_rate=config.trunk_learning_rate,
            weight_decay=config.weight_decay,
            pooling=config.pooling,
            layer=config.layer,
            pad_token_id=pad,
            receipt=fingerprint([asdict(config), str(trunk), data_hash(encoded)]),
            directory=None if directory is None else Path(directory),
            on_step=lambda share: report("trunk", share),
        )
    return SharedTrunkHeads(model, encoder, heads, config.pooling, config.layer, dtype=config.dtype)


def _start(directory: Path, config: HeadsConfig, trunk: Any) -> Heads:
    """The heads that training starts from.

    Raises:
        ModelError: they are of other settings than those to be trained, or of another trunk.
    """
    held, heads = load_heads(directory)
    wanted = HeadShape(config.members, heads.shape.features, config.head, config.hidden, config.prior_scale)
    if (heads.shape, held["pooling"], held["layer"]) != (wanted, config.pooling, config.layer):
        raise ModelError(
            f"start_heads {directory} has other heads or reads other features than the settings name; give the same "
            f"members ({heads.shape.members} there, {config.members} here), head, hidden, prior_scale, pooling and "
            "layer"
        )
    dtype = str(trunk.dtype).removeprefix("torch.")
    if weights_hash(load_trunk(directory / "trunk", torch.device("cpu"), dtype)) != weights_hash(trunk):
        raise ModelError(f"start_heads {directory} has another trunk, so its heads read other features; give the same")
    return heads


def fit_heads(
    chosen: Float[Tensor, "pairs features"],
    rejected: Float[Tensor, "pairs features"],
    weights: Float[Tensor, "pairs members"],
    margins: Float[Tensor, "pairs"],
    config: HeadsConfig,
    on_progress: Callable[[str, float], None] | None = None,
    start: Heads | None = None,
) -> Heads:
    """Minimise each head's weighted Bradley-Terry loss, −w log σ(r(chosen) − r(rejected) − margin), by AdamW.

    Heads don't interact: the loss is their sum, and AdamW works on each number alone. Head k comes out the same
    whether it is trained alone or with others (same weights, same order of pairs).

    Args:
        weights: how much each pair counts for each head.
        margins: in reward, as in TRL's RewardTrainer.
        start: heads of the same shape to start from, with their centre and spread of the features; else they are drawn
            from the seed. A pair's bootstrap weights follow from its content, so head k goes on with its own resample.
    """
    if config.epochs < 1 or config.batch_size < 1:
        raise ConfigError(f"epochs and batch_size must be at least 1, got {config.epochs} and {config.batch_size}")
    shape = HeadShape(config.members, chosen.shape[1], config.head, config.hidden, config.prior_scale)
    heads = Heads(shape, config.seed)
    if start is None:
        heads.standardise(torch.cat([chosen, rejected]))
    else:
        heads.load_state_dict(start.state_dict())
    optimiser = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(chosen) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for batch in torch.randperm(len(chosen), generator=order).split(config.batch_size):
            difference = heads(chosen[batch]) - heads(rejected[batch]) - margins[batch, None]
            loss = (torch.nn.functional.softplus(-difference) * weights[batch]).mean(dim=0).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if on_progress is not None:
            on_progress("heads", (epoch + 1) / config.epochs)
    return heads.eval()
