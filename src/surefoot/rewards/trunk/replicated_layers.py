"""Run the upper layers of a trunk for K members at once, and the layers below them once.

Below layer `start` the batch has B rows; from there on K · B, member by member (row k · B + b). It is done by hooks,
so it works for any trunk whose layers are in a list, in training and in scoring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, ModelError

__all__ = ["classify", "layers_of", "pool_at", "replicated", "start_layer"]

_LISTS = ("layers", "h", "encoder.layer", "encoder.layers", "decoder.layers", "transformer.layer")
"""Attributes in which transformers' architectures keep their layers: Llama, Qwen, Mistral, Gemma; GPT-2; BERT; …"""


def layers_of(trunk: nn.Module) -> nn.ModuleList:
    """The trunk's layers, lowest first.

    Raises:
        ModelError: they are in no known place.
    """
    for path in _LISTS:
        part: Any = trunk
        for name in path.split("."):
            part = getattr(part, name, None)
        if isinstance(part, nn.ModuleList):
            return part
    raise ModelError(
        f"{type(trunk).__name__} keeps its layers in none of {', '.join(_LISTS)}: members can't share the lower ones"
    )


def start_layer(trunk: nn.Module, share: float) -> int:
    """Number of the layer at a share of the depth: 0 is the lowest, 2/3 of 6 layers is layer 4.

    Raises:
        ConfigError: not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"start must be a share of the depth in [0, 1), got {share}")
    return round(share * len(layers_of(trunk)))


@contextmanager
def replicated(trunk: nn.Module, start: int, copies: int) -> Iterator[None]:
    """Inside, make a forward of the trunk on B rows give K · B rows.

    Args:
        start: first layer that the members don't share.
        copies: K.
    """
    layers = layers_of(trunk)
    if not 0 <= start < len(layers):
        raise ConfigError(f"start must be a layer from 0 to {len(layers) - 1}, got {start}")
    state = _State(copies)
    handles = [
        layer.register_forward_pre_hook(state.at_start if i == start else state.above, with_kwargs=True)
        for i, layer in enumerate(layers)
        if i >= start
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def classify(model: Any, ids: Tensor, mask: Tensor, start: int, copies: int) -> Tensor:
    """A classifier's outputs for K members, (K, B, outputs), from B rows of ids and mask.

    The classifier is given K · B rows, so that the code around its trunk needs no change; the trunk takes the first B
    of them and gives K · B again from layer `start` on.
    """
    trunk: nn.Module = getattr(model, model.base_model_prefix)
    rows = len(ids)

    def first(value: Any) -> Any:
        return value[:rows] if isinstance(value, Tensor) and value.shape[:1] == (rows * copies,) else value

    def shrink(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(first, args)), {name: first(value) for name, value in kwargs.items()}

    handle = trunk.register_forward_pre_hook(shrink, with_kwargs=True)
    try:
        with replicated(trunk, start, copies):
            logits: Tensor = model(input_ids=ids.repeat(copies, 1), attention_mask=mask.repeat(copies, 1)).logits
    finally:
        handle.remove()
    return logits.view(copies, rows, -1)


class _State:
    """State of one forward: the number of rows below layer `start`, and the copies already made."""

    def __init__(self, copies: int) -> None:
        self.copies = copies
        self.rows = 0
        self.made: dict[int, tuple[Tensor, Tensor]] = {}

    def at_start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.rows = hidden.shape[0]
        self.made = {}
        return self._copied(args), self._copied(kwargs)

    def above(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args[0], *self._copied(args[1:])) if args else args, self._copied(kwargs)

    def _copied(self, value: Any) -> Any:
        """Repeat every tensor of B rows K times, so that masks and positions match the hidden states."""
        if isinstance(value, dict):
            return {
                name: inner if self._is_hidden(name, inner) else self._copied(inner) for name, inner in value.items()
            }
        if isinstance(value, tuple):
            return tuple(self._copied(inner) for inner in value)
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != self.rows:
            return value
        # With one row, positions broadcast, and some models need them to have one row (DeBERTa's relative positions).
        if self.rows == 1 and value.dtype == torch.long:
            return value
        if id(value) not in self.made:
            self.made[id(value)] = (value, value.repeat(self.copies, *[1] * (value.ndim - 1)))
        return self.made[id(value)][1]

    def _is_hidden(self, name: str, value: Any) -> bool:
        return name == "hidden_states" and isinstance(value, Tensor) and value.shape[0] == self.rows * self.copies > 1


def pool_at(states: Tensor, places: list[int]) -> Tensor:
    """States (K, B, features) at one position of each row, from (K · B, length, features)."""
    rows = len(places)
    states = states.view(-1, rows, *states.shape[1:])
    return states[:, torch.arange(rows, device=states.device), torch.tensor(places, device=states.device)]
