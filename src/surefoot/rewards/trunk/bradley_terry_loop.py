"""Order of pairs, optimiser, schedule and checkpoints of a Bradley-Terry training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from surefoot.files import read_json, whole_directory, write_json

__all__ = ["PairRun", "Plan", "micro_batches"]

Pair = tuple[list[int], list[int]]
"""Token ids of the chosen and of the rejected side."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Training schedule of a Bradley-Terry fit: pairs, epochs, batch size, seed, warmup and checkpoint interval."""

    pairs: int
    epochs: int
    batch_size: int
    seed: int
    warmup: float = 0.1
    save_steps: int = 50

    def batches(self) -> list[list[int]]:
        """Pair numbers of every batch of all epochs, each pair once an epoch, in an order drawn from the seed."""
        stream = torch.Generator().manual_seed(self.seed)
        batches: list[Any] = []
        for _ in range(self.epochs):
            batches += [part.tolist() for part in torch.randperm(self.pairs, generator=stream).split(self.batch_size)]
        return batches


class PairRun:
    """Run of AdamW with warmup and a cosine schedule, saved to `folder` every `save_steps` steps and resumed from it.

    Args:
        groups: named parameters with their learning rate and weight decay.
        plan: order and length.
        folder: None keeps no checkpoint.
        receipt: fingerprint of settings and data; a checkpoint with another one isn't used.
    """

    def __init__(
        self,
        groups: Sequence[tuple[dict[str, torch.nn.Parameter], float, float]],
        plan: Plan,
        folder: Path | None,
        receipt: str,
    ) -> None:
        self.parameters = {name: value for named, _, _ in groups for name, value in named.items()}
        self.optimiser = torch.optim.AdamW(
            [{"params": list(named.values()), "lr": rate, "weight_decay": decay} for named, rate, decay in groups]
        )
        self.optimiser.zero_grad()  # an earlier fit may have left gradients behind
        self.plan = plan
        self.order = plan.batches()
        self.steps = len(self.order)
        warmup = max(1, round(plan.warmup * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.steps)),
        )
        self.folder, self.receipt = folder, receipt
        self.done = self._resume()

    def remaining(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the steps that are left, each with the pair numbers of its batch."""
        yield from list(enumerate(self.order))[self.done :]

    def update(self, step: int) -> None:
        """Take an optimiser step with the gradients that have been computed, and save a checkpoint if it is due."""
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        if self.folder is not None and ((step + 1) % self.plan.save_steps == 0 or step + 1 == self.steps):
            self._save(step + 1)

    def _save(self, done: int) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.optimiser.state.get(parameter)
            if state:  # parameters that no gradient reaches have none
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
            if name not in tensors:
                continue
            parameter.copy_(tensors[name])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(done)),
                "exp_avg": tensors[f"{name}|m"].to(parameter),
                "exp_avg_sq": tensors[f"{name}|v"].to(parameter),
            }
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule.lr_lambdas[0](done)
        self.schedule.last_epoch = done
        return done


def micro_batches(rows: Sequence[Pair], batch: list[int], tokens: int) -> Iterator[list[int]]:
    """Split a batch into parts of similar length, each of about `tokens` computed tokens."""
    part: list[int] = []
    for i in sorted(batch, key=lambda i: -max(map(len, rows[i]))):
        longest = max(map(len, rows[part[0] if part else i]))
        if part and 2 * longest * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(i)
    yield part
