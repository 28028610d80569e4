"""What each of K members owns of a classifier: LoRA adapters in its upper layers, and the modules of its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.trunk.replicated_layers import layers_of

__all__ = [
    "OR_ELSE",
    "PEFT_SAVES",
    "AdapterShape",
    "BatchedLora",
    "OwnModule",
    "adapt",
    "drawn_anew",
    "own",
    "usual_targets",
]

PEFT_SAVES = ("classifier", "score")
"""Ends of the names of the modules that PEFT trains and saves whole with every adapter of a classifier."""
_USUAL = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("Wqkv",), ("q", "v"))
"""Names of query and value, of which the first that a model has are adapted where PEFT has no choice for it."""
OR_ELSE = "use kind: heads or independent for this model"


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Size and place of K adapters.

    Args:
        members: K.
        rank, alpha: of every adapter; the update is (α/r) B A.
        targets: last names of the linear layers that are adapted; None takes PEFT's choice for the architecture.
        start: first adapted layer; everything below is shared and runs once.
    """

    members: int
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | None = None
    start: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or self.rank < 1:
            raise ConfigError(f"members and rank must be at least 1, got {self.members} and {self.rank}")


class BatchedLora(nn.Module):
    """y = W x + (α/r) B_k A_k x for K members at once, on rows that stand member by member.

    Args:
        base: the frozen linear layer, shared by all.
    """

    def __init__(self, base: nn.Linear, members: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.zeros(members, rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(members, base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        plain = self.base(x)
        members = self.lora_A.shape[0]
        if x.shape[0] % members:
            raise ModelError(
                f"a target is also used on {x.shape[0]} rows, which aren't those of {members} members; name others"
            )
        rows = x.reshape(members, -1, x.shape[-1])
        low = torch.bmm(rows, self.lora_A.to(x.dtype).transpose(1, 2))
        up = self.lora_B.to(x.dtype).transpose(1, 2)
        flat = plain.reshape(members, -1, plain.shape[-1])
        return torch.baddbmm(flat, low, up, alpha=self.scale).view_as(plain)


class OwnModule(nn.Module):
    """A module of which each member has its own parameters, in float32, on rows that stand member by member.

    Args:
        base: a module of one tensor, whose parameters every member begins with; it becomes the pattern.
    """

    def __init__(self, base: nn.Module, members: int) -> None:
        super().__init__()
        self.base = base
        self.names = [name for name, _ in base.named_parameters()]
        self.stacked = nn.ParameterList(
            value.detach().float().repeat(members, *[1] * value.ndim) for value in base.parameters()
        )

    def forward(self, x: Tensor) -> Tensor:
        members = len(self.stacked[0])
        rows = x.float().reshape(members, -1, *x.shape[1:])
        run = vmap(lambda values, x: functional_call(self.base, values, (x,)), randomness="different")
        modules: Tensor = run(dict(zip(self.names, self.stacked, strict=True)), rows)
        return modules.flatten(0, 1)


def adapt(trunk: nn.Module, shape: AdapterShape, targets: tuple[str, ...]) -> dict[str, BatchedLora]:
    """Wrap the targets from layer `start` on; each by its path in the trunk."""
    layers = layers_of(trunk)
    path = next(name for name, module in trunk.named_modules() if module is layers)
    modules: dict[str, BatchedLora] = {}
    others: set[str] = set()
    for place in range(shape.start, len(layers)):
        for name, module in list(layers[place].named_modules()):
            owner, _, last = name.rpartition(".")
            if not isinstance(module, nn.Linear):
                continue
            if last not in targets:
                others.add(last)
                continue
            wrapped = BatchedLora(module, shape.members, shape.rank, shape.alpha).to(module.weight.device)
            setattr(layers[place].get_submodule(owner), last, wrapped)
            modules[f"{path}.{place}.{name}"] = wrapped
    if not modules:
        there = f"set targets to some of {', '.join(sorted(others))}" if others else OR_ELSE
        raise ModelError(f"layers {shape.start} and above hold no linear layer named {' or '.join(targets)}; {there}")
    return modules


def own(classifier: nn.Module, ends: tuple[str, ...], layers: nn.ModuleList, members: int) -> dict[str, OwnModule]:
    """Give each member its own of every module that PEFT would save whole; each by its path in the classifier."""
    inside = set(layers.modules())
    owned: dict[str, OwnModule] = {}
    for path, base in list(classifier.named_modules()):
        first = next(base.parameters(), None)
        if not path.endswith(ends) or first is None or base in inside:
            continue
        if any(path.startswith(f"{outer}.") for outer in owned):
            continue
        owner, _, last = path.rpartition(".")
        owned[path] = OwnModule(base, members).to(first.device)
        setattr(classifier.get_submodule(owner), last, owned[path])
    heads = [m for module in owned.values() for m in module.modules() if isinstance(m, nn.Linear)]
    if not any(head.out_features == 1 for head in heads):
        raise ModelError(
            f"{type(classifier).__name__} has no linear layer with one output in a module named "
            f"{' or '.join(PEFT_SAVES)}, which PEFT would save with an adapter; {OR_ELSE}"
        )
    return owned


def usual_targets(model_type: str, trunk: nn.Module) -> tuple[str, ...]:
    """PEFT's choice for the architecture; where it has none, query and value by their usual names."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS  # heavy, and seldom needed

    modules = PEFTS.get(model_type)
    if isinstance(modules, list):
        return tuple(modules)
    there = {name.split(".")[-1] for name, _ in trunk.named_modules()}
    return next((names for names in _USUAL if there.issuperset(names)), _USUAL[0])


def drawn_anew(classifier: Any, missing: Sequence[str]) -> tuple[str, ...]:
    """Modules between trunk and head that the checkpoint lacks, a BERT's pooler, say: members must own them.

    PEFT would freeze and not save them, so that what was drawn in training would be lost.

    Args:
        missing: names of the parameters that weren't in the checkpoint.

    Raises:
        ModelError: the checkpoint lacks parts of the trunk itself.
    """
    prefix = f"{classifier.base_model_prefix}."
    layers = layers_of(getattr(classifier, classifier.base_model_prefix))
    paths: dict[str, None] = {}
    for name in sorted(missing):
        path = (prefix if name.startswith(prefix) else "") + name.removeprefix(prefix).split(".")[0]
        module = classifier.get_submodule(path)
        if layers in module.modules() or any(isinstance(m, nn.Embedding) for m in module.modules()):
            raise ModelError(f"the checkpoint has no {name}, a part of the trunk; give one that is complete")
        if not path.endswith(PEFT_SAVES):
            paths[path] = None
    return tuple(paths)
