"""Train K LoRA reward members together: one forward and one backward for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset

from surefoot.data.preferences import data_hash
from surefoot.errors import ConfigError
from surefoot.files import fingerprint
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.layers import PEFT_SAVES, AdapterShape, drawn_anew
from surefoot.rewards.kinds.lora.network import LoraNetwork
from surefoot.rewards.kinds.lora.source import LoraMembers
from surefoot.rewards.trunk.batching import forward_tokens, padded
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.bradley_terry_loop import PairRun, Plan, micro_batches
from surefoot.rewards.trunk.loading import choose_device, load_base, load_encoder
from surefoot.rewards.trunk.model_names import resolve_model
from surefoot.rewards.trunk.replicated_layers import start_layer
from surefoot.rewards.trunk.text_encoder import encode_pairs

__all__ = ["train_lora"]


def train_lora(
    pairs: Dataset,
    base: str | Path,
    config: LoraConfig,
    *,
    directory: str | Path | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> LoraMembers:
    """Train K adapters with the Bradley-Terry loss, each pair weighted for each member.

    Members don't interact: the loss is their sum, gradients are clipped member by member, and AdamW works on each
    number alone. So member k comes out the same among 3 members and among 10 (same seed, weights and order of pairs).

    Args:
        pairs: checked preference pairs.
        base: a decoder or an encoder, as for `AutoModelForSequenceClassification`. What its checkpoint lacks between
            trunk and reward (a pooler, say) each member owns.
        directory: keeps a checkpoint, from which the same call goes on; None keeps none.
        on_progress: called with (what is being done, share done).

    Raises:
        DataError: all pairs are too long. ModelError: the base can't be adapted, or its tokenizer can't pad.
    """
    if config.epochs < 1 or config.batch_size < 1:
        raise ConfigError(f"epochs and batch_size must be at least 1, got {config.epochs} and {config.batch_size}")
    network = _network(base, config, choose_device(device))
    encoder = load_encoder(base, network.classifier, config.max_length)
    encoded = encode_pairs(pairs, encoder, overlong=config.overlong)
    rows = list(zip(encoded["chosen_ids"], encoded["rejected_ids"], strict=True))
    weights = bootstrap_weights(rows, config.members, config.seed, config.bootstrap)
    margins = torch.tensor(encoded["margin"]) if "margin" in encoded.column_names else torch.zeros(len(rows))
    receipt = fingerprint([asdict(config), str(base), data_hash(encoded)])
    plan = Plan(len(rows), config.epochs, config.batch_size, config.seed, config.warmup, config.save_steps)
    groups = [(network.trained(), config.learning_rate, config.weight_decay)]
    run = PairRun(groups, plan, None if directory is None else Path(directory), receipt)
    tokens = forward_tokens(network.device, config.members)
    for step, batch in run.remaining():
        for part in micro_batches(rows, batch, tokens):
            ids, mask = padded(
                [side for i in part for side in rows[i]], encoder.tokenizer.pad_token_id, network.device
            )
            scores = network(ids, mask).T
            difference = scores[0::2] - scores[1::2] - margins[part, None].to(scores)
            loss = torch.nn.functional.softplus(-difference) * weights[part].to(scores)
            (loss.sum() / len(batch)).backward()
        _clip(run.parameters, config.max_grad_norm)
        run.update(step)
        if on_progress is not None:
            on_progress("adapters", (step + 1) / run.steps)
    return LoraMembers(network, encoder, resolve_model(base))


def _network(base: str | Path, config: LoraConfig, device: torch.device) -> LoraNetwork:
    model, missing = load_base(base, device)
    start = start_layer(getattr(model, model.base_model_prefix), config.start)
    targets = None if config.targets is None else tuple(config.targets)
    shape = AdapterShape(config.members, config.rank, config.alpha, targets, start)
    # It stays in eval mode, dropout off: members differ by their data.
    network = LoraNetwork(model, shape, (*PEFT_SAVES, *drawn_anew(model, missing)))
    network.start(config.seed)
    return network


def _clip(parameters: dict[str, torch.nn.Parameter], most: float) -> None:
    """Clip each member's gradient by its own norm (members lie along the first axis)."""
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    norms = torch.stack([gradient.float().flatten(1).square().sum(dim=1) for gradient in gradients])
    share = (most / norms.sum(dim=0).sqrt()).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)).to(gradient))
