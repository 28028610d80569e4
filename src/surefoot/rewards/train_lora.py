"""Train K LoRA reward members together: one forward and one backward for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from surefoot.data.preferences import data_hash
from surefoot.errors import ConfigError
from surefoot.files import fingerprint, read_json, whole_directory, write_json
from surefoot.rewards.batching import forward_tokens, padded
from surefoot.rewards.bootstrap import Bootstrap, bootstrap_weights
from surefoot.rewards.encoding import TextEncoder, encode_pairs
from surefoot.rewards.loading import choose_device, load_classifier, load_tokenizer, resolve_model
from surefoot.rewards.lora import AdapterShape, LoraMembers, LoraNetwork
from surefoot.rewards.replication import start_layer

__all__ = ["LoraConfig", "train_lora"]


@dataclass(slots=True)
class LoraConfig:
    """Settings of LoRA members.

    Args:
        start: share of the depth below which the members share everything; 0 adapts every layer, 2/3 the upper third.
    """

    members: int = 5
    seed: int = 0
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    start: float = field(default=0.0, metadata={"help": "Share of the depth below which nothing is adapted."})
    bootstrap: Bootstrap = field(default="poisson", metadata={"help": "none, poisson or exponential."})
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 2
    batch_size: int = 16
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    max_length: int = 512
    overlong: Literal["drop", "truncate"] = "drop"
    save_steps: int = field(default=50, metadata={"help": "Steps between checkpoints, from which a rerun goes on."})


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
        base: a decoder, as for `AutoModelForSequenceClassification`.
        directory: keeps a checkpoint, from which the same call goes on; None keeps none.
        on_progress: called with (what is being done, share done).

    Raises:
        DataError: all pairs are too long. ModelError: the base can't be adapted, or its tokenizer can't pad.
    """
    if config.epochs < 1 or config.batch_size < 1:
        raise ConfigError(f"epochs and batch_size must be at least 1, got {config.epochs} and {config.batch_size}")
    network = _network(base, config, choose_device(device))
    encoder = TextEncoder(load_tokenizer(base), config.max_length)
    encoded = encode_pairs(pairs, encoder, overlong=config.overlong)
    rows = list(zip(encoded["chosen_ids"], encoded["rejected_ids"], strict=True))
    weights = bootstrap_weights(rows, config.members, config.seed, config.bootstrap)
    margins = torch.tensor(encoded["margin"]) if "margin" in encoded.column_names else torch.zeros(len(rows))
    receipt = fingerprint([asdict(config), str(base), data_hash(encoded)])
    run = _Run(network, config, len(rows), None if directory is None else Path(directory), receipt)
    for step, batch in run.remaining():
        for part in _micro(rows, batch, network):
            ids, mask = padded(
                [side for i in part for side in rows[i]], encoder.tokenizer.pad_token_id, network.device
            )
            scores = network(ids, mask).T
            difference = scores[0::2] - scores[1::2] - margins[part, None].to(scores)
            loss = torch.nn.functional.softplus(-difference) * weights[part].to(scores)
            (loss.sum() / len(batch)).backward()
        run.update(step)
        if on_progress is not None:
            on_progress("adapters", (step + 1) / run.steps)
    return LoraMembers(network, encoder, resolve_model(base))


def _network(base: str | Path, config: LoraConfig, device: torch.device) -> LoraNetwork:
    model = load_classifier(base, device, for_training=True)
    start = start_layer(getattr(model, model.base_model_prefix), config.start)
    shape = AdapterShape(config.members, config.rank, config.alpha, tuple(config.targets), start)
    network = LoraNetwork(model, shape).to(device).eval()  # dropout off: members differ by their data
    network.start(config.seed)
    return network


def _micro(rows: list[tuple[list[int], list[int]]], batch: list[int], network: LoraNetwork) -> Iterator[list[int]]:
    """The batch in parts of like length, small enough for one forward of all members."""
    limit = forward_tokens(network.device, network.shape.members)
    part: list[int] = []
    for i in sorted(batch, key=lambda i: -max(map(len, rows[i]))):
        longest = max(map(len, rows[part[0] if part else i]))
        if part and 2 * longest * (len(part) + 1) > limit:
            yield part
            part = []
        part.append(i)
    yield part


class _Run:
    """Order of the pairs, optimiser, schedule and checkpoints."""

    def __init__(
        self, network: LoraNetwork, config: LoraConfig, pairs: int, folder: Path | None, receipt: str
    ) -> None:
        self.config = config
        self.parameters = network.trained()
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        per_epoch = -(-pairs // config.batch_size)
        self.steps = config.epochs * per_epoch
        warmup = max(1, round(config.warmup * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.steps)),
        )
        self.order = _order(pairs, config)
        self.folder, self.receipt = folder, receipt
        self.done = self._resume()

    def remaining(self) -> Iterator[tuple[int, list[int]]]:
        """(step, pairs of its batch) that are still to do."""
        yield from list(enumerate(self.order))[self.done :]

    def update(self, step: int) -> None:
        for parameter in self.parameters.values():
            assert parameter.grad is not None
        norms = torch.stack([p.grad.float().flatten(1).square().sum(dim=1) for p in self.parameters.values()])  # type: ignore[union-attr]
        share = (self.config.max_grad_norm / norms.sum(dim=0).sqrt()).clamp(max=1.0)
        for parameter in self.parameters.values():
            parameter.grad.mul_(share.view(-1, *[1] * (parameter.ndim - 1)).to(parameter.grad))  # type: ignore[union-attr]
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        if self.folder is not None and ((step + 1) % self.config.save_steps == 0 or step + 1 == self.steps):
            self._save(step + 1)

    def _save(self, done: int) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.optimiser.state[parameter]
            tensors |= {name: parameter.detach(), f"{name}|m": state["exp_avg"], f"{name}|v": state["exp_avg_sq"]}
        assert self.folder is not None
        with whole_directory(self.folder) as folder:
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "state.safetensors")
            write_json(folder / "state.json", {"done": done, "receipt": self.receipt})

    @torch.no_grad()
    def _resume(self) -> int:
        if self.folder is None or not (self.folder / "state.json").exists():
            return 0
        held = read_json(self.folder / "state.json")
        if held["receipt"] != self.receipt:
            return 0
        tensors, done = load_file(self.folder / "state.safetensors"), int(held["done"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(done)),
                "exp_avg": tensors[f"{name}|m"].to(parameter),
                "exp_avg_sq": tensors[f"{name}|v"].to(parameter),
            }
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self.schedule.lr_lambdas[0](done)
        self.schedule.last_epoch = done
        return done


def _order(pairs: int, config: LoraConfig) -> list[list[int]]:
    """The batches of all epochs: every pair once an epoch, in an order drawn from the seed."""
    stream = torch.Generator().manual_seed(config.seed)
    batches: list[Any] = []
    for _ in range(config.epochs):
        batches += [part.tolist() for part in torch.randperm(pairs, generator=stream).split(config.batch_size)]
    return batches
