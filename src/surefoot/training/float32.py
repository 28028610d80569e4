"""A model's forward in float32, though its weights, or its training, are in half precision.

The log-ratio ln π/π₀ of a completion is a small difference of two large sums. In bf16 every layer rounds to 8 bits,
and a policy that has moved a little rounds otherwise than its reference: the error is several times the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_float32", "in_half_precision"]

_HALF = (torch.bfloat16, torch.float16)


def in_half_precision(model: nn.Module, mixed_precision: str) -> bool:
    """Whether a forward of the model rounds to bf16 or fp16.

    Args:
        mixed_precision: of the accelerator ("no", "bf16", …).
    """
    return mixed_precision in ("bf16", "fp16") or any(value.dtype in _HALF for value in model.parameters())


@contextmanager
def in_float32(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Inside, a forward of the model without a gradient is computed in float32, without autocast and dropout.

    Weights are raised a layer at a time, so that the memory of one layer is needed besides that of the embeddings.
    Layers that are quantized keep the precision of their own kernels.

    Args:
        model: whole on this process, neither sharded nor offloaded; with adapters or without.
        accelerator: accelerate's, whose autocast it was prepared for.
    """
    layers = _layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(_without_autocast(model, accelerator))
        stack.enter_context(_without_flash(model))
        stack.enter_context(_raised(module for module in model.modules() if module not in inside))
        for layer in layers:
            stack.enter_context(_raised_while_run(layer))
        yield


def _layers(model: nn.Module) -> nn.ModuleList | list[nn.Module]:
    """The list of modules that holds the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(value.numel() for value in layers.parameters()), default=[])


@contextmanager
def _without_autocast(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """accelerate wraps a model's forward in autocast, the plain one kept beside it; TRL asks it for autocast too."""
    wrapped, plain = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    native, accelerator.native_amp = accelerator.native_amp, False
    if plain is not None:
        model.forward = plain
    try:
        yield
    finally:
        accelerator.native_amp = native
        if plain is not None:
            model.forward = wrapped  # type: ignore[assignment]


@contextmanager
def _without_flash(model: Any) -> Iterator[None]:
    """Flash attention knows half precision only."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    held = [(config, config._attn_implementation) for config in configs]
    for config, name in held:
        if name is not None and "flash" in name:
            config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, name in held:
            config._attn_implementation = name


@contextmanager
def _raised(modules: Iterable[nn.Module]) -> Iterator[None]:
    held = _raise(modules)
    try:
        yield
    finally:
        _lower(held)


@contextmanager
def _raised_while_run(layer: nn.Module) -> Iterator[None]:
    held: list[tuple[dict[str, Any], str, Tensor]] = []

    def before(module: nn.Module, args: Any) -> None:
        held.extend(_raise(module.modules()))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        _lower(held)
        held.clear()

    handles = (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _raise(modules: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Put float32 copies where half-precision parameters and buffers stand; gives what stood there.

    The parameters themselves stay as they are: optimizers and DDP hold on to them.
    """
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    for module in modules:
        for place, wrap in ((module._parameters, True), (module._buffers, False)):
            for name, value in place.items():
                if value is None or value.dtype not in _HALF:
                    continue
                if id(value) not in copies:  # tied weights are copied once
                    copy = value.detach().float()
                    copies[id(value)] = nn.Parameter(copy, requires_grad=False) if wrap else copy
                held.append((place, name, value))
                place[name] = copies[id(value)]  # type: ignore[assignment]
    return held


def _lower(held: list[tuple[dict[str, Any], str, Tensor]]) -> None:
    for place, name, value in held:
        place[name] = value
